"""Differential abundance beside scvi-tools': CPU time, peak memory, and how close the results are.

    python tests/bench/bench_da.py [--scored 3000] [--cells 60000] [--samples 8] [--repeats 3]

The log-densities of ``--scored`` cells under ``--samples`` samples of ``--cells`` cells in all, in
fresh processes of one thread that take turns; medians are shown. scvi-tools 1.4.2 scores all cells
of the AnnData it is given; here its own steps (aggregated posterior of each sample, log-density by
minibatch) are called for the scored cells alone. Both encode the same 200 genes with the same
initial weights. The error is the largest difference from PyTorch in double precision, of 50 cells.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

N_GENES = 200
MEGABYTE = 1 << 20
SIDES = ("scvi-tools", "scvi_dist")


def peak_rss_bytes() -> int:
    """High-water mark of this process's resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("this system has no VmHWM in /proc/self/status")


def cells_of(n_cells: int, n_samples: int) -> Any:
    """An AnnData whose cells are of so many samples."""
    import anndata
    import numpy as np
    import pandas as pd
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(1.0, 1.0, (n_cells, 1)) * rng.lognormal(0, 1, N_GENES))
    donors = [f"donor{i}" for i in rng.integers(n_samples, size=n_cells)]
    obs = pd.DataFrame(
        {"donor": pd.Categorical(donors)}, index=[f"cell{i}" for i in range(n_cells)]
    )
    return anndata.AnnData(csr_matrix(counts.astype(np.float32)), obs=obs)


def model_of(side: str, adata: Any) -> Any:
    """A model with initial weights, the same on both sides."""
    import torch

    if side == "scvi-tools":
        from scvi.model import SCVI

        SCVI.setup_anndata(adata)
        torch.manual_seed(0)
        theirs = SCVI(adata)
        theirs.is_trained_ = True
        theirs.module.eval()
        return theirs
    from scvi_dist.model import SCVI as OurSCVI

    OurSCVI.setup_anndata(adata)
    torch.manual_seed(0)
    ours = OurSCVI(adata)
    ours.is_trained = True
    return ours


def log_densities(side: str, model: Any, adata: Any, scored: Any) -> Any:
    """``[n, samples]`` of the scored cells."""
    if side == "scvi_dist":
        return model.differential_abundance(adata, "donor", adata_sub=scored).to_numpy()
    import numpy as np
    import torch

    places = torch.as_tensor(model.get_latent_representation(scored))
    columns = []
    for name in adata.obs["donor"].unique():
        indices = np.flatnonzero(adata.obs["donor"] == name)
        law = model.get_aggregated_posterior(adata, indices=indices, dof=None, batch_size=128)
        with torch.inference_mode():
            columns.append(torch.cat([law.log_prob(part) for part in places.split(128)]).numpy())
    return np.array(columns).T


def error_of(model: Any, adata: Any, scored: Any, got: Any) -> float:
    """Largest difference from PyTorch in double precision, of the first 50 cells."""
    import torch

    points = torch.as_tensor(model.get_latent_representation(scored))[:50].double()
    worst = 0.0
    mean, variance = model.get_latent_representation(adata, return_dist=True)
    for number, name in enumerate(adata.obs["donor"].unique()):
        is_in = (adata.obs["donor"] == name).to_numpy()
        scale = torch.as_tensor(variance[is_in]).double().sqrt()
        law = torch.distributions.Normal(torch.as_tensor(mean[is_in]).double(), scale)
        each = law.log_prob(points[:, None]).sum(-1)
        expected = torch.logsumexp(each, 1) - torch.log(torch.tensor(float(len(scale))))
        worst = max(worst, float(abs(expected.numpy() - got[:50, number]).max()))
    return worst


def child(side: str, n_scored: int, n_cells: int, n_samples: int) -> dict[str, float]:
    """CPU seconds, memory above that of a run on few cells, and the error of ours."""
    adata = cells_of(n_cells, n_samples)
    scored = adata[:n_scored].copy()
    model = model_of(side, adata)
    log_densities(side, model, adata[:500].copy(), adata[:20].copy())
    before, started = peak_rss_bytes(), time.process_time()
    got = log_densities(side, model, adata, scored)
    measured = {"cpu_s": time.process_time() - started, "above": peak_rss_bytes() - before}
    # scvi-tools' components have another scale, so its result is another one.
    error = error_of(model, adata, scored, got) if side == "scvi_dist" else float("nan")
    return {**measured, "error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scored", type=int, default=3_000)
    parser.add_argument("--cells", type=int, default=60_000)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = (arguments.scored, arguments.cells, arguments.samples)
    if arguments.child:
        print(json.dumps(child(arguments.child, *sizes)))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    seen: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(arguments.repeats):
        for side in SIDES:
            command = [sys.executable, *sys.argv, "--child", side]
            out = subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment
            )
            if out.returncode:
                raise SystemExit(out.stderr[-3_000:])
            seen[side].append(json.loads(out.stdout.strip().splitlines()[-1]))
    print(f"{sizes[0]:,} cells under {sizes[2]} samples of {sizes[1]:,} cells in all")
    middle = {s: statistics.median(one["cpu_s"] for one in seen[s]) for s in SIDES}
    for side in SIDES:
        above = statistics.median(one["above"] for one in seen[side]) / MEGABYTE
        ratio = middle[SIDES[0]] / middle[side]
        print(f"  {side:11} {middle[side]:7.2f} CPU-s ({ratio:4.1f}x)  peak + {above:5.0f} MB")
    print(f"  largest error of scvi_dist {max(one['error'] for one in seen['scvi_dist']):.1e}")


if __name__ == "__main__":
    main()
