"""Differential expression of many groups: CPU time beside scvi-tools, memory, and agreement.

    python tests/bench/bench_de.py speed [--cells 20000] [--genes 10000] [--groups 30] [--peer 2]
    python tests/bench/bench_de.py memory [--cells 20000 1000000] [--genes 2000]
    python tests/bench/bench_de.py agreement [--reference 200000]

``speed``: every group versus rest, mode change, one thread, one model in both packages. scvi-tools
compares ``--peer`` of the groups, and its time is scaled up to all. Interleaved; both have been
warmed up on another comparison. Then the memory that each adds to a process that holds the model.

``memory``: a fresh process for each number of cells compares all groups on a Zarr store, with both
estimators; printed is how much its peak of resident memory has grown over that after a comparison
on 2,000 cells.

``agreement``: mean and largest distance from a Monte-Carlo reference, of both estimators and of
scvi-tools with its 5,000 draws.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix

from scvi_dist.analysis.differential.decode import DecodeOptions, PosteriorPass, scales
from scvi_dist.data.simulated.atlas_model import AtlasSize, SimulatedAtlas
from scvi_dist.data.simulated.simulate import SimulatedStore
from scvi_dist.data.writing.writer import write_zarr
from scvi_dist.model import SCVI

MEGABYTE = 1 << 20
MODE = {"groupby": "cell_type", "mode": "change"}
ESTIMATORS = ("sample", "full")
WARM_CELLS = 2_000
COLUMNS = ("proba_de", "lfc_mean", "lfc_median", "lfc_std", "scale1", "scale2")


def status_bytes(name: str) -> int:
    """A number of this process's status: VmRSS now, VmHWM its high-water mark."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"this system has no {name} in /proc/self/status")


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def simulated(n_cells: int, n_genes: int, n_groups: int) -> SimulatedStore:
    size = AtlasSize(n_cells=n_cells, n_genes=n_genes, n_batches=4, n_cell_types=n_groups)
    return SimulatedStore(SimulatedAtlas(size))


def in_memory(store: SimulatedStore) -> ad.AnnData:
    rows = store.read_rows([(0, store.n_obs)])
    counts = csr_matrix((rows.data.astype(np.float32), rows.indices, rows.indptr), store.shape)
    obs = store.read_obs(list(store.obs_columns)).set_index(store.obs_names())
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=store.var_names))


def trained(data: Any, steps: int) -> SCVI:
    SCVI.setup_anndata(data, batch_key="batch")
    torch.manual_seed(0)
    model = SCVI(data)
    with tempfile.TemporaryDirectory() as folder:
        model.train(max_steps=steps, batch_size=512, run_dir=f"{folder}/run", accelerator="cpu")
    return model


def peer_of(model: SCVI, cells: ad.AnnData) -> Any:
    import scvi

    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model")
        return scvi.model.SCVI.load(f"{folder}/model", adata=cells)


def measured(call: Any) -> tuple[float, float, Any]:
    """CPU seconds, megabytes that the peak lies above the memory before, and the result."""
    before = status_bytes("VmRSS")
    reset_peak()
    start = time.process_time()
    result = call()
    seconds = time.process_time() - start
    return seconds, (status_bytes("VmHWM") - before) / MEGABYTE, result


def speed(args: argparse.Namespace) -> None:
    cells = in_memory(simulated(args.cells, args.genes, args.groups))
    model = trained(cells, args.steps)
    theirs = peer_of(model, cells)
    groups = sorted(cells.obs["cell_type"].unique())
    some = cells[:WARM_CELLS].copy()
    for estimator in ESTIMATORS:  # compiles what is to be compiled
        model.differential_expression(some, estimator=estimator, seed=0, **MODE)
    theirs.differential_expression(some, group1=groups[:1], silent=True, **MODE)
    seconds: dict[str, list[float]] = {}
    megabytes: dict[str, list[float]] = {}
    for _ in range(args.repeats):
        for name in ("scvi-tools", *ESTIMATORS):
            if name == "scvi-tools":
                peers = groups[: args.peer]
                took, grew, _ = measured(
                    lambda peers=peers: theirs.differential_expression(
                        group1=peers, silent=True, **MODE
                    )
                )
                took *= len(groups) / args.peer
            else:
                took, grew, _ = measured(
                    lambda name=name: model.differential_expression(estimator=name, seed=0, **MODE)
                )
            seconds.setdefault(name, []).append(took)
            megabytes.setdefault(name, []).append(grew)
            print(f"  {name:12s} {took:8.1f} CPU s  {grew:7.0f} MB", flush=True)
    peer = float(np.median(seconds["scvi-tools"]))
    print(
        f"{args.cells:,} cells x {args.genes:,} genes, {len(groups)} groups versus rest; "
        f"scvi-tools: {args.peer} of them, scaled up"
    )
    for name, took in seconds.items():
        median = float(np.median(took))
        print(
            f"{name:12s} {median:8.1f} CPU s   {peer / median:5.1f} x   "
            f"peak +{np.median(megabytes[name]):.0f} MB"
        )


