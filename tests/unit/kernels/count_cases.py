"""Problems for the kernels, scvi-tools' formula for them, and how far two answers are apart.

The kernels compute on the device that SCVI_DIST_TEST_DEVICE names, a CPU where it names none.
"""

import os
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scvi_dist.batch import SparseCounts
from scvi_dist.kernels.choice import KERNELS, works_on
from scvi_dist.kernels.count_loss import Expected, count_loss
from scvi_dist.kernels.problem import CountProblem, Head, Law
from scvi_dist.kernels.sparse_linear import column_major

EPS = 1e-8
DISPERSIONS = ("gene", "group", "cell")
DEVICE = torch.device(os.environ.get("SCVI_DIST_TEST_DEVICE", "cpu"))
USABLE = [name for name in KERNELS if works_on(name, DEVICE)]
"""Names of the kernels that compute on the device."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A minibatch and the weights of a last layer."""

    law: str = "nb"
    scale: str = "softmax"
    dispersion: str = "gene"
    n: int = 17
    g: int = 53
    h: int = 8
    seed: int = 0
    density: float = 0.2
    log_theta: tuple[float, float] = (-1.0, 2.0)
    """Range of the log dispersions."""
    dropout: tuple[float, float] = (-2.0, 2.0)
    """Range of the logits of extra zeros."""
    counts: tuple[float, float] = (1.0, 8.0)
    """Range of the counts that are no zeros."""
    is_whole: bool = True
    library: tuple[float, float] = (1e3, 1e4)
    """Range of the library sizes."""
    n_padding: int = 0
    dtype: torch.dtype = torch.float32
    by_unit: bool = True
    """Whether the weights of a hidden unit are side by side in memory, as a decoder has them."""
    trained: dict[str, Tensor] = field(default_factory=dict)
    """Parameters to take instead of random ones."""

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def counts_ng(self) -> np.ndarray:
        """float32; the first row is empty, and so is the last column."""
        rng = self.rng
        x = np.exp(rng.uniform(*np.log(self.counts), (self.n, self.g)))
        x = np.round(x) if self.is_whole else x
        x[rng.random(x.shape) > self.density] = 0
        x[0], x[:, -1] = 0, 0
        return x.astype(np.float32)

    def parameters(self) -> dict[str, Tensor]:
        """By name; float64, but of values that float32 has."""
        rng, n, g, h = self.rng, self.n, self.g, self.h
        kinds = {"gene": 1, "group": 3, "cell": 0}[self.dispersion]
        if self.law == "poisson":
            kinds = 0
        found = {
            "hidden": np.maximum(rng.normal(size=(n, h)), 0),
            "log_size": rng.uniform(*np.log(self.library), n),
            "scale.weight": rng.normal(size=(g, h)),
            "scale.bias": rng.normal(size=g),
        }
        if kinds:
            found["log_theta"] = rng.uniform(*self.log_theta, (kinds, g))
        if self.law == "zinb":
            found["dropout.weight"] = rng.normal(size=(g, h)) * 0.1
            found["dropout.bias"] = rng.uniform(*self.dropout, g)
        if self.dispersion == "cell" and self.law != "poisson":
            found["dispersion.weight"] = rng.normal(size=(g, h)) * 0.1
            found["dispersion.bias"] = rng.uniform(*self.log_theta, g)
        tensors = {k: torch.from_numpy(v.astype(np.float32)).double() for k, v in found.items()}
        return tensors | {k: v.double() for k, v in self.trained.items()}

    def groups(self) -> Tensor:
        return torch.from_numpy(self.rng.integers(0, 3, self.n))


def sparse(x_ng: np.ndarray) -> SparseCounts:
    """The same counts as CSR."""
    rows, genes = np.nonzero(x_ng)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(x_ng)))])
    return SparseCounts(
        torch.from_numpy(indptr.astype(np.int64)),
        torch.from_numpy(genes.astype(np.int32)),
        torch.from_numpy(x_ng[rows, genes].astype(np.float32)),
        x_ng.shape[1],
    ).to(DEVICE)


