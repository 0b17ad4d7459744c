"""One table of laws, and what must hold for each of them; scipy is the oracle."""

import math
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor
from torch.distributions import Distribution

from scvi_dist.distributions import (
    BetaBinomial,
    NegativeBinomial,
    NegativeBinomialMixture,
    Normal,
    Poisson,
    ZeroInflatedNegativeBinomial,
    log_nb_positive,
)
from scvi_dist.errors import ConfigError

N_SUPPORT = 6_000


def nb_logpmf(x: Any, mu: Any, theta: Any) -> Any:
    return stats.nbinom.logpmf(x, theta, theta / (theta + mu))


def zinb_logpmf(x: Any, mu: Any, theta: Any, zi_logits: Any) -> Any:
    counted = special.log_expit(-zi_logits) + nb_logpmf(x, mu, theta)
    return np.where(x == 0, np.logaddexp(special.log_expit(zi_logits), counted), counted)


def mixture_logpmf(
    x: Any, mu1: Any, mu2: Any, theta1: Any, mixture_logits: Any, theta2: Any = None
) -> Any:
    first = special.log_expit(mixture_logits) + nb_logpmf(x, mu1, theta1)
    second = nb_logpmf(x, mu2, theta1 if theta2 is None else theta2)
    return np.logaddexp(first, special.log_expit(-mixture_logits) + second)


def counts_logits_logpmf(x: Any, total_count: Any, logits: Any) -> Any:
    return stats.nbinom.logpmf(x, total_count, special.expit(-logits))


def counts_probs_logpmf(x: Any, total_count: Any, probs: Any) -> Any:
    return stats.nbinom.logpmf(x, total_count, 1 - probs)


def mean_betabinom_logpmf(x: Any, total_count: Any, mu: Any, gamma: Any) -> Any:
    precision = (1 - gamma) / gamma
    return stats.betabinom.logpmf(x, total_count, mu * precision, (1 - mu) * precision)


MU = [0.05, 0.7, 3.0, 40.0, 400.0]
THETA = [0.1, 1.0, 0.4, 9.0, 1000.0]
LOGITS = [-30.0, -2.0, 0.0, 1.5, 25.0]


