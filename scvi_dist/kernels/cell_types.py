"""CellAssign's loss on a CPU, in one pass over the counts that makes the gradient as well.

All types that a gene is no marker of have one law of its count, which is evaluated once. Cells are
taken one at a time: there is no array of cells by genes by types, however many there are.

Axis suffixes: ``n`` cells, ``g`` genes, ``c`` types, ``m`` markers (pairs of a gene and a type),
``b`` basis functions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor
from torch.autograd.function import once_differentiable

from scvi_dist.batch import SparseCounts
from scvi_dist.kernels import threads

N_BASIS = 10
"""Basis functions of the dispersion."""
CENTRE = 4.5
LARGEST_SHIFT = 1e-5
"""Of a centre from its place on an even grid, in steps: a rounding of float32. Its square is taken
for 0."""
ROWS_OF_A_BLOCK = 128
"""Cells whose contributions to a gradient are added up by themselves; sums depend on it."""
N_FACTORIALS = 1024


@dataclass(frozen=True, slots=True)
class TypeParameters:
    """What the law of a count follows from."""

    log_base_ng: Tensor
    """Log mean of a count in a cell of a type that the gene is no marker of."""
    shift_gc: Tensor
    """What a type adds to it: 0 but for its markers."""
    rho_gc: Tensor
    """Not 0 where a gene is a marker of a type; only there shifts have a gradient."""
    a_b: Tensor
    """Heights of the basis functions of the inverse dispersion, positive."""
    means_b: Tensor
    """Their centres, equally spaced."""
    log_proportion_c: Tensor
    """Log prior probability of each type."""


class TypeTerms(NamedTuple):
    """What a minibatch says of its cells' types."""

    log_joint_nc: Tensor
    """Log-probability of the counts and the type, for every cell; float64, without a graph."""
    expected: Tensor
    """Minus the expected log-probability, summed over the cells that count; 0-d, with a graph."""


class _Basis(NamedTuple):
    """The basis functions, as the compiled loops take them."""

    first: float
    inv_step: float
    shift_b: np.ndarray
    """Of each centre from an even grid, in steps."""
    height_b: np.ndarray
    """``exp(-c^2 / 2)`` of the centres' places ``c``, counted in steps from the middle."""


def _basis(means_b: Tensor) -> _Basis:
    means = means_b.detach().cpu().numpy().astype(np.float64)
    with np.errstate(all="ignore"):
        place_b = (means - means[0]) / (means[1] - means[0])
        height_b = np.exp(-0.5 * (place_b - CENTRE) ** 2)
        inv_step = 1 / (means[1] - means[0])
    return _Basis(float(means[0]), float(inv_step), place_b - np.arange(len(means)), height_b)


def supports(means_b: Tensor) -> bool:
    """Whether the loops can be used: on a CPU, with ten equally spaced centres."""
    if means_b.device.type != "cpu" or len(means_b) != N_BASIS:
        return False
    basis = _basis(means_b)
    # Not of NaN, where all centres are one.
    return bool(basis.inv_step > 0 and (np.abs(basis.shift_b) <= LARGEST_SHIFT).all())


def expected_loss(x: SparseCounts | Tensor, given: TypeParameters, n_real: int) -> TypeTerms:
    """Minus the expected log-probability of counts and type, over what each cell's type may be.

    Parameters
    ----------
    x
        Counts ``[n, g]``, on the CPU.
    given
        Parameters; there is a gradient for all but ``rho_gc`` and ``means_b``, of the first order.
    n_real
        Cells that count: the first ones.

    Source
    ------
    Zhang et al. 2019, "Probabilistic cell-type assignment of single-cell RNA-seq for tumor
    microenvironment profiling", methods.
    """
    log_joint_nc, expected = _ExpectedLoss.apply(
        given.log_base_ng, given.shift_gc, given.a_b, given.log_proportion_c, x, given, n_real
    )
    return TypeTerms(log_joint_nc, expected)