def problem_of(case: Case, p: dict[str, Tensor]) -> CountProblem:
    heads: dict[str, Any] = {
        name: Head(p[f"{name}.weight"], p[f"{name}.bias"]) if f"{name}.weight" in p else None
        for name in ("scale", "dropout", "dispersion")
    }
    return CountProblem(
        law=Law(case.law, case.scale),
        counts=sparse(case.counts_ng()),
        hidden_nh=p["hidden"],
        log_size_n=p["log_size"],
        log_theta_tg=p.get("log_theta"),
        group_n=case.groups().to(DEVICE) if case.dispersion == "group" else None,
        **heads,
    )


def leaves(case: Case, dtype: torch.dtype, device: torch.device = DEVICE) -> dict[str, Tensor]:
    found = {k: v.to(device, dtype) for k, v in case.parameters().items()}
    if case.by_unit:
        found |= {k: column_major(v) for k, v in found.items() if k.endswith(".weight")}
    return {k: v.requires_grad_() for k, v in found.items()}


def objective(case: Case, loss_n: Tensor) -> Tensor:
    n_real = case.n - case.n_padding
    return loss_n[:n_real].sum() / n_real


def fused(case: Case, kernel: str) -> dict[str, Tensor]:
    """Losses and gradients by a kernel, by name."""
    p = leaves(case, case.dtype)
    n_real = case.n - case.n_padding
    evaluate = KERNELS[kernel]().count_loss
    loss_n = count_loss(problem_of(case, p), evaluate, Expected(n_real, 1 / n_real))
    objective(case, loss_n).backward()
    found = {"loss": loss_n.detach()[:n_real], **{k: v.grad for k, v in p.items()}}
    return {name: value.cpu() for name, value in found.items()}


def by_formula(case: Case, dtype: torch.dtype, exact: bool) -> dict[str, Tensor]:
    """The same by autograd through scvi-tools' formula as it stands, or through an exact one."""
    p = leaves(case, dtype, torch.device("cpu"))
    x = torch.from_numpy(case.counts_ng()).to(dtype)
    logits = p["hidden"] @ p["scale.weight"].t() + p["scale.bias"]
    scale = torch.softmax(logits, -1) if case.scale == "softmax" else F.softplus(logits)
    mu = p["log_size"].exp()[:, None] * scale
    if case.law == "poisson":
        log_p = torch.special.xlogy(x, mu) - mu - torch.lgamma(x + 1)
    else:
        log_p = _log_nb(case, p, x, mu, exact)
    loss_n = -log_p.sum(-1)
    objective(case, loss_n).backward()
    n_real = case.n - case.n_padding
    return {"loss": loss_n.detach()[:n_real], **{k: v.grad for k, v in p.items()}}


def _log_nb(case: Case, p: dict[str, Tensor], x: Tensor, mu: Tensor, exact: bool) -> Tensor:
    if case.dispersion == "cell":
        log_theta = p["hidden"] @ p["dispersion.weight"].t() + p["dispersion.bias"]
    else:
        kinds = case.groups() if case.dispersion == "group" else torch.zeros(case.n).long()
        log_theta = p["log_theta"][kinds]
    theta = log_theta.exp()
    if exact:
        zero = -theta * torch.log1p(mu / (theta + EPS))
        odds = -torch.log1p(theta / (mu + EPS))
    else:
        log_sum = torch.log(theta + mu + EPS)
        zero = theta * (torch.log(theta + EPS) - log_sum)
        odds = torch.log(mu + EPS) - log_sum
    gammas = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    log_p = zero + x * odds + gammas
    if case.law == "nb":
        return log_p
    pi = p["hidden"] @ p["dropout.weight"].t() + p["dropout.bias"]
    softplus_pi = F.softplus(-pi)
    log_zero = F.softplus(zero - pi) - softplus_pi
    return torch.where(x < EPS, log_zero, log_p - softplus_pi - pi)


def distances(seen: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of each array, in parts of its largest value."""
    return {
        name: float((seen[name].double() - value).abs().max() / value.abs().max().clamp(min=1e-6))
        for name, value in truth.items()
    }


def varied(case: Case, **changes: Any) -> Case:
    return replace(case, **changes)