def memory(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        warm = Path(folder) / "warm.zarr"
        write_zarr(simulated(WARM_CELLS, args.genes, args.groups), warm)
        trained(str(warm), 20).save(f"{folder}/model")
        for n_cells in args.cells:
            url = Path(folder) / f"{n_cells}.zarr"
            write_zarr(simulated(n_cells, args.genes, args.groups), url)
            for estimator in ESTIMATORS:
                call = [sys.executable, __file__, "child", folder, str(url), estimator]
                out = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True).stdout
                found = json.loads(out.splitlines()[-1])
                print(
                    f"{n_cells:9,} cells x {args.genes:,} genes, {estimator:6s} "
                    f"peak +{found['grew']:.0f} MB, {found['seconds']:.1f} CPU s",
                    flush=True,
                )


def child(args: argparse.Namespace) -> None:
    model = SCVI.load(f"{args.folder}/model", adata=f"{args.folder}/warm.zarr")
    call = {"estimator": args.estimator, "seed": 0, **MODE}
    model.differential_expression(**call)
    seconds, grew, _ = measured(lambda: model.differential_expression(args.url, **call))
    print(json.dumps({"seconds": seconds, "grew": grew}))


def reference(model: SCVI, rows: list[np.ndarray], n: int, pseudocount: float) -> pd.DataFrame:
    """The same statistics from many draws that are independent, in pieces of 20,000."""
    cells = model._stored_cells(None, 512, 0)
    every = PosteriorPass().compute(model.module, cells, None)
    rng = np.random.default_rng(1)
    up, down, sums, squares, scale1, scale2 = (0.0 for _ in range(6))
    lfcs = []
    for piece in range(n // 20_000):
        draws = []
        for of_side in rows:
            drawn = rng.choice(of_side, 20_000)
            keys = rng.integers(0, 2**63, 20_000).astype(np.uint64)
            one = {name: value[drawn] for name, value in every.items()}
            pieces_rg = list(scales(model.module, one, keys, None, DecodeOptions()))
            draws.append(np.concatenate(pieces_rg))
        x, y = draws
        change = np.log2(x + pseudocount) - np.log2(y + pseudocount)
        lfc = np.log2(x + 1e-3 * pseudocount) - np.log2(y + 1e-3 * pseudocount)
        up, down = up + (change >= 0.25).mean(0), down + (change < -0.25).mean(0)
        sums = sums + lfc.mean(0, dtype=float)
        squares = squares + np.square(lfc).mean(0, dtype=float)
        scale1, scale2 = scale1 + x.mean(0, dtype=float), scale2 + y.mean(0, dtype=float)
        lfcs.append(lfc)
        print(f"  reference {20_000 * (piece + 1):,} draws", flush=True)
    pieces = n // 20_000
    mean = sums / pieces
    return pd.DataFrame(
        {
            "proba_de": np.maximum(up, down) / pieces,
            "lfc_mean": mean,
            "lfc_median": np.median(np.concatenate(lfcs), axis=0),
            "lfc_std": np.sqrt(squares / pieces - mean**2),
            "scale1": scale1 / pieces,
            "scale2": scale2 / pieces,
        },
        index=model.schema.var_names,
    )


def agreement(args: argparse.Namespace) -> None:
    cells = in_memory(simulated(args.cells, args.genes, args.groups))
    model = trained(cells, args.steps)
    theirs = peer_of(model, cells)
    group = sorted(cells.obs["cell_type"].unique())[0]
    is_in = (cells.obs["cell_type"] == group).to_numpy()
    asked = {"group1": [group], "pseudocounts": 1e-8, "all_stats": False, **MODE}
    rows = [np.flatnonzero(is_in), np.flatnonzero(~is_in)]
    true = reference(model, rows, args.reference, 1e-8)
    errors: dict[str, list[pd.DataFrame]] = {}
    for run in range(args.repeats):
        np.random.seed(run)
        torch.manual_seed(run)
        tables = {"scvi-tools": theirs.differential_expression(silent=True, **asked)}
        for estimator in ESTIMATORS:
            tables[estimator] = model.differential_expression(
                estimator=estimator, seed=run, **asked
            )
        for name, table in tables.items():
            distance = (table.loc[true.index, list(COLUMNS)] - true).abs()
            errors.setdefault(name, []).append(distance)
    print(f"{int(is_in.sum())} of {len(cells)} cells versus rest, {args.genes} genes")
    for name, found in errors.items():
        mean = pd.concat(found).mean()
        largest = pd.concat(found).max()
        shown = "  ".join(f"{c} {mean[c]:.2e} (max {largest[c]:.1e})" for c in COLUMNS)
        print(f"{name:12s} {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, call, n_cells, n_genes, n_groups in (
        ("speed", speed, 20_000, 10_000, 30),
        ("memory", memory, [20_000, 1_000_000], 2_000, 30),
        ("agreement", agreement, 6_000, 1_000, 10),
    ):
        command = commands.add_parser(name)
        many = "+" if isinstance(n_cells, list) else None
        command.add_argument("--cells", type=int, nargs=many, default=n_cells)
        command.add_argument("--genes", type=int, default=n_genes)
        command.add_argument("--groups", type=int, default=n_groups)
        command.add_argument("--repeats", type=int, default=3)
        command.add_argument("--steps", type=int, default=120)
        command.add_argument("--peer", type=int, default=2)
        command.add_argument("--reference", type=int, default=200_000)
        command.add_argument("--folder", default=None)
        command.set_defaults(call=call)
    one = commands.add_parser("child")
    for name in ("folder", "url", "estimator"):
        one.add_argument(name)
    one.set_defaults(call=child)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    args.call(args)


if __name__ == "__main__":
    main()
