"""How fast cells of a TileDB-SOMA experiment reach a training loop: ours against tiledbsoma-ml.

    python tests/bench/loaders/bench_soma.py [--cells 32768] [--genes 20000] [--passes 5]
                                             [--folder DIR] [--only NAME ...]

One pass over shuffled cells in sparse minibatches of 1,024, from an experiment that
tiledbsoma.io.from_anndata wrote (TileDB's default layout), and from the same cells as write_soma
lays them out. Peers: tiledbsoma-ml with its defaults, where it is installed, and a loop over
tiledbsoma's own blockwise reader, which does not shuffle. All are warmed up once and then run in
turns, so that what else the machine does hits all alike; medians are compared. Files are in the
page cache. Memory is the peak of a process that makes one pass with one loader.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tiledbsoma
import tiledbsoma.io

from scvi_dist.data.open import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.data.soma.soma_writer import write_soma
from scvi_dist.dataloaders.loader import LoaderConfig, make_plan
from scvi_dist.dataloaders.local_loader import LocalLoader
from scvi_dist.dataloaders.rows import AllRows
from scvi_dist.dataloaders.source import OpenSource

NONZERO = 0.06
BATCH_SIZE = 1024

Pass = Callable[[], int]
"""Goes once over the cells; returns how many there were."""


def make_files(folder: Path, n_cells: int, n_genes: int) -> tuple[Path, Path]:
    """The same counts in TileDB's default layout and in ours."""
    default, own = (folder / f"{kind}-{n_cells}-{n_genes}.soma" for kind in ("default", "own"))
    if not default.exists():
        tiledbsoma.io.from_anndata(str(default), simulated(n_cells, n_genes), "RNA")
    if not own.exists():
        with open_store(default) as store:
            write_soma(store, own)
    return default, own


def simulated(n_cells: int, n_genes: int) -> Any:
    """An AnnData with sparse counts; genes differ in how often they are seen."""
    import anndata
    import pandas as pd
    from scipy import sparse

    rng = np.random.default_rng(0)
    share_g = rng.gamma(0.6, 1.0, n_genes)
    share_g = np.minimum(share_g / share_g.mean() * NONZERO, 1.0).astype(np.float32)
    blocks = []
    for start in range(0, n_cells, 512):
        n = min(512, n_cells - start)
        rows, genes = np.nonzero(rng.random((n, n_genes), dtype=np.float32) < share_g)
        counts = rng.geometric(0.68, len(rows)).astype(np.float32)
        blocks.append(sparse.csr_matrix((counts, (rows, genes)), shape=(n, n_genes)))
    obs = pd.DataFrame(
        {"batch": pd.Categorical(rng.choice(list("abcdefgh"), n_cells))},
        index=[f"cell{i}" for i in range(n_cells)],
    )
    return anndata.AnnData(sparse.vstack(blocks, "csr"), obs=obs)


def ours(path: Path) -> Pass:
    store = open_store(path)
    source = OpenSource(store, fit_schema(store, SetupArgs(batch_key="batch")))
    config = LoaderConfig()
    plan = make_plan(AllRows(store.n_obs), store, config, batch_size=BATCH_SIZE)
    loader = LocalLoader(plan, source, config)
    return lambda: sum(batch.n_cells for batch in loader)


def soma_ml(path: Path) -> Pass | None:
    try:
        from tiledbsoma_ml import ExperimentDataset, experiment_dataloader
    except ImportError:
        return None

    def run() -> int:
        with tiledbsoma.open(str(path)) as experiment, experiment.axis_query("RNA") as query:
            cells = ExperimentDataset(
                query,
                layer_name="data",
                obs_column_names=["batch"],
                batch_size=BATCH_SIZE,
                shuffle=True,
                return_sparse_X=True,
            )
            return sum(x_ng.shape[0] for x_ng, _ in experiment_dataloader(cells))

    return run


def blockwise(path: Path) -> Pass:
    def run() -> int:
        with tiledbsoma.open(str(path)) as experiment:
            reader = experiment.ms["RNA"].X["data"].read().blockwise(axis=0, size=4096)
            return sum(x_ng.shape[0] for x_ng, _ in reader.scipy())

    return run


def loaders(default: Path, own: Path) -> dict[str, Pass]:
    """What is compared, by name."""
    made: dict[str, Pass | None] = {
        "scvi_dist": ours(default),
        "scvi_dist, own layout": ours(own),
        "tiledbsoma-ml": soma_ml(default),
        "tiledbsoma blockwise": blockwise(default),
    }
    return {name: run for name, run in made.items() if run is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=32_768)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="keep the files here")
    parser.add_argument("--only", nargs="+", default=None, help="these loaders, by name")
    parser.add_argument("--peak", default=None, help="run this loader only, for its memory")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        paths = make_files(folder, args.cells, args.genes)
        runs = loaders(*paths)
        if args.peak:
            before = _peak_mb()
            runs[args.peak]()
            print(f"{before:.0f} {_peak_mb():.0f}")
            return
        runs = {name: run for name, run in runs.items() if not args.only or name in args.only}
        peaks = {name: peak(name, args, folder) for name in runs}
        report(args, compare(runs, args.passes), peaks)


def compare(runs: dict[str, Pass], passes: int) -> dict[str, list[tuple[float, float]]]:
    """Cells per second of wall and of CPU time, by loader, for every pass."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for go in runs.values():
        go()
    for _ in range(passes):
        for name, go in runs.items():
            at, at_cpu = time.perf_counter(), time.process_time()
            n_cells = go()
            wall, cpu = time.perf_counter() - at, time.process_time() - at_cpu
            rates[name].append((n_cells / wall, n_cells / cpu))
    return rates


def peak(name: str, args: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """Peak memory in MB before and after one pass, in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, "--folder", str(folder)]
    command += ["--cells", str(args.cells), "--genes", str(args.genes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    before, after = done.stdout.split()[-2:]
    return float(before), float(after)


def _peak_mb() -> float:
    """From Linux' own account of this program; getrusage also knows what its parent once took."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")


def report(
    args: argparse.Namespace,
    rates: dict[str, list[tuple[float, float]]],
    peaks: dict[str, tuple[float, float]],
) -> None:
    print(f"{args.cells:,} cells x {args.genes:,} genes, batches of {BATCH_SIZE}")
    titles = ("loader", "cells/s: median [range]", "cells/CPU-s", "MB above start")
    print("{:24s}{:32s}{:>12s}{:>16s}".format(*titles))
    ours_wall, ours_cpu = (median(r[i] for r in rates["scvi_dist"]) for i in (0, 1))
    for name, passes in rates.items():
        wall, cpu = ([r[i] for r in passes] for i in (0, 1))
        shown = f"{median(wall):10,.0f} [{min(wall):,.0f} … {max(wall):,.0f}]"
        before, after = peaks[name]
        ratio = (
            f"  ours / it: wall {ours_wall / median(wall):.1f}, CPU {ours_cpu / median(cpu):.1f}"
        )
        ratio = "" if name == "scvi_dist" else ratio
        print(f"{name:24s}{shown:32s}{median(cpu):12,.0f}{after - before:16,.0f}{ratio}")


if __name__ == "__main__":
    main()
