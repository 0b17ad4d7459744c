"""The Ray engine hands out what the local engine does, bit for bit, wherever it starts."""

import threading
import warnings
from dataclasses import dataclass, replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scvi_dist.batch import CellBatch
from scvi_dist.data.open import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.data.writing.convert import CopyConfig, convert_store
from scvi_dist.dataloaders.loader import LoaderConfig, PlanLoader
from scvi_dist.dataloaders.local_loader import LocalLoader
from scvi_dist.dataloaders.read_plan import PlanConfig, ReadPlan
from scvi_dist.dataloaders.rows import AllRows, HashedRows
from scvi_dist.dataloaders.source import CellSource
from scvi_dist.errors import BadCounts, ConfigError, WaitTimeout

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("local_ray"),
    # Ray's own, about itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

N_CELLS, N_GENES = 900, 60
CONFIG = LoaderConfig(wait_limit_s=300)


def annotated(x_ng: np.ndarray) -> ad.AnnData:
    rng = np.random.default_rng(0)
    n = len(x_ng)
    obs = pd.DataFrame(
        {"batch": pd.Categorical(rng.choice(["a", "b"], n)), "age": rng.random(n)},
        index=[f"c{i}" for i in range(n)],
    )
    proteins = rng.poisson(3.0, (n, 5)).astype(np.float32)
    return ad.AnnData(sparse.csr_matrix(x_ng), obs=obs, obsm={"adt": proteins})


