"""How fast cells reach a training loop: our local loader against its peers.

    python tests/bench/bench_loaders.py [--cells 50000] [--genes 20000] [--batch-size 128]
                                        [--repeats 5] [--folder DIR]

One pass over shuffled cells, from an h5ad file (uncompressed CSR) and from a Zarr store, with the
counts left sparse and made dense. Peers: scDataset if it is installed (blocks of 16 rows, 16,384
cells a fetch: its documented settings for shuffled training), and scvi-tools' AnnDataLoader over
the same file in backed mode, on a tenth of the cells. All are warmed up once, then run in turns,
so that what else the machine does hits all alike; medians are compared. Files are in the page
cache.
"""

import argparse
import resource
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from scvi_dist.data.open import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.data.writing.writer import write_zarr
from scvi_dist.dataloaders.collate import dense_tensor
from scvi_dist.dataloaders.loader import LoaderConfig, make_plan
from scvi_dist.dataloaders.local_loader import LocalLoader
from scvi_dist.dataloaders.rows import AllRows
from scvi_dist.dataloaders.source import OpenSource

NONZERO = 0.05
FETCH_CELLS = 16_384

Pass = Callable[[], int]
"""Goes once over the cells; returns how many there were."""


def make_files(folder: Path, n_cells: int, n_genes: int) -> dict[str, Path]:
    """The same counts as h5ad and as Zarr."""
    paths = {kind: folder / f"cells-{n_cells}-{n_genes}.{kind}" for kind in ("h5ad", "zarr")}
    if not paths["h5ad"].exists():
        rng = np.random.default_rng(0)
        nnz = max(1, int(NONZERO * n_genes))
        width = n_genes // nnz
        indices = rng.integers(0, width, (n_cells, nnz), dtype=np.int32)
        indices += np.arange(nnz, dtype=np.int32) * width
        data = np.minimum(rng.geometric(0.6, n_cells * nnz), 255).astype(np.float32)
        indptr = np.arange(n_cells + 1, dtype=np.int64) * nnz
        x_ng = sparse.csr_matrix((data, indices.ravel(), indptr), shape=(n_cells, n_genes))
        obs = pd.DataFrame(
            {"batch": pd.Categorical(rng.choice(["a", "b", "c"], n_cells))},
            index=[f"cell{i}" for i in range(n_cells)],
        )
        ad.AnnData(x_ng, obs=obs).write_h5ad(paths["h5ad"])
    if not paths["zarr"].exists():
        write_zarr(open_store(paths["h5ad"]), paths["zarr"])
    return paths


def ours(path: Path, batch_size: int, dense: bool) -> Pass:
    store = open_store(path)
    source = OpenSource(store, fit_schema(store, SetupArgs(batch_key="batch")))
    config = LoaderConfig(window_cells=FETCH_CELLS)
    plan = make_plan(AllRows(store.n_obs), store, config, batch_size=batch_size)
    loader = LocalLoader(plan, source, config)

    def run() -> int:
        if dense:
            return sum(len(dense_tensor(batch.x)) for batch in loader)
        return sum(batch.n_cells for batch in loader)

    return run


def scdataset(path: Path, batch_size: int, dense: bool) -> Pass | None:
    try:
        from scdataset import BlockShuffling, scDataset
    except ImportError:
        return None
    adata = ad.read_h5ad(path, backed="r")

    def fetch(data: ad.AnnData, rows: np.ndarray) -> sparse.csr_matrix:
        return data.X[rows]

    def to_tensor(x_ng: sparse.csr_matrix) -> object:
        return x_ng.toarray() if dense else x_ng

    cells = scDataset(
        adata,
        BlockShuffling(block_size=16),
        batch_size=batch_size,
        fetch_factor=max(1, FETCH_CELLS // batch_size),
        fetch_callback=fetch,
        batch_transform=to_tensor,
    )
    return lambda: sum(batch.shape[0] for batch in cells)


def scvi_backed(path: Path, batch_size: int, dense: bool) -> Pass | None:
    if not dense:
        return None
    try:
        import scvi
    except ImportError:
        return None
    adata = ad.read_h5ad(path, backed="r")
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    manager = scvi.model.SCVI(adata, n_hidden=1).adata_manager
    some = np.random.default_rng(0).permutation(adata.n_obs)[: max(batch_size, adata.n_obs // 10)]
    loader = scvi.dataloaders.AnnDataLoader(
        manager, indices=some, batch_size=batch_size, shuffle=True
    )
    return lambda: sum(len(batch["X"]) for batch in loader)


LOADERS: dict[str, Callable[[Path, int, bool], Pass | None]] = {
    "scvi_dist": ours,
    "scDataset": scdataset,
    "scvi-tools backed": scvi_backed,
}


def cases(paths: dict[str, Path], batch_size: int) -> Iterator[tuple[str, str, Pass]]:
    """Kind of output, name, and what to time."""
    for dense in (False, True):
        out = "dense" if dense else "sparse"
        for name, make in LOADERS.items():
            for kind, path in paths.items():
                if kind == "zarr" and name != "scvi_dist":
                    continue  # peers that read h5ad in place
                go = make(path, batch_size, dense)
                if go is not None:
                    yield out, f"{name} {kind}", go


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="keep the files here")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        paths = make_files(folder, args.cells, args.genes)
        runs = list(cases(paths, args.batch_size))
        for _, _, go in runs:
            go()
        wall: dict[tuple[str, str], list[float]] = {}
        cpu: dict[tuple[str, str], list[float]] = {}
        for _ in range(args.repeats):
            for out, name, go in runs:
                at, at_cpu = time.perf_counter(), time.process_time()
                n_cells = go()
                wall.setdefault((out, name), []).append(n_cells / (time.perf_counter() - at))
                cpu.setdefault((out, name), []).append(n_cells / (time.process_time() - at_cpu))
    report(args, wall, cpu)


def report(
    args: argparse.Namespace,
    wall: dict[tuple[str, str], list[float]],
    cpu: dict[tuple[str, str], list[float]],
) -> None:
    print(f"{args.cells:,} cells x {args.genes:,} genes, batches of {args.batch_size}")
    print(f"{'out':7s}{'loader':26s}{'cells/s: median [range]':34s}{'cells/CPU-s':>12s}  ratio")
    for (out, name), rates in wall.items():
        peer = out, name
        ratios = [median(m[out, "scvi_dist h5ad"]) / median(m[peer]) for m in (wall, cpu)]
        shown = f"{median(rates):10,.0f} [{min(rates):,.0f} … {max(rates):,.0f}]"
        ratio = "wall {:.1f}, CPU {:.1f}".format(*ratios)
        ratio = "" if name.startswith("scvi_dist") else f"ours on h5ad is faster by: {ratio}"
        print(f"{out:7s}{name:26s}{shown:34s}{median(cpu[peer]):12,.0f}  {ratio}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak resident memory of the process: {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
