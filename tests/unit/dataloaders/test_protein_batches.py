"""Counts of proteins come with the cells they are of, whatever hands the cells out."""

from collections.abc import Iterator

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import StoreCells, StreamConfig
from scvi_dist.batch import REGISTRY_KEYS, CellBatch
from scvi_dist.data.manager import AnnDataManager
from scvi_dist.data.open import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema, transfer_schema
from scvi_dist.dataloaders import collate
from scvi_dist.dataloaders.ann_dataloader import AnnDataLoader
from scvi_dist.dataloaders.loader import LoaderConfig, make_plan, planned_bytes
from scvi_dist.dataloaders.local_loader import LocalLoader
from scvi_dist.dataloaders.ordered_loader import OrderedLoader
from scvi_dist.dataloaders.rows import AllRows
from scvi_dist.dataloaders.source import OpenSource

N, G, P = 300, 12, 7
KEY = REGISTRY_KEYS.PROTEIN_EXP_KEY
ORDER = np.array([250, 3, 3, 0, 299, 120, 7])
NAMES = [f"prot{i}" for i in range(P)]


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    x_ng = rng.poisson(1.0, (N, G)).astype(np.float32) + 1
    obs = pd.DataFrame({"batch": rng.choice(["a", "b"], N)}, index=[f"c{i}" for i in range(N)])
    proteins = pd.DataFrame(rng.poisson(5.0, (N, P)), index=obs.index, columns=NAMES)
    return ad.AnnData(sparse.csr_matrix(x_ng), obs=obs, obsm={"adt": proteins})


@pytest.fixture(scope="module")
def truth_np(cells: ad.AnnData) -> np.ndarray:
    return cells.obsm["adt"].to_numpy(np.float32)


@pytest.fixture(scope="module")
def source(cells: ad.AnnData) -> OpenSource:
    store = open_store(cells)
    return OpenSource(store, fit_schema(store, SetupArgs(batch_key="batch", protein_key="adt")))


def of_plan(source: OpenSource, world: int) -> Iterator[CellBatch]:
    config = LoaderConfig(n_threads=3)
    dense = source.schema.dense_bytes_per_cell
    plan = make_plan(
        AllRows(N), source.store, config, batch_size=32, world=world, dense_bytes=dense
    )
    for rank in range(world):
        yield from LocalLoader(plan, source, config, rank, world)


@pytest.mark.parametrize("part_rows", [8_192, 40])
@pytest.mark.parametrize("world", [1, 3])
def test_a_minibatch_has_the_proteins_of_its_rows(
    source: OpenSource,
    truth_np: np.ndarray,
    world: int,
    part_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collate, "PART_ROWS", part_rows)
    seen = 0
    for batch in of_plan(source, world):
        assert batch[KEY].dtype == torch.float32
        np.testing.assert_array_equal(batch[KEY].numpy(), truth_np[batch.rows])
        seen += batch.n_real
    assert seen == N


def test_the_callers_order_is_that_of_the_proteins(
    source: OpenSource, truth_np: np.ndarray
) -> None:
    batches = OrderedLoader(source, ORDER, batch_size=3)
    got = torch.cat([batch[KEY] for batch in batches])
    np.testing.assert_array_equal(got.numpy(), truth_np[ORDER])
    there = StoreCells(source, Selection(N, ORDER), StreamConfig(batch_size=2))
    found_np = np.empty((len(ORDER), P), dtype=np.float32)
    for group in there.groups():
        found_np[group.positions] = group.tensors[KEY]
    np.testing.assert_array_equal(found_np, truth_np[ORDER])


def test_the_loader_that_scvi_tools_users_know_gives_them_too(
    cells: ad.AnnData, source: OpenSource, truth_np: np.ndarray
) -> None:
    manager = AnnDataManager(source.store, source.schema, "TOTALVI", cells)
    rows = [batch[KEY] for batch in AnnDataLoader(manager, ORDER, batch_size=4)]
    np.testing.assert_array_equal(torch.cat(rows).numpy(), truth_np[ORDER])
    (only,) = AnnDataLoader(manager, ORDER, data_and_attributes=[KEY], iter_ndarray=True)
    assert list(only) == [KEY]
    assert only[KEY].dtype == np.float32


def test_columns_in_another_order_are_put_in_the_schemas(
    cells: ad.AnnData, source: OpenSource, truth_np: np.ndarray
) -> None:
    turned = cells.copy()
    turned.obsm["adt"] = cells.obsm["adt"][NAMES[::-1]]
    store = open_store(turned)
    schema, _ = transfer_schema(source.schema, store)
    for batch in OrderedLoader(OpenSource(store, schema), batch_size=128):
        np.testing.assert_array_equal(batch[KEY].numpy(), truth_np[batch.rows])


def test_the_budget_counts_them(source: OpenSource) -> None:
    store, dense = source.store, source.schema.dense_bytes_per_cell
    assert source.bytes_per_cell == store.bytes_per_cell + 4 * P
    tight = LoaderConfig(budget_bytes=60_000, window_cells=N)
    without, with_proteins = (
        make_plan(AllRows(N), store, tight, batch_size=8, dense_bytes=more) for more in (0, dense)
    )
    assert with_proteins.config.window_cells < without.config.window_cells
    assert planned_bytes(with_proteins, store, tight, 1, dense) <= tight.budget_bytes
    assert planned_bytes(without, store, tight, 1, dense) > tight.budget_bytes
    task = next(with_proteins.tasks(0, 0, 1))
    part = collate.read_part(task, 0, 1, source, check=False)
    read = part.counts if part.among is None else part.among
    assert part.nbytes == read.nbytes + 4 * P * len(task.rows)


def test_cells_without_proteins_have_none(source: OpenSource) -> None:
    bare = OpenSource(source.store, fit_schema(source.store, SetupArgs(batch_key="batch")))
    assert bare.proteins is None
    assert bare.bytes_per_cell == bare.store.bytes_per_cell
    assert all(KEY not in batch for batch in OrderedLoader(bare, batch_size=64))