@dataclass(frozen=True)
class Law:
    build: Callable[..., Distribution]
    params: dict[str, list[float]]
    logpmf: Callable[..., Any]

    @property
    def limit(self) -> int:
        """The largest count that is looked at."""
        trials = self.params["total_count"] if self.build is BetaBinomial else [N_SUPPORT]
        return int(trials[0])

    def tensors(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        return {name: torch.tensor(value, dtype=dtype) for name, value in self.params.items()}

    def law(self, dtype: torch.dtype = torch.float64) -> Distribution:
        return self.build(**self.tensors(dtype))

    def oracle(self, x: Tensor) -> np.ndarray:
        params = {name: np.asarray(value) for name, value in self.params.items()}
        return self.logpmf(x.numpy(), **params)


COUNT_LAWS = {
    "nb": Law(NegativeBinomial, {"mu": MU, "theta": THETA}, nb_logpmf),
    "nb by counts and logits": Law(
        NegativeBinomial,
        {"total_count": THETA, "logits": [-3.0, -1.0, 0.0, 1.0, -2.0]},
        counts_logits_logpmf,
    ),
    "nb by counts and probs": Law(
        NegativeBinomial,
        {"total_count": THETA, "probs": [0.05, 0.3, 0.5, 0.8, 0.2]},
        counts_probs_logpmf,
    ),
    "zinb": Law(
        ZeroInflatedNegativeBinomial, {"mu": MU, "theta": THETA, "zi_logits": LOGITS}, zinb_logpmf
    ),
    "mixture": Law(
        NegativeBinomialMixture,
        {"mu1": MU, "mu2": [2.0, 2.0, 0.3, 80.0, 900.0], "theta1": THETA, "mixture_logits": LOGITS},
        mixture_logpmf,
    ),
    "mixture of two dispersions": Law(
        NegativeBinomialMixture,
        {
            "mu1": MU,
            "mu2": [2.0, 2.0, 0.3, 80.0, 900.0],
            "theta1": THETA,
            "theta2": [1.0, 0.2, 30.0, 2.0, 50.0],
            "mixture_logits": LOGITS,
        },
        mixture_logpmf,
    ),
    "beta-binomial": Law(
        BetaBinomial,
        {
            "total_count": [900.0] * 5,
            "alpha": [0.2, 1.0, 3.0, 40.0, 400.0],
            "beta": [0.3, 9.0, 1.0, 40.0, 2_000.0],
        },
        lambda x, total_count, alpha, beta: stats.betabinom.logpmf(x, total_count, alpha, beta),
    ),
    "beta-binomial by mean": Law(
        BetaBinomial,
        {
            "total_count": [900.0] * 5,
            "mu": [0.01, 0.2, 0.5, 0.8, 0.1],
            "gamma": [0.9, 0.5, 0.1, 0.01, 0.001],
        },
        mean_betabinom_logpmf,
    ),
    "poisson": Law(Poisson, {"rate": MU}, lambda x, rate: stats.poisson.logpmf(x, rate)),
}
NORMAL = Law(
    Normal,
    {"mu": [-1.0, 0.0, 3.0], "scale": [0.1, 1.0, 7.0]},
    lambda x, mu, scale: stats.norm.logpdf(x, mu, scale),
)
LAWS = {**COUNT_LAWS, "normal": NORMAL}

each_law = pytest.mark.parametrize("case", LAWS.values(), ids=LAWS)
each_count_law = pytest.mark.parametrize("case", COUNT_LAWS.values(), ids=COUNT_LAWS)


def counts(case: Law) -> Tensor:
    """Zeros, small counts and large ones, against each parameter ``[counts, parameters]``."""
    n_params = len(next(iter(case.params.values())))
    values = torch.tensor([0.0, 1.0, 2.0, 7.0, 50.0, 900.0], dtype=torch.float64)
    return values[:, None].expand(-1, n_params).clamp(max=case.limit)


@each_law
def test_log_probability_is_the_oracles(case: Law) -> None:
    x = counts(case)
    expected = case.oracle(x)
    np.testing.assert_allclose(case.law().log_prob(x), expected, rtol=2e-6, atol=2e-6)


@each_law
def test_float32_is_near_the_oracle(case: Law) -> None:
    x = counts(case)
    log_prob = case.law(torch.float32).log_prob(x.float())
    assert log_prob.dtype == torch.float32
    # lgamma of a count near 1000 is near 6000: float32 resolves it to 5e-4.
    np.testing.assert_allclose(log_prob, case.oracle(x), rtol=1e-5, atol=2e-3)


@each_count_law
def test_probabilities_give_one_the_mean_and_the_variance(case: Law) -> None:
    law = case.law()
    x = torch.arange(min(N_SUPPORT, case.limit + 1), dtype=torch.float64)[:, None]
    p = law.log_prob(x).exp()
    mean = (x * p).sum(0)
    torch.testing.assert_close(p.sum(0), torch.ones_like(mean), rtol=1e-5, atol=0)
    torch.testing.assert_close(law.mean, mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(law.variance, ((x - mean) ** 2 * p).sum(0), rtol=1e-3, atol=1e-6)


@each_law
def test_samples_have_the_mean_and_are_in_the_support(case: Law) -> None:
    torch.manual_seed(0)
    n = 20_000
    law = case.law(torch.float32)
    x = law.sample((n,))
    assert x.shape == (n, *law.mean.shape)
    assert law.support.check(x).all()
    standard_error = (law.variance / n).sqrt()
    assert ((x.mean(0) - law.mean).abs() <= 5 * standard_error).all()
    assert law.sample().shape == law.mean.shape


@each_count_law
def test_samples_are_zero_as_often_as_they_should_be(case: Law) -> None:
    torch.manual_seed(1)
    n = 20_000
    law = case.law(torch.float32)
    p_zero = law.log_prob(torch.zeros(1)).exp()
    seen = (law.sample((n,)) == 0).float().mean(0)
    assert ((seen - p_zero).abs() <= 5 * (p_zero * (1 - p_zero) / n).sqrt() + 1e-6).all()


@each_law
def test_gradients_are_those_of_finite_differences(case: Law) -> None:
    x = counts(case)[:4]
    params = {name: value.requires_grad_() for name, value in case.tensors().items()}

    def log_prob(*values: Tensor) -> Tensor:
        return case.build(**dict(zip(params, values, strict=True))).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, tuple(params.values()), rtol=1e-4, atol=1e-5)


@each_law
def test_a_parameter_shared_by_cells_is_a_repeated_one(case: Law) -> None:
    x = counts(case)
    repeated = {name: value.expand(x.shape).clone() for name, value in case.tensors().items()}
    torch.testing.assert_close(case.law().log_prob(x), case.build(**repeated).log_prob(x))


@each_count_law
def test_parameters_outside_their_constraint_are_refused(case: Law) -> None:
    nonnegative = {name: v for name, v in case.tensors().items() if "logits" not in name}
    for name, value in nonnegative.items():
        wrong = {**case.tensors(), name: -value}
        with pytest.raises(ValueError):
            case.build(**wrong, validate_args=True)


@each_law
def test_a_law_says_what_it_is(case: Law) -> None:
    law = case.law()
    assert type(law).__name__ in repr(law)
    assert set(law.arg_constraints) >= set(case.params) - {"total_count", "logits", "probs", "mu"}
    assert torch.equal(pickle.loads(pickle.dumps(law)).mean, law.mean)


@pytest.mark.parametrize(
    "law",
    [
        NegativeBinomial(mu=torch.tensor([1.0, 2.0]), theta=torch.ones(2), validate_args=True),
        ZeroInflatedNegativeBinomial(
            mu=torch.tensor([1.0, 2.0]),
            theta=torch.ones(2),
            zi_logits=torch.zeros(2),
            validate_args=True,
        ),
        NegativeBinomialMixture(
            mu1=torch.tensor([1.0, 2.0]),
            mu2=torch.ones(2),
            theta1=torch.ones(2),
            mixture_logits=torch.zeros(2),
            validate_args=True,
        ),
    ],
    ids=lambda law: type(law).__name__,
)
def test_values_that_are_no_counts_are_named_where_arguments_are_checked(law: Distribution) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        law.log_prob(torch.tensor([0.0, 3.0]))
    with pytest.warns(UserWarning, match=r"1 of 2 values are not, the first is 1\.5"):
        law.log_prob(torch.tensor([1.5, 3.0]))


MEAN, SHARE = torch.tensor([[2.0, 6.0]]), torch.tensor([[0.25, 0.75]])


@pytest.mark.parametrize(
    "law",
    [
        NegativeBinomial(mu=MEAN, theta=torch.ones(2), scale=SHARE),
        ZeroInflatedNegativeBinomial(
            mu=MEAN, theta=torch.ones(2), zi_logits=torch.zeros(2), scale=SHARE
        ),
        NegativeBinomial(total_count=MEAN, logits=torch.zeros(2)),
        Poisson(MEAN, scale=SHARE),
        Normal(MEAN, torch.ones(2), normal_mu=SHARE),
    ],
    ids=lambda law: type(law).__name__,
)
def test_normalised_means_are_kept_by_name(law: Any) -> None:
    torch.testing.assert_close(law.get_normalized("mu"), MEAN)
    torch.testing.assert_close(law.get_normalized("scale"), SHARE)
    with pytest.raises(ConfigError, match="did you mean 'scale'"):
        law.get_normalized("scales")


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, "nothing"),
        ({"mu": MEAN}, "mu"),
        ({"mu": MEAN, "theta": MEAN, "total_count": MEAN}, "total_count, mu, theta"),
        ({"total_count": MEAN, "probs": SHARE, "logits": SHARE}, "total_count, probs, logits"),
    ],
)
def test_half_a_parametrisation_is_refused(given: dict[str, Tensor], seen: str) -> None:
    with pytest.raises(ConfigError, match=f"it was given {seen}"):
        NegativeBinomial(**given)


