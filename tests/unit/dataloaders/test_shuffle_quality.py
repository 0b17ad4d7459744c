"""How mixed minibatches are of a store that nobody shuffled, with the settings that are default."""

import numpy as np
import pytest

from scvi_dist.dataloaders.budget import block_rows_for, fit_window
from scvi_dist.dataloaders.loader_config import LoaderConfig
from scvi_dist.dataloaders.read_plan import PlanConfig, ReadPlan
from scvi_dist.dataloaders.rows import AllRows, HashedRows, RowSet

N_CELLS, N_BATCHES, N_DONORS, N_TYPES = 200_000, 8, 66, 30
MIXED = 0.99
"""Of the entropy that minibatches of random draws have."""


@pytest.fixture(scope="module")
def kinds() -> np.ndarray:
    """Cell type and batch of each cell: donors one after the other, each sorted by type."""
    rng = np.random.default_rng(0)
    donor = np.sort(rng.integers(0, N_DONORS, N_CELLS))
    shares = rng.dirichlet(np.full(N_TYPES, 2.0), N_DONORS)
    sizes = np.bincount(donor, minlength=N_DONORS)
    types = [np.sort(rng.choice(N_TYPES, n, p=p)) for n, p in zip(sizes, shares, strict=True)]
    return donor * N_BATCHES // N_DONORS * N_TYPES + np.concatenate(types)


def entropy(kinds: np.ndarray) -> float:
    share = np.bincount(kinds) / len(kinds)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def mean_entropies(kinds: np.ndarray, rows: RowSet, config: PlanConfig) -> tuple[float, float]:
    """Of an epoch's minibatches, and of as many random draws of the same sizes."""
    plan = ReadPlan(rows, config)
    rng = np.random.default_rng(1)
    members = np.concatenate([task.rows for task in plan.tasks(0, 0, 1)])
    found, perfect = [], []
    for task in plan.tasks(0, 0, 1):
        for cut in task.cuts[:: max(1, len(task.cuts) // 24)]:
            found.append(entropy(kinds[task.rows[cut.pick]]))
            perfect.append(entropy(kinds[rng.choice(members, len(cut.pick), replace=False)]))
    return float(np.mean(found)), float(np.mean(perfect))


def by_default(chunk_rows: int, batch_size: int, bytes_per_cell: float, rows: RowSet) -> PlanConfig:
    """What ``make_plan`` chooses for a store."""
    config = LoaderConfig()
    window = fit_window(
        bytes_per_cell, int(0.75 * config.budget_bytes), batch_size, 1, config.window_cells
    )
    block = block_rows_for(chunk_rows, window, rows.stratum, batch_size)
    return PlanConfig(batch_size=batch_size, window_cells=window, block_rows=block)


@pytest.mark.parametrize("chunk_rows", [1, 64, 2048])
@pytest.mark.parametrize("batch_size", [128, 1024, 4096])
def test_a_sorted_store_is_mixed_like_random_draws(
    batch_size: int, chunk_rows: int, kinds: np.ndarray
) -> None:
    rows = AllRows(N_CELLS)
    config = by_default(chunk_rows, batch_size, 9_600.0, rows)
    found, perfect = mean_entropies(kinds, rows, config)
    assert found >= MIXED * perfect


def test_a_hashed_training_set_too(kinds: np.ndarray) -> None:
    rows = HashedRows(N_CELLS, 0, "train", n_validation=20_000, n_train=180_000)
    found, perfect = mean_entropies(kinds, rows, by_default(64, 1024, 9_600.0, rows))
    assert found >= MIXED * perfect


def test_the_measure_tells_a_store_that_is_not_mixed(kinds: np.ndarray) -> None:
    rows = AllRows(N_CELLS)
    large = PlanConfig(batch_size=1024, window_cells=32_768, block_rows=512)
    found, perfect = mean_entropies(kinds, rows, large)
    assert found < 0.95 * perfect
    in_order = PlanConfig(batch_size=1024, shuffle=False)
    found, perfect = mean_entropies(kinds, rows, in_order)
    assert found < 0.5 * perfect
