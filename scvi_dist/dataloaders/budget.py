"""What a rank's reader holds in memory, and the window that fits into a budget. Pure."""

from scvi_dist.errors import BudgetExceeded

TRAIN_SHARE = 0.75
"""Of the budget; what is left is the validation loader's, whose cells need no shuffling."""

LABELLED_SHARE = 0.2
"""Of a loader's share, what its stream of labelled cells gets where there is one."""

TASKS_RESIDENT = 2
"""Tasks of a rank in memory at once: one being handed out, one being read."""

PLAN_BYTES_PER_CELL = 40
"""What a task's own row numbers and indices take, generously."""

TASK_SLACK = 1.25
"""Bytes of a task over what its number of cells promises: some stretches have larger cells."""

RUN_BYTES = 32 << 20
"""What a store holds beside its result while it joins reads, at most; small tasks need less."""

BATCHES_RESIDENT = 2
"""Minibatches cut out of a task: one in use, one being cut."""

INDEX_BYTES_PER_CELL = 12
"""What a process keeps of every cell of the store, whether it reads it or not: 2 bytes of its row
pointer, 1 or 2 of its codes, and 8 of its row number where the split is a list of rows."""

MIXED_BLOCKS = 512
"""Blocks in a window, at least; and at least as many as a minibatch has cells. Of cells stored in
runs of one kind, minibatches then have 99 % of the entropy of random draws, or more."""

SHUFFLED_BLOCKS, SHUFFLED_CHUNKS = 16, 16
"""Blocks in a window, at least, and chunks in a block, of a store whose cells are shuffled: no more
than a sixteenth of what is decoded is decoded twice, and who is in a window together changes from
epoch to epoch."""

FEWEST_ROWS = 16
"""Rows of a block, at least: below, a store spends more time on finding rows than on reading."""


def resident_bytes(
    task_cells: int, batch_cells: int, bytes_per_cell: float, scratch_bytes: int = 0
) -> int:
    """Most bytes that a reader holds for tasks and minibatches of these sizes."""
    task = task_cells * (bytes_per_cell * TASK_SLACK + PLAN_BYTES_PER_CELL)
    batches = BATCHES_RESIDENT * batch_cells * bytes_per_cell
    return int(TASKS_RESIDENT * task + min(task, RUN_BYTES) + batches) + scratch_bytes


def cells_budget(budget_bytes: int, n_obs: int) -> int:
    """What of a budget is left for cells: all but what is kept of every cell of the store.

    At least half: an index that takes more than that is not made smaller by reading less.
    """
    return max(budget_bytes - n_obs * INDEX_BYTES_PER_CELL, budget_bytes // 2)


def scratch_bytes_for(chunk_rows: int, bytes_per_cell: float, n_threads: int) -> int:
    """What reading threads hold beside their results: each the chunk that it decodes."""
    return int(n_threads * chunk_rows * bytes_per_cell) if chunk_rows > 1 else 0


def fit_window(
    bytes_per_cell: float,
    budget_bytes: int,
    batch_size: int,
    world: int,
    window_cells: int = 32_768,
    scratch_bytes: int = 0,
) -> int:
    """The largest window, up to ``window_cells``, with which a rank's reader stays in a budget.

    Positions belong to a window size: keep the answer for a run that may resume, also with
    another number of ranks, rather than asking again.

    Parameters
    ----------
    bytes_per_cell
        Mean size of a cell in memory, as :attr:`Store.bytes_per_cell` says.
    budget_bytes
        What one rank may hold in cells.
    batch_size
        Global batch size; the answer is a multiple of it.
    world
        Number of ranks.
    scratch_bytes
        What reading takes beside the cells themselves, see :func:`scratch_bytes_for`.

    Raises
    ------
    BudgetExceeded
        If even a window of one minibatch does not fit.
    """
    per_step = -(-batch_size // world)

    def needed(n_steps: int) -> int:
        return resident_bytes(n_steps * per_step, per_step, bytes_per_cell, scratch_bytes)

    if needed(1) > budget_bytes:
        chunks = f" and {_mebibytes(scratch_bytes)} to decode chunks" if scratch_bytes else ""
        raise BudgetExceeded(
            f"one minibatch of {per_step} cells a rank needs {_mebibytes(needed(1))} while it is "
            f"read ({bytes_per_cell:.0f} bytes a cell{chunks}), the budget is "
            f"{_mebibytes(budget_bytes)}. Raise budget_bytes, lower the batch size, or use more "
            f"ranks{'; or store the cells in smaller chunks' if chunks else ''}."
        )
    fits, too_many = 1, max(1, window_cells // batch_size) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if needed(middle) <= budget_bytes else (fits, middle)
    return fits * batch_size


def block_rows_for(
    chunk_rows: int,
    window_cells: int,
    stratum: int = 1,
    batch_size: int = 1,
    is_shuffled: bool = False,
) -> int:
    """Rows of a block that suit a store which keeps ``chunk_rows`` rows together.

    Whole chunks, at least 64 rows, and so few that a window mixes ``MIXED_BLOCKS``; where those
    contradict each other, mixing wins: a store in large chunks is then decoded several times over.
    A store that was shuffled is mixed already: its blocks are ``SHUFFLED_CHUNKS`` long. A multiple
    of ``stratum`` (see :class:`RowSet`).
    """
    fewest = SHUFFLED_BLOCKS if is_shuffled else max(MIXED_BLOCKS, batch_size)
    most = max(FEWEST_ROWS, window_cells // fewest)
    wanted = chunk_rows * max(SHUFFLED_CHUNKS if is_shuffled else 1, -(-64 // chunk_rows))
    size = min(wanted, most)
    return max(stratum, size // stratum * stratum)


def _mebibytes(n_bytes: float) -> str:
    return f"{n_bytes / 2**20:.1f} MiB"