EXTREMES = {
    "mu": [0.0, 1e-6, 1e-3, 1.0, 1e3, 2e6],
    "theta": [1e-6, 1e-3, 1.0, 1e3, 1e6],
    "logits": [-90.0, -5.0, 0.0, 5.0, 90.0],
    "scale": [1e-6, 1.0, 1e6],
    "total_count": [2e6],
    "alpha": [1e-6, 1.0, 1e6],
}
LIKE = {"mu1": "mu", "mu2": "mu", "rate": "mu", "theta1": "theta", "theta2": "theta"}
LIKE |= {"zi_logits": "logits", "mixture_logits": "logits", "beta": "alpha"}
EXTREME_LAWS = {
    "nb": (NegativeBinomial, ("mu", "theta"), nb_logpmf),
    "zinb": (ZeroInflatedNegativeBinomial, ("mu", "theta", "zi_logits"), zinb_logpmf),
    "mixture": (
        NegativeBinomialMixture,
        ("mu1", "mu2", "theta1", "mixture_logits"),
        mixture_logpmf,
    ),
    "poisson": (Poisson, ("rate",), COUNT_LAWS["poisson"].logpmf),
    "beta-binomial": (
        BetaBinomial,
        ("total_count", "alpha", "beta"),
        COUNT_LAWS["beta-binomial"].logpmf,
    ),
    "normal": (Normal, ("mu", "scale"), NORMAL.logpmf),
}
each_extreme_law = pytest.mark.parametrize("name", EXTREME_LAWS)


