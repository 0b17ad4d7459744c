"""Whether Triton's kernels compute on a device what torch computes there, on a few cells.

A compiler that is new to a device, or a device that is new to the kernels, is found out before a
model is trained with them.

Axis suffixes: ``n`` cells, ``g`` genes, ``h`` hidden units, ``t`` kinds of cells.
"""

import subprocess

import torch
from torch import Tensor
from triton.runtime.errors import TritonError

from scvi_dist.batch import SparseCounts
from scvi_dist.kernels import (
    count_loss_torch,
    count_loss_triton,
    products_torch,
    products_triton,
)
from scvi_dist.kernels.problem import CountProblem, Head, Law

N_CELLS, N_GENES, N_UNITS, N_KINDS = 6, 1_100, 20, 2
MOST_APART = 1e-3
"""Of the largest number of an array: products may be rounded to TF32."""
_OF_HEADS = [f"{head}.{part}" for head in ("scale", "dropout") for part in ("weight", "bias")]
WANTED = frozenset({"hidden_nh", "log_size_n", "log_theta_tg", *_OF_HEADS})


def failure(device: torch.device) -> str | None:
    """What is wrong with the kernels on this device, in words; None where nothing is."""
    try:
        pairs = _pairs(device)
    except (TritonError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        return f"on a few cells they failed with {type(error).__name__}: {error}"
    apart = [name for name, pair in pairs.items() if not _are_near(*pair)]
    if not apart:
        return None
    return f"on a few cells they give another {', another '.join(apart)} than torch"


def _pairs(device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    """By name, what Triton and what torch computes."""
    problem, weight_n = _problem(device), torch.linspace(0.5, 2.0, N_CELLS, device=device)
    both = [
        kernel.evaluate(problem, weight_n, WANTED)
        for kernel in (count_loss_triton, count_loss_torch)
    ]
    pairs = {"loss": (both[0].loss_n, both[1].loss_n)}
    pairs |= {f"gradient by {k}": (both[0].gradients[k], both[1].gradients[k]) for k in WANTED}
    x, weight_gh = problem.counts, problem.scale.weight_gh.contiguous()
    gradients = []
    for kernel in (products_triton, products_torch):
        gradients.append(torch.empty_like(weight_gh))
        kernel.scatter(x, problem.hidden_nh, gradients[-1])
    products = (kernel.multiply(x, weight_gh) for kernel in (products_triton, products_torch))
    sums = (kernel.row_sums(x) for kernel in (products_triton, products_torch))
    return pairs | {
        "product": (next(products), next(products)),
        "transposed product": (gradients[0], gradients[1]),
        "sum of rows": (next(sums), next(sums)),
    }


def _problem(device: torch.device) -> CountProblem:
    # The program's own random numbers go on as if nobody had been here.
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    counts_ng = torch.poisson(torch.full((N_CELLS, N_GENES), 0.1), generator)
    counts_ng[1] *= 300
    counts_ng[2] *= 0.7
    rows, genes = counts_ng.nonzero(as_tuple=True)
    indptr = torch.zeros(N_CELLS + 1, dtype=torch.int64)
    indptr[1:] = torch.bincount(rows, minlength=N_CELLS).cumsum(0)
    counts = SparseCounts(indptr, genes.int(), counts_ng[rows, genes], N_GENES)
    heads = [Head(normal(N_GENES, N_UNITS), normal(N_GENES)) for _ in range(2)]
    return CountProblem(
        law=Law("zinb"),
        counts=counts.to(device),
        hidden_nh=normal(N_CELLS, N_UNITS).relu(),
        log_size_n=normal(N_CELLS) + 7.0,
        scale=heads[0],
        dropout=heads[1],
        dispersion=None,
        log_theta_tg=normal(N_KINDS, N_GENES),
        group_n=torch.arange(N_CELLS, device=device) % N_KINDS,
    )


def _are_near(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).abs().max() <= MOST_APART * other.abs().max()).item())
