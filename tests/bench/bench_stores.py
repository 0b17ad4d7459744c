"""How fast rows come out of each kind of store, beside slicing the same matrix in memory.

    python tests/bench/bench_stores.py [--cells 20000] [--genes 2000] [--density 0.08]

Each line is one kind of store. *scattered* reads a window's worth of 64-row blocks in one call,
as a shuffled plan does; *genes* the same with a quarter of the genes; *in order* reads blocks of
4,096 rows from first to last. Figures are cells per second of CPU time (best of several), then
the share of what ``scipy`` reaches slicing the matrix in memory in the same process. *zarr* is the
zarr library reading the same slices of ``data`` and ``indices``.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from scipy import sparse
from zarr.codecs import BloscCodec

from scvi_dist.data import Range, open_store
from scvi_dist.testing import write_atlas

BLOCK_ROWS = 64
STREAM_ROWS = 4096
REPEATS = 5


def simulated(n: int, g: int, density: float) -> Any:
    """An AnnData with sparse counts."""
    import anndata

    counts = sparse.random(n, g, density, format="csr", dtype=np.float32, random_state=0)
    counts.data = np.random.default_rng(0).geometric(0.6, counts.nnz).astype(np.float32)
    counts.sort_indices()
    return anndata.AnnData(counts)


def write_sharded(adata: Any, path: Path) -> Path:
    """Zarr with row-sized inner chunks (about 64 rows, blosc-lz4) in shards of 64 of them."""
    write_atlas(adata, path)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    chunk = max(1, adata.X.nnz * BLOCK_ROWS // adata.n_obs)
    for name in ("indices", "data"):
        values = root[f"X/{name}"][:]
        del root[f"X/{name}"]
        array = root["X"].create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(chunk,),
            shards=(64 * chunk,),
            compressors=BloscCodec(cname="lz4", shuffle="shuffle"),
        )
        array[:] = values
    root.update_attributes({})
    return path


def cells_per_s(read: Callable[[], object], n_cells: int) -> float:
    """Cells per second of CPU time, best of several; the first call warms up."""
    read()
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        read()
        times.append(time.process_time() - start)
    return n_cells / max(min(times), 1e-9)


def zarr_library(path: Path, ranges: Sequence[Range]) -> Callable[[], object]:
    group = zarr.open_group(path / "X", mode="r")
    indptr = group["indptr"][:]
    spans = [(int(indptr[start]), int(indptr[stop])) for start, stop in ranges]
    arrays = group["data"], group["indices"]
    return lambda: [array[low:high] for low, high in spans for array in arrays]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--density", type=float, default=0.08)
    options = parser.parse_args()
    adata = simulated(options.cells, options.genes, options.density)
    n, x = adata.n_obs, adata.X
    rng = np.random.default_rng(1)
    blocks = np.sort(rng.choice(n // BLOCK_ROWS, n // BLOCK_ROWS // 2, replace=False)) * BLOCK_ROWS
    scattered = [(start, start + BLOCK_ROWS) for start in blocks.tolist()]
    rows = np.concatenate([np.arange(start, stop) for start, stop in scattered])
    genes = np.sort(rng.choice(adata.n_vars, adata.n_vars // 4, replace=False))
    stream = [(start, min(n, start + STREAM_ROWS)) for start in range(0, n, STREAM_ROWS)]
    peer = [
        cells_per_s(lambda: x[rows], len(rows)),
        cells_per_s(lambda: x[rows][:, genes], len(rows)),
        cells_per_s(lambda: [x[start:stop] for start, stop in stream], n),
    ]

    def show(name: str, figures: Sequence[float]) -> None:
        cells = [
            f"{figure:11,.0f} ({figure / best:4.2f})"
            for figure, best in zip(figures, peer, strict=False)
        ]
        print(f"{name:16s}" + "".join(cells), flush=True)

    print(f"{'':16s}" + "".join(f"{name:>18s}" for name in ("scattered", "genes", "in order")))
    show("scipy", peer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources: dict[str, Any] = {
            "memory": adata,
            "h5ad": write_atlas(adata, folder / "plain.h5ad"),
            "h5ad gzip": write_atlas(adata, folder / "gzip.h5ad", compression="gzip"),
            "zarr 2": write_atlas(adata, folder / "2.zarr", zarr_format=2),
            "zarr 3": write_atlas(adata, folder / "3.zarr"),
            "zarr 3 sharded": write_sharded(adata, folder / "sharded.zarr"),
        }
        for kind, source in sources.items():
            with open_store(source) as store:
                show(
                    kind,
                    [
                        cells_per_s(lambda s=store: s.read_rows(scattered), len(rows)),
                        cells_per_s(lambda s=store: s.read_rows(scattered, genes), len(rows)),
                        cells_per_s(lambda s=store: [s.read_rows([part]) for part in stream], n),
                    ],
                )
        library = zarr_library(sources["zarr 3 sharded"], scattered)
        show("  by zarr", [cells_per_s(library, len(rows))])


if __name__ == "__main__":
    main()
