"""h5ad files, however anndata and others lay them out, pass the suite."""

import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest

from scvi_dist.data import Range, Store, open_store
from scvi_dist.errors import StoreCorrupt
from scvi_dist.testing import StoreConformance, dense_of, rows_of, small_atlas, write_atlas


class TestH5ad(StoreConformance):
    def make_store(self, adata: Any, folder: Path) -> Store:
        return open_store(write_atlas(adata, folder / "atlas.h5ad"))


class TestH5adDenseCompressed(StoreConformance):
    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        adata.X = adata.X.toarray()
        return open_store(write_atlas(adata, folder / "atlas.h5ad", compression="gzip"))


@dataclass(frozen=True)
class Encoding:
    """How the indices and the values of X are stored."""

    options: dict[str, Any]
    """Of ``create_dataset``."""
    index_dtype: str = "<i4"
    value_dtype: str = "<f4"

    @property
    def shows_reads(self) -> bool:
        """Whether there are chunks that hold no wanted row, and noise in them is noticed."""
        return "compression" in self.options and self.options["chunks"][0] < 1000


ENCODINGS = {
    "gzip": Encoding({"chunks": (11,), "compression": "gzip"}),
    "gzip shuffled": Encoding(
        {"chunks": (64,), "compression": "gzip", "shuffle": True}, index_dtype="<i8"
    ),
    "gzip one chunk": Encoding(
        {"chunks": (100_000,), "maxshape": (None,), "compression": "gzip"}, value_dtype="<i2"
    ),
    "gzip checked": Encoding(
        {"chunks": (16,), "compression": "gzip", "fletcher32": True}, index_dtype="<i2"
    ),
    "lzf": Encoding({"chunks": (16,), "compression": "lzf"}),
    "chunks": Encoding({"chunks": (32,)}, value_dtype="|u1"),
    "contiguous": Encoding({}, index_dtype="<u2", value_dtype="<f8"),
    "big endian": Encoding(
        {"chunks": (32,), "compression": "gzip"}, index_dtype=">i4", value_dtype=">f4"
    ),
}


def encode_x(path: Path, encoding: Encoding) -> None:
    """Write the indices and values of X again."""
    with h5py.File(path, "r+") as file:
        for name, dtype in (("indices", encoding.index_dtype), ("data", encoding.value_dtype)):
            values = file[f"X/{name}"][:].astype(dtype)
            del file[f"X/{name}"]
            file["X"].create_dataset(name, data=values, **encoding.options)


def spoil_x(path: Path, keep: Range) -> int:
    """Overwrite the chunks of X without an entry of the rows to keep; how many there were.

    As a failing disk does it: the file keeps its time of change.
    """
    places, times = [], path.stat()
    with h5py.File(path, "r") as file:
        first, last = file["X/indptr"][list(keep)]
        for array in (file["X/data"], file["X/indices"]):
            for i in range(array.id.get_num_chunks()):
                stored = array.id.get_chunk_info(i)
                start = stored.chunk_offset[0]
                if start + array.chunks[0] <= first or start >= last:
                    places.append((stored.byte_offset, stored.size))
    with open(path, "r+b") as raw:
        for offset, size in places:
            raw.seek(offset)
            raw.write(b"\xff" * size)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return len(places)


class TestH5adGzip(StoreConformance):
    starts_process = False

    def make_store(self, adata: Any, folder: Path) -> Store:
        path = write_atlas(adata, folder / "atlas.h5ad")
        encode_x(path, ENCODINGS["gzip shuffled"])
        return open_store(path)

    def spoil_other_rows(self, store: Store, folder: Path, keep: Range) -> bool:
        return spoil_x(folder / "atlas.h5ad", keep) > 10


class TestH5adRemote(StoreConformance):
    """Behind a URL; fsspec's file system in memory stands for an object store."""

    starts_process = False

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _empty_afterwards(cls) -> Any:
        yield
        fsspec.filesystem("memory").store.clear()

    def make_store(self, adata: Any, folder: Path) -> Store:
        path = write_atlas(adata, folder / "atlas.h5ad")
        url = f"memory:/{folder}/atlas.h5ad"
        with fsspec.open(url, "wb") as file:
            file.write(path.read_bytes())
        return open_store(url)


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


@pytest.fixture(scope="module")
def atlas() -> Any:
    return small_atlas(n=200, seed=4)


@pytest.fixture(scope="module")
def written(atlas: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_atlas(atlas, tmp_path_factory.mktemp("written") / "atlas.h5ad")


@pytest.mark.parametrize("name", ENCODINGS)
def test_rows_of_every_encoding(name: str, atlas: Any, written: Path, tmp_path: Path) -> None:
    encoding = ENCODINGS[name]
    path = tmp_path / "atlas.h5ad"
    shutil.copy(written, path)
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
        with open_store(path) as store:
            ranges = [(91, 95), (100, 110)]
            block = store.read_rows(ranges)
            np.testing.assert_array_equal(block.to_dense(), expected[rows_of(ranges)])
            with pytest.raises(StoreCorrupt, match=r"atlas\.h5ad: X/"):
                store.read_rows([(0, 200)])
