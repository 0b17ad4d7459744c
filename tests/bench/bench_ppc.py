"""Posterior predictive checks beside scvi-tools': CPU time and peak memory.

    python tests/bench/bench_ppc.py [--cells 1000] [--genes 10000] [--repeats 3]
    python tests/bench/bench_ppc.py --memory 10000 100000 [--genes 2000]

The first form runs coefficients of variation with fractions of zeros, and calibration, in fresh
processes of one thread: the same cells, and models of the same sizes with their initial weights;
scvi-tools and scvi_dist take turns, medians are shown. Each process has run all of it on 20 cells
before, so nothing is compiled while time is taken, and memory is what comes on top of that.
The second form runs all metrics from a Zarr store of so many cells, of ours alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MEGABYTE = 1 << 20
TASKS = ("moments", "calibration")
SIDES = ("scvi-tools", "scvi_dist")


def peak_rss_bytes() -> int:
    """High-water mark of this process's resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("this system has no VmHWM in /proc/self/status")


def cells_of(n_cells: int, n_genes: int) -> Any:
    """An AnnData of integer counts, about a tenth of them not zero."""
    import anndata
    import numpy as np
    import pandas as pd
    from scipy.sparse import csr_matrix, vstack

    rng = np.random.default_rng(0)
    share_g = rng.lognormal(-2.9, 1.2, n_genes)
    blocks = [
        csr_matrix(rng.poisson(share_g * rng.gamma(2.0, 0.5, (200, 1))).astype(np.float32))
        for _ in range(-(-n_cells // 200))
    ]
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)])
    var = pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)])
    # scvi-tools 1.4.2 fails on counts that are stored as floats.
    return anndata.AnnData(vstack(blocks)[:n_cells].tocsr().astype(np.int64), obs=obs, var=var)


def check_of(side: str, adata: Any, n_samples: int) -> Any:
    """The check of a model with its initial weights."""
    import torch

    torch.manual_seed(0)
    if side == "scvi-tools":
        import scvi
        from scvi.criticism import PosteriorPredictiveCheck

        scvi.model.SCVI.setup_anndata(adata)
        model = scvi.model.SCVI(adata)
        model.is_trained_ = True
        model.module.eval()
        # The name is the only one that its calibration works with.
        return PosteriorPredictiveCheck(adata, {"model1": model}, n_samples=n_samples)
    from scvi_dist.criticism import PosteriorPredictiveCheck as Check
    from scvi_dist.model import SCVI

    SCVI.setup_anndata(adata)
    ours = SCVI(adata)
    ours.is_trained = True
    return Check(adata, {"model1": ours}, n_samples=n_samples, seed=0)


def run_task(side: str, task: str, adata: Any, n_samples: int) -> None:
    check = check_of(side, adata, n_samples)
    if task == "calibration":
        check.calibration_error()
    else:
        check.coefficient_of_variation("cells")
        check.zero_fraction()


def child(side: str, task: str, n_cells: int, n_genes: int, n_samples: int) -> dict[str, float]:
    """CPU seconds, and how much memory came on top of that of a run on 20 cells."""
    adata = cells_of(n_cells, n_genes)
    run_task(side, task, adata[:20].copy(), n_samples)
    before, started = peak_rss_bytes(), time.process_time()
    run_task(side, task, adata, n_samples)
    return {"cpu_s": time.process_time() - started, "above": peak_rss_bytes() - before}


def memory_child(url: str, n_samples: int) -> dict[str, float]:
    """Peak memory of all metrics on a store, above that of its first 2,000 cells."""
    import numpy as np

    from scvi_dist.criticism import DEOptions, PosteriorPredictiveCheck
    from scvi_dist.data import open_store
    from scvi_dist.model import SCVI

    store = open_store(url)
    SCVI.setup_anndata(store, batch_key="batch")
    model = SCVI(store, gene_likelihood="nb")
    model.is_trained = True
    metrics = ("cv_cell", "cv_gene", "zero_fraction", "calibration", "diff_exp")
    de = DEOptions(de_groupby="cell_type", de_method="wilcoxon")
    peaks = []
    started = time.process_time()
    for indices in (np.arange(2_000), None):
        started = time.process_time()
        check = PosteriorPredictiveCheck(
            store, {"model": model}, n_samples=n_samples, indices=indices, seed=0
        )
        check.run(metrics, de=de)
        peaks.append(peak_rss_bytes())
    return {"cpu_s": time.process_time() - started, "above": peaks[1] - peaks[0]}


def measured(*arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    out = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if out.returncode:
        raise SystemExit(out.stderr[-3_000:])
    return json.loads(out.stdout.strip().splitlines()[-1])


def compare(arguments: argparse.Namespace) -> None:
    sizes = (arguments.cells, arguments.genes, arguments.samples)
    print(f"{sizes[0]:,} cells x {sizes[1]:,} genes x {sizes[2]} samples")
    for task in TASKS:
        seen: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(arguments.repeats):
            for side in SIDES:
                seen[side].append(measured(side, task, *sizes))
        middle = {s: statistics.median(one["cpu_s"] for one in seen[s]) for s in SIDES}
        for side in SIDES:
            above = statistics.median(one["above"] for one in seen[side]) / MEGABYTE
            ratio = middle[SIDES[0]] / middle[side]
            print(
                f"  {task:12} {side:11} {middle[side]:7.2f} CPU-s "
                f"({ratio:4.1f}x)  peak + {above:6.0f} MB",
                flush=True,
            )


def memory(arguments: argparse.Namespace) -> None:
    from scvi_dist.data.simulated.simulate import simulate_atlas

    for n_cells in arguments.memory:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "atlas"
            simulate_atlas(target, n_cells=n_cells, n_genes=arguments.genes, n_shards=1)
            seen = measured("memory", next(target.glob("*.zarr")), arguments.samples)
        print(
            f"{n_cells:>9,} cells x {arguments.genes:,} genes x {arguments.samples} samples, all "
            f"metrics: {seen['cpu_s']:7.1f} CPU-s, peak + {seen['above'] / MEGABYTE:5.0f} MB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1_000)
    parser.add_argument("--genes", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="+", help="cells of the stores")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        side, *given = arguments.child
        if side == "memory":
            print(json.dumps(memory_child(given[0], int(given[1]))))
        else:
            print(json.dumps(child(side, given[0], *map(int, given[1:]))))
    elif arguments.memory:
        memory(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
