"""Laws of the read plan, over sizes, kinds of row sets, world sizes, epochs and resume points."""

import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.dataloaders.budget import (
    INDEX_BYTES_PER_CELL,
    block_rows_for,
    cells_budget,
    fit_window,
    resident_bytes,
)
from scvi_dist.dataloaders.read_plan import PlanConfig, ReadPlan, ReadTask
from scvi_dist.dataloaders.rows import AllRows, ArrayRows, HashedRows, RangeRows, all_members
from scvi_dist.errors import BudgetExceeded, PlanError

WORLDS = st.integers(1, 16)
LAWS = settings(deadline=None, max_examples=80)


@st.composite
def plans(draw: st.DrawFn) -> ReadPlan:
    n = draw(st.one_of(st.sampled_from([1, 2, 3, 13, 64, 257, 997]), st.integers(1, 1_200)))
    kind = draw(st.sampled_from(["all", "range", "array", "hash"]))
    if kind == "hash":
        n_validation = draw(st.integers(0, n))
        n_train = draw(st.integers(0, n - n_validation))
        part = draw(st.sampled_from(["train", "validation", "test"]))
        rows = HashedRows(n, 1, part, n_validation, n_train)
    elif kind == "array":
        rows = ArrayRows(np.flatnonzero(np.random.default_rng(n).random(n) < 0.6), n)
    else:
        rows = RangeRows(0 if kind == "all" else n // 4, n, n)
    config = PlanConfig(
        batch_size=draw(st.sampled_from([1, 2, 3, 7, 16, 37, 128, 2_000])),
        window_cells=draw(st.sampled_from([1, 10, 64, 333, 5_000])),
        block_rows=draw(st.sampled_from([64, 128] if kind == "hash" else [1, 3, 7, 64])),
        shuffle=draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
    )
    return ReadPlan(rows, config)


def global_batches(
    plan: ReadPlan, world: int, epoch: int = 0, position: int = 0
) -> list[np.ndarray]:
    """Rows of every global minibatch in item order, put together from all ranks' cuts."""
    steps: dict[int, list[np.ndarray]] = {}
    for rank in range(world):
        for task in plan.tasks(epoch, rank, world, position):
            for cut in task.cuts:
                rows = task.rows[cut.pick]
                steps.setdefault(cut.step, []).append(rows[: len(rows) - cut.n_padding])
    return [np.concatenate(steps[step]) for step in sorted(steps)]


def cuts_of(tasks: list[ReadTask]) -> list[tuple[int, int, int, int, int, float, list[int]]]:
    return [
        (c.step, c.position, c.start, c.n_global, c.n_padding, c.loss_scale, list(t.rows[c.pick]))
        for t in tasks
        for c in t.cuts
    ]


@LAWS
@given(plans(), WORLDS)
def test_every_cell_once_an_epoch(plan, world):
    seen = global_batches(plan, world)
    assert len(seen) == plan.n_steps == -(-plan.n_cells // plan.config.batch_size)
    cells = np.concatenate(seen) if seen else np.empty(0, np.int64)
    np.testing.assert_array_equal(np.sort(cells), all_members(plan.rows))


@LAWS
@given(plans(), WORLDS, st.integers(0, 2))
def test_the_order_does_not_depend_on_the_number_of_ranks(plan, world, epoch):
    for one, many in zip(
        global_batches(plan, 1, epoch), global_batches(plan, world, epoch), strict=True
    ):
        np.testing.assert_array_equal(one, many)


@LAWS
@given(plans(), WORLDS)
def test_ranks_have_equal_steps_and_nearly_equal_cells(plan, world):
    by_rank = [cuts_of(list(plan.tasks(0, rank, world))) for rank in range(world)]
    padding = 0
    for step, cuts in enumerate(zip(*by_rank, strict=True)):
        n_global = plan.batch_size_of(step)
        real = [len(cut[6]) - cut[4] for cut in cuts]
        assert sum(real) == n_global
        assert max(real) - min(real) <= 1
        assert [cut[0] for cut in cuts] == [step] * world
        assert {cut[1] for cut in cuts} == {plan.position_of(step)}
        assert {cut[3] for cut in cuts} == {n_global}
        assert all(len(cut[6]) >= 1 for cut in cuts)
        assert sum(cut[5] for cut in cuts) == pytest.approx(world)
        for cut, cells, before in zip(cuts, real, np.cumsum([0, *real]), strict=False):
            assert cut[2] == before
            assert cut[5] == pytest.approx(cells * world / n_global)
            assert cut[4] == (cells == 0)
        padding += sum(cut[4] for cut in cuts)
    assert padding == plan.n_padding(world)


@LAWS
@given(plans(), WORLDS, st.data())
def test_resuming_gives_the_tail(plan, world, data):
    step = data.draw(st.integers(0, plan.n_steps))
    rank = data.draw(st.integers(0, world - 1))
    position = plan.position_of(step)
    assert plan.step_of(position) == step
    whole = cuts_of(list(plan.tasks(1, rank, world)))
    assert cuts_of(list(plan.tasks(1, rank, world, position))) == whole[step:]


@LAWS
@given(plans(), WORLDS)
def test_steps_and_positions_are_two_names_of_one_thing(plan, world):
    positions = [plan.position_of(step) for step in range(plan.n_steps + 1)]
    assert positions[0] == 0
    assert positions[-1] == plan.n_cells
    sizes = np.diff(positions)
    assert (sizes >= 1).all()
    assert (sizes <= plan.config.batch_size).all()
    cuts = [task.cuts for task in plan.tasks(0, 0, world)]
    for window in cuts[:-1]:
        assert {cut.n_global for cut in window} == {plan.config.batch_size}
    for window in cuts[-1:]:
        assert np.ptp([cut.n_global for cut in window]) <= 1
    lengths = [len(window) for window in cuts]
    assert max(lengths, default=0) - min(lengths, default=0) <= 1
    assert all(n * plan.config.batch_size <= plan.config.window_cells or n == 1 for n in lengths)
    for position in set(range(plan.n_cells + 2)) - set(positions):
        with pytest.raises(PlanError, match="not the start of a minibatch"):
            plan.step_of(position)


@LAWS
@given(plans(), WORLDS, st.data())
def test_ranges_are_the_rows(plan, world, data):
    rank = data.draw(st.integers(0, world - 1))
    for task in plan.tasks(0, rank, world):
        read = np.concatenate([np.arange(a, b) for a, b in task.ranges])
        np.testing.assert_array_equal(read, task.rows)
        assert (np.diff(task.rows) > 0).all()
        assert all(a > b for (a, _), (_, b) in zip(task.ranges[1:], task.ranges, strict=False))
        assert len(task.rows) <= plan.cells_per_task(world)
        picked = np.concatenate([cut.pick for cut in task.cuts])
        assert len(np.unique(picked)) == len(task.rows)


@LAWS
@given(plans(), st.integers(0, 2))
def test_order_is_a_function_of_seed_and_epoch(plan, epoch):
    again = pickle.loads(pickle.dumps(plan))
    assert len(pickle.dumps(plan)) < 20_000
    for a, b in zip(global_batches(plan, 1, epoch), global_batches(again, 1, epoch), strict=True):
        np.testing.assert_array_equal(a, b)
    if not plan.config.shuffle and plan.n_cells:
        sequence = np.concatenate(global_batches(plan, 1, epoch))
        np.testing.assert_array_equal(sequence, all_members(plan.rows))


@pytest.mark.parametrize("rows", [AllRows(5_003), HashedRows(5_003, 0, "train", 500, 4_503)])
def test_epochs_and_seeds_have_orders_of_their_own(rows):
    def order(seed: int, epoch: int) -> np.ndarray:
        plan = ReadPlan(rows, PlanConfig(batch_size=32, window_cells=1_024, seed=seed))
        return np.concatenate(global_batches(plan, 1, epoch))

    base = order(0, 0)
    for other in (order(0, 1), order(1, 0), all_members(rows)):
        assert (base == other).mean() < 0.01
        # Nor are the same cells merely met in another order of the same windows.
        first, second = set(base[:1_024].tolist()), set(other[:1_024].tolist())
        assert len(first & second) < 600


def test_minibatches_mix_the_whole_window():
    plan = ReadPlan(AllRows(64 * 1_000), PlanConfig(batch_size=128, window_cells=8_192))
    blocks_in_batch = [len(np.unique(rows // 64)) for rows in global_batches(plan, 1)]
    assert plan.n_windows == 8
    assert min(blocks_in_batch) >= 120  # a window has 8,000 cells in 125 blocks
    # Cells of one block do not stay together: their steps within a window are all but random.
    steps = np.empty(plan.n_cells)
    for step, rows in enumerate(global_batches(plan, 1)):
        steps[rows] = step % 62.5
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1]) < 0.02


@pytest.mark.parametrize("world", [2, 3, 8])
def test_a_rank_reads_its_share_only(world):
    plan = ReadPlan(AllRows(50_000), PlanConfig(batch_size=96, window_cells=9_600))
    for rank in range(world):
        for task in plan.tasks(0, rank, world):
            blocks = len(np.unique(task.rows // 64))
            n_steps = len(task.cuts)
            # Its own blocks, and at each end a part of one, or of an item row of the last window.
            assert blocks <= len(task.rows) / 64 + 2 * (n_steps / 64 + 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows", [AllRows(10**9), HashedRows(10**9, 0, "train", 10**8, 9 * 10**8)], ids=["all", "hash"]
)
def test_a_billion_cells_take_little_memory(rows):
    tracemalloc.start()
    try:
        plan = ReadPlan(rows, PlanConfig(batch_size=1_024))
        task = plan.task(epoch=0, rank=3, world=8, window=20_000)
        epochs = plan.task(epoch=1, rank=0, world=8, window=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    most = plan.cells_per_task(world=8)
    assert {len(task.rows), len(epochs.rows)} <= {most, most - 128}
    assert peak < 200e6
    assert plan.n_steps == -(-rows.n // 1_024)


@given(st.integers(2, 10**11), st.integers(0, 10**10))
def test_cells_and_their_index_share_the_budget(budget: int, n_obs: int) -> None:
    left, index = cells_budget(budget, n_obs), INDEX_BYTES_PER_CELL * n_obs
    assert budget // 2 <= left <= budget
    assert left + index == budget or left == budget // 2 < index + 1


@given(
    st.floats(8, 1e5),
    st.integers(10**5, 10**10),
    st.integers(1, 5_000),
    WORLDS,
    st.integers(1, 10**5),
    st.sampled_from([0, 10**5, 10**8]),
)
def test_windows_fit_their_budget(bytes_per_cell, budget, batch_size, world, most, scratch):
    per_step = -(-batch_size // world)

    def needed(n_steps: int) -> int:
        return resident_bytes(n_steps * per_step, per_step, bytes_per_cell, scratch)

    try:
        window = fit_window(bytes_per_cell, budget, batch_size, world, most, scratch)
    except BudgetExceeded as error:
        assert needed(1) > budget
        assert ("decode chunks" in str(error)) == (scratch > 0)  # noqa: PT017 - two outcomes
        return
    steps = window // batch_size
    assert window == steps * batch_size
    assert steps == 1 or window <= most
    assert needed(steps) <= budget
    if window + batch_size <= most:
        assert needed(steps + 1) > budget
    plan = ReadPlan(AllRows(10**5), PlanConfig(batch_size=batch_size, window_cells=window))
    assert plan.memory_bytes(bytes_per_cell, world, scratch) <= budget + 4 * (10**5 // 64 + 1)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.sampled_from([1, 16]), st.integers(1, 5000))
def test_blocks_suit_the_store_unless_a_window_would_not_mix(chunk_rows, window, stratum, batch):
    size = block_rows_for(chunk_rows, window, stratum, batch)
    assert size % stratum == 0
    assert 1 <= size <= max(16, window // max(512, batch))
    if stratum == 1 and 64 <= chunk_rows <= window // max(512, batch):
        assert size == chunk_rows


@given(st.integers(1, 10**5), st.integers(1, 10**6), st.sampled_from([1, 16]), st.integers(1, 5000))
def test_blocks_of_a_shuffled_store_are_many_chunks(chunk_rows, window, stratum, batch):
    size = block_rows_for(chunk_rows, window, stratum, batch, is_shuffled=True)
    assert size % stratum == 0
    assert size <= max(16, window // 16)
    assert size >= block_rows_for(chunk_rows, window, stratum, batch)
    if stratum == 1 and 4 <= chunk_rows <= window // 256:
        assert size == 16 * chunk_rows


def test_facts_pin_the_order_and_nothing_else():
    config = PlanConfig(batch_size=10, window_cells=99, seed=3)
    base = ReadPlan(AllRows(100), config).facts()
    assert base["n_windows"] == 2
    same = PlanConfig(batch_size=10, window_cells=95, seed=3)
    assert ReadPlan(AllRows(100), same).facts() == base
    others = [
        PlanConfig(batch_size=9, window_cells=90, seed=3),
        PlanConfig(batch_size=10, window_cells=100, seed=3),
        PlanConfig(batch_size=10, window_cells=90, seed=4),
        PlanConfig(batch_size=10, window_cells=99, seed=3, block_rows=32),
        PlanConfig(batch_size=10, window_cells=99, seed=3, shuffle=False),
    ]
    assert all(ReadPlan(AllRows(100), other).facts() != base for other in others)
    assert ReadPlan(AllRows(101), config).facts() != base


def test_plans_describe_themselves():
    text = ReadPlan(AllRows(1_000), PlanConfig(batch_size=300)).describe(world=2)
    assert "all 1,000 rows" in text
    assert "4 steps of up to 300 cells on each of 2 ranks" in text
    assert "nothing padded" in text
    assert "5 cells of padding" in ReadPlan(AllRows(3), PlanConfig(batch_size=3)).describe(8)
    task = next(ReadPlan(AllRows(10), PlanConfig(batch_size=5)).tasks(2, 0, 1))
    assert "rows 0 … 9" in task.describe()
    assert "epoch 2" in task.describe()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PlanConfig(batch_size=0), "batch_size must be at least 1, seen 0"),
        (lambda: PlanConfig(batch_size=1, block_rows=0), "block_rows"),
        (lambda: PlanConfig(batch_size=1, seed=-1), "seed must not be negative"),
        (
            lambda: ReadPlan(
                HashedRows(100, 0, "train", 10, 90), PlanConfig(batch_size=1, block_rows=24)
            ),
            "multiple of 16",
        ),
        (lambda: next(ReadPlan(AllRows(9), PlanConfig(batch_size=3)).tasks(0, 2, 2)), "rank 2"),
        (lambda: ReadPlan(AllRows(9), PlanConfig(batch_size=3)).task(0, 0, 1, 1), "window 1"),
        (lambda: ReadPlan(AllRows(9), PlanConfig(batch_size=3)).position_of(4), "step 4"),
    ],
)
def test_plans_that_cannot_be_are_refused(make, words):
    with pytest.raises(PlanError, match=words):
        make()
