"""For tests of stores: the suite that every adapter passes, and a small atlas to pass it with.

An adapter's test is a subclass::

    class TestMyStore(StoreConformance):
        def make_store(self, adata, folder):
            adata.write_mine(folder / "atlas.mine")
            return open_store(folder / "atlas.mine")
"""

import hashlib
import pickle
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from scvi_dist.data.open import open_store
from scvi_dist.data.simulated.small_atlas import dense_of, gene_names, small_atlas, write_atlas
from scvi_dist.data.store import Range, Store
from scvi_dist.errors import FieldNotFound, StoreError

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "RANGES",
    "StoreConformance",
    "dense_of",
    "gene_names",
    "rows_of",
    "small_atlas",
    "write_atlas",
]

RANGES: tuple[tuple[Range, ...], ...] = (
    (),
    ((4, 4),),
    ((0, 1),),
    ((0, 57),),
    ((0, 3), (3, 9), (40, 57)),
    ((2, 3), (5, 6), (9, 10), (30, 31), (56, 57)),
    ((50, 57), (0, 5), (20, 25)),
    ((3, 9), (5, 12), (3, 9), (11, 11)),
)
"""Ranges of rows of an atlas of 57 cells: none, empty, one, all, ascending, scattered, descending,
overlapping."""


def rows_of(ranges: Sequence[Range]) -> np.ndarray:
    """int64: every row of every range, in order."""
    rows = [row for start, stop in ranges for row in range(start, stop)]
    return np.array(rows, dtype=np.int64)


