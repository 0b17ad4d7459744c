"""How mixed minibatches of an unshuffled atlas are, and what mixing costs.

    python tests/bench/loaders/check_shuffle.py --folder DIR [--cells 200000] [--genes 20000]
           [--batch-size 1024] [--repeats 3]

The measure is the mean over an epoch's minibatches of the entropy of cell type x batch, as a share
of what minibatches of a perfect shuffle have. It is told for two orders of the cells: that of the
atlas of ``bench_atlas.py`` (donors one after the other, half of them sorted by type), and for cells
sorted by batch and type altogether. Which rows a minibatch takes does not depend on what they hold,
so that one pass over the file shows both. Fails where the default settings give less than 0.99.

Beside the default settings stand blocks of 512 consecutive rows, and cells in the order of the
file: what reading costs where nothing is mixed. Each runs in a process of its own; memory is what
its peak grew by from before the first pass.
"""

import argparse
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from atlas_files import atlas_files

from scvi_dist.data import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.dataloaders.loader import LoaderConfig, make_plan
from scvi_dist.dataloaders.local_loader import LocalLoader
from scvi_dist.dataloaders.rows import AllRows
from scvi_dist.dataloaders.source import OpenSource

LEAST = 0.99
"""Of the entropy of a perfect shuffle."""
DEFAULT = "default"
SETTINGS = {
    DEFAULT: (LoaderConfig(), True),
    "blocks of 512": (LoaderConfig(block_rows=512), True),
    "in order": (LoaderConfig(), False),
}
"""Settings of a loader, and whether it shuffles."""


@dataclass(frozen=True)
class Passes:
    """What passes over a store with some settings showed."""

    rows: np.ndarray
    """int64 ``[n]``: an epoch's cells, one minibatch after the other."""
    sizes: np.ndarray
    """Cells of each minibatch."""
    block_rows: int
    cells_per_s: float
    cells_per_cpu_s: float
    peak_mib: float


def passes_over(path: Path, setting: str, batch_size: int, repeats: int) -> Passes:
    """One pass to warm up and to see the rows, then some that are timed."""
    config, shuffle = SETTINGS[setting]
    store = open_store(path)
    source = OpenSource(store, fit_schema(store, SetupArgs(batch_key="batch")), check_counts=False)
    plan = make_plan(AllRows(store.n_obs), store, config, batch_size=batch_size, shuffle=shuffle)
    loader = LocalLoader(plan, source, config)
    before_mib = _peak_mib()
    found = [batch.rows for batch in loader]
    wall, cpu = [], []
    for _ in range(repeats):
        start_s, cpu_start_s = time.perf_counter(), time.process_time()
        n = sum(batch.n_cells for batch in loader)
        wall.append(n / (time.perf_counter() - start_s))
        cpu.append(n / (time.process_time() - cpu_start_s))
    return Passes(
        np.concatenate(found),
        np.array([len(rows) for rows in found]),
        plan.config.block_rows,
        median(wall),
        median(cpu),
        _peak_mib() - before_mib,
    )


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def mean_entropy(kinds: np.ndarray, sizes: np.ndarray) -> float:
    """Mean over minibatches, in nats; ``kinds`` are those of their cells, one after the other."""
    found = []
    for cells in np.split(kinds, np.cumsum(sizes)[:-1]):
        share = np.bincount(cells) / len(cells)
        share = share[share > 0]
        found.append(-(share * np.log(share)).sum())
    return float(np.mean(found))


def kinds_of(path: Path) -> np.ndarray:
    """int64 ``[n]``: cell type x batch of each row."""
    with open_store(path) as store:
        obs = store.read_obs(["batch", "cell_type"])
    batch, cell_type = (obs[name].cat.codes.to_numpy(np.int64) for name in ("batch", "cell_type"))
    return batch * len(obs["cell_type"].cat.categories) + cell_type


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="keeps the atlas")
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    files = atlas_files(args.folder, args.cells, args.genes)
    as_stored = kinds_of(files.h5ad)
    in_sorted = np.sort(as_stored)
    shuffled = np.random.default_rng(0).permutation(as_stored)
    print(
        f"{'store':32s}{'settings':>15s}{'block':>7s}{'entropy':>9s}{'sorted':>8s}"
        f"{'cells/s':>10s}{'per CPU-s':>11s}{'MiB':>7s}"
    )
    poor = []
    for path in (files.h5ad, files.training, files.zarr):
        for setting in SETTINGS:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                call = alone.submit(passes_over, path, setting, args.batch_size, args.repeats)
                seen = call.result()
            perfect = mean_entropy(shuffled, seen.sizes)
            ratios = [
                mean_entropy(kinds[seen.rows], seen.sizes) / perfect
                for kinds in (as_stored, in_sorted)
            ]
            print(
                f"{path.name:32s}{setting:>15s}{seen.block_rows:7d}{ratios[0]:9.4f}{ratios[1]:8.4f}"
                f"{seen.cells_per_s:10,.0f}{seen.cells_per_cpu_s:11,.0f}{seen.peak_mib:7,.0f}",
                flush=True,
            )
            if setting == DEFAULT and min(ratios) < LEAST:
                poor.append(path.name)
    if poor:
        raise SystemExit(f"less than {LEAST} of a perfect shuffle's entropy: {', '.join(poor)}")


if __name__ == "__main__":
    main()
