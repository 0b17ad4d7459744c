"""Zarr groups of both formats, however they are chunked and compressed, pass the suite."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import zarr
from numcodecs import LZ4, Delta, Zlib, Zstd
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from scvi_dist.data import Range, Store, open_store
from scvi_dist.testing import StoreConformance, write_atlas


class TestZarrV3(StoreConformance):
    def make_store(self, adata: Any, folder: Path) -> Store:
        return open_store(write_atlas(adata, folder / "atlas.zarr"))


class TestZarrV2(StoreConformance):
    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        return open_store(write_atlas(adata, folder / "atlas.zarr", zarr_format=2))


class TestZarrDense(StoreConformance):
    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        adata.X = adata.X.toarray()
        return open_store(write_atlas(adata, folder / "atlas.zarr", chunks=(16, 10)))

    def spoil_other_rows(self, store: Store, folder: Path, keep: Range) -> bool:
        for chunk in (folder / "atlas.zarr" / "X" / "c").iterdir():
            if not keep[0] // 16 <= int(chunk.name) <= (keep[1] - 1) // 16:
                for part in chunk.iterdir():
                    part.write_bytes(b"\xff" * 30)
        return True


class RewrittenZarr(StoreConformance):
    """A Zarr group whose X was written again with other chunks and codecs."""

    starts_process = False
    zarr_format = 3
    chunk = 16
    storage: ClassVar[dict[str, Any]]
    """Options of ``create_array``."""
    index_dtype: Any = "<i4"
    value_dtype: Any = "<f4"

    def make_store(self, adata: Any, folder: Path) -> Store:
        path = write_atlas(adata, folder / "atlas.zarr", zarr_format=self.zarr_format)
        root = zarr.open_group(path, mode="r+", use_consolidated=False)
        for name, dtype in (("indices", self.index_dtype), ("data", self.value_dtype)):
            values = root[f"X/{name}"][:]
            del root[f"X/{name}"]
            array = root["X"].create_array(
                name, shape=values.shape, dtype=dtype, chunks=(self.chunk,), **self.storage
            )
            array[:] = values
        for metadata in (path / "zarr.json", path / ".zmetadata"):
            if metadata.exists() and metadata.name == ".zmetadata":
                metadata.unlink()
        if self.zarr_format == 3:
            root = zarr.open_group(path, mode="r+", use_consolidated=False)
            root.update_attributes({})  # writes zarr.json without the consolidated metadata
        return open_store(path)

    def spoil_other_rows(self, store: Store, folder: Path, keep: Range) -> bool:
        group = zarr.open_group(folder / "atlas.zarr" / "X", mode="r")
        first, last = group["indptr"][list(keep)]
        spoilt = 0
        for name in ("data", "indices"):
            array = group[name]
            length = (array.shards or array.chunks)[0]
            for i in range(-(-array.shape[0] // length)):
                if (i + 1) * length <= first or i * length >= last:
                    key = array.metadata.encode_chunk_key((i,))
                    (folder / "atlas.zarr" / "X" / name / key).write_bytes(b"\xff" * 30)
                    spoilt += 1
        assert spoilt > 4
        return True


class TestZarrV3Blosc(RewrittenZarr):
    storage: ClassVar[dict[str, Any]] = {"compressors": BloscCodec(cname="lz4", shuffle="shuffle")}


class TestZarrV3Gzip(RewrittenZarr):
    storage: ClassVar[dict[str, Any]] = {"compressors": GzipCodec()}


class TestZarrV3Plain(RewrittenZarr):
    storage: ClassVar[dict[str, Any]] = {"compressors": None}
    index_dtype = "<u2"
    chunk = 1000

    def spoil_other_rows(self, store: Store, folder: Path, keep: Range) -> bool:
        return False


class TestZarrV3Sharded(RewrittenZarr):
    storage: ClassVar[dict[str, Any]] = {"shards": (96,), "compressors": ZstdCodec()}


class TestZarrV3ShardedOneShard(RewrittenZarr):
    storage: ClassVar[dict[str, Any]] = {
        "shards": (16_000,),
        "compressors": BloscCodec(cname="zstd"),
    }
    index_dtype = "<i8"

    def spoil_other_rows(self, store: Store, folder: Path, keep: Range) -> bool:
        return False


class TestZarrV3TwoCompressors(RewrittenZarr):
    """Codecs that only the zarr library decodes."""

    storage: ClassVar[dict[str, Any]] = {"compressors": [ZstdCodec(), Crc32cCodec()]}


class TestZarrV3BigEndian(RewrittenZarr):
    storage: ClassVar[dict[str, Any]] = {"compressors": ZstdCodec()}
    index_dtype = ">i4"
    value_dtype = ">f4"


class TestZarrV2Zlib(RewrittenZarr):
    zarr_format = 2
    storage: ClassVar[dict[str, Any]] = {"compressors": Zlib()}


class TestZarrV2Zstd(RewrittenZarr):
    zarr_format = 2
    storage: ClassVar[dict[str, Any]] = {"compressors": Zstd()}
    chunk = 7


class TestZarrV2Lz4(RewrittenZarr):
    zarr_format = 2
    storage: ClassVar[dict[str, Any]] = {"compressors": LZ4()}


class TestZarrV2Delta(RewrittenZarr):
    """A filter that only the zarr library undoes."""

    zarr_format = 2
    storage: ClassVar[dict[str, Any]] = {"compressors": Zstd(), "filters": [Delta(dtype="<i4")]}
    value_dtype = "<i4"

    def make_store(self, adata: Any, folder: Path) -> Store:
        adata.X = adata.X.astype(np.int32)
        return super().make_store(adata, folder)


class TestZarrV2BigEndian(RewrittenZarr):
    zarr_format = 2
    storage: ClassVar[dict[str, Any]] = {"compressors": Zstd()}
    value_dtype = ">f4"
    index_dtype = ">i4"


class RemoteZarr(StoreConformance):
    """Behind a URL; fsspec's file system in memory stands for an object store."""

    starts_process = False
    zarr_format = 3

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _empty_afterwards(cls) -> Any:
        import fsspec

        yield
        fsspec.filesystem("memory").store.clear()

    def make_store(self, adata: Any, folder: Path) -> Store:
        import fsspec

        path = write_atlas(adata, folder / "atlas.zarr", zarr_format=self.zarr_format)
        url = f"memory:/{folder}/atlas.zarr"
        fsspec.filesystem("memory").put(str(path), url, recursive=True)
        return open_store(url)


class TestZarrV3Remote(RemoteZarr):
    pass


class TestZarrV2Remote(RemoteZarr):
    zarr_format = 2
