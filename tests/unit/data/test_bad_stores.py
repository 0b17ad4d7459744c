"""Stores that are damaged, incomplete or not stores: one clear error that names the place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from scvi_dist.data import open_store
from scvi_dist.errors import StoreCorrupt, StoreError, StoreNotFound, UnsupportedStore
from scvi_dist.testing import small_atlas, write_atlas


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("good")
    adata = small_atlas()
    return {
        "h5ad": write_atlas(adata, folder / "a.h5ad"),
        "zarr": write_atlas(adata, folder / "a.zarr"),
    }


@pytest.fixture(params=["h5ad", "zarr"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def path(kind: str, good: dict[str, Path], tmp_path: Path) -> Path:
    copy = tmp_path / f"a.{kind}"
    (shutil.copytree if kind == "zarr" else shutil.copy)(good[kind], copy)
    return copy


Edit = Callable[[np.ndarray], np.ndarray]


def edit(path: Path, name: str, change: Edit) -> None:
    """Replace an array of a store by a changed one."""
    if path.suffix == ".h5ad":
        with h5py.File(path, "r+") as file:
            values = change(file[name][:])
            del file[name]
            file[name] = values
        return
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    values = change(root[name][:])
    del root[name]
    root.create_array(name, data=values)
    root.update_attributes({})  # drops the consolidated metadata


def at(place: int, value: int) -> Edit:
    def change(values: np.ndarray) -> np.ndarray:
        values[place] = value
        return values

    return change


def swap_first(values: np.ndarray) -> np.ndarray:
    values[[3, 4]] = values[[4, 3]]
    return values


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("X/indptr", swap_first, r"row pointers fall .* at row 3"),
        ("X/indptr", at(0, 1), r"go from 1 to"),
        ("X/indptr", at(-1, 10_000), r"to 10000, expected"),
        ("X/indptr", lambda v: v[:-1], r"57 rows need 58 row pointers"),
        ("X/indices", lambda v: v[:-5], r"as many indices as values"),
        ("X/data", lambda v: v[:-5], r"as many indices as values"),
        ("X/indices", at(0, 23), r"row 0 has a value for gene 23; there are 23 genes"),
        ("X/indices", at(-1, -1), r"row 56 has a value for gene -1"),
    ],
)
def test_contradictions_are_named(path: Path, name: str, change: Edit, message: str) -> None:
    edit(path, name, change)
    with pytest.raises(StoreCorrupt, match=message) as raised:
        open_store(path).read_rows([(0, 57)])
    assert str(path) in str(raised.value)


def test_a_gene_twice_in_a_row_is_named(path: Path) -> None:
    store = open_store(path)
    block = store.read_rows([(0, 57)])
    row = int(np.flatnonzero(np.diff(block.indptr) >= 2)[3])
    store.close()
    first = int(block.indptr[row])
    edit(path, "X/indices", at(first + 1, block.indices[first]))
    with open_store(path) as damaged:
        with pytest.raises(StoreCorrupt, match=rf"row {row} has gene .* twice"):
            damaged.read_rows([(0, 1), (row, 57)])
        assert damaged.read_rows([(0, row), (row + 1, 57)]).n_cells == 56


def test_equal_genes_at_the_border_of_rows_are_fine(path: Path) -> None:
    edit(path, "X/indptr", lambda v: np.minimum(np.arange(58), 3).astype(v.dtype))
    edit(path, "X/indices", lambda v: np.full(3, 7, dtype=v.dtype))
    edit(path, "X/data", lambda v: np.ones(3, dtype=v.dtype))
    with open_store(path) as store:
        assert store.read_rows([(0, 57)]).indices.tolist() == [7, 7, 7]
        assert store.read_rows([(1, 2), (2, 57)]).indices.tolist() == [7, 7]


@pytest.mark.parametrize("table", ["obs", "var"])
def test_tables_of_another_length(path: Path, table: str) -> None:
    edit(path, f"{table}/_index", lambda v: v[:-1])
    with pytest.raises(StoreCorrupt, match=r"X is 57 x 23, but there are"):
        open_store(path)


def test_columns_of_another_length(path: Path) -> None:
    edit(path, "obs/depth", lambda v: v[:-1])
    edit(path, "obsm/pca", lambda v: v[:-1])
    with open_store(path) as store:
        with pytest.raises(StoreCorrupt, match="'depth' of obs has 56 values for 57 rows"):
            store.read_obs(["depth"], 0, 1)
        with pytest.raises(StoreCorrupt, match="obsm/pca has 56 rows for 57 cells"):
            store.read_obsm("pca", [(0, 1)])


def test_an_index_that_is_not_there(path: Path) -> None:
    if path.suffix == ".h5ad":
        with h5py.File(path, "r+") as file:
            file["obs"].attrs["_index"] = "nowhere"
    else:
        zarr.open_group(path, mode="r+")["obs"].attrs["_index"] = "nowhere"
        zarr.open_group(path, mode="r+", use_consolidated=False).update_attributes({})
    with pytest.raises(StoreCorrupt, match="obs names 'nowhere' as its index"):
        open_store(path)


def test_a_matrix_without_its_parts(path: Path) -> None:
    if path.suffix == ".h5ad":
        with h5py.File(path, "r+") as file:
            del file["X/indices"]
    else:
        root = zarr.open_group(path, mode="r+", use_consolidated=False)
        del root["X/indices"]
        root.update_attributes({})
    with pytest.raises(StoreCorrupt, match="CSR matrix without X/indices"):
        open_store(path)


def test_what_is_not_an_anndata(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "h5ad":
        with h5py.File(path, "w") as file:
            file["matrix/data"] = [1]
    else:
        zarr.open_group(path, mode="w").create_array("matrix/data", data=np.ones(1))
    with pytest.raises(UnsupportedStore, match="no obs, only matrix"):
        open_store(path)


@pytest.mark.parametrize("size", [0, 5, 700, 20_000])
def test_truncated_h5ad(good: dict[str, Path], tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.h5ad"
    whole = good["h5ad"].read_bytes()
    assert len(whole) > 20_000
    path.write_bytes(whole[:size])
    with pytest.raises(StoreCorrupt, match=rf"cut\.h5ad cannot be opened.*{size} bytes"):
        open_store(path)


def test_h5ad_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "a.h5ad"
    path.write_text("barcode,gene\n")
    with pytest.raises(UnsupportedStore, match=r"not an HDF5 file.*b'barcode,'"):
        open_store(path)
    (tmp_path / "folder.h5ad").mkdir()
    with pytest.raises(UnsupportedStore, match="is a folder"):
        open_store(tmp_path / "folder.h5ad")


def test_zarr_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(UnsupportedStore, match="not a Zarr group"):
        open_store(tmp_path / "empty.zarr")
    zarr.create_array(tmp_path / "array.zarr", data=np.ones(3))
    with pytest.raises(UnsupportedStore, match="not a Zarr group"):
        open_store(tmp_path / "array.zarr")


@pytest.mark.parametrize("metadata", ["zarr.json", "X/data/zarr.json"])
@pytest.mark.parametrize("content", ["", "{", '{"zarr_format": 9}'])
def test_zarr_with_damaged_metadata(
    good: dict[str, Path], tmp_path: Path, metadata: str, content: str
) -> None:
    path = tmp_path / "a.zarr"
    shutil.copytree(good["zarr"], path)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    root.update_attributes({})
    (path / metadata).write_text(content)
    with pytest.raises(StoreError, match=r"a\.zarr"):
        open_store(path)


@pytest.mark.parametrize("part", ["data", "indices", "indptr"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_zarr_with_a_damaged_chunk(
    good: dict[str, Path], tmp_path: Path, part: str, damage: str
) -> None:
    path = tmp_path / "a.zarr"
    shutil.copytree(good["zarr"], path)
    chunk = path / "X" / part / "c" / "0"
    if damage == "missing":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[:-9] if damage == "cut" else b"")
    with open_store(path) as store, pytest.raises(StoreCorrupt, match=r"a\.zarr: .*X"):
        store.read_rows([(0, 57)])


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_zarr_with_a_damaged_shard_index(tmp_path: Path, damage: str) -> None:
    path = write_atlas(small_atlas(), tmp_path / "a.zarr")
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    values = root["X/data"][:]
    del root["X/data"]
    array = root["X"].create_array(
        "data", shape=values.shape, dtype=values.dtype, chunks=(16,), shards=(10_000,)
    )
    array[:] = values
    root.update_attributes({})
    shard = path / "X" / "data" / "c" / "0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-40] if damage == "cut" else whole[:-40] + b"\x01" * 40)
    with open_store(path) as store, pytest.raises(StoreCorrupt, match="index of shard"):
        store.read_rows([(0, 57)])


def test_nothing_there(kind: str, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match=rf"nothing is at .*no\.{kind}"):
        open_store(tmp_path / f"no.{kind}")
    with pytest.raises(StoreNotFound):
        open_store(f"memory://nowhere/no.{kind}")


def test_a_closed_store_says_so(path: Path) -> None:
    store = open_store(path)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.read_rows([(0, 1)])
    assert store.locator.open().read_rows([(0, 1)]).n_cells == 1
