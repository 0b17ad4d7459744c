"""How likely the counts of a cell are if it is of a type: CellAssign's sum over genes.

The law of a count is negative binomial; its inverse dispersion is a sum of radial basis functions
of its mean. Means and dispersions of every cell, gene *and* type exist for a few cells at a time
only: what is needed for the gradient is computed anew on the way back.

Axis suffixes: ``n`` cells, ``r`` cells of a slice, ``g`` genes, ``c`` types, ``b`` basis functions,
``z`` counts that are not zero.

Source
------
Zhang et al. 2019, "Probabilistic cell-type assignment of single-cell RNA-seq for tumor
microenvironment profiling", methods; the placement of ``eps`` is scvi-tools'.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scvi_dist.distributions.negative_binomial import count_term

SLICE_ENTRIES = {"cpu": 1 << 18, "cuda": 1 << 21}
"""Entries ``[c, r, g]`` of one slice: on a CPU its dozen of arrays stay in the cache."""
LEAST_PHI = 1e-10
"""Added to the inverse dispersion, which the basis functions leave at 0 far from their centres."""
EPS = 1e-8
"""Added inside logarithms."""


@dataclass(frozen=True, slots=True)
class Basis:
    """Equally spaced centres of Gaussian functions as wide as the step between them."""

    first: Tensor
    step: Tensor
    centre_b: Tensor
    """0, 1, 2, ... but for the rounding of the centres."""

    @staticmethod
    def of(means_b: Tensor) -> "Basis":
        first, step = means_b[0], means_b[1] - means_b[0]
        return Basis(first, step, (means_b - first) / step)

    def place(self, mu: Tensor) -> Tensor:
        """Where a mean lies on the axis of the centres."""
        return (mu - self.first) / self.step

    def bumps(self, place: Tensor) -> Iterator[Tensor]:
        """Each function in turn, of the shape of ``place``."""
        for centre in self.centre_b.unbind():
            yield (place - centre).square_().mul_(-0.5).exp_()


class _Slice(NamedTuple):
    """The cells whose entries are in memory."""

    rows: slice
    x_rg: Tensor
    nonzero_z: Tensor | None
    """Flat index ``r * g`` of the counts that are not zero; None: all entries are looked at."""

    @property
    def x_z(self) -> Tensor:
        flat = self.x_rg.reshape(-1)
        return flat if self.nonzero_z is None else flat[self.nonzero_z]

    def at(self, values_crg: Tensor) -> Tensor:
        """``[c, z]``: the entries of counts that are not zero."""
        flat = values_crg.flatten(1)
        return flat if self.nonzero_z is None else flat[:, self.nonzero_z]

    def add(self, values_crg: Tensor, addend_cz: Tensor) -> None:
        """Add to the entries of counts that are not zero, in place."""
        flat = values_crg.flatten(1)
        if self.nonzero_z is None:
            flat += addend_cz
        else:
            flat.index_add_(1, self.nonzero_z, addend_cz)


def _slices(x_ng: Tensor, n_types: int) -> Iterator[_Slice]:
    n, g = x_ng.shape
    size = max(1, SLICE_ENTRIES.get(x_ng.device.type, 1 << 20) // max(1, g * n_types))
    for start in range(0, n, size):
        x_rg = x_ng[start : start + size]
        # lgamma and digamma cost most and cancel where a count is zero. Finding those entries
        # would make a CPU wait for any other device.
        nonzero_z = x_rg.reshape(-1).nonzero()[:, 0] if x_rg.device.type == "cpu" else None
        yield _Slice(slice(start, start + len(x_rg)), x_rg, nonzero_z)


def dispersion(mu: Tensor, a_b: Tensor, basis: Basis) -> Tensor:
    """Inverse dispersion at a mean, of any shape: ``sum_b a_b exp(-(place - centre_b)^2 / 2)``."""
    place = basis.place(mu)
    phi = torch.full_like(mu, LEAST_PHI)
    for a, bump in zip(a_b.unbind(), basis.bumps(place), strict=True):
        phi = phi + a * bump
    return phi


class _TypeLogLikelihood(torch.autograd.Function):
    """``[n, c]`` from counts, log means and the heights of the basis functions."""

    @staticmethod
    def forward(
        ctx: Any, x_ng: Tensor, log_base_ng: Tensor, shift_cg: Tensor, a_b: Tensor, means_b: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x_ng, log_base_ng, shift_cg, a_b, means_b)
        basis = Basis.of(means_b)
        log_p_nc = log_base_ng.new_empty(len(x_ng), len(shift_cg))
        for part in _slices(x_ng, len(shift_cg)):
            mu = (log_base_ng[part.rows] + shift_cg[:, None]).exp_()
            phi = dispersion(mu, a_b, basis)
            phi_cz, mu_cz, x_z = part.at(phi), part.at(mu), part.x_z
            counted_cz = _count_term(x_z, phi_cz) - x_z * torch.log1p(phi_cz / (mu_cz + EPS))
            terms = (mu / (phi + EPS)).log1p_().mul_(phi).neg_()
            part.add(terms, counted_cz)
            log_p_nc[part.rows] = terms.sum(-1).T
        return log_p_nc

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_nc,) = grads
        x_ng, log_base_ng, shift_cg, a_b, means_b = ctx.saved_tensors
        basis = Basis.of(means_b)
        grad_base_ng = torch.empty_like(log_base_ng)
        grad_shift_cg, grad_a_b = torch.zeros_like(shift_cg), torch.zeros_like(a_b)
        for part in _slices(x_ng, len(shift_cg)):
            mu = (log_base_ng[part.rows] + shift_cg[:, None]).exp_()
            place = basis.place(mu)
            # [b, c, r, g]: the slice is small, and each function is needed twice.
            bumps = torch.stack(list(basis.bumps(place)))
            phi, slope = _dispersion_and_slope(bumps, place, a_b, basis.centre_b)
            d_mu, d_phi = _derivatives(part, mu, phi)
            weight_cr1 = grad_nc[part.rows].T[:, :, None]
            grad_a_b += bumps.flatten(1) @ (d_phi * weight_cr1).flatten()
            # d log p / d log mu
            by_log_mu = d_mu.addcmul_(d_phi, slope / basis.step).mul_(mu).mul_(weight_cr1)
            grad_base_ng[part.rows] = by_log_mu.sum(0)
            grad_shift_cg += by_log_mu.sum(1)
        return None, grad_base_ng, grad_shift_cg, grad_a_b, None


def _precise(values: Tensor) -> Tensor:
    """As float64 where that is not slow.

    For a count of a million, float32 resolves lgamma to 1, which would decide between types.
    """
    return values.double() if values.device.type == "cpu" else values


def _count_term(x: Tensor, phi: Tensor) -> Tensor:
    """``log Γ(x + φ) - log Γ(φ) - log Γ(x + 1)``."""
    return count_term(_precise(x), _precise(phi)).to(phi.dtype)


def _count_slope(x: Tensor, phi: Tensor) -> Tensor:
    """Its derivative by ``φ``."""
    precise = _precise(phi)
    return (torch.digamma(_precise(x) + precise) - torch.digamma(precise)).to(phi.dtype)


def _dispersion_and_slope(
    bumps: Tensor, place: Tensor, a_b: Tensor, centre_b: Tensor
) -> tuple[Tensor, Tensor]:
    """The inverse dispersion, and its derivative by the place on the axis of centres."""
    flat = bumps.flatten(1)
    weighted = a_b @ flat
    slope = ((a_b * centre_b) @ flat).view_as(place) - place * weighted.view_as(place)
    return weighted.view_as(place) + LEAST_PHI, slope


def _derivatives(part: _Slice, mu: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """``[c, r, g]``: of the log-probability by the mean and by the inverse dispersion."""
    x, total, padded_phi = part.x_rg, phi + mu + EPS, phi + EPS
    d_mu = (x / (mu + EPS) - 1).mul_(phi).div_(total)
    d_phi = ((phi * mu) / padded_phi - x).div_(total)
    d_phi -= (mu / padded_phi).log1p_()
    phi_cz = part.at(phi)
    part.add(d_phi, _count_slope(part.x_z, phi_cz))
    return d_mu, d_phi


def type_log_likelihood(
    x_ng: Tensor, log_base_ng: Tensor, shift_gc: Tensor, a_b: Tensor, means_b: Tensor
) -> Tensor:
    """Log-likelihood ``[n, c]`` of the counts of each cell under each type.

    The mean of a count is ``exp(log_base + shift)``, its inverse dispersion
    ``sum_b a_b exp(-(mean - means_b)^2 / (2 step^2)) + 1e-10``. Differentiable once, in all but the
    counts and the centres.

    Parameters
    ----------
    x_ng
        Counts.
    log_base_ng
        Log mean of a count in a cell of a type without shift.
    shift_gc
        What a type adds to the log mean.
    a_b
        Heights of the basis functions, positive.
    means_b
        Their centres, equally spaced.
    """
    log_p_nc: Tensor = _TypeLogLikelihood.apply(
        x_ng, log_base_ng, shift_gc.T.contiguous(), a_b, means_b
    )
    return log_p_nc
