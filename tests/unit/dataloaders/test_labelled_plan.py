"""Laws of the stream of labelled cells, over sizes, worlds, epochs and resume points."""

import pickle
from collections import Counter

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.data.open import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.dataloaders.datamodule import CellDataModule
from scvi_dist.dataloaders.labelled_cells import LabelledCells, LabelledConfig
from scvi_dist.dataloaders.labelled_plan import LabelledPlan, make_labelled_plan
from scvi_dist.dataloaders.loader import LoaderConfig
from scvi_dist.dataloaders.marked_rows import MarkedRows
from scvi_dist.dataloaders.read_plan import PlanConfig, ReadPlan
from scvi_dist.dataloaders.rows import AllRows, ArrayRows, all_members
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.dataloaders.split import SplitConfig, split_by_label
from scvi_dist.errors import BudgetExceeded, ConfigError, PlanError

LAWS = settings(deadline=None, max_examples=60)
N_LABELS = 3


@st.composite
def streams(draw: st.DrawFn) -> LabelledPlan:
    n = draw(st.integers(2, 500))
    rng = np.random.default_rng(n)
    mask = rng.random(n) < draw(st.sampled_from([0.05, 0.4, 1.0]))
    mask[draw(st.integers(0, n - 1))] = True
    codes = rng.integers(0, N_LABELS, int(mask.sum())).astype(np.uint8)
    n_per_label = draw(st.sampled_from([None, 1, 7, 200]))
    marked = MarkedRows.of([mask], n)
    cells = LabelledCells(marked, None if n_per_label is None else codes, n_per_label)
    config = PlanConfig(
        batch_size=draw(st.sampled_from([1, 2, 7, 37, 128])),
        window_cells=draw(st.sampled_from([1, 30, 300])),
        block_rows=draw(st.sampled_from([1, 7, 64])),
        shuffle=draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
    )
    return LabelledPlan(cells, config, draw(st.integers(1, 60)))


def global_batches(
    plan: LabelledPlan, world: int, epoch: int = 0, position: int = 0
) -> dict[int, np.ndarray]:
    """Rows of every global minibatch in item order, put together from all ranks' cuts."""
    steps: dict[int, list[np.ndarray]] = {}
    for rank in range(world):
        for task in plan.tasks(epoch, rank, world, position):
            np.testing.assert_array_equal(task.rows, np.unique(task.rows))
            picked = np.unique(np.concatenate([cut.pick for cut in task.cuts]))
            np.testing.assert_array_equal(picked, np.arange(len(task.rows)))
            for cut in task.cuts:
                assert cut.position == plan.position_of(cut.step)
                assert plan.step_of(cut.position) == cut.step
                rows = task.rows[cut.pick]
                steps.setdefault(cut.step, []).append(rows[: len(rows) - cut.n_padding])
    return {step: np.concatenate(steps[step]) for step in sorted(steps)}


@LAWS
@given(streams(), st.integers(1, 5), st.integers(0, 3))
def test_an_epoch_has_as_many_steps_as_it_is_told_and_passes_over_all_cells(
    plan: LabelledPlan, world: int, epoch: int
) -> None:
    batches = global_batches(plan, world, epoch)
    assert list(batches) == list(range(plan.n_steps))
    cells = all_members(plan.cells.of_epoch(plan.config.seed, epoch if plan.config.shuffle else 0))
    assert len(cells) == plan.cells.n
    order = np.concatenate(list(batches.values()))
    assert len(order) == plan.n_cells
    for start in range(0, len(order), len(cells)):
        one_pass = order[start : start + len(cells)]
        assert len(np.unique(one_pass)) == len(one_pass)
        assert np.isin(one_pass, cells).all()


@LAWS
@given(streams(), st.integers(2, 5), st.integers(0, 2), st.randoms())
def test_the_order_depends_on_neither_ranks_nor_interruptions(
    plan: LabelledPlan, world: int, epoch: int, random: object
) -> None:
    whole = global_batches(plan, 1, epoch)
    together = global_batches(pickle.loads(pickle.dumps(plan)), world, epoch)
    step = random.randrange(plan.n_steps + 1)
    tail = global_batches(plan, world, epoch, plan.position_of(step))
    assert list(tail) == list(range(step, plan.n_steps))
    for number, rows in whole.items():
        np.testing.assert_array_equal(together[number], rows)
        if number >= step:
            np.testing.assert_array_equal(tail[number], rows)
    assert plan.step_of(plan.n_cells) == plan.n_steps
    with pytest.raises(PlanError):
        plan.step_of(plan.n_cells + plan.cells.n * 10)


