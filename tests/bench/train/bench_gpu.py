"""SCVI's training on a GPU beside scvi-tools', and its step beside what the device could do.

    python tests/bench/train/bench_gpu.py                                  # both cases, on an H200
    python tests/bench/train/bench_gpu.py --peak-tflops 19.5 --peak-tb-s 2.0           # on an A100
    python tests/bench/train/bench_gpu.py --device cpu --genes 300 --cells 500 --batch 64 --epochs 1

Both models train on the same AnnData in memory with the same batches, epochs and validation, as a
user calls them, in one process by turns; the first round warms everything up and compiles. Times
are of the clock, to the end of the device's work; medians. Then the steps of one minibatch that is
on the device already, by each kernel, beside a floor: the larger one of the bytes that have to be
moved over the memory's bandwidth and of the operations over the peak of float32. What stays in the
cache is free there, and so is the launching of kernels.
"""

import argparse
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "4")

import anndata as ad
import numpy as np
import torch
from bench_vae import atlas, models

from scvi_dist.batch import CellBatch, SparseCounts
from scvi_dist.kernels.choice import KERNELS, works_on
from scvi_dist.model import SCVI

CASES = ((20_000, 1_024), (4_000, 128))
"""Genes, and cells of a minibatch."""
PARAMETER_BYTES = 40
"""Of a float32 parameter in a step: read twice, its gradient written; Adam reads four numbers and
writes three."""
COUNT_BYTES = 4 * 12
"""Of a count and its gene: for the logarithm, both products and the likelihood."""
GENE_OPERATIONS = 60
"""Of a gene of a cell in a step, for each array of logits: three passes of about twenty."""


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What a step needs at the very least."""

    n_bytes: float
    operations: float
    peak_tflops: float
    peak_tb_s: float

    @property
    def ms(self) -> float:
        bound_s = max(self.n_bytes / self.peak_tb_s, self.operations / self.peak_tflops) / 1e12
        return bound_s * 1e3


def floor_of(model: Any, batch: CellBatch, args: argparse.Namespace) -> Floor:
    """The floor of a step of SCVI with one hidden layer."""
    (n, g), m = batch.x.shape, len(batch.x.data)
    parameters = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    h = model.module.decoder.px_scale_decoder[0].in_features
    heads = 2 if args.likelihood == "zinb" else 1
    products = heads * 6 * n * h * g + 4 * m * h
    return Floor(
        n_bytes=PARAMETER_BYTES * parameters + COUNT_BYTES * m,
        operations=products + heads * GENE_OPERATIONS * n * g,
        peak_tflops=args.peak_tflops,
        peak_tb_s=args.peak_tb_s,
    )


def clock_s(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the device has done what was asked of it."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def train_s(cells: ad.AnnData, batch: int, args: argparse.Namespace) -> dict[str, list[float]]:
    """Name -> seconds of each whole ``train()``."""
    options = {
        "max_epochs": args.epochs,
        "batch_size": batch,
        "accelerator": "gpu" if args.device.type == "cuda" else "cpu",
        "devices": 1,
        "train_size": 0.9,
        "enable_progress_bar": False,
    }
    seconds: dict[str, list[float]] = {}
    for _ in range(args.repeats + 1):
        for name, model in models(cells, args.likelihood).items():
            if name == "scvi_dist" and args.kernel is not None:
                model.module.kernel = args.kernel
            run = partial(model.train, **options)
            seconds.setdefault(name, []).append(clock_s(run, args.device))
    return {name: values[1:] for name, values in seconds.items()}


def minibatch(cells: ad.AnnData, n: int, device: torch.device) -> CellBatch:
    """The first cells, on the device."""
    x = cells.X[:n]
    counts = SparseCounts(
        torch.from_numpy(x.indptr.astype(np.int64)),
        torch.from_numpy(x.indices.astype(np.int32)),
        torch.from_numpy(x.data),
        x.shape[1],
    )
    codes = cells.obs["batch"].astype("category").cat.codes.to_numpy()[: x.shape[0]].copy()
    fields = {"batch": torch.from_numpy(codes).long()[:, None]}
    fields["labels"] = torch.zeros_like(fields["batch"])
    rows = np.arange(x.shape[0])
    return CellBatch(x=counts, fields=fields, rows=rows, n_global=len(rows)).to(device)


def steps(model: SCVI, batch: CellBatch, kernel: str, args: argparse.Namespace) -> float:
    """Seconds of a step: forward, backward, Adam."""
    module = model.module.to(args.device).train()
    module.kernel = kernel
    trained = [p for p in module.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trained, lr=1e-3, eps=0.01, weight_decay=1e-6, fused=True)

    def run() -> None:
        for step in range(args.n_steps):
            module.noise.at(0, step, 0, batch.n_cells, batch.n_global)
            adam.zero_grad()
            module(batch, loss_kwargs={"kl_weight": 1.0})[2].loss.backward()
            adam.step()

    return clock_s(run, args.device) / args.n_steps


def measure(genes: int, size: int, args: argparse.Namespace) -> None:
    """Print one case."""
    cells = atlas(args.cells, genes)
    density = cells.X.nnz / np.prod(cells.shape)
    print(f"\n{genes} genes, {args.likelihood}, batch {size}, {density:.1%} no zeros")
    seconds = train_s(cells, size, args)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    n_steps = args.epochs * -(-int(0.9 * args.cells) // size)
    for name, median in medians.items():
        spread = f"{min(seconds[name]):.2f} to {max(seconds[name]):.2f}"
        print(
            f"train()  {name:11s} {median:8.2f} s ({spread}), {median / n_steps * 1e3:7.2f} ms a "
            f"step   {medians['scvi-tools'] / median:6.2f} x scvi-tools"
        )
    model, batch = models(cells, args.likelihood)["scvi_dist"], minibatch(cells, size, args.device)
    kernels = [k for k in KERNELS if works_on(k, args.device) and args.kernel in (None, k)]
    times: dict[str, list[float]] = {}
    for _ in range(args.repeats + 1):
        for kernel in kernels:
            times.setdefault(kernel, []).append(steps(model, batch, kernel, args) * 1e3)
    floor = floor_of(model, batch, args)
    for kernel, values in times.items():
        print(
            f"step     {kernel:11s} {statistics.median(values[1:]):8.3f} ms "
            f"({min(values[1:]):.3f} to {max(values[1:]):.3f})"
            f"   {statistics.median(values[1:]) / floor.ms:6.2f} x its floor of {floor.ms:.3f} ms"
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--kernel", choices=list(KERNELS), help="the device's default where absent")
    parser.add_argument("--genes", type=int, help="one case; both of the README where absent")
    parser.add_argument("--batch", type=int, default=1_024, help="with --genes")
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--likelihood", choices=["nb", "zinb"], default="zinb")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--n-steps", type=int, default=20)
    parser.add_argument("--peak-tflops", type=float, default=67.0, help="float32; an H200's")
    parser.add_argument("--peak-tb-s", type=float, default=4.8, help="of the memory; an H200's")
    args = parser.parse_args()
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.exit(
            2,
            "There is no GPU here that torch can use: this measures one. "
            "To try the script, give --device cpu.\n",
        )
    if args.kernel is not None and not works_on(args.kernel, args.device):
        parser.error(f"the kernel {args.kernel!r} does not compute on {args.device}")
    return args


def main() -> None:
    args = arguments()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    is_cuda = args.device.type == "cuda"
    print(torch.cuda.get_device_name(args.device) if is_cuda else "a CPU: floors mean nothing")
    print(f"torch {torch.__version__}, matmul precision {torch.get_float32_matmul_precision()}")
    for genes, size in CASES if args.genes is None else ((args.genes, args.batch),):
        measure(genes, size, args)


if __name__ == "__main__":
    main()
