"""Zarr groups of both formats pass the suite, and rows come out of every encoding."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr
from numcodecs import LZ4, Delta, Zlib, Zstd
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from scvi_dist.data import Range, Store, open_store
from scvi_dist.errors import StoreCorrupt
from scvi_dist.testing import StoreConformance, dense_of, rows_of, small_atlas, write_atlas


@dataclass(frozen=True)
class Encoding:
    """How the indices and the values of X are stored."""

    zarr_format: int = 3
    chunk: int = 16
    options: dict[str, Any] = field(default_factory=dict)
    """Of ``create_array``."""
    index_dtype: str = "<i4"
    value_dtype: str = "<f4"
    shows_reads: bool = True
    """Whether there are chunks that hold no wanted row, and noise in them would be noticed."""


ENCODINGS = {
    "v3 blosc": Encoding(options={"compressors": BloscCodec(cname="lz4", shuffle="shuffle")}),
    "v3 gzip": Encoding(options={"compressors": GzipCodec()}),
    "v3 plain": Encoding(options={"compressors": None}, index_dtype="<u2"),
    "v3 one chunk": Encoding(chunk=10_000, options={"compressors": None}, shows_reads=False),
    "v3 shards": Encoding(options={"shards": (96,), "compressors": ZstdCodec()}),
    "v3 one shard": Encoding(
        options={"shards": (16_000,), "compressors": BloscCodec(cname="zstd")},
        index_dtype="<i8",
        shows_reads=False,
    ),
    "v3 two codecs": Encoding(options={"compressors": [ZstdCodec(), Crc32cCodec()]}),
    "v3 big endian": Encoding(index_dtype=">i2", value_dtype=">f4"),
    "v3 small counts": Encoding(index_dtype="<u2", value_dtype="|u1"),
    "v2 zlib": Encoding(2, options={"compressors": Zlib()}),
    "v2 zstd": Encoding(2, chunk=7, options={"compressors": Zstd()}),
    "v2 lz4": Encoding(2, options={"compressors": LZ4()}),
    "v2 plain": Encoding(2, options={"compressors": None}),
    "v2 delta": Encoding(
        2, options={"compressors": Zstd(), "filters": [Delta(dtype="<i4")]}, value_dtype="<i4"
    ),
    "v2 big endian": Encoding(2, index_dtype=">i4", value_dtype=">f4"),
}


def encode_x(path: Path, encoding: Encoding) -> None:
    """Write the indices and values of X again, and the metadata without consolidation."""
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    for name, dtype in (("indices", encoding.index_dtype), ("data", encoding.value_dtype)):
        values = root[f"X/{name}"][:]
        del root[f"X/{name}"]
        array = root["X"].create_array(
            name, shape=values.shape, dtype=dtype, chunks=(encoding.chunk,), **encoding.options
        )
        array[:] = values
    (path / ".zmetadata").unlink(missing_ok=True)
    root.update_attributes({})


def spoil_x(path: Path, keep: Range) -> int:
    """Overwrite the objects of X without an entry of the rows to keep; how many there were."""
    group = zarr.open_group(path / "X", mode="r")
    first, last = group["indptr"][list(keep)]
    spoilt = 0
    for name in ("data", "indices"):
        array = group[name]
        length = (array.shards or array.chunks)[0]
        for i in range(-(-array.shape[0] // length)):
            if (i + 1) * length <= first or i * length >= last:
                key = array.metadata.encode_chunk_key((i,))
                (path / "X" / name / key).write_bytes(b"\xff" * 30)
                spoilt += 1
    return spoilt


class TestZarrV3(StoreConformance):
    def make_store(self, adata: Any, folder: Path) -> Store:
        return open_store(write_atlas(adata, folder / "atlas.zarr"))


class TestZarrV2(StoreConformance):
    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        return open_store(write_atlas(adata, folder / "atlas.zarr", zarr_format=2))


class TestZarrSharded(StoreConformance):
    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        path = write_atlas(adata, folder / "atlas.zarr")
        encode_x(path, ENCODINGS["v3 shards"])
        return open_store(path)

    def spoil_other_rows(self, store: Store, folder: Path, keep: Range) -> bool:
        return spoil_x(folder / "atlas.zarr", keep) > 10


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


class TestZarrRemote(StoreConformance):
    """Behind a URL; fsspec's file system in memory stands for an object store."""

    starts_process = False

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _empty_afterwards(cls) -> Any:
        yield
        fsspec.filesystem("memory").store.clear()

    def make_store(self, adata: Any, folder: Path) -> Store:
        path = write_atlas(adata, folder / "atlas.zarr")
        encode_x(path, ENCODINGS["v3 shards"])
        url = f"memory:/{folder}/atlas.zarr"
        fsspec.filesystem("memory").put(str(path), url, recursive=True)
        return open_store(url)


@pytest.fixture(scope="module")
def atlas() -> Any:
    return small_atlas(n=200, seed=4)


@pytest.fixture(scope="module")
def written(atlas: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("written")
    return {
        version: write_atlas(atlas, folder / f"{version}.zarr", zarr_format=version)
        for version in (2, 3)
    }


@pytest.mark.parametrize("name", ENCODINGS)
def test_rows_of_every_encoding(
    name: str, atlas: Any, written: dict[int, Path], tmp_path: Path
) -> None:
    encoding = ENCODINGS[name]
    path = tmp_path / "atlas.zarr"
    shutil.copytree(written[encoding.zarr_format], path)
    encode_x(path, encoding)
    expected = dense_of(atlas)
    rng = np.random.default_rng(0)
    with open_store(path) as store:
        for _ in range(20):
            rows = np.sort(rng.choice(200, rng.integers(1, 60), replace=False))
            block = store.read_rows_at(rows)
            np.testing.assert_array_equal(block.to_dense(), expected[rows])
            assert block.data.dtype == np.dtype(encoding.value_dtype).newbyteorder("=")
        if encoding.shows_reads:
            assert spoil_x(path, (90, 110)) > 10
            ranges = [(91, 95), (100, 110)]
            block = store.read_rows(ranges)
            np.testing.assert_array_equal(block.to_dense(), expected[rows_of(ranges)])
            with pytest.raises(StoreCorrupt, match=r"atlas\.zarr: X/"):
                store.read_rows([(0, 200)])
