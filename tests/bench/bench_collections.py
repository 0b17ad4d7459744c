"""What many stores as one cost, beside one store; and genes chosen by streaming, beside scanpy.

    python tests/bench/bench_collections.py [--stores 200] [--cells 100] [--genes 5000]

*open*: CPU time of opening a folder of h5ad files as one store, of finding their columns, of
opening it again from its locator, and of anndata opening them one by one, backed. *rows*: cells per
second of CPU time in scattered blocks, from one file with all cells, from the shards, and from
shards whose genes are in another order each (``join``). *genes*: CPU time of
``highly_variable_genes`` on the one file, and of scanpy on the same in memory, compiled before.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from scvi_dist.data import open_store
from scvi_dist.data.highly_variable import highly_variable_genes
from scvi_dist.testing import write_atlas

BLOCK_ROWS = 16
REPEATS = 3


def simulated(n: int, g: int) -> Any:
    """Counts of cells in 8 batches, 6 % of them not zero."""
    rng = np.random.default_rng(0)
    counts = sparse.random(n, g, 0.06, format="csr", dtype=np.float32, random_state=0)
    scale = rng.uniform(0.1, 0.9, g)
    counts.data = rng.geometric(scale[counts.indices]).astype(np.float32)
    obs = pd.DataFrame({"batch": pd.Categorical(rng.choice(list("abcdefgh"), n))})
    obs.index = [f"cell-{i}" for i in range(n)]
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(g)]))


def seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """CPU time, best of several."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def open_all(paths: list[Path]) -> None:
    for path in paths:
        anndata.read_h5ad(path, backed="r").file.close()


def show_opening(folder: Path, paths: list[Path]) -> None:
    with open_store(folder) as store:
        figures = {
            "open": seconds(lambda: open_store(folder).close(), 1),
            "columns": seconds(lambda: store.obs_columns, 1),
            "again": seconds(lambda: store.locator.open().close()),
            "anndata": seconds(lambda: open_all(paths), 1),
        }
    for name, total in figures.items():
        print(f"open   {name:9s}{1e3 * total / len(paths):9.3f} ms a store", flush=True)


def show_rows(sources: dict[str, Any], n: int) -> None:
    starts = np.random.default_rng(1).permutation(n // BLOCK_ROWS)[:200] * BLOCK_ROWS
    blocks = [(start, start + BLOCK_ROWS) for start in np.sort(starts).tolist()]
    cells = BLOCK_ROWS * len(blocks)
    for name, source in sources.items():
        with open_store(source, join=None) as store:
            rate = cells / seconds(lambda s=store: s.read_rows(blocks))
            print(f"rows   {name:9s}{rate:12,.0f} cells per CPU-s", flush=True)


def show_genes(path: Path, adata: Any) -> None:
    import scanpy

    def scanpys() -> None:
        scanpy.pp.highly_variable_genes(
            adata, flavor="seurat_v3", batch_key="batch", n_top_genes=2000, inplace=False
        )

    scanpys()
    ours = seconds(lambda: highly_variable_genes(path, batch_key="batch"))
    theirs = seconds(scanpys)
    print(f"genes  streaming {ours:6.2f} s, scanpy in memory {theirs:6.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stores", type=int, default=200)
    parser.add_argument("--cells", type=int, default=100, help="of each store")
    parser.add_argument("--genes", type=int, default=5000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    n = options.stores * options.cells
    adata = simulated(n, options.genes)
    rng = np.random.default_rng(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = write_atlas(adata, folder / "one.h5ad")
        for kind in ("shards", "shuffled"):
            (folder / kind).mkdir()
        paths = []
        for i in range(options.stores):
            part = adata[i * options.cells : (i + 1) * options.cells].copy()
            paths.append(write_atlas(part, folder / "shards" / f"{i:05}.h5ad"))
            other = part[:, rng.permutation(options.genes)].copy()
            write_atlas(other, folder / "shuffled" / f"{i:05}.h5ad")
        show_opening(folder / "shards", paths)
        sources = {"one": one, "shards": folder / "shards", "shuffled": folder / "shuffled"}
        show_rows(sources, n)
        show_genes(one, adata)


if __name__ == "__main__":
    main()
