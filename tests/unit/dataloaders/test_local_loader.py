"""Laws of a loader: the plan's minibatches, epochs that follow each other, exact resume."""

import threading
import tracemalloc
import warnings
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from scvi_dist.batch import CellBatch
from scvi_dist.data.open import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.dataloaders.collate import execute
from scvi_dist.dataloaders.loader import LoaderConfig, make_plan, planned_bytes
from scvi_dist.dataloaders.local_loader import LocalLoader
from scvi_dist.dataloaders.read_plan import PlanConfig, ReadPlan
from scvi_dist.dataloaders.rows import AllRows, HashedRows
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.errors import (
    BadCounts,
    BudgetExceeded,
    CheckpointError,
    ConfigError,
    PlanError,
    StoreError,
)

CONFIG = LoaderConfig(budget_bytes=1 << 24, wait_limit_s=60)


def plan_of(n: int, **settings) -> ReadPlan:
    chosen = {"batch_size": 32, "window_cells": 150, "block_rows": 16, **settings}
    return ReadPlan(AllRows(n), PlanConfig(**chosen))


def same(a: CellBatch, b: CellBatch) -> bool:
    """Whether two minibatches are equal bit for bit."""
    places = ("step", "position", "start", "n_global", "n_padding", "loss_scale")
    return (
        all(getattr(a, name) == getattr(b, name) for name in places)
        and np.array_equal(a.rows, b.rows)
        and all(
            torch.equal(getattr(a.x, k), getattr(b.x, k)) for k in ("indptr", "indices", "data")
        )
        and a.fields.keys() == b.fields.keys()
        and all(torch.equal(a.fields[key], b.fields[key]) for key in a.fields)
    )


def all_same(first: list[CellBatch], second: list[CellBatch]) -> bool:
    return len(first) == len(second) and all(map(same, first, second))


@pytest.fixture
def loader(cells):
    return LocalLoader(plan_of(len(cells.x_ng)), cells.source, CONFIG)


@pytest.mark.parametrize("world", [1, 2, 5])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_it_hands_out_what_execute_makes(cells, world, n_threads):
    plan = plan_of(len(cells.x_ng))
    for rank in range(world):
        config = replace(CONFIG, n_threads=n_threads)
        loader = LocalLoader(plan, cells.source, config, rank, world)
        expected = [b for t in plan.tasks(0, rank, world) for b in execute(t, cells.source)]
        assert all_same(list(loader), expected)
        assert len(loader) == len(expected)
        assert 0 < loader.start_s <= loader.wait_s


def test_epochs_follow_each_other_and_can_be_set(loader):
    epochs = [list(loader) for _ in range(3)]
    assert not same(epochs[0][0], epochs[1][0])
    for epoch in (2, 0):
        loader.set_epoch(epoch)
        assert all_same(list(loader), epochs[epoch])
    assert all_same(list(loader), epochs[1])


@pytest.mark.parametrize("step", [0, 1, 4, 7, 19])
def test_starting_in_mid_epoch_gives_the_tail(loader, step):
    loader.set_epoch(3)
    whole = list(loader)
    following = list(loader)
    loader.start_at(3, loader.plan.position_of(step))
    loader.set_epoch(3)  # what a trainer says before every epoch does not undo the position
    assert all_same(list(loader), whole[step:])
    assert all_same(list(loader), following)


def test_starting_at_the_end_is_the_next_epoch(loader):
    loader.set_epoch(1)
    expected = list(loader)
    loader.start_at(0, loader.plan.n_cells)
    assert all_same(list(loader), expected)
    with pytest.raises(PlanError, match="not the start of a minibatch"):
        loader.start_at(0, 1)


