"""Likelihoods of counts in closed form with torch alone, on any device.

Terms of a count are evaluated where there are counts, and logits exist for some cells at a time.
What the compiled loops compute is tested against it.

Axis suffixes: ``n`` cells, ``r`` those of a block, ``g`` genes, ``m`` counts of a block.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scvi_dist.kernels.problem import CountProblem, CountResult

EPS = 1e-8
BLOCK_ENTRIES = 8_000_000
"""Logits of one head in memory."""


def evaluate(problem: CountProblem, weight_n: Tensor, wanted: frozenset[str]) -> CountResult:
    """Losses and derivatives; see :data:`~scvi_dist.kernels.count_loss.Evaluate`."""
    n, n_genes = problem.counts.shape
    block = max(1, min(n, BLOCK_ENTRIES // max(n_genes, 1)))
    weight_n = weight_n.to(problem.hidden_nh.dtype)
    losses, sizes, hidden = [], [], []
    sums: dict[str, Tensor] = {}
    for first in range(0, n, block):
        cells = _Cells.of(problem, first, min(first + block, n))
        loss_r, slopes = _terms(problem, cells, weight_n[first : first + block], bool(wanted))
        losses.append(loss_r)
        if wanted:
            sizes.append(slopes.pop("log_size"))
            hidden.append(_collect(problem, cells, slopes, wanted, sums))
    if wanted:
        found = {"log_size_n": torch.cat(sizes), "hidden_nh": torch.cat(hidden), **sums}
        sums = {name: value for name, value in found.items() if name in wanted}
    return CountResult(torch.cat(losses), sums)


@dataclass(frozen=True, slots=True)
class _Cells:
    """Some cells, and where their counts are."""

    hidden_rh: Tensor
    size_r1: Tensor
    group_r: Tensor
    row_m: Tensor
    gene_m: Tensor
    count_m: Tensor
    """Zeros are left out."""

    @staticmethod
    def of(problem: CountProblem, first: int, stop: int) -> "_Cells":
        counts = problem.counts
        bounds = counts.indptr[first : stop + 1]
        entries = slice(int(bounds[0]), int(bounds[-1]))
        row_m = torch.repeat_interleave(
            torch.arange(stop - first, device=bounds.device), bounds.diff()
        )
        count_m = counts.data[entries].to(problem.hidden_nh.dtype)
        # A NaN is no zero.
        kept = ~(count_m < EPS) if problem.law.counts == "zinb" else count_m != 0
        return _Cells(
            problem.hidden_nh[first:stop],
            problem.log_size_n[first:stop, None].exp().to(problem.hidden_nh.dtype),
            problem.groups()[first:stop],
            row_m[kept],
            counts.indices[entries][kept].long(),
            count_m[kept],
        )


def _terms(
    problem: CountProblem, cells: _Cells, weight_r: Tensor, wants_slopes: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses ``[r]``, and slopes by the logits of each head, by ``log θ`` and by the log size."""
    logits_rg = problem.scale.logits(cells.hidden_rh)
    is_softmax = problem.law.scale == "softmax"
    scale_rg = torch.softmax(logits_rg, -1) if is_softmax else F.softplus(logits_rg)
    mu_rg = cells.size_r1 * scale_rg
    dropout_rg = None if problem.dropout is None else problem.dropout.logits(cells.hidden_rh)
    constant_r1 = torch.zeros_like(cells.size_r1)
    if problem.law.counts == "poisson":
        loss_r, slopes = _poisson(mu_rg, cells)
        if is_softmax:
            # The sum of the means does not depend on the logits.
            constant_r1 = cells.size_r1
        else:
            slopes["mu"] += 1
    else:
        theta_rg = _theta(problem, cells)
        loss_r, slopes = _negative_binomial(mu_rg, theta_rg, dropout_rg, cells)
        slopes["dispersion"] = slopes.pop("theta") * theta_rg
    if not wants_slopes:
        return loss_r, {}
    weight_r1 = weight_r[:, None]
    used = weight_r1 != 0
    slopes = {name: torch.where(used, slope * weight_r1, 0) for name, slope in slopes.items()}
    mu_slope_rg = slopes.pop("mu")
    by_log_rg = torch.where(used, mu_rg, 0) * mu_slope_rg
    total_r1 = by_log_rg.double().sum(-1, keepdim=True).to(mu_rg.dtype)
    if is_softmax:
        rest_rg = torch.where(used, cells.size_r1 * mu_slope_rg - total_r1, 0)
        slopes["scale"] = torch.where(used, scale_rg, 0) * rest_rg
    else:
        slopes["scale"] = mu_slope_rg * cells.size_r1 * torch.sigmoid(logits_rg)
    constant_r1 = torch.where(used, constant_r1 * weight_r1, 0)
    return loss_r, slopes | {"log_size": (total_r1 + constant_r1).squeeze(-1)}


def _theta(problem: CountProblem, cells: _Cells) -> Tensor:
    """``[r, g]``, or ``[1, g]`` where cells are of one kind."""
    if problem.log_theta_tg is None:
        assert problem.dispersion is not None
        return problem.dispersion.logits(cells.hidden_rh).exp()
    theta_tg = problem.log_theta_tg.exp()
    return theta_tg if len(theta_tg) == 1 else theta_tg[cells.group_r]


