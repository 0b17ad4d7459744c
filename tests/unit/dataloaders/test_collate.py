"""Cutting tasks into minibatches: every cell gets its own counts and codes, whatever the store."""

import gc
import warnings
import weakref
from itertools import pairwise
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scvi_dist.batch import CsrRows
from scvi_dist.data.open import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.dataloaders import source as source_module
from scvi_dist.dataloaders.collate import (
    PART_ROWS,
    CountGuard,
    ReadPart,
    TaskRows,
    dense_tensor,
    execute,
    n_parts_of,
    read_part,
    sparse_tensors,
)
from scvi_dist.dataloaders.ordered_loader import tasks_in_order
from scvi_dist.dataloaders.read_plan import PlanConfig, ReadPlan
from scvi_dist.dataloaders.rows import AllRows
from scvi_dist.dataloaders.source import CellSource, OpenSource, opened
from scvi_dist.errors import BadCounts, SchemaMismatch, StoreCorrupt


def csr(dense_ng: np.ndarray, data_dtype: str, index_dtype: str) -> CsrRows:
    rows, columns = np.nonzero(dense_ng)
    indptr = np.searchsorted(rows, np.arange(len(dense_ng) + 1)).astype(np.int64)
    data = dense_ng[rows, columns].astype(data_dtype)
    return CsrRows(indptr, columns.astype(index_dtype), data, dense_ng.shape[1])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any),
    st.lists(st.integers(0, 10**6), max_size=12),
    st.sampled_from(["uint8", "uint16", "int32", "float32"]),
)
def test_rows_are_gathered_from_any_parts_in_any_order(part_sizes, picks, dtype):
    dense_ng = np.random.default_rng(0).poisson(0.7, (sum(part_sizes), 6))
    bounds = np.cumsum([0, *part_sizes])
    parts = [csr(dense_ng[a:b], dtype, "int32") for a, b in pairwise(bounds)]
    pick = np.array([p % len(dense_ng) for p in picks], dtype=np.int32)
    got = TaskRows(parts).gather(pick)
    np.testing.assert_array_equal(got.to_dense(), dense_ng[pick])
    assert (got.indptr.dtype, got.indices.dtype, got.data.dtype) == (
        np.int64,
        np.int32,
        np.float32,
    )
    assert got.indptr[0] == 0
    assert got.indptr[-1] == len(got.data) == len(got.indices)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.sampled_from([1, 7, 32, 700]), st.booleans())
def test_batches_hold_their_rows_and_their_place_in_the_plan(cells, world, batch_size, shuffle):
    plan = ReadPlan(
        AllRows(cells.source.store.n_obs),
        PlanConfig(batch_size=batch_size, window_cells=200, shuffle=shuffle, block_rows=16),
    )
    for rank in range(world):
        cuts = [cut for task in plan.tasks(1, rank, world) for cut in task.cuts]
        batches = [b for t in plan.tasks(1, rank, world) for b in execute(t, cells.source)]
        assert len(batches) == len(cuts) == plan.n_steps
        for batch, cut in zip(batches, cuts, strict=True):
            cells.check(batch)
            for name in ("step", "position", "start", "n_global", "n_padding", "loss_scale"):
                assert getattr(batch, name) == getattr(cut, name)
            assert batch.n_cells == len(cut.pick)


def test_tensors_are_sparse_typed_and_writable(cells):
    task = next(tasks_in_order(np.arange(10), 10, 10))
    batch = next(execute(task, cells.source))
    x = batch.x
    assert (x.indptr.dtype, x.indices.dtype, x.data.dtype) == (
        torch.int64,
        torch.int32,
        torch.float32,
    )
    assert batch["batch"].dtype == torch.int64
    assert batch["extra_continuous_covs"].dtype == torch.float32
    x.data.add_(1)
    assert not np.array_equal(x.data.numpy(), next(execute(task, cells.source)).x.data.numpy())


def test_dense_tensors_are_the_sparse_ones(cells):
    x = next(execute(next(tasks_in_order(np.arange(50), 50, 50)), cells.source)).x
    assert torch.equal(dense_tensor(x), x.to_dense())
    assert dense_tensor(sparse_tensors(csr(np.zeros((0, 5)), "float32", "int32"))).shape == (0, 5)


