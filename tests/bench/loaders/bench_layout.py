"""Bytes and read speed of the training layout, beside the layout that anndata's types give.

    python tests/bench/loaders/bench_layout.py [--cells 20000] [--genes 20000] [--folder DIR]
                                               [--repeats 5] [--blocks 512]

One matrix (6 % non-zero) is written in several layouts. Each is read as a shuffled plan reads it:
``--blocks`` scattered blocks of ``--block-rows`` rows in one call, on one thread. All layouts are
warmed up once and then read in turns, so that what else the machine does hits all alike; medians
of cells per second of CPU time are shown, and their ratio to the first line, which is what
``write_zarr`` writes by default. Files are in the page cache.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import anndata as ad
import numpy as np
from scipy import sparse

from scvi_dist.data import Store, open_store
from scvi_dist.data.writing.convert import CopyConfig, convert_store

DENSITY = 0.06
LAYOUTS = {
    "float32, int32, 64 rows": CopyConfig(),
    "training, 64 rows": CopyConfig(layout="training"),
    "training, 32 rows": CopyConfig(layout="training", chunk_rows=32),
    "training, 16 rows": CopyConfig(layout="training", chunk_rows=16),
    "training, 16 rows, zstd": CopyConfig(layout="training", chunk_rows=16, codec="zstd"),
}


def simulated(n: int, g: int) -> ad.AnnData:
    """Counts with the sparsity and the values of an atlas: most are 1, few are above 255."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.normal(DENSITY * g, 0.3 * DENSITY * g, n), 1, g).astype(np.int64)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    indices = np.concatenate([np.sort(rng.choice(g, k, replace=False)) for k in lengths])
    data = np.minimum(rng.zipf(2.2, indptr[-1]), 2000).astype(np.float32)
    return ad.AnnData(sparse.csr_matrix((data, indices.astype(np.int32), indptr), shape=(n, g)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=512)
    parser.add_argument("--block-rows", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--folder", type=Path, default=None, help="keep the files here")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        paths = written(folder / f"{args.cells}-{args.genes}", args.cells, args.genes)
        print(f"{args.cells:,} cells x {args.genes:,} genes, {args.blocks} scattered blocks a call")
        heads = "".join(f"{f'cells/CPU-s, blocks of {b}':>30s}" for b in args.block_rows)
        print(f"{'layout':28s}{'bytes/cell':>12s}{heads}")
        stores = {name: open_store(path) for name, path in paths.items()}
        rates = {name: [[] for _ in args.block_rows] for name in stores}  # type: dict[str, list[list[float]]]
        for repeat in range(args.repeats + 1):
            for name, store in stores.items():
                for k, rows in enumerate(args.block_rows):
                    rate = cells_per_s(store, rows, args.blocks, repeat)
                    if repeat:  # The first is to warm up.
                        rates[name][k].append(rate)
        first = [median(found) for found in next(iter(rates.values()))]
        for name, path in paths.items():
            size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / args.cells
            shown = "".join(
                f"{median(found):20,.0f} ({median(found) / base:4.2f}x)  "
                for found, base in zip(rates[name], first, strict=True)
            )
            print(f"{name:28s}{size:12,.0f}{shown}")


def written(folder: Path, n: int, g: int) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{k}.zarr" for k, name in enumerate(LAYOUTS)}
    missing = [name for name, path in paths.items() if not path.exists()]
    if missing:
        adata = simulated(n, g)
        for name in missing:
            with open_store(adata) as store:
                convert_store(store, paths[name], config=LAYOUTS[name])
    return paths


def cells_per_s(store: Store, block_rows: int, n_blocks: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    n_all = store.n_obs // block_rows
    picks = np.sort(rng.choice(n_all, min(n_blocks, n_all), replace=False)) * block_rows
    ranges = [(start, start + block_rows) for start in picks.tolist()]
    start = time.process_time()
    n = store.read_rows(ranges).n_cells
    return n / (time.process_time() - start)


if __name__ == "__main__":
    main()