def extremes(name: str, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """Counts up to 2e6 against every combination of extreme parameters."""
    names = EXTREME_LAWS[name][1]
    values = [torch.tensor(EXTREMES[LIKE.get(n, n)], dtype=dtype) for n in names]
    x, *grids = torch.meshgrid(
        torch.tensor([0.0, 1.0, 50.0, 2e6], dtype=dtype), *values, indexing="ij"
    )
    return x.flatten(), dict(zip(names, (g.flatten() for g in grids), strict=True))


def evaluated(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Log-probabilities and their gradients."""
    x, params = extremes(name, dtype)
    given = {key: value.clone().requires_grad_() for key, value in params.items()}
    log_prob = EXTREME_LAWS[name][0](**given).log_prob(x)
    grads = torch.autograd.grad(log_prob.sum(), list(given.values()), allow_unused=True)
    named = {key: g for key, g in zip(given, grads, strict=True) if g is not None}
    return {"log_prob": log_prob.detach(), **named}


@each_extreme_law
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_extremes_are_finite_with_finite_gradients(name: str, dtype: torch.dtype) -> None:
    """Means of 0 (an empty cell), dispersions of 1e-6 to 1e6, counts of 2e6 still train."""
    for key, value in evaluated(name, dtype).items():
        if name == "normal" and dtype == torch.float32 and key == "scale":
            continue  # (2e6 / 1e-6)^2 / 1e-6 is more than float32 holds.
        assert torch.isfinite(value).all(), key


@each_extreme_law
def test_extremes_are_the_oracles(name: str) -> None:
    x, params = extremes(name, torch.float64)
    seen = evaluated(name, torch.float64)["log_prob"]
    expected = EXTREME_LAWS[name][2](x.numpy(), **{k: v.numpy() for k, v in params.items()})
    # Below, what is added inside the logarithms shows: that is scvi-tools' formula.
    usual = torch.stack(
        [v >= 1e-3 for k, v in params.items() if LIKE.get(k, k) == "mu"] or [x >= 0]
    )
    if name == "normal":
        usual = torch.ones_like(usual)
    usual = usual.all(0)
    assert usual.sum() >= 12
    np.testing.assert_allclose(seen[usual], expected[usual], rtol=1e-5, atol=1e-5)


@each_extreme_law
def test_float32_gradients_are_those_of_float64(name: str) -> None:
    """To the rounding of the largest term that they are a sum of, wherever terms can be told."""
    narrow, wide = evaluated(name, torch.float32), evaluated(name, torch.float64)
    x, params = extremes(name, torch.float64)
    counted = x <= 50
    for key, value in params.items():
        if LIKE.get(key, key) == "mu" and name != "normal":
            counted &= value >= 1e-3
    for key in set(wide) - {"log_prob"}:
        scale = 1 + wide[key].abs()
        if key.startswith("theta") or key in ("alpha", "beta", "total_count"):
            # Digammas of about 14 and, near 0, of one over their argument cancel.
            scale = scale + 14 + 1 / params[key].clamp(max=1)
        errors = (narrow[key].double() - wide[key]).abs() / scale
        assert errors[counted & torch.isfinite(narrow[key])].max() < 4e-6, key


def test_a_large_dispersion_is_a_poisson_law() -> None:
    """The differences of logarithms do not cancel, even in float32."""
    x, mu = torch.arange(6.0), torch.tensor(2.0)
    near = log_nb_positive(x, mu, torch.tensor(1e4)) + torch.lgamma(x + 1)
    exact = torch.from_numpy(nb_logpmf(x.double().numpy(), 2.0, 1e4)) + torch.lgamma(x + 1)
    # What is left is lgamma near 1e4: its float32 step is 0.008.
    torch.testing.assert_close(near.double(), exact.double(), rtol=0, atol=0.02)
    zero = log_nb_positive(torch.zeros(1), mu, torch.tensor(1e8))
    assert zero.item() == pytest.approx(-2.0, rel=1e-6)


def test_mixture_components_are_drawn_anew_for_each_sample() -> None:
    torch.manual_seed(0)
    law = NegativeBinomialMixture(
        mu1=torch.tensor([1e-6]),
        mu2=torch.tensor([1e5]),
        theta1=torch.tensor([50.0]),
        mixture_logits=torch.zeros(1),
    )
    is_background = (law.sample((4_000,)) == 0).float().mean().item()
    assert is_background == pytest.approx(0.5, abs=5 * math.sqrt(0.25 / 4_000))