class _ExpectedLoss(torch.autograd.Function):
    """The gradient is made on the way forth: the loss is a sum, whose weight comes from outside."""

    @staticmethod
    def forward(
        ctx: Any,
        log_base_ng: Tensor,
        shift_gc: Tensor,
        a_b: Tensor,
        log_proportion_c: Tensor,
        x: SparseCounts | Tensor,
        given: TypeParameters,
        n_real: int,
    ) -> tuple[Tensor, Tensor]:
        needs_gradient = any(ctx.needs_input_grad)
        log_joint_nc, gradients = _pass(x, given, n_real if needs_gradient else None)
        ctx.mark_non_differentiable(log_joint_nc)
        if needs_gradient:
            ctx.save_for_backward(*gradients)
        real_nc = log_joint_nc[:n_real]
        expected = -(real_nc.softmax(1) * real_nc).sum()
        return log_joint_nc, expected.to(log_base_ng.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        parts = [grads[1] * part for part in ctx.saved_tensors]
        return *parts, None, None, None


class _Sums(NamedTuple):
    """What each block of cells adds to the gradients of what all cells share.

    Added up at the end, in their order: no result depends on which block was done first.
    """

    shift_km: np.ndarray
    type_kc: np.ndarray
    moments_kb2: np.ndarray

    @staticmethod
    def zeros(n_blocks: int, n_markers: int, n_types: int) -> "_Sums":
        shapes = (n_markers,), (n_types,), (N_BASIS, 2)
        return _Sums(*(np.zeros((n_blocks, *shape)) for shape in shapes))


def _pass(
    x: SparseCounts | Tensor, given: TypeParameters, n_real: int | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The log-probabilities, and the gradients of the parameters in their order.

    Without ``n_real`` there are no gradients.
    """
    from scvi_dist.kernels.cell_type_rows import cell_rows

    # In float64, of any input: the loops are compiled once.
    log_base_ng, counts = _array(given.log_base_ng), _csr(x)
    n, g = log_base_ng.shape
    rho_gc, a_b, shift_gc = _array(given.rho_gc), _array(given.a_b), _array(given.shift_gc)
    gene_m, type_m = np.nonzero(rho_gc)
    first_g = np.concatenate([[0], np.cumsum((rho_gc != 0).sum(1))])
    markers = gene_m, type_m, np.exp(shift_gc[gene_m, type_m]), first_g
    basis = _basis(given.means_b)
    height_b = a_b * basis.height_b
    heights = tuple(height_b), tuple(height_b * basis.shift_b)
    log_proportion_c = _array(given.log_proportion_c)
    log_joint_nc = np.tile(log_proportion_c, (n, 1))
    grad_base_ng = np.zeros((n if n_real is not None else 0, g))
    n_blocks = -(-n // ROWS_OF_A_BLOCK)
    sums = _Sums.zeros(n_blocks, len(gene_m), len(log_proportion_c))

    def block(k: int) -> None:
        cell_rows(
            (k * ROWS_OF_A_BLOCK, min((k + 1) * ROWS_OF_A_BLOCK, n), n_real or 0),
            counts,
            log_base_ng,
            markers,
            (basis.first, basis.inv_step),
            heights,
            _log_factorials(),
            log_joint_nc,
            (grad_base_ng, sums.shift_km[k], sums.type_kc[k], sums.moments_kb2[k]),
        )

    _run(block, n_blocks)
    grad_shift_gc = np.zeros(shift_gc.shape)
    grad_shift_gc[gene_m, type_m] = sums.shift_km.sum(0)
    moments_b2 = sums.moments_kb2.sum(0)
    grad_a_b = basis.height_b * (moments_b2[:, 0] + basis.shift_b * moments_b2[:, 1])
    gradients = grad_base_ng, grad_shift_gc, grad_a_b, sums.type_kc.sum(0)
    dtype = given.log_base_ng.dtype
    return torch.from_numpy(log_joint_nc), tuple(torch.from_numpy(v).to(dtype) for v in gradients)


def _run(block: Callable[[int], None], n_blocks: int) -> None:
    """Each block once, on as many threads as torch uses."""

    def several(first: int, stop: int) -> None:
        for k in range(first, stop):
            block(k)

    parts = threads.cuts(0, n_blocks, threads.n_threads())
    threads.run([partial(several, *part) for part in parts])


def _csr(x: SparseCounts | Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``indptr``, ``indices`` and ``data``."""
    if isinstance(x, Tensor):
        x_ng = _array(x)
        rows, genes = np.nonzero(x_ng)
        indptr = np.searchsorted(rows, np.arange(len(x_ng) + 1))
        return indptr, genes, x_ng[rows, genes]
    indptr, genes = x.indptr.numpy(), x.indices.numpy()
    return indptr.astype(np.int64, copy=False), genes.astype(np.int64, copy=False), _array(x.data)


def _array(tensor: Tensor) -> np.ndarray:
    """The values as float64, contiguous; without a copy where they are so already."""
    return np.ascontiguousarray(tensor.detach().numpy(), dtype=np.float64)


@cache
def _log_factorials() -> np.ndarray:
    return gammaln(np.arange(N_FACTORIALS) + 1.0)