@pytest.mark.parametrize("n_taken", [0, 1, 5, 20])
@pytest.mark.parametrize("worlds", [(1, 1), (2, 3)])
def test_a_state_continues_the_run_with_any_number_of_ranks(cells, n_taken, worlds):
    plan = plan_of(len(cells.x_ng))

    def rows(world, state=None, n_steps=None):
        """Rows of each global minibatch that the ranks see, and the state afterwards."""
        seen = {}
        for rank in range(world):
            loader = LocalLoader(plan, cells.source, CONFIG, rank, world)
            if state is not None:
                loader.load_state_dict(state)
            for k, batch in enumerate(loader):
                seen.setdefault(batch.step, []).append(batch.rows[: batch.n_real])
                if k + 1 == n_steps:
                    break
            after = loader.state_dict()
        return [np.concatenate(parts) for _, parts in sorted(seen.items())], after

    whole, _ = rows(1)
    head, state = rows(worlds[0], n_steps=n_taken or -1) if n_taken else ([], None)
    tail, _ = rows(worlds[1], state)
    if n_taken == len(whole):  # the state says: next epoch, from its start
        assert (state["epoch"], state["position"]) == (1, 0)
        tail = []
    for got, expected in zip(head + tail, whole, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_state_of_another_plan_is_refused_by_name(cells, make_cells, loader):
    state = loader.state_dict()
    others = {
        "batch_size": LocalLoader(plan_of(613, batch_size=16), cells.source, CONFIG),
        "n_windows": LocalLoader(plan_of(613, window_cells=64), cells.source, CONFIG),
        "seed": LocalLoader(plan_of(613, seed=1), cells.source, CONFIG),
        "n_cells": LocalLoader(plan_of(612), cells.source, CONFIG),
        "schema": LocalLoader(plan_of(613), make_cells(cells.x_ng[:, :9]).source, CONFIG),
    }
    for name, other in others.items():
        with pytest.raises(CheckpointError, match=rf"{name}: saved .*, here "):
            other.load_state_dict(state)
    with pytest.raises(CheckpointError, match="version 1, seen 7"):
        loader.load_state_dict({**state, "version": 7})


def test_an_abandoned_epoch_leaves_no_thread(loader):
    for _ in loader:
        break
    left = [t for t in threading.enumerate() if t.name.startswith("scvi_dist-")]
    for thread in left:
        thread.join(30)
    assert not any(thread.is_alive() for thread in left)
    assert len(list(loader)) == len(loader)


def test_errors_of_the_store_reach_the_training_loop(cells, monkeypatch, tmp_path):
    cells.adata.write_h5ad(tmp_path / "cells.h5ad")
    store = open_store(tmp_path / "cells.h5ad")
    loader = LocalLoader(plan_of(613), OpenSource(store, cells.source.schema), CONFIG)
    read, calls = store.read_rows, []

    def fail(ranges, genes=None):
        calls.append(ranges)
        if len(calls) > 4:
            raise StoreError("the disk is gone")
        return read(ranges, genes)

    monkeypatch.setattr(store, "read_rows", fail)
    with pytest.raises(StoreError, match="the disk is gone") as caught:
        list(loader)
    assert "while reading rows" in caught.value.__notes__[0]


def test_counts_are_looked_at_in_the_first_whole_epoch_only(make_cells):
    x_ng = np.ones((120, 8), np.float32)
    x_ng[7, 3] = 0.5
    x_ng[90] = 0
    loader = LocalLoader(plan_of(120), make_cells(x_ng).source, CONFIG)
    loader.start_at(0, loader.plan.position_of(3))
    with warnings.catch_warnings():
        # A part of an epoch is no pass over the data: empty cells are not reported yet.
        warnings.filterwarnings("ignore", message=".*row 7, gene 3")
        list(loader)
    with pytest.warns(UserWarning, match="1 of 120 cells have no counts at all, first row 90"):
        list(loader)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(loader)) == 4


