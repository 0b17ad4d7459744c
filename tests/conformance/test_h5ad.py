"""h5ad files, however anndata and others lay them out, pass the suite."""

import warnings
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest

from scvi_dist.data import Range, Store, open_store
from scvi_dist.testing import StoreConformance, write_atlas


class TestH5ad(StoreConformance):
    def make_store(self, adata: Any, folder: Path) -> Store:
        return open_store(write_atlas(adata, folder / "atlas.h5ad"))


class TestH5adDenseCompressed(StoreConformance):
    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        adata.X = adata.X.toarray()
        return open_store(write_atlas(adata, folder / "atlas.h5ad", compression="gzip"))


class RewrittenH5ad(StoreConformance):
    """An h5ad file whose X was written again with other chunks and filters."""

    starts_process = False
    storage: ClassVar[dict[str, Any]]
    """Options of ``create_dataset``."""
    index_dtype: Any = "<i4"
    value_dtype: Any = "<f4"

    def make_store(self, adata: Any, folder: Path) -> Store:
        path = write_atlas(adata, folder / "atlas.h5ad")
        with h5py.File(path, "r+") as file:
            group = file["X"]
            for name, dtype in (("indices", self.index_dtype), ("data", self.value_dtype)):
                values = group[name][:].astype(dtype)
                del group[name]
                group.create_dataset(name, data=values, **self.storage)
        return open_store(path)

    def spoil_other_rows(self, store: Store, folder: Path, keep: Range) -> bool:
        if "compression" not in self.storage:
            return False  # uncompressed noise is read without a complaint
        path = folder / "atlas.h5ad"
        spoilt = 0
        with h5py.File(path, "r") as file:
            first, last = file["X/indptr"][list(keep)]
            chunk = file["X/data"].chunks[0]
            places = []
            for array in (file["X/data"], file["X/indices"]):
                for i in range(array.id.get_num_chunks()):
                    info = array.id.get_chunk_info(i)
                    start = info.chunk_offset[0]
                    if start + chunk <= first or start >= last:
                        places.append((info.byte_offset, info.size))
        with open(path, "r+b") as raw:
            for offset, size in places:
                raw.seek(offset)
                raw.write(b"\xff" * size)
                spoilt += 1
        assert spoilt > 10
        return True


class TestH5adGzip(RewrittenH5ad):
    storage: ClassVar[dict[str, Any]] = {"chunks": (11,), "compression": "gzip"}


class TestH5adGzipShuffled(RewrittenH5ad):
    storage: ClassVar[dict[str, Any]] = {"chunks": (64,), "compression": "gzip", "shuffle": True}
    index_dtype = "<i8"


class TestH5adLzf(RewrittenH5ad):
    """A filter that only HDF5 itself decodes."""

    storage: ClassVar[dict[str, Any]] = {"chunks": (16,), "compression": "lzf"}


class TestH5adOneChunk(RewrittenH5ad):
    storage: ClassVar[dict[str, Any]] = {
        "chunks": (100_000,),
        "maxshape": (None,),
        "compression": "gzip",
    }

    def spoil_other_rows(self, store: Store, folder: Path, keep: Range) -> bool:
        return False


class TestH5adContiguous(RewrittenH5ad):
    storage: ClassVar[dict[str, Any]] = {}
    index_dtype = "<u2"


class TestH5adBigEndian(RewrittenH5ad):
    storage: ClassVar[dict[str, Any]] = {"chunks": (32,)}
    index_dtype = ">i4"
    value_dtype = ">f4"


class RemoteH5ad(StoreConformance):
    """Behind a URL; fsspec's file system in memory stands for an object store."""

    in_other_processes = True
    starts_process = False
    compression: str | None = None

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _empty_afterwards(cls) -> Any:
        yield
        _clear_memory()

    def make_store(self, adata: Any, folder: Path) -> Store:
        import fsspec

        path = write_atlas(adata, folder / "atlas.h5ad", compression=self.compression)
        url = f"memory:/{folder}/atlas.h5ad"
        with fsspec.open(url, "wb") as file:
            file.write(path.read_bytes())
        return open_store(url)


class TestH5adRemote(RemoteH5ad):
    pass


class TestH5adRemoteGzip(RemoteH5ad):
    compression = "gzip"


def _clear_memory() -> None:
    import fsspec

    fsspec.filesystem("memory").store.clear()


class TestH5adOfAnndata07(StoreConformance):
    """The layout of anndata 0.7: categories aside, attributes as bytes, no array encodings."""

    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        path = folder / "old.h5ad"
        write_old_layout(adata, path)
        return open_store(path)


def write_old_layout(adata: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_atlas(adata, path)
    with h5py.File(path, "r+") as file:
        tables = ["obs", "var", "raw/var", "obsm/proteins"]
        for table in (file[name] for name in tables):
            _age_table(table)
        for matrix in (file["X"], file["layers/counts"], file["raw/X"]):
            matrix.attrs["encoding-type"] = np.bytes_("csr_matrix")
        for group in (file, file["layers"], file["obsm"], file["uns"]):
            for name in list(group.attrs):
                del group.attrs[name]
        for array in (file["obsm/pca"], file["layers/spliced"]):
            for name in list(array.attrs):
                del array.attrs[name]


def _age_table(table: h5py.Group) -> None:
    table.attrs["_index"] = np.bytes_(str(table.attrs["_index"]))
    for name in list(table):
        column = table[name]
        if isinstance(column, h5py.Dataset):
            for attribute in list(column.attrs):
                del column.attrs[attribute]
        elif "categories" in column:
            codes, ordered = column["codes"][:], bool(column.attrs["ordered"])
            categories = column["categories"][:]
            del table[name]
            stored = table.create_dataset(f"__categories/{name}", data=categories)
            stored.attrs["ordered"] = ordered
            table.create_dataset(name, data=codes).attrs["categories"] = stored.ref
