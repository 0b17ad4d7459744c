"""TOTALVI's compiled loss of proteins is the plain formula, to float64's last digits."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from scvi_dist.distributions import log_mixture_nb
from scvi_dist.kernels.protein_loss import ProteinParameters, ProteinTerms, protein_loss

NAMES = tuple(field.name for field in fields(ProteinParameters))
SHARED = ("theta", "log_efficiency", "prior_mean", "prior_spread")
WEIGHTS = (0.3, 0.7)


def parameters(
    n: int, p: int, seed: int = 0, dtype: torch.dtype = torch.float64, shared: bool = False
) -> ProteinParameters:
    """Random ones; ``shared``: what can be one for all cells is."""
    generator = torch.Generator().manual_seed(seed)

    def normal(name: str) -> Tensor:
        shape = (p,) if shared and name in SHARED else (n, p)
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    values = {name: normal(name) for name in NAMES}
    for name in ("back_spread", "theta", "prior_spread"):
        values[name] = values[name].exp()
    values["fore_scale"] = 1 + values["fore_scale"].relu()
    return ProteinParameters(**{k: v.to(dtype).requires_grad_() for k, v in values.items()})


def counts(n: int, p: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Counts, and which of them were measured."""
    rng = np.random.default_rng(seed)
    counts_np = rng.poisson(rng.gamma(0.5, 20.0, (n, p))).astype(np.float32)
    return torch.from_numpy(counts_np), torch.from_numpy(rng.random((n, p)) < 0.7)


def plain(
    y_np: Tensor, measured_np: Tensor | None, g: ProteinParameters, n_real: int
) -> ProteinTerms:
    """By distributions and autograd, in float64."""
    measured = torch.ones_like(y_np, dtype=torch.bool) if measured_np is None else measured_np
    rate = g.log_efficiency.exp() * g.log_rate_back.exp()
    log_p = log_mixture_nb(y_np.double(), rate, rate * g.fore_scale, g.theta, None, g.mixing)
    posterior, prior = Normal(g.back_mean, g.back_spread), Normal(g.prior_mean, g.prior_spread)
    log_e = g.log_efficiency.expand(y_np.shape)
    # A standard log-normal law of the efficiency.
    own = -Normal(0.0, 1.0).log_prob(log_e) + log_e
    penalty = own - 1e-3 * F.logsigmoid(g.mixing)
    penalty = penalty + torch.where(measured, kl_divergence(posterior, prior), 0.0)
    rec_n, penalty_n = torch.where(measured, -log_p, 0.0).sum(1), penalty.sum(1)
    total_n = WEIGHTS[0] * rec_n + WEIGHTS[1] * penalty_n
    return ProteinTerms(rec_n.detach(), penalty_n.detach(), total_n[:n_real].sum())


def results(terms: ProteinTerms, g: ProteinParameters) -> dict[str, Tensor]:
    found = torch.autograd.grad(terms.objective * 0.4, [getattr(g, name) for name in NAMES])
    values = {name: getattr(terms, name).detach() for name in terms._fields}
    return values | dict(zip(NAMES, found, strict=True))


def assert_near(seen: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    """To ``rtol`` of the largest value of each."""
    for name, value in expected.items():
        assert seen[name].shape == value.shape, name
        if value.numel():
            atol = rtol * float(value.abs().max()) + 1e-300
            torch.testing.assert_close(seen[name].double(), value, rtol=0, atol=atol, msg=name)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(0, 6),
    p=st.sampled_from([1, 3, 127, 128, 129, 300]),
    n_padding=st.integers(0, 6),
    has_mask=st.booleans(),
    shared=st.booleans(),
    seed=st.integers(0, 100),
)
def test_every_shape(
    n: int, p: int, n_padding: int, has_mask: bool, shared: bool, seed: int
) -> None:
    """Values and gradients, whatever is shared by all cells."""
    g = parameters(n, p, seed, shared=shared)
    y, measured = counts(n, p, seed)
    mask, n_real = (measured if has_mask else None), max(n - n_padding, 0)
    expected = results(plain(y, mask, g, n_real), g)
    assert_near(results(protein_loss(y, mask, g, n_real, WEIGHTS), g), expected, 1e-10)


def test_gradients_are_those_of_finite_differences() -> None:
    g = parameters(3, 4)
    y, measured = counts(3, 4)

    def loss(*leaves: Tensor) -> Tensor:
        return protein_loss(y, measured, ProteinParameters(*leaves), 2, WEIGHTS).objective

    assert torch.autograd.gradcheck(loss, [getattr(g, name) for name in NAMES])


EXTREMES: dict[str, dict[str, Any]] = {
    "tiny rates": {"log_rate_back": -60.0},
    "huge rates": {"log_rate_back": 40.0},
    "tiny dispersions": {"theta": 1e-6},
    "huge dispersions": {"theta": 1e6},
    "certain background": {"mixing": 300.0},
    "certain foreground": {"mixing": -300.0},
    "far foreground": {"fore_scale": 1e6},
    "narrow posterior": {"back_spread": 1e-8},
    "enormous counts": {"y": 2e6},
    "counts between whole numbers": {"y": 7.3},
    "no counts": {"y": 0.0},
}


@pytest.mark.parametrize("case", EXTREMES.values(), ids=EXTREMES)
def test_extreme_values_are_finite_and_exact(case: dict[str, float]) -> None:
    g32, (y, measured) = parameters(20, 9, dtype=torch.float32), counts(20, 9)
    with torch.no_grad():
        for name, value in case.items():
            (y if name == "y" else getattr(g32, name))[::3, ::2] = value
    leaves = {name: getattr(g32, name).detach().double().requires_grad_() for name in NAMES}
    g64 = ProteinParameters(**leaves)
    expected = results(plain(y, measured, g64, 20), g64)
    assert all(value.isfinite().all() for value in expected.values())
    # The plain formula's own lgamma and digamma cancel where dispersions are large.
    assert_near(results(protein_loss(y, measured, g64, 20, WEIGHTS), g64), expected, 1e-8)
    assert_near(results(protein_loss(y, measured, g32, 20, WEIGHTS), g32), expected, 1e-6)


def test_counts_that_were_not_measured_may_be_anything() -> None:
    g, (y, measured) = parameters(5, 6), counts(5, 6)
    y[~measured] = torch.nan
    terms = protein_loss(y, measured, g, 5, WEIGHTS)
    assert terms.objective.isfinite()
    assert all(value.isfinite().all() for value in results(terms, g).values())


def test_what_is_not_finite_is_not_hidden() -> None:
    for name in NAMES:
        g, (y, _) = parameters(4, 6), counts(4, 6)
        with torch.no_grad():
            getattr(g, name).view(-1)[0] = torch.nan
        assert protein_loss(y, None, g, 4, WEIGHTS).objective.isnan(), name


def test_no_gradient_is_made_where_none_is_wanted() -> None:
    g, (y, measured) = parameters(4, 6), counts(4, 6)
    with torch.no_grad():
        bare = protein_loss(y, measured, g, 4, WEIGHTS)
    assert not bare.objective.requires_grad
    assert torch.equal(bare.objective, protein_loss(y, measured, g, 4, WEIGHTS).objective.detach())