def test_a_pass_is_over_with_its_last_minibatch(make_cells):
    x_ng = np.ones((120, 8), np.float32)
    x_ng[90] = 0
    loader = LocalLoader(plan_of(120), make_cells(x_ng).source, CONFIG)
    with pytest.warns(UserWarning, match="1 of 120 cells have no counts at all, first row 90"):
        # As a trainer does, which knows how many there are and never asks for one more.
        assert len(list(islice(loader, len(loader)))) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(loader)) == 4


def test_bad_counts_end_the_epoch(make_cells):
    x_ng = np.ones((120, 8), np.float32)
    x_ng[50, 2] = -1
    with pytest.raises(BadCounts, match="row 50, gene 2"):
        list(LocalLoader(plan_of(120), make_cells(x_ng).source, CONFIG))


def test_a_rank_without_cells_still_takes_every_step(cells):
    plan = ReadPlan(AllRows(5), PlanConfig(batch_size=2))
    for rank in range(4):
        batches = list(LocalLoader(plan, cells.source, CONFIG, rank, 4))
        assert len(batches) == 3
        assert [b.n_real * 4 / b.n_global for b in batches] == [b.loss_scale for b in batches]
        for batch in batches:
            cells.check(batch)


def test_an_empty_plan_has_no_steps(cells):
    empty = HashedRows(613, 0, "validation", 0, 613)
    loader = LocalLoader(ReadPlan(empty, PlanConfig(batch_size=8)), cells.source, CONFIG)
    assert list(loader) == []
    assert len(loader) == 0


def test_plans_follow_the_store_and_the_budget(cells):
    store = cells.source.store
    free = make_plan(AllRows(613), store, LoaderConfig(), batch_size=8)
    assert free.n_windows == 1
    assert free.config.block_rows == 64
    need = make_plan(AllRows(613), store, LoaderConfig(), batch_size=8).memory_bytes(
        store.bytes_per_cell, 1
    )
    tight = LoaderConfig(budget_bytes=need // 8)
    plan = make_plan(AllRows(613), store, tight, batch_size=8)
    assert plan.n_windows > 5
    assert plan.memory_bytes(store.bytes_per_cell, 1) <= tight.budget_bytes + 4 * 10
    with pytest.raises(BudgetExceeded, match="one minibatch of 8 cells"):
        make_plan(AllRows(613), store, LoaderConfig(budget_bytes=1_000), batch_size=8)
    chosen = make_plan(AllRows(613), store, LoaderConfig(block_rows=5), batch_size=8)
    assert chosen.config.block_rows == 5


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_measured_memory_is_within_the_plans(make_cells, tmp_path, kind):
    x_ng = np.random.default_rng(0).poisson(0.4, (30_000, 300)).astype(np.float32)
    x_ng[:, 0] += 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(make_cells(x_ng).adata, f"write_{kind}")(tmp_path / f"cells.{kind}")
    store = open_store(tmp_path / f"cells.{kind}")
    source = OpenSource(store, fit_schema(store, SetupArgs()), check_counts=False)
    config = LoaderConfig(budget_bytes=4 << 20)
    plan = make_plan(AllRows(store.n_obs), store, config, batch_size=128)
    assert store.bytes_per_cell * store.n_obs > 5 * config.budget_bytes
    loader = LocalLoader(plan, source, config)
    next(iter(loader))  # row pointers are read, code is compiled
    tracemalloc.start()
    try:
        assert sum(batch.n_cells for batch in loader) == store.n_obs
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    planned = planned_bytes(plan, store, config, world=1)
    assert peak <= planned <= config.budget_bytes + 4 * 500


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"engine": "lokal"}, "did you mean 'local'"),
        ({"budget_bytes": 0}, "budget_bytes must be at least 1"),
        ({"n_threads": 0}, "n_threads"),
        ({"reader_cpus": 0}, "reader_cpus must be positive"),
        ({"wait_limit_s": -1}, "wait_limit_s"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, words):
    with pytest.raises(ConfigError, match=words):
        LoaderConfig(**setting)
