"""Draws of counts: their law, and that they belong to cell, draw and feature."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from scvi_dist.analysis.count_draws import draw_by_cell
from scvi_dist.dataloaders.rows import splitmix64
from scvi_dist.distributions import (
    NegativeBinomial,
    NegativeBinomialMixture,
    Poisson,
    ZeroInflatedNegativeBinomial,
)

N_DRAWS = 40_000
MEANS = [0.004, 0.05, 0.9, 2.5, 15.9, 16.1, 60.0, 4_000.0]
THETAS = [1e-3, 0.05, 0.8, 3.0, 50.0, 1e6]
LEVEL = 1e-6
"""Below it a test of fit fails: there are some hundred, and the draws are always the same."""


def _keys(n: int, seed: int = 0) -> np.ndarray:
    return splitmix64(np.arange(n, dtype=np.uint64) + np.uint64(seed << 40))


def _negative_binomial(mu: float, theta: float) -> Any:
    return stats.nbinom(theta, theta / (theta + mu))


def _fit(counts: np.ndarray, law: Any, extra_zeros: float = 0.0) -> float:
    """p-value that counts follow a law, with a share of extra zeros: χ² over merged counts."""
    edges = np.unique(law.ppf(np.linspace(0.02, 0.98, 40)))
    below = extra_zeros + (1 - extra_zeros) * law.cdf(edges)
    expected = np.diff(np.concatenate([[0.0], below, [1.0]])) * len(counts)
    seen = np.diff(np.concatenate([[0], np.searchsorted(np.sort(counts), edges, "right")]))
    seen = np.append(seen, len(counts) - seen.sum())
    enough = expected > 5
    rest_seen, rest_expected = seen[~enough].sum(), expected[~enough].sum()
    if rest_expected > 5:
        seen = np.append(seen[enough], rest_seen)
        expected = np.append(expected[enough], rest_expected)
    else:
        seen, expected = seen[enough], expected[enough]
    if len(seen) < 2:
        return float(stats.binomtest(int((counts > 0).sum()), len(counts), law.sf(0)).pvalue)
    statistic = ((seen - expected) ** 2 / expected).sum()
    return float(stats.chi2(len(seen) - 1).sf(statistic))


def _drawn(law: Any, seed: int = 0) -> np.ndarray:
    return draw_by_cell(law, _keys(N_DRAWS, seed)).numpy()


@pytest.mark.parametrize("theta", THETAS)
def test_negative_binomial_counts_follow_scipys_law(theta: float) -> None:
    mu = torch.tensor(MEANS).expand(N_DRAWS, -1)
    counts = _drawn(NegativeBinomial(mu=mu, theta=torch.full((len(MEANS),), theta)))
    for column, mean in enumerate(MEANS):
        assert _fit(counts[:, column], _negative_binomial(mean, theta)) > LEVEL, mean


def test_poisson_counts_follow_scipys_law() -> None:
    rates = [*MEANS, 9.9, 10.1, 1e5]
    counts = _drawn(Poisson(rate=torch.tensor(rates).expand(N_DRAWS, -1)))
    for column, rate in enumerate(rates):
        assert _fit(counts[:, column], stats.poisson(rate)) > LEVEL, rate
    assert draw_by_cell(Poisson(rate=torch.full((1, 1), 1e12)), _keys(1)).item() < 1.01e8


@pytest.mark.parametrize("logit", [-3.0, 0.0, 2.0])
def test_extra_zeros_are_as_many_as_their_probability(logit: float) -> None:
    mu = torch.tensor(MEANS).expand(N_DRAWS, -1)
    theta = torch.tensor(2.0).expand(len(MEANS))
    law = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=torch.full_like(mu, logit))
    counts = _drawn(law, seed=1)
    extra = 1 / (1 + np.exp(-logit))
    for column, mean in enumerate(MEANS[2:], start=2):
        assert _fit(counts[:, column], _negative_binomial(mean, 2.0), extra) > LEVEL, mean


def test_both_parts_of_a_mixture_are_drawn() -> None:
    mu = torch.tensor([0.5, 6.0, 300.0]).expand(N_DRAWS, -1)
    law = NegativeBinomialMixture(
        mu1=mu,
        mu2=2_000 + 0 * mu,
        theta1=torch.tensor([0.5, 5.0, 30.0]),
        theta2=torch.full((3,), 400.0),
        mixture_logits=torch.full_like(mu, 1.0),
    )
    counts = _drawn(law, seed=2)
    is_first = counts < 1_200
    share = float(torch.sigmoid(torch.tensor(1.0)))
    for column, (mean, theta) in enumerate(((0.5, 0.5), (6.0, 5.0), (300.0, 30.0))):
        first = counts[is_first[:, column], column]
        assert stats.binomtest(len(first), N_DRAWS, share).pvalue > LEVEL
        assert _fit(first, _negative_binomial(mean, theta)) > LEVEL
        second = counts[~is_first[:, column], column]
        assert _fit(second, _negative_binomial(2_000, 400)) > LEVEL


def test_cells_draws_and_features_are_independent() -> None:
    law = NegativeBinomial(mu=torch.full((2, 20_000, 3), 5.0), theta=torch.tensor([2.0, 2.0, 2.0]))
    a, b = draw_by_cell(law, _keys(20_000)), draw_by_cell(law, _keys(20_000, 3))
    columns = np.concatenate([np.moveaxis(x.numpy(), 1, 0).reshape(20_000, -1) for x in (a, b)], 1)
    neighbours = np.concatenate([columns[:-1], columns[1:]], axis=1)
    for table in (neighbours, np.abs(neighbours - 5)):
        correlation = np.corrcoef(table, rowvar=False) - np.eye(table.shape[1])
        assert np.abs(correlation).max() < 5.5 / np.sqrt(20_000)


def test_a_cells_counts_do_not_depend_on_the_other_cells() -> None:
    rng = np.random.default_rng(0)
    mu = torch.from_numpy(rng.lognormal(0, 3, (4, 9, 50)).astype(np.float32))
    theta = torch.from_numpy(rng.lognormal(0, 1, 50).astype(np.float32))
    logits = torch.from_numpy(rng.normal(-1, 1, mu.shape).astype(np.float32))
    keys, order = _keys(9), [7, 0, 3]
    whole = draw_by_cell(ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=logits), keys)
    few = ZeroInflatedNegativeBinomial(
        mu=mu[:, order], theta=theta.expand_as(mu[:, order]).clone(), zi_logits=logits[:, order]
    )
    assert torch.equal(draw_by_cell(few, keys[order]), whole[:, order])
    assert not torch.equal(draw_by_cell(few, _keys(3, 1)), whole[:, order])


@pytest.mark.parametrize(("mu", "theta"), [(0.0, 1.0), (3.0, 0.0), (1e-30, 1e30), (1e20, 1.0)])
def test_laws_at_their_limits_end(mu: float, theta: float) -> None:
    law = NegativeBinomial(mu=torch.full((5, 2), mu), theta=torch.full((2,), theta))
    counts = draw_by_cell(law, _keys(5))
    assert torch.isfinite(counts).all()
    assert (counts >= 0).all()
    assert counts.max() <= 1.01e8
    if mu < 1:
        assert not counts.any()


def test_parameters_that_are_no_numbers_give_none() -> None:
    law = NegativeBinomial(mu=torch.tensor([[float("nan"), 1.0]]), theta=torch.ones(2))
    counts = draw_by_cell(law, _keys(1))
    assert torch.isnan(counts[0, 0])
    assert not torch.isnan(counts[0, 1])
