"""Loaders over an atlas: ours against annbatch, scDataset, scvi-tools, and what is reachable.

    python tests/bench/loaders/bench_atlas.py --folder DIR [--cells 200000] [--genes 20000]
           [--batch-size 1024] [--repeats 5] [--annbatch-python PATH] [--only NAME ...]

The atlas is made once into the folder (2 GB and some minutes at full size; half as much again for
its shuffled copies). Every loader makes one pass to warm up, then all make passes in turns, so that
what else the machine does hits all alike. Shown are medians of cells per second and of cells per
CPU second (of the process; annbatch runs in one of its own, for it needs Python 3.12), and ours as
a ratio of each. Output is what a module receives: CSR, or with *dense* a float32 array.

*ceiling* is what our loader cannot be faster than: the rows of the same windows are read, decoded
and gathered into the same minibatches, on one thread and with nothing around it; compare cells per
CPU second with it. Files are in the page cache.
"""

import argparse
import json
import os
import resource
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import anndata as ad
from atlas_files import AtlasFiles, atlas_files

from scvi_dist.data import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.dataloaders.collate import TaskRows, dense_tensor, n_parts_of, read_part
from scvi_dist.dataloaders.loader import LoaderConfig, make_plan
from scvi_dist.dataloaders.local_loader import LocalLoader
from scvi_dist.dataloaders.rows import AllRows
from scvi_dist.dataloaders.source import OpenSource

Pass = Callable[[], tuple[int, float, float]]
"""Goes once over the cells: how many there were, seconds, CPU seconds."""

FETCH_CELLS = 16_384
HERE = Path(__file__).resolve().parent


def timed(go: Callable[[], int]) -> Pass:
    def run() -> tuple[int, float, float]:
        start, cpu = time.perf_counter(), time.process_time()
        n = go()
        return n, time.perf_counter() - start, time.process_time() - cpu

    return run


def loader_of(path: Path | ad.AnnData, batch_size: int, check: bool = False) -> LocalLoader:
    store = open_store(path)
    schema = fit_schema(store, SetupArgs(batch_key="batch"))
    source = OpenSource(store, schema, check_counts=check)
    config = LoaderConfig()
    return LocalLoader(
        make_plan(AllRows(store.n_obs), store, config, batch_size=batch_size), source, config
    )


def ours(path: Path | ad.AnnData, batch_size: int, dense: bool = False) -> Pass:
    loader = loader_of(path, batch_size)

    def go() -> int:
        if dense:
            return sum(len(dense_tensor(batch.x)) for batch in loader)
        return sum(batch.n_cells for batch in loader)

    return timed(go)


def ours_by_ray(path: Path, batch_size: int) -> Pass:
    """Read by Ray Data's tasks; the CPU time that is told is this process's alone."""
    import ray

    from scvi_dist.dataloaders.ray_loader import RayLoader
    from scvi_dist.train.local_ray import start_local_ray

    if not ray.is_initialized():
        start_local_ray(os.cpu_count() or 1)
    local = loader_of(path, batch_size)
    loader = RayLoader(local.plan, local.source, LoaderConfig(engine="ray"))
    return timed(lambda: sum(batch.n_cells for batch in loader))


def ceiling(path: Path, batch_size: int) -> Pass:
    """Read, decode and gather, on one thread."""
    loader = loader_of(path, batch_size)
    source, plan = loader.source, loader.plan

    def go() -> int:
        n = 0
        for task in plan.tasks(0, 0, 1):
            n_parts = n_parts_of(task, 1)
            parts = [read_part(task, k, n_parts, source, False) for k in range(n_parts)]
            rows = TaskRows([part.counts for part in parts])
            n += sum(rows.gather(cut.pick).n_cells for cut in task.cuts)
        return n

    return timed(go)