def test_dense_tensors_do_not_depend_on_the_order_of_genes_threads_or_what_memory_held():
    rng = np.random.default_rng(0)
    dense_ng = rng.poisson(0.3, (300, 5000)).astype(np.float32)
    block = csr(dense_ng, "float32", "int32")
    genes, values = block.indices.copy(), block.data.copy()
    for start, stop in pairwise(block.indptr.tolist()):
        order = rng.permutation(stop - start)
        genes[start:stop], values[start:stop] = genes[start:stop][order], values[start:stop][order]
    x = sparse_tensors(CsrRows(block.indptr, genes, values, block.n_genes))
    usual = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            dense = dense_tensor(x)
            np.testing.assert_array_equal(dense.numpy(), dense_ng)
            dense.fill_(-1)  # The next one may get this memory.
            del dense
    finally:
        torch.set_num_threads(usual)


@pytest.mark.parametrize("dtype", ["float64", "int64", "float16", "bool", "int8"])
@pytest.mark.parametrize("index", ["int64", "uint32", "int32", "uint16", "int16", "uint8"])
def test_entries_take_eight_bytes_at_most_and_keep_their_values(dtype, index):
    block = csr(np.eye(9), dtype, index)
    source = SimpleNamespace(
        store=SimpleNamespace(read_rows=lambda ranges, genes: block),
        rows_in_memory=None,
        genes=None,
        proteins=None,
        where="a store",
    )
    part = read_part(next(tasks_in_order(np.arange(9), 9, 9)), 0, 1, source, check=False)
    counts = part.counts
    assert counts.indices.itemsize + counts.data.itemsize <= 8
    np.testing.assert_array_equal(TaskRows([counts]).gather(np.arange(9)).to_dense(), np.eye(9))