def source_of(path, protein_key: str | None = None) -> CellSource:
    store = open_store(path)
    setup = SetupArgs(
        batch_key="batch", continuous_covariate_keys=("age",), protein_key=protein_key
    )
    return CellSource(store.locator, fit_schema(store, setup))


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, CellSource]:
    folder = tmp_path_factory.mktemp("stores")
    x_ng = np.random.default_rng(1).poisson(1, (N_CELLS, N_GENES)).astype(np.float32)
    x_ng[:, 0] += 1
    adata = annotated(x_ng)
    adata.write_h5ad(folder / "cells.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(folder / "cells.zarr")
    short = CopyConfig(layout="training", chunk_rows=16)
    with open_store(adata) as store, open_store(adata[400:].copy()) as rest:
        convert_store(store, folder / "short.zarr", config=short)
        convert_store(rest, folder / "rest.zarr", config=short)
    adata[:400].write_h5ad(folder / "first.h5ad")
    return {
        "h5ad": source_of(folder / "cells.h5ad"),
        "zarr": source_of(folder / "cells.zarr", protein_key="adt"),
        "short types": source_of(folder / "short.zarr"),
        "several types": source_of([folder / "first.h5ad", folder / "rest.zarr"]),
    }


def plan_of(rows=None, **settings) -> ReadPlan:
    chosen = {"batch_size": 48, "window_cells": 200, "block_rows": 64, **settings}
    return ReadPlan(rows or AllRows(N_CELLS), PlanConfig(**chosen))


def ray_loader(*arguments, **settings):
    from scvi_dist.dataloaders.ray_loader import RayLoader

    return RayLoader(*arguments, **settings)


def assert_same(got: list[CellBatch], expected: list[CellBatch]) -> None:
    assert len(got) == len(expected)
    for mine, other in zip(got, expected, strict=True):
        for name in ("step", "position", "start", "n_global", "n_padding", "loss_scale"):
            assert getattr(mine, name) == getattr(other, name)
        np.testing.assert_array_equal(mine.rows, other.rows)
        for part in ("indptr", "indices", "data"):
            a, b = getattr(mine.x, part), getattr(other.x, part)
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        assert mine.fields.keys() == other.fields.keys()
        assert all(torch.equal(mine.fields[key], other.fields[key]) for key in mine.fields)


@dataclass
class Pair:
    """A rank of each engine."""

    local: PlanLoader
    ray: PlanLoader


def pairs(plan, source, world) -> list[Pair]:
    return [
        Pair(
            LocalLoader(plan, source, CONFIG, rank, world),
            ray_loader(plan, source, CONFIG, rank, world),
        )
        for rank in range(world)
    ]


@pytest.mark.parametrize("kind", ["h5ad", "zarr", "short types", "several types"])
@pytest.mark.parametrize("world", [1, 2])
def test_both_engines_are_one(sources, kind, world):
    for pair in pairs(plan_of(), sources[kind], world):
        for _ in range(2):
            assert_same(list(pair.ray), list(pair.local))
        position = pair.ray.plan.position_of(11)  # in mid-window
        for loader in (pair.ray, pair.local):
            loader.start_at(5, position)
        tail = list(pair.ray)
        assert [batch.step for batch in tail] == list(range(11, len(pair.ray)))
        assert_same(tail, list(pair.local))


def test_ranks_read_side_by_side(sources):
    ranks = pairs(plan_of(HashedRows(N_CELLS, 0, "train", 90, 810)), sources["h5ad"], 2)
    together = list(zip(*(pair.ray for pair in ranks), strict=True))
    for pair, batches in zip(ranks, zip(*together, strict=True), strict=True):
        assert_same(list(batches), list(pair.local))
    rows = np.concatenate([b.rows for batches in together for b in batches])
    assert len(np.unique(rows)) == len(rows) == 810


def test_an_unshuffled_plan_and_padding(sources):
    plan = plan_of(AllRows(101), batch_size=2, shuffle=False)
    for pair in pairs(plan, sources["zarr"], 3):
        assert_same(list(pair.ray), list(pair.local))


def test_readers_run_where_they_may_and_keep_as_much_as_they_may(sources):
    config = replace(
        CONFIG,
        reader_resources={"reader": 1},
        reader_labels={"role": "reader"},
        object_store_bytes=30_000_000,
    )
    plan = plan_of()
    loader = ray_loader(plan, sources["h5ad"], config)
    limits = loader._dataset(0, tuple(plan.windows(0))).context.execution_options.resource_limits
    assert limits.object_store_memory == 30_000_000
    assert_same(list(loader), list(LocalLoader(plan, sources["h5ad"], CONFIG)))


def test_long_epochs_are_read_as_several_data_sets(sources, monkeypatch):
    from scvi_dist.dataloaders import ray_loader as module

    monkeypatch.setattr(module, "SEGMENT_WINDOWS", 2)
    (pair,) = pairs(plan_of(), sources["h5ad"], 1)
    assert pair.ray.plan.n_windows == 5
    assert_same(list(pair.ray), list(pair.local))


def test_an_abandoned_epoch_is_left_behind(sources):
    (pair,) = pairs(plan_of(), sources["h5ad"], 1)
    for batch in pair.ray:
        if batch.step == 3:
            break
    state = pair.ray.state_dict()
    assert state["position"] == pair.ray.plan.position_of(4)
    for loader in (pair.local, pair.ray):
        loader.load_state_dict(state)
    assert_same(list(pair.ray), list(pair.local))
    left = [t for t in threading.enumerate() if t.name.startswith("scvi_dist-ahead")]
    for thread in left:
        thread.join(60)
    assert not any(thread.is_alive() for thread in left)


def test_ray_data_looks_for_free_readers_often(sources):
    """Ray Data has no settings for it: what is set has to be what its own functions look at."""
    from ray.data._internal.execution import streaming_executor_state as executor
    from ray.data._internal.execution.resource_manager import ResourceManager

    ray_loader(plan_of(), sources["h5ad"], CONFIG)
    assert (
        "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S" in executor.process_completed_tasks.__code__.co_names
    )
    assert executor.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S < 0.1
    assert "GLOBAL_LIMITS_UPDATE_INTERVAL_S" in ResourceManager.get_global_limits.__code__.co_names
    assert ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S < 1


def test_types_are_sent_as_short_as_they_are_stored(sources):
    from scvi_dist.dataloaders.ray_blocks import window_table

    for kind, n_bytes in {"short types": (2, 1), "h5ad": (2, 4), "several types": (4, 4)}.items():
        loader = ray_loader(plan_of(), sources[kind], CONFIG)
        table = window_table(loader.plan.task(0, 0, 1, 0), loader.source, check=True)
        widths = [
            table.schema.field(name).type.value_type.bit_width for name in ("indices", "data")
        ]
        assert tuple(width // 8 for width in widths) == n_bytes


def test_tensors_belong_to_the_consumer(sources):
    """Blocks are read without copying; a minibatch is a copy that can be written to."""
    from scvi_dist.dataloaders.ray_blocks import minibatch_rows, window_table

    loader = ray_loader(plan_of(), sources["h5ad"], CONFIG)
    batch = next(iter(loader))
    batch.x.data.zero_()
    table = window_table(loader.plan.task(0, 0, 1, 0), loader.source, check=True)
    rows = list(minibatch_rows(table))
    assert all(not row.data.flags.owndata and not row.data.flags.writeable for row in rows)
    buffer = table.column("data").chunk(0).values.buffers()[1]
    starts = [row.data.__array_interface__["data"][0] - buffer.address for row in rows]
    assert starts == np.cumsum([0, *(row.data.nbytes for row in rows[:-1])]).tolist()
    cut_anew = [row for k in range(len(rows)) for row in minibatch_rows(table.slice(k, 1))]
    for a, b in zip(rows, cut_anew, strict=True):
        np.testing.assert_array_equal(a.indices, b.indices)
        np.testing.assert_array_equal(a.lengths, b.lengths)
        assert a.step == b.step


class TestTrouble:
    """What goes wrong in a reader task is told in the rank, as with the local engine."""

    @pytest.fixture
    def bad_counts(self, tmp_path):
        def make(value: float) -> CellSource:
            x_ng = np.ones((N_CELLS, 5), np.float32)
            x_ng[777, 3] = value
            annotated(x_ng).write_h5ad(tmp_path / "bad.h5ad")
            return source_of(tmp_path / "bad.h5ad")

        return make

    def test_bad_counts(self, bad_counts):
        with pytest.raises(BadCounts, match="row 777, gene 3"):
            list(ray_loader(plan_of(), bad_counts(-1), CONFIG))

    def test_fractions_are_warned_of_once(self, bad_counts):
        loader = ray_loader(plan_of(), bad_counts(0.5), CONFIG)
        with pytest.warns(UserWarning, match="row 777, gene 3"):
            list(loader)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            list(loader)

    def test_a_store_that_is_gone(self, bad_counts, tmp_path):
        from scvi_dist.errors import StoreNotFound

        loader = ray_loader(plan_of(), bad_counts(1), CONFIG)
        (tmp_path / "bad.h5ad").unlink()
        with pytest.raises(StoreNotFound, match=r"bad\.h5ad"):
            list(loader)

    @pytest.mark.parametrize(
        ("asked", "told"),
        [
            ({"reader_cpus": 64}, "needs 64 CPUs; the cluster has 4"),
            ({"reader_resources": {"reader": 9}}, "needs 1 CPUs, 9 reader; the cluster"),
            (
                {"reader_labels": {"role": "trainer"}},
                "needs 1 CPUs on a node labelled role=trainer; the cluster",
            ),
        ],
        ids=["cpus", "resources", "labels"],
    )
    def test_readers_that_no_node_can_have(self, sources, asked, told):
        config = LoaderConfig(wait_limit_s=1, **asked)
        with pytest.raises(WaitTimeout, match=told):
            next(iter(ray_loader(plan_of(), sources["h5ad"], config)))

    def test_ray_has_to_be_running(self, sources, monkeypatch):
        import ray

        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        with pytest.raises(ConfigError, match="needs a running Ray"):
            ray_loader(plan_of(), sources["h5ad"], CONFIG)