def scdataset(path: Path, batch_size: int) -> Pass | None:
    try:
        from scdataset import BlockShuffling, scDataset
    except ImportError:
        return None
    adata = ad.read_h5ad(path, backed="r")
    cells = scDataset(
        adata,
        BlockShuffling(block_size=16),
        batch_size=batch_size,
        fetch_factor=max(1, FETCH_CELLS // batch_size),
        fetch_callback=lambda data, rows: data.X[rows],
        batch_transform=lambda x_ng: x_ng,
    )
    return timed(lambda: sum(batch.shape[0] for batch in cells))


def scvi_in_memory(path: Path, batch_size: int, dense: bool) -> Pass | None:
    try:
        import scvi
    except ImportError:
        return None
    adata = ad.read_h5ad(path)
    # With pointers of another type than indices scipy copies all indices for every minibatch.
    adata.X.indptr = adata.X.indptr.astype(adata.X.indices.dtype)
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    manager = scvi.model.SCVI(adata, n_hidden=1).adata_manager
    loader = scvi.dataloaders.AnnDataLoader(
        manager, batch_size=batch_size, shuffle=True, load_sparse_tensor=not dense
    )
    return timed(lambda: sum(batch["X"].shape[0] for batch in loader))


def annbatch(python: str | None, path: Path, batch_size: int, output: str) -> Pass | None:
    if python is None:
        return None
    target = path.with_name(f"{path.stem}-annbatch.zarr")
    command = [python, str(HERE / "annbatch_peer.py"), str(path), str(target), str(batch_size)]
    peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert peer.stdin is not None
    assert peer.stdout is not None
    stdin, stdout = peer.stdin, peer.stdout
    if not json.loads(stdout.readline() or "{}").get("ready"):
        raise SystemExit(f"annbatch does not start with {python}; see above.")

    def run() -> tuple[int, float, float]:
        stdin.write(f"{output}\n")
        stdin.flush()
        told = json.loads(stdout.readline())
        return told["cells"], told["s"], told["cpu_s"]

    return run


def cases(files: AtlasFiles, args: argparse.Namespace) -> Iterator[tuple[str, Pass | None]]:
    size = args.batch_size
    wanted: dict[str, Callable[[], Pass | None]] = {
        "ours zarr": lambda: ours(files.zarr, size),
        "ours zarr training": lambda: ours(files.training, size),
        "ours zarr shuffled": lambda: ours(files.shuffled, size),
        "ours zarr shuffled dense": lambda: ours(files.shuffled, size, dense=True),
        "ours ray zarr shuffled": lambda: ours_by_ray(files.shuffled, size),
        "ours h5ad": lambda: ours(files.h5ad, size),
        "ours h5ad dense": lambda: ours(files.h5ad, size, dense=True),
        "ours memory": lambda: ours(ad.read_h5ad(files.h5ad), size),
        "ceiling zarr": lambda: ceiling(files.zarr, size),
        "ceiling zarr training": lambda: ceiling(files.training, size),
        "ceiling zarr shuffled": lambda: ceiling(files.shuffled, size),
        "ceiling h5ad": lambda: ceiling(files.h5ad, size),
        "annbatch zarr": lambda: annbatch(args.annbatch_python, files.h5ad, size, "sparse"),
        "annbatch zarr dense": lambda: annbatch(args.annbatch_python, files.h5ad, size, "dense"),
        "scDataset h5ad": lambda: scdataset(files.h5ad, size),
        "scvi-tools memory": lambda: scvi_in_memory(files.h5ad, size, dense=False),
        "scvi-tools memory dense": lambda: scvi_in_memory(files.h5ad, size, dense=True),
    }
    for name, make in wanted.items():
        if args.only is None or any(part in name for part in args.only):
            yield name, make()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="keeps the atlas")
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--annbatch-python", help="a Python 3.12 with annbatch and zarrs")
    parser.add_argument("--only", nargs="+", help="loaders whose name has one of these in it")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    files = atlas_files(args.folder, args.cells, args.genes)
    loaders = {name: go for name, go in cases(files, args) if go is not None}
    wall: dict[str, list[float]] = {name: [] for name in loaders}
    cpu: dict[str, list[float]] = {name: [] for name in loaders}
    for repeat in range(args.repeats + 1):
        for name, go in loaders.items():
            n, seconds, cpu_seconds = go()
            if repeat:  # The first pass warms up.
                wall[name].append(n / seconds)
                cpu[name].append(n / cpu_seconds)
    print(f"{args.cells:,} cells x {args.genes:,} genes, batches of {args.batch_size}")
    print(f"{'loader':26s}{'cells/s: median [range]':>36s}{'cells/CPU-s':>14s}")
    for name, rates in wall.items():
        spread = f"[{min(rates):,.0f} … {max(rates):,.0f}]"
        print(f"{name:26s}{median(rates):13,.0f} {spread:>22s}{median(cpu[name]):14,.0f}")
    report_ratios(wall, cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak resident memory of this process, all loaders together: {peak:,.0f} MiB")


def report_ratios(wall: dict[str, list[float]], cpu: dict[str, list[float]]) -> None:
    pairs = (
        ("ours zarr shuffled", "annbatch zarr"),
        ("ours zarr training", "annbatch zarr"),
        ("ours zarr", "ceiling zarr"),
        ("ours zarr training", "ceiling zarr training"),
        ("ours h5ad", "ceiling h5ad"),
        ("ours h5ad", "scDataset h5ad"),
        ("ours zarr shuffled", "ceiling zarr shuffled"),
        ("ours zarr shuffled dense", "annbatch zarr dense"),
        ("ours ray zarr shuffled", "ours zarr shuffled"),
        ("ours memory", "scvi-tools memory"),
        ("ours zarr training", "scvi-tools memory"),
        ("ours zarr shuffled dense", "scvi-tools memory dense"),
    )
    for one, other in pairs:
        if one in wall and other in wall:
            ratios = [median(of[one]) / median(of[other]) for of in (wall, cpu)]
            print(f"{one} / {other}: wall {ratios[0]:.2f}, per CPU second {ratios[1]:.2f}")


if __name__ == "__main__":
    main()