@given(st.integers(1, 5 * PART_ROWS), st.integers(1, 8))
def test_parts_are_short_and_share_a_task_among_threads(n_rows, n_threads):
    task = next(tasks_in_order(np.arange(n_rows), 10, n_rows + 10))
    n_parts = n_parts_of(task, n_threads)
    assert min(n_threads, n_rows) <= n_parts
    assert -(-n_rows // n_parts) <= PART_ROWS


def test_parts_are_the_task(cells):
    task = next(ReadPlan(AllRows(600), PlanConfig(batch_size=50)).tasks(0, 0, 1))
    for n_parts in (1, 2, 5, 600):
        for check in (False, True):
            parts = [read_part(task, k, n_parts, cells.source, check) for k in range(n_parts)]
            joined = TaskRows.of(parts).gather(np.arange(len(task.rows)))
            np.testing.assert_array_equal(joined.to_dense(), cells.x_ng[task.rows])
            assert all((part.report is not None) == check for part in parts)


@given(st.lists(st.integers(0, 39), min_size=1, max_size=60), st.integers(0, 2**32 - 1))
def test_rows_in_memory_are_gathered_from_where_they_are(among, seed):
    rng = np.random.default_rng(seed)
    dense_ng = rng.poisson(0.7, (40, 6))
    whole, among = csr(dense_ng, "float64", "int64"), np.array(among)
    proteins_np = rng.random((len(among), 3), dtype=np.float32)
    cuts = sorted(rng.integers(0, len(among) + 1, 2).tolist())
    parts = [
        ReadPart(whole, None, proteins_np[a:b], among[a:b])
        for a, b in pairwise([0, *cuts, len(among)])
    ]
    rows = TaskRows.of(parts)
    pick = rng.permutation(len(among))
    assert rows.n_cells == len(among)
    np.testing.assert_array_equal(rows.gather(pick).to_dense(), dense_ng[among[pick]])
    np.testing.assert_array_equal(rows.gather_proteins(pick), proteins_np[pick])


def test_a_matrix_in_memory_that_is_none_is_refused_without_a_look_at_its_values():
    matrix = sparse.random(50, 9, 0.5, "csr", np.float32, np.random.default_rng(0))
    matrix.indices[100] = 9
    store = open_store(ad.AnnData(matrix))
    source = OpenSource(store, fit_schema(store, SetupArgs()), check_counts=False)
    task = next(tasks_in_order(np.arange(50), 10, 50))
    with pytest.raises(StoreCorrupt, match="has a value for gene 9"):
        read_part(task, 0, 1, source, check=False)


class TestCounts:
    """What is wrong with the counts comes out with its row and gene."""

    def run(self, cells, rows=None) -> CountGuard:
        guard = CountGuard(cells.source)
        rows = np.arange(len(cells.x_ng)) if rows is None else rows
        for task in tasks_in_order(rows, 16, 48):
            list(execute(task, cells.source, guard))
        guard.finish()
        return guard

    def test_clean_counts_say_nothing(self, cells):
        report = self.run(cells).report
        assert report.is_clean
        assert report.n_cells == len(cells.x_ng)

    @pytest.mark.parametrize("value", [-2, np.nan, np.inf])
    def test_what_no_model_takes_is_refused(self, make_cells, value):
        x_ng = np.ones((120, 8), np.float32)
        x_ng[77, 5] = value
        cells = make_cells(x_ng)
        with pytest.raises(BadCounts, match=r"row 77, gene 5 \(gene5\)"):
            self.run(cells)
        self.run(cells, np.delete(np.arange(120), 77))  # cells that are left out do not matter

    def test_fractions_are_warned_of_once_and_counted(self, make_cells):
        x_ng = np.ones((120, 8), np.float32)
        x_ng[[3, 50, 90], 2] = 1.5
        with pytest.warns(UserWarning, match="row 3, gene 2") as caught:
            guard = self.run(make_cells(x_ng))
        assert len(caught) == 1
        assert guard.report.n_non_integer == 3

    def test_empty_cells_are_counted_over_the_pass(self, make_cells):
        x_ng = np.ones((120, 8), np.float32)
        x_ng[[9, 100]] = 0
        with pytest.warns(UserWarning, match="2 of 120 cells have no counts.*row 9"):
            self.run(make_cells(x_ng))

    def test_nobody_looks_without_a_guard(self, make_cells):
        cells = make_cells(-np.ones((20, 8), np.float32))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            batches = list(execute(next(tasks_in_order(np.arange(20), 5, 20)), cells.source))
        assert len(batches) == 4


class TestSource:
    """A source opens once for each process, and finds the schema's genes by name."""

    def test_genes_come_in_the_schemas_order(self, cells):
        turned = open_store(cells.adata[:, ::-1].copy())
        source = OpenSource(turned, cells.source.schema)
        batch = next(execute(next(tasks_in_order(np.arange(30), 30, 30)), source))
        np.testing.assert_array_equal(batch["X"].numpy(), cells.x_ng[:30])

    def test_more_genes_than_the_schemas_are_left_out(self, cells, make_cells):
        few = make_cells(cells.x_ng[:, :7])
        source = OpenSource(cells.source.store, few.source.schema)
        batch = next(execute(next(tasks_in_order(np.arange(30), 30, 30)), source))
        np.testing.assert_array_equal(batch["X"].numpy(), cells.x_ng[:30, :7])

    def test_missing_genes_are_named(self, cells, make_cells):
        few = make_cells(cells.x_ng[:, :7])
        with pytest.raises(SchemaMismatch, match=r"lacks 33 of the schema's 40 genes.*'gene7'"):
            OpenSource(few.source.store, cells.source.schema)

    def test_one_opening_for_each_file(self, cells, tmp_path):
        path = tmp_path / "cells.h5ad"
        cells.adata.write_h5ad(path)
        locator = open_store(path).locator
        source = CellSource(locator, cells.source.schema)
        assert source.open() is source.open()
        assert source.open() is opened(CellSource(locator, cells.source.schema))
        assert CellSource(locator, cells.source.schema, check_counts=False).open() is not (
            source.open()
        )
        assert source.open().cell_source == source
        for number in range(20):  # others come and go; not all are kept
            (tmp_path / f"{number}.h5ad").write_bytes(path.read_bytes())
            other = open_store(tmp_path / f"{number}.h5ad").locator
            CellSource(other, cells.source.schema).open()
        assert len(source_module._OPEN) <= 8

    def test_data_in_memory_is_not_kept_alive(self, make_cells):
        cells = make_cells(np.ones((80, 3), np.float32))
        alive = weakref.ref(cells.source.cell_source.open())
        gc.collect()
        assert alive() is None