def labelled(n_per_label: int | None, n: int = 400) -> LabelledCells:
    codes = np.array([0] * (n // 2) + [1] * (n // 2 - 5) + [2] * 5, np.uint8)
    codes = np.random.default_rng(0).permutation(codes)
    rows = MarkedRows.of([np.ones(n, dtype=bool)], n)
    return LabelledCells(rows, None if n_per_label is None else codes, n_per_label)


def test_passes_and_epochs_have_orders_of_their_own() -> None:
    plan = LabelledPlan(labelled(None), PlanConfig(batch_size=20), 40)
    orders = []
    for epoch in (0, 1):
        order = np.concatenate(list(global_batches(plan, 1, epoch).values()))
        orders += [tuple(order[:400]), tuple(order[400:])]
    assert len(set(orders)) == 4


def test_an_epoch_draws_so_many_cells_of_each_label() -> None:
    cells = labelled(30)
    counts: Counter[int] = Counter()
    seen = set()
    for epoch in range(60):
        taken = all_members(cells.of_epoch(3, epoch))
        assert np.bincount(cells.codes[taken]).tolist() == [30, 30, 5]
        np.testing.assert_array_equal(taken, all_members(cells.of_epoch(3, epoch)))
        seen.add(tuple(taken))
        counts.update(taken[cells.codes[taken] == 0].tolist())
    assert len(seen) == 60
    # Each of 200 cells is drawn with probability 0.15: 9 times of 60, give or take.
    assert len(counts) > 195
    assert max(counts.values()) < 25
    assert tuple(all_members(cells.of_epoch(4, 0))) not in seen


@pytest.fixture(scope="module")
def source() -> OpenSource:
    rng = np.random.default_rng(0)
    n = 300
    x_ng = rng.poisson(1.0, (n, 6)).astype(np.float32)
    x_ng[:, 0] += 1
    kinds = rng.choice(["T", "B", "none"], n, p=[0.2, 0.1, 0.7])
    obs = pd.DataFrame({"kind": kinds}, index=[f"c{i}" for i in range(n)])
    store = open_store(ad.AnnData(x_ng, obs=obs))
    setup = SetupArgs(labels_key="kind", unlabeled_category="none")
    return OpenSource(store, fit_schema(store, setup))


def kinds_of(source: OpenSource) -> np.ndarray:
    return source.store.read_obs(["kind"], 0, source.store.n_obs)["kind"].to_numpy().astype(str)


def test_labelled_cells_are_found_among_the_rows_of_a_split(source: OpenSource) -> None:
    kinds = kinds_of(source)
    rows = ArrayRows(np.arange(0, 300, 3), 300)
    cells = LabelledCells.among(rows, source, LabelledConfig(n_samples_per_label=4))
    expected = np.flatnonzero((kinds != "none") & (np.arange(300) % 3 == 0))
    np.testing.assert_array_equal(all_members(cells.rows), expected)
    names = np.array(source.schema.categories["labels"])
    np.testing.assert_array_equal(names[cells.codes], kinds[expected])
    assert cells.n == sum(min(4, int((kinds[expected] == k).sum())) for k in ("T", "B"))


@pytest.mark.parametrize("world", [1, 3])
def test_a_data_module_hands_out_both_streams_in_step(source: OpenSource, world: int) -> None:
    kinds = kinds_of(source)
    split = split_by_label(kinds != "none", SplitConfig(train_size=0.7), 16)
    seen: list[list[np.ndarray]] = [[], []]
    for rank in range(world):
        data = CellDataModule(source, split, 16, rank=rank, world=world, labelled=LabelledConfig())
        pairs = (
            (data.train_loader, data.labelled_loader, split.train),
            (data.validation_loader, data.labelled_validation_loader, split.validation),
        )
        for k, (loader, others, rows) in enumerate(pairs):
            assert others is not None
            batches = list(others)
            assert [b.step for b in batches] == [b.step for b in loader]
            for batch in batches:
                assert (batch["labels"] < 2).all()
                assert np.isin(batch.rows, all_members(rows)).all()
                seen[k].append(batch.rows[: batch.n_real])
        data.close()
    for k, rows in enumerate((split.train, split.validation)):
        members = all_members(rows)
        expected = members[kinds[members] != "none"]
        np.testing.assert_array_equal(np.unique(np.concatenate(seen[k])), expected)


def test_the_split_takes_the_same_share_of_both_kinds(source: OpenSource) -> None:
    is_labelled = kinds_of(source) != "none"
    for shuffle in (True, False):
        config = SplitConfig(train_size=0.5, validation_size=0.3, shuffle_set_split=shuffle)
        split = split_by_label(is_labelled, config, 16)
        parts = [all_members(part) for part in (split.train, split.validation, split.test)]
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(300))
        for part, share in zip(parts, (0.5, 0.3, 0.2), strict=True):
            assert abs(is_labelled[part].sum() - share * is_labelled.sum()) <= 1


def test_streams_that_cannot_be_are_refused(source: OpenSource) -> None:
    beside = ReadPlan(AllRows(300), PlanConfig(batch_size=16))
    with pytest.raises(ConfigError, match="at least 1"):
        LabelledConfig(n_samples_per_label=0)
    with pytest.raises(BudgetExceeded, match="one minibatch"):
        make_labelled_plan(beside, source, LabelledConfig(), LoaderConfig(budget_bytes=10))
    kinds = kinds_of(source)
    none = ReadPlan(ArrayRows(np.flatnonzero(kinds == "none"), 300), PlanConfig(batch_size=16))
    assert make_labelled_plan(none, source, LabelledConfig(), LoaderConfig()) is None
    one = ArrayRows(np.flatnonzero(kinds != "none")[:1], 300)
    with pytest.raises(ConfigError, match="one cell of the training set"):
        make_labelled_plan(
            ReadPlan(one, PlanConfig(batch_size=16)), source, LabelledConfig(), LoaderConfig()
        )
    unlabelled = OpenSource(source.store, fit_schema(source.store, SetupArgs(labels_key="kind")))
    with pytest.raises(ConfigError, match="without an unlabeled_category"):
        LabelledCells.among(AllRows(300), unlabelled, LabelledConfig())