def _poisson(mu_rg: Tensor, cells: _Cells) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses, and slopes by ``"mu"`` less the 1 that each mean itself contributes."""
    at = (cells.row_m, cells.gene_m)
    x_m = cells.count_m.double()
    mu_m = mu_rg[at].double().clamp(min=torch.finfo(torch.float32).tiny)
    loss_r = mu_rg.sum(-1).double()
    loss_r = loss_r.index_add(0, cells.row_m, torch.lgamma(x_m + 1) - x_m * mu_m.log())
    slope_rg = torch.zeros_like(mu_rg)
    slope_rg[at] = (-x_m / mu_m).to(mu_rg.dtype)
    return loss_r.to(mu_rg.dtype), {"mu": slope_rg}


def _negative_binomial(
    mu_rg: Tensor, theta_rg: Tensor, dropout_rg: Tensor | None, cells: _Cells
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses, and slopes by ``"mu"``, ``"theta"`` and ``"dropout"``."""
    at = (cells.row_m, cells.gene_m)
    theta_rg = theta_rg.expand_as(mu_rg)
    # Genes with counts cost nothing here; their terms are put in afterwards.
    zero_mu_rg = mu_rg.clone()
    zero_mu_rg[at] = 0
    inverse_rg = 1 / (theta_rg + EPS)
    t_rg = zero_mu_rg * inverse_rg
    growth_rg = torch.log1p(t_rg)
    mu_slope_rg = theta_rg / (theta_rg + EPS + zero_mu_rg)
    theta_slope_rg = growth_rg - t_rg * mu_slope_rg
    loss_rg = theta_rg * growth_rg
    slopes = {}
    if dropout_rg is not None:
        p_rg = -dropout_rg
        v_rg = p_rg - loss_rg
        sigmoid_v_rg = torch.sigmoid(v_rg)
        # softplus(p) - softplus(v), without rounding by the size of p.
        linear_rg = torch.where(p_rg > 0, torch.where(v_rg > 0, loss_rg, p_rg), 0)
        curved_rg = torch.log1p(torch.exp(-p_rg.abs())) - torch.log1p(torch.exp(-v_rg.abs()))
        loss_rg = linear_rg + curved_rg
        mu_slope_rg, theta_slope_rg = mu_slope_rg * sigmoid_v_rg, theta_slope_rg * sigmoid_v_rg
        slopes["dropout"] = sigmoid_v_rg - torch.sigmoid(p_rg)
    loss_m, mu_slope_m, theta_slope_m = _counts(mu_rg[at], theta_rg[at], cells.count_m)
    if dropout_rg is not None:
        loss_m = loss_m + F.softplus(dropout_rg[at]).double()
        slopes["dropout"][at] = torch.sigmoid(dropout_rg[at])
    mu_slope_rg[at] = mu_slope_m.to(mu_rg.dtype)
    theta_slope_rg[at] = theta_slope_m.to(mu_rg.dtype)
    loss_r = loss_rg.sum(-1).double().index_add(0, cells.row_m, loss_m)
    return loss_r.to(mu_rg.dtype), slopes | {"mu": mu_slope_rg, "theta": theta_slope_rg}


def _counts(mu_m: Tensor, theta_m: Tensor, count_m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of counts, and slopes by ``μ`` and ``θ``; float64."""
    mu, theta, x = mu_m.double(), theta_m.double(), count_m.double()
    inverse = 1 / (theta + EPS)
    growth = torch.log1p(mu * inverse)
    q = 1 / (theta + mu + EPS)
    # Of large θ the difference of log-gammas cancels, but is nearly the power that it stands for.
    is_large = theta > 1e8
    gammas = torch.lgamma(x + theta) - torch.lgamma(theta)
    gammas = torch.where(is_large, x * theta.log(), gammas)
    digammas = torch.digamma(x + theta) - torch.digamma(theta)
    digammas = torch.where(is_large, x / theta, digammas)
    loss = theta * growth - gammas + torch.lgamma(x + 1)
    loss = loss + x * torch.log1p(theta / (mu + EPS))
    mu_slope = theta * q * (1 - x / (mu + EPS))
    return loss, mu_slope, growth - theta * mu * inverse * q + x * q - digammas


def _collect(
    problem: CountProblem,
    cells: _Cells,
    slopes: dict[str, Tensor],
    wanted: frozenset[str],
    sums: dict[str, Tensor],
) -> Tensor:
    """Add the block to the sums over cells; slopes by the hidden units ``[r, h]``."""
    heads = dict(problem.heads)
    added = {}
    if "log_theta_tg" in wanted:
        assert problem.log_theta_tg is not None
        added["log_theta_tg"] = torch.zeros_like(problem.log_theta_tg).index_add_(
            0, cells.group_r, slopes["dispersion"]
        )
    hidden_rh = torch.zeros_like(cells.hidden_rh)
    for name, head in heads.items():
        slope_rg = slopes[name]
        head.seen(hidden_rh).addmm_(slope_rg, head.weight_gh)
        if f"{name}.weight" in wanted:
            added[f"{name}.weight"] = slope_rg.t() @ head.seen(cells.hidden_rh)
        if f"{name}.bias" in wanted:
            added[f"{name}.bias"] = slope_rg.sum(0)
    for key, value in added.items():
        sums[key] = sums[key].add_(value) if key in sums else value
    return hidden_rh
