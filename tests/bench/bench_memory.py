"""Training on a store ten times larger than the memory it may use.

    python tests/bench/bench_memory.py [--budget-mb 256] [--cells 300000 1000000] [--genes 4000]

For each number of cells a fresh process trains from a Zarr store with the given budget for data,
and its peak of resident memory (Linux: VmHWM) is read before and after. Before means: it has
imported everything and has trained on 2,000 cells, with minibatches as large and for so many steps
that the network's own arrays are all there. Printed are the size of the matrix in memory, the
budget, and how much the peak has grown. That must lie within the budget and must not depend on the
number of cells.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

MEGABYTE = 1 << 20
WARM_STEPS = 50


def peak_rss_bytes() -> int:
    """High-water mark of this process's resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("this system has no VmHWM in /proc/self/status")


def child(url: str, warm_url: str, budget_bytes: int) -> None:
    """Train once on a small store (the baseline), then on the large one; print the peaks."""
    import warnings

    warnings.simplefilter("ignore")
    from scvi_dist.data import open_store
    from scvi_dist.model import SCVI

    peaks = {}
    for name, source, limit in (
        ("warm", warm_url, {"max_steps": WARM_STEPS}),
        ("run", url, {"max_epochs": 1}),
    ):
        store = open_store(source)
        SCVI.setup_anndata(store, batch_key="batch")
        model = SCVI(store, gene_likelihood="nb")
        with tempfile.TemporaryDirectory() as folder:
            model.train(
                **limit,
                batch_size=512,
                budget_bytes=budget_bytes,
                engine="local",
                run_dir=f"{folder}/run",
            )
        peaks[name] = peak_rss_bytes()
        peaks[f"{name}_bytes"] = store.bytes_per_cell * store.n_obs
    print(json.dumps(peaks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget-mb", type=int, default=256)
    parser.add_argument("--cells", type=int, nargs="+", default=[300_000, 1_000_000])
    parser.add_argument("--genes", type=int, default=4000)
    parser.add_argument("--folder", type=Path, help="where the stores go, and stay")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        url, warm_url, budget = arguments.child
        child(url, warm_url, int(budget))
        return

    from scvi_dist.data.simulated.simulate import simulate_atlas

    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        sizes = [2_000, *arguments.cells]
        urls = {}
        for n in sizes:
            target = folder / f"atlas_{n}x{arguments.genes}"
            if not target.exists():
                simulate_atlas(target, n_cells=n, n_genes=arguments.genes, n_shards=1)
            urls[n] = str(next(target.glob("*.zarr")))
        budget_bytes = arguments.budget_mb * MEGABYTE
        for n in arguments.cells:
            command = [sys.executable, __file__, "--child", urls[n], urls[2_000], str(budget_bytes)]
            out = subprocess.run(command, capture_output=True, text=True, check=False)
            if out.returncode:
                raise SystemExit(out.stderr)
            peaks = json.loads(out.stdout.strip().splitlines()[-1])
            above = peaks["run"] - peaks["warm"]
            print(
                f"{n:>9,} cells: matrix {peaks['run_bytes'] / MEGABYTE:8.0f} MB, "
                f"budget {arguments.budget_mb} MB, "
                f"peak above baseline {above / MEGABYTE:6.0f} MB "
                f"({'within' if above <= budget_bytes else 'OVER'} the budget)",
                flush=True,
            )


if __name__ == "__main__":
    main()
