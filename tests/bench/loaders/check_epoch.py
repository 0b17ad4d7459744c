"""An atlas, gone over by ranks that stop half-way and by another number of ranks that go on.

    python tests/bench/loaders/check_epoch.py --folder DIR [--cells 200000] [--genes 20000]

Two ranks read until half of an epoch is over and save their state; three ranks start from it and
read the rest and the next epoch. Fails unless every cell came exactly once in each epoch, with the
counts that it has in the file, all ranks made equally many steps, and the two epochs had different
orders. The atlas is that of ``bench_atlas.py``, as h5ad and as Zarr.
"""

import argparse
import time
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from atlas_files import atlas_files

from scvi_dist.batch import CellBatch
from scvi_dist.data import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.dataloaders.loader import LoaderConfig, make_plan
from scvi_dist.dataloaders.local_loader import LocalLoader
from scvi_dist.dataloaders.rows import AllRows
from scvi_dist.dataloaders.source import OpenSource

BEFORE, AFTER = 2, 3
BATCH_SIZE = 1024


def facts_of(path: Path) -> np.ndarray:
    """float64 ``[n, 2]``: sum of each cell's counts, and of its genes' numbers."""
    with h5py.File(path) as file:
        indptr = file["X/indptr"][:]
        totals = [
            np.add.reduceat(file[f"X/{name}"][:].astype(np.float64), indptr[:-1])
            for name in ("data", "indices")
        ]
    return np.stack(totals, axis=1)


def seen_in(batches: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows, the facts of their cells, and the number of steps."""
    rows, facts, steps = [], [], 0
    for batch in batches:
        rows.append(batch.rows)
        facts.append(_facts(batch))
        steps += 1
    return np.concatenate(rows), np.concatenate(facts), steps


def _facts(batch: CellBatch) -> np.ndarray:
    starts = batch.x.indptr[:-1].numpy()
    parts = (batch.x.data, batch.x.indices)
    return np.stack([np.add.reduceat(p.numpy().astype(np.float64), starts) for p in parts], axis=1)


def check(path: Path, expected: np.ndarray) -> str:
    """Go over a store as told above; what to print of it."""
    began_s = time.perf_counter()
    store = open_store(path)
    source = OpenSource(store, fit_schema(store, SetupArgs(batch_key="batch")), check_counts=False)
    config, n = LoaderConfig(), store.n_obs
    plan = make_plan(AllRows(n), store, config, world=AFTER, batch_size=BATCH_SIZE)
    half = plan.n_steps // 2
    found, states = [], []
    for rank in range(BEFORE):
        loader = LocalLoader(plan, source, config, rank, BEFORE)
        found.append(seen_in(islice(loader, half)))
        states.append(loader.state_dict())
    assert states[0] == states[1], "the ranks do not agree on where they are"
    again = []
    for rank in range(AFTER):
        loader = LocalLoader(plan, source, config, rank, AFTER)
        loader.load_state_dict(states[0])
        found.append(seen_in(loader))
        again.append(seen_in(loader))
    steps = [one[2] for one in found]
    assert steps == [half] * BEFORE + [plan.n_steps - half] * AFTER, f"unequal steps: {steps}"
    orders = []
    for epoch in (found, again):
        rows, facts = (np.concatenate([one[k] for one in epoch]) for k in (0, 1))
        assert np.array_equal(np.sort(rows), np.arange(n)), "a cell came twice or never"
        assert np.array_equal(facts, expected[rows]), "a cell came with counts of another"
        orders.append(rows)
    assert not np.array_equal(*orders), "two epochs have one order"
    seconds = time.perf_counter() - began_s
    return f"{n:,} cells, twice, each once: {plan.n_steps} steps an epoch, {seconds:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="keeps the atlas")
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=20_000)
    args = parser.parse_args()
    files = atlas_files(args.folder, args.cells, args.genes)
    expected = facts_of(files.h5ad)
    for path in (files.h5ad, files.training):
        print(f"{path.name}: {check(path, expected)}")


if __name__ == "__main__":
    main()
