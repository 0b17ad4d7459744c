"""Arrays that lie in files as in memory are read past HDF5, and are what HDF5 reads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.data import open_store
from scvi_dist.data.on_disk import h5_plain
from scvi_dist.data.on_disk.h5_plain import H5Plain
from scvi_dist.data.spans import expand
from scvi_dist.errors import StoreChanged, StoreCorrupt
from scvi_dist.testing import dense_of, small_atlas, write_atlas

USER_BLOCK = 512


LOCK = threading.RLock()


def write(
    path: Path, values: np.ndarray, user_block: int = 0, chunk: int | None = None
) -> H5Plain | None:
    """The values as an array of a file, after another one; chunks take turns with another's."""
    with h5py.File(path, "w", userblock_size=user_block) as file:
        file["first"] = np.arange(1000)
        if chunk is None:
            file["x"] = values
        else:
            options = {"shape": values.shape, "dtype": values.dtype, "chunks": (chunk,)}
            arrays = [file.create_dataset(name, **options) for name in ("x", "y")]
            for start in range(0, len(values), 2 * chunk):
                for array in arrays:
                    array[start : start + 2 * chunk] = values[start : start + 2 * chunk]
                    file.flush()
        place = H5Plain.of(file["x"], str(path), LOCK)
        if place is not None:
            place.pieces()
        return place


@settings(max_examples=40)
@given(
    edges=st.sets(st.integers(0, 300), min_size=2, max_size=20),
    width=st.sampled_from([None, 1, 7]),
    stored=st.sampled_from(["<i4", "<i8", "<f4", "|u1", "<u2"]),
    wanted=st.sampled_from([None, "<i4", "<f8"]),
    user_block=st.sampled_from([0, USER_BLOCK]),
    scratch=st.sampled_from([1, 64, 1 << 20]),
    chunk=st.sampled_from([None, 1, 7, 100, 299, 300]),
)
def test_members_are_those_that_hdf5_reads(
    tmp_path_factory: pytest.TempPathFactory,
    edges: set[int],
    width: int | None,
    stored: str,
    wanted: str | None,
    user_block: int,
    scratch: int,
    chunk: int | None,
) -> None:
    shape = (300,) if width is None or chunk is not None else (300, width)
    values = np.random.default_rng(0).integers(0, 200, shape).astype(stored)
    place = write(tmp_path_factory.mktemp("h5") / "a.h5", values, user_block, chunk)
    assert place is not None
    if chunk == 100:
        assert len(place.pieces().firsts) > 1
    bounds = sorted(edges)[: len(edges) // 2 * 2]
    spans = np.array(bounds, dtype=np.int64).reshape(-1, 2)
    rows = expand(spans)
    out = np.full((len(rows), *shape[1:]), -1).astype(wanted or stored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(h5_plain, "_SCRATCH_BYTES", scratch)
        place.read(spans, out)
    np.testing.assert_array_equal(out, values[rows])


@pytest.mark.parametrize(
    ("stored", "odd"),
    [
        ("<i2", None),
        ("<i2", -1),
        *product(["<i4", "<i8"], [None, -1, 65_535, 65_536, 1 << 20, (1 << 31) - 1]),
    ],
)
@pytest.mark.parametrize("scratch", [64, 1 << 20])
def test_integers_are_made_short_where_all_fit(
    tmp_path: Path, stored: str, odd: int | None, scratch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).integers(0, 20_000, 300).astype(stored)
    if odd is not None:
        values[137] = odd
    place = write(tmp_path / "a.h5", values)
    assert place is not None
    monkeypatch.setattr(h5_plain, "_SCRATCH_BYTES", scratch)
    for spans in (np.array([[3, 100], [130, 300]]), np.array([[140, 200]])):
        rows = expand(spans)
        out = np.zeros(len(rows), np.uint16)
        fits = bool((values[rows] == values[rows].astype(np.uint16)).all())
        assert place.read_narrow(spans, out) == fits
        if fits:
            np.testing.assert_array_equal(out, values[rows])


def test_genes_are_read_in_16_bits_and_one_that_does_not_fit_is_told(tmp_path: Path) -> None:
    adata, path = small_atlas(), tmp_path / "atlas.h5ad"
    write_atlas(adata, path)
    with open_store(path) as store:
        assert store.read_rows([(0, 9)]).indices.dtype == np.uint16
        assert store.read_rows([]).indices.dtype == np.uint16
    with h5py.File(path, "r+") as file:
        # In 16 bits it would be the gene that it takes the place of.
        file["X/indices"][int(file["X/indptr"][5])] += 1 << 16
        gene = int(file["X/indices"][int(file["X/indptr"][5])])
    with open_store(path) as store:
        np.testing.assert_array_equal(store.read_rows([(6, 40)]).to_dense(), dense_of(adata)[6:40])
        with pytest.raises(StoreCorrupt, match=f"row 5 has a value for gene {gene}"):
            store.read_rows([(0, 9)])


def test_what_hdf5_alone_can_read_is_left_to_it(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("rows", data=np.ones((10, 10)), chunks=(5, 10))
        file.create_dataset("chunks", data=np.arange(100), chunks=(10,), compression="gzip")
        file.create_dataset("checked", data=np.arange(100), chunks=(10,), fletcher32=True)
        half = file.create_dataset("half", shape=(100,), dtype="i4", chunks=(10,))
        half[:50] = 1
        file.create_dataset("swapped", data=np.arange(100).astype(">i4"))
        file.create_dataset("text", data=["a", "b"])
        file.create_dataset("scalar", data=3)
        file.create_dataset("unwritten", shape=(100,), dtype="i4")
        file.create_dataset("elsewhere", shape=(10,), dtype="i4", external=[("b.raw", 0, 40)])
        layout = h5py.VirtualLayout(shape=(100,), dtype="i8")
        layout[:] = h5py.VirtualSource(file["chunks"])
        file.create_virtual_dataset("virtual", layout)
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((4,))
        h5py.h5d.create(file.id, b"compact", h5py.h5t.NATIVE_INT32, space, compact)
        for name, dataset in file.items():
            assert H5Plain.of(dataset, "a.h5", LOCK) is None, name


def test_a_file_that_ends_too_early_is_told(tmp_path: Path) -> None:
    place = write(tmp_path / "a.h5", np.arange(1000))
    assert place is not None
    with (tmp_path / "a.h5").open("r+b") as file:
        file.truncate(place.pieces().places[0] + 100 * 8)
    place.read(np.array([[0, 100]]), np.zeros(100, dtype=np.int64))
    with pytest.raises(OSError, match="ends 8 bytes before"):
        place.read(np.array([[0, 101]]), np.zeros(101, dtype=np.int64))


def test_a_store_that_was_cut_off_while_open_is_told(tmp_path: Path) -> None:
    path = write_atlas(small_atlas(n=400), tmp_path / "a.h5ad")
    with open_store(path) as store:
        store.read_rows([(0, 400)])
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 4)
        with pytest.raises(StoreChanged, match="was changed while it was read"):
            store.read_rows([(0, 400)])


def test_threads_read_side_by_side(tmp_path: Path) -> None:
    adata = small_atlas(n=400)
    expected = dense_of(adata)
    with open_store(write_atlas(adata, tmp_path / "a.h5ad")) as store:

        def read(seed: int) -> bool:
            rows = np.random.default_rng(seed).integers(0, 400, 50)
            return np.array_equal(store.read_rows_at(rows).to_dense(), expected[rows])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(80)))
