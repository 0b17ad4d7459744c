"""Cells in the caller's order, as users of scvi-tools' loader expect them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.dataloaders.ann_dataloader import AnnDataLoader
from scvi_dist.dataloaders.loader import LoaderConfig
from scvi_dist.dataloaders.ordered_loader import OrderedLoader, tasks_in_order
from scvi_dist.errors import BadCounts, FieldNotFound, PlanError

KEYS = {"X", "batch", "labels", "size_factor", "extra_categorical_covs", "extra_continuous_covs"}


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 612), max_size=60),
    st.sampled_from([1, 7, 128]),
    st.sampled_from([1, 10, 1_000]),
)
def test_cells_come_in_the_callers_order_with_repeats(cells, rows, batch_size, window):
    config = LoaderConfig(window_cells=window)
    loader = OrderedLoader(cells.source, np.array(rows, np.int64), batch_size, config)
    batches = list(loader)
    assert len(batches) == len(loader)
    assert [row for batch in batches for row in batch.rows] == rows
    position = 0
    for step, batch in enumerate(batches):
        cells.check(batch)
        assert (batch.step, batch.position, batch.n_global) == (step, position, len(batch.rows))
        position += len(batch.rows)


def test_tasks_hold_whole_minibatches_and_each_row_once():
    rows = np.array([5, 5, 1, 9, 2, 2, 2], np.int64)
    tasks = list(tasks_in_order(rows, 2, 5))
    assert [task.rows.tolist() for task in tasks] == [[1, 5, 9], [2]]
    assert [task.ranges for task in tasks] == [((1, 2), (5, 6), (9, 10)), ((2, 3),)]
    assert [len(task.cuts) for task in tasks] == [2, 2]


def test_minibatches_are_dictionaries_of_tensors(cells, manager):
    rows = [600, 3, 3, 100, 7]
    (batch,) = AnnDataLoader(manager, rows)
    assert set(batch) == KEYS
    assert batch["X"].dtype == torch.float32
    assert batch["X"].layout == torch.strided
    np.testing.assert_array_equal(batch["X"].numpy(), cells.x_ng[rows])
    codes = cells.adata.obs["batch"].cat.codes.to_numpy()[rows]
    assert batch["batch"].dtype == torch.int64
    np.testing.assert_array_equal(batch["batch"].numpy()[:, 0], codes)
    np.testing.assert_allclose(
        batch["extra_continuous_covs"].numpy()[:, 0], cells.adata.obs["age"].iloc[rows], rtol=1e-6
    )


def test_all_cells_without_indices_and_some_by_a_mask(cells, manager):
    def x(loader):
        return np.concatenate([batch["X"].numpy() for batch in loader])

    np.testing.assert_array_equal(x(AnnDataLoader(manager, batch_size=100)), cells.x_ng)
    mask = np.arange(len(cells.x_ng)) % 3 == 0
    np.testing.assert_array_equal(x(AnnDataLoader(manager, mask)), cells.x_ng[mask])
    assert list(AnnDataLoader(manager, [])) == []


def test_dropping_the_last_minibatch(manager):
    kept = AnnDataLoader(manager, range(10), batch_size=4, drop_last=True)
    assert [len(batch["X"]) for batch in kept] == [4, 4]
    assert len(kept) == 2
    whole = AnnDataLoader(manager, range(10), batch_size=4)
    assert [len(batch["X"]) for batch in whole] == [4, 4, 2]
    assert len(whole) == 3


def test_shuffling_follows_torchs_random_state(cells, manager):
    def order(loader):
        return [tuple(row) for batch in loader for row in batch["X"].tolist()]

    loader = AnnDataLoader(manager, range(200), batch_size=64, shuffle=True)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first, second = order(loader), order(loader)
        torch.manual_seed(3)
        again = order(loader)
    assert first == again
    assert first != second
    assert sorted(first) == sorted(second) == sorted(map(tuple, cells.x_ng[:200].tolist()))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_some_keys_types_arrays_and_sparse_tensors(cells, manager):
    (some,) = AnnDataLoader(manager, range(5), data_and_attributes=["batch", "X"])
    assert list(some) == ["batch", "X"]
    typed = {"X": np.float64, "batch": np.float32}
    (arrays,) = AnnDataLoader(manager, range(5), data_and_attributes=typed, iter_ndarray=True)
    assert {key: value.dtype for key, value in arrays.items()} == typed
    (sparse,) = AnnDataLoader(manager, range(5), load_sparse_tensor=True)
    assert sparse["X"].layout == torch.sparse_csr
    np.testing.assert_array_equal(sparse["X"].to_dense().numpy(), cells.x_ng[:5])


def test_counts_are_looked_at_if_asked(make_cells):
    x_ng = np.ones((90, 4), np.float32)
    x_ng[33, 2] = -1
    source = make_cells(x_ng).source
    with pytest.raises(BadCounts, match="row 33"):
        list(OrderedLoader(source, check_counts=True))
    assert len(list(OrderedLoader(source))) == 1


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda m: AnnDataLoader(m, [0, 613]), PlanError, "0 … 612, seen 0 … 613"),
        (lambda m: AnnDataLoader(m, [-1]), PlanError, "seen -1"),
        (lambda m: AnnDataLoader(m, np.ones(5, bool)), PlanError, "boolean of shape"),
        (lambda m: AnnDataLoader(m, [0.5]), PlanError, "list of row numbers, seen float64"),
        (lambda m: AnnDataLoader(m, batch_size=0), PlanError, "batch_size must be at least 1"),
        (
            lambda m: AnnDataLoader(m, data_and_attributes=["bach"]),
            FieldNotFound,
            "did you mean 'batch'",
        ),
    ],
)
def test_what_cannot_be_loaded_is_named(manager, make, error, words):
    with pytest.raises(error, match=words):
        make(manager)