class StoreConformance(ABC):
    """What every store does. Subclass it and give ``make_store``."""

    in_other_processes = True
    """Whether the locator can be opened in another process."""
    starts_process = True
    """Whether to show that by starting one (a second or two)."""

    @abstractmethod
    def make_store(self, adata: "AnnData", folder: Path) -> Store:
        """A store of X of this AnnData; what it needs on disk goes below the folder."""

    def spoil_other_rows(self, store: Store, folder: Path, keep: Range) -> bool:
        """Destroy what is stored of rows outside ``keep``; ``False`` if there is no way to."""
        return False

    @pytest.fixture(scope="class")
    @classmethod
    def adata(cls) -> "AnnData":
        return small_atlas()

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("store")

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, adata: "AnnData", folder: Path) -> Iterator[Store]:
        with cls().make_store(adata, folder) as store:
            yield store

    # what there is

    def test_shape_and_names(self, store: Store, adata: "AnnData") -> None:
        assert store.shape == adata.shape == (store.n_obs, store.n_vars)
        assert store.var_names.dtype == object
        assert store.var_names.tolist() == adata.var_names.tolist()
        assert store.obs_names().tolist() == adata.obs_names.tolist()
        assert store.obs_names(5, 9).tolist() == adata.obs_names[5:9].tolist()
        assert store.obs_names(9, 9).tolist() == []

    def test_storage_hints(self, store: Store, adata: "AnnData") -> None:
        nonzeros = np.count_nonzero(dense_of(adata))
        assert 1 <= store.chunk_rows <= max(1, store.n_obs)
        assert store.bytes_per_cell == pytest.approx(8 + 8 * nonzeros / adata.n_obs, rel=0.2)

    # rows

    @pytest.mark.parametrize("ranges", RANGES, ids=str)
    def test_rows_come_in_the_order_of_the_ranges(
        self, store: Store, adata: "AnnData", ranges: Sequence[Range]
    ) -> None:
        block = store.read_rows(ranges)
        np.testing.assert_array_equal(block.to_dense(), dense_of(adata)[rows_of(ranges)])

    def test_rows_are_valid_csr(self, store: Store, adata: "AnnData") -> None:
        block = store.read_rows([(0, 9), (20, 40)])
        assert block.indptr.dtype == np.int64
        assert block.indptr[0] == 0
        assert block.indptr[-1] == len(block.indices) == len(block.data)
        assert block.indices.dtype.kind in "iu"
        assert block.data.dtype == dense_of(adata).dtype
        assert block.n_genes == store.n_vars
        cells = np.repeat(np.arange(block.n_cells), np.diff(block.indptr))
        pairs = set(zip(cells.tolist(), block.indices.tolist(), strict=True))
        assert len(pairs) == len(block.indices)

    def test_rows_in_memory_are_all_rows(self, store: Store, adata: "AnnData") -> None:
        rows = store.rows_in_memory()
        if rows is not None:
            np.testing.assert_array_equal(rows.to_dense(), dense_of(adata))

    def test_rows_at_any_place_any_number_of_times(self, store: Store, adata: "AnnData") -> None:
        rows = np.random.default_rng(3).integers(0, store.n_obs, 100)
        np.testing.assert_array_equal(store.read_rows_at(rows).to_dense(), dense_of(adata)[rows])
        assert store.read_rows_at(np.zeros(0, dtype=np.int64)).n_cells == 0

    @pytest.mark.parametrize(
        "genes", [[7], [22, 0, 13, 5], list(range(22, -1, -1)), list(range(23)), []], ids=len
    )
    def test_genes_are_selected_and_ordered(
        self, store: Store, adata: "AnnData", genes: list[int]
    ) -> None:
        chosen = np.array(genes, dtype=np.int64)
        for ranges in RANGES:
            block = store.read_rows(ranges, chosen)
            assert block.n_genes == len(genes)
            expected = dense_of(adata)[rows_of(ranges)][:, chosen]
            np.testing.assert_array_equal(block.to_dense(), expected)

    def test_what_does_not_exist_is_refused(self, store: Store) -> None:
        n, g = store.shape
        for outside in ([(0, n + 1)], [(-1, 2)], [(n, n + 1)], [(3, 2)], [(0, 1), (n + 5, n + 9)]):
            with pytest.raises(IndexError):
                store.read_rows(outside)
            with pytest.raises(IndexError):
                store.read_obsm("pca", outside)
        for start, stop in ((0, n + 1), (-1, 2)):
            with pytest.raises(IndexError):
                store.obs_names(start, stop)
            with pytest.raises(IndexError):
                store.read_obs(["batch"], start, stop)
        for row in (-1, n):
            with pytest.raises(IndexError):
                store.read_rows_at(np.array([0, row]))
        for gene in (-1, g):
            with pytest.raises(IndexError):
                store.read_rows([(0, 1)], np.array([gene]))
        with pytest.raises(ValueError, match="twice"):
            store.read_rows([(0, 1)], np.array([1, 1]))

    def test_what_was_read_belongs_to_the_caller(self, store: Store, adata: "AnnData") -> None:
        block = store.read_rows([(2, 9)])
        block.data[:] = -1
        block.indices[:] = 0
        store.read_obsm("pca", [(2, 9)])[:] = -1
        table = store.read_obs(["depth"], 2, 9)
        table["depth"] = -1.0
        self.test_rows_come_in_the_order_of_the_ranges(store, adata, [(2, 9)])
        self.test_obsm(store, adata, "pca")
        assert (store.read_obs(["depth"], 2, 9)["depth"] >= 0).all()

    # obs

    def test_obs_columns_and_their_kinds(self, store: Store) -> None:
        assert store.obs_columns == {
            "batch": "category",
            "donor": "category",
            "plate": "category",
            "barcode": "string",
            "depth": "number",
            "n_reads": "number",
            "age": "number",
            "is_doublet": "bool",
        }

    @pytest.mark.parametrize("window", [(0, None), (5, 9), (9, 9), (56, 57)], ids=str)
    def test_obs_values(
        self, store: Store, adata: "AnnData", window: tuple[int, int | None]
    ) -> None:
        columns = ["is_doublet", *(name for name in adata.obs.columns if name != "is_doublet")]
        table = store.read_obs(columns, *window)
        expected = adata.obs[columns].iloc[slice(*window)].reset_index(drop=True)
        pd.testing.assert_frame_equal(table, expected, check_index_type=False)

    def test_categories_are_all_there_in_order(self, store: Store) -> None:
        for window in ((0, None), (3, 4), (7, 7)):
            table = store.read_obs(["batch", "donor", "plate"], *window)
            assert table["batch"].cat.categories.tolist() == ["late", "early", "mid", "never"]
            assert table["donor"].cat.categories.tolist() == ["d1", "d0"]
            assert table["plate"].cat.categories.tolist() == [7, 3]
            assert table["plate"].cat.ordered

    def test_unknown_names_are_refused_with_the_nearest(self, store: Store) -> None:
        with pytest.raises(FieldNotFound, match="did you mean 'batch'"):
            store.read_obs(["depth", "Batch"])
        with pytest.raises(FieldNotFound, match="did you mean 'pca'"):
            store.read_obsm("pcas", [(0, 1)])
        with pytest.raises(FieldNotFound, match="did you mean 'counts'"):
            open_store(store, layer="count")

    # obsm

    @pytest.mark.parametrize("key", ["pca", "proteins"])
    def test_obsm(self, store: Store, adata: "AnnData", key: str) -> None:
        expected = np.asarray(adata.obsm[key], dtype=np.float32)
        assert store.obsm_keys == {"pca": 5, "proteins": 3}
        for ranges in RANGES:
            values_nk = store.read_obsm(key, ranges)
            assert values_nk.dtype == np.float32
            np.testing.assert_array_equal(values_nk, expected[rows_of(ranges)])

    def test_obsm_tables_have_column_names(self, store: Store) -> None:
        assert store.obsm_columns("proteins") == ("CD3", "CD4", "CD8")
        assert store.obsm_columns("pca") is None

    # layers

    @pytest.mark.parametrize("layer", ["counts", "spliced"])
    def test_layers(self, store: Store, adata: "AnnData", layer: str) -> None:
        assert set(store.layers) >= {"counts", "spliced"}
        with open_store(store, layer=layer) as other:
            assert other.locator.layer == layer
            assert other.var_names.tolist() == store.var_names.tolist()
            ranges = [(30, 40), (0, 9)]
            expected = dense_of(adata, layer)[rows_of(ranges)]
            np.testing.assert_array_equal(other.read_rows(ranges).to_dense(), expected)
            assert other.digest() != store.digest()

    def test_raw_has_its_own_genes(self, store: Store, adata: "AnnData") -> None:
        assert "raw" in store.layers
        with open_store(store, layer="raw") as raw:
            assert raw.var_names.tolist() == adata.raw.var_names.tolist()
            block = raw.read_rows([(0, store.n_obs)])
            np.testing.assert_array_equal(block.to_dense(), dense_of(adata, "raw"))

    # identity

    def test_locator_leads_to_an_equal_store(self, store: Store) -> None:
        locator = pickle.loads(pickle.dumps(store.locator))
        assert locator == store.locator
        assert hash(locator) == hash(store.locator)
        with locator.open() as again:
            assert again.digest() == store.digest()
            assert again.locator == locator
            np.testing.assert_array_equal(
                again.read_rows([(5, 20)]).to_dense(), store.read_rows([(5, 20)]).to_dense()
            )

    def test_locator_in_another_process(self, store: Store) -> None:
        if not self.starts_process:
            pytest.skip("shown by a sibling of this store")
        script = (
            "import pickle, sys\n"
            "from scvi_dist.errors import StoreError\n"
            "locator = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
            "try: print(locator.open().digest())\n"
            "except StoreError as error: print('StoreError', error)\n"
        )
        command = [sys.executable, "-c", script, pickle.dumps(store.locator).hex()]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        if self.in_other_processes:
            assert done.stdout.strip() == store.digest(), done.stderr
        else:
            assert done.stdout.startswith("StoreError")
            assert "write_zarr" in done.stdout

    def test_handles_do_not_travel(self, store: Store) -> None:
        with pytest.raises(TypeError, match="locator"):
            pickle.dumps(store)

    def test_digest_changes_with_the_content(self, store: Store, tmp_path: Path) -> None:
        digest = store.digest()
        assert len(digest) == 32
        assert int(digest, 16) >= 0
        values, genes, cells = small_atlas(), small_atlas(), small_atlas()
        values.X[4, 3] += 1
        genes.var_names = ["other", *genes.var_names[1:]]
        cells.obs_names = [*cells.obs_names[:-1], "other"]
        for i, other in enumerate((values, genes, cells, small_atlas(n=56))):
            (tmp_path / str(i)).mkdir()
            with self.make_store(other, tmp_path / str(i)) as changed:
                assert changed.digest() != digest

    # safety

    def test_many_threads_read_the_same(self, store: Store, adata: "AnnData") -> None:
        expected = dense_of(adata)

        def read(seed: int) -> bool:
            rng = np.random.default_rng(seed)
            rows = rng.integers(0, store.n_obs, 9)
            start = int(rng.integers(0, store.n_obs - 3))
            block = store.read_rows_at(rows)
            depth = store.read_obs(["depth"], start, start + 3)["depth"]
            same_depth = np.array_equal(depth, adata.obs["depth"].iloc[start : start + 3])
            return same_depth and np.array_equal(block.to_dense(), expected[rows])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(64)))

    def test_nothing_is_written(self, tmp_path: Path) -> None:
        adata = small_atlas()
        with self.make_store(adata, tmp_path) as store:
            files, memory = _state_of_files(tmp_path), _state_of_memory(adata)
            store.read_rows([(0, 9)], np.array([2, 1]))
            store.read_obs(list(store.obs_columns))
            store.read_obsm("proteins", [(0, 3)])
            store.digest()
            store.close()
            store.close()
        assert _state_of_files(tmp_path) == files
        assert _state_of_memory(adata) == memory

    def test_only_chunks_with_a_wanted_row_are_read(self, tmp_path: Path) -> None:
        adata = small_atlas(n=400)
        keep = (180, 220)
        with self.make_store(adata, tmp_path) as store:
            if not self.spoil_other_rows(store, tmp_path, keep):
                pytest.skip("this form cannot show what was touched")
            ranges = [(200, 210), (190, 195)]
            expected = dense_of(adata)[rows_of(ranges)]
            np.testing.assert_array_equal(store.read_rows(ranges).to_dense(), expected)
            with pytest.raises(StoreError):
                store.read_rows([(0, 400)])


def _state_of_files(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _state_of_memory(adata: "AnnData") -> list[Any]:
    return [
        hashlib.sha256(dense_of(adata).tobytes()).hexdigest(),
        adata.obs.to_json(),
        [str(dtype) for dtype in adata.obs.dtypes],
        sorted(adata.uns),
        sorted(adata.obsm),
        sorted(adata.layers),
    ]
