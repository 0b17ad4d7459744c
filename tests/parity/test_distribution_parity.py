"""Our laws and scvi-tools': the same formula, with at most its rounding error."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from scvi_dist import distributions as ours

pytestmark = pytest.mark.parity

LAWS = {
    "NegativeBinomial": ("mu", "theta"),
    "ZeroInflatedNegativeBinomial": ("mu", "theta", "zi_logits"),
    "NegativeBinomialMixture": ("mu1", "mu2", "theta1", "mixture_logits"),
}
each_law = pytest.mark.parametrize("name", LAWS)


@pytest.fixture(scope="module")
def theirs() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from scvi import distributions

    return distributions


def params(name: str, log_range: tuple[float, float], n: int = 20_000) -> dict[str, Tensor]:
    """Means and dispersions log-uniform over a range, logits from -15 to 15; float32."""
    generator = torch.Generator().manual_seed(0)
    low, high = log_range
    return {
        key: torch.empty(n).uniform_(-15, 15, generator=generator)
        if "logits" in key
        else torch.empty(n).uniform_(low, high, generator=generator).exp()
        for key in LAWS[name]
    }


def counts(n: int = 20_000) -> Tensor:
    """Half of them zero, the others up to about 1000."""
    generator = torch.Generator().manual_seed(1)
    rate = torch.tensor([0.0, 0.0, 2.0, 1_000.0])[torch.arange(n) % 4]
    return torch.poisson(rate * torch.rand(n, generator=generator), generator=generator)


def log_prob(module: Any, name: str, given: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    law: Callable[..., Any] = getattr(module, name)
    typed = {key: value.to(dtype) for key, value in given.items()}
    # scvi-tools turns one dimension into two.
    return law(**typed).log_prob(counts().to(dtype)).flatten()


@each_law
@pytest.mark.parametrize("log_range", [(-3.0, 3.0), (-25.0, 10.0)], ids=["usual", "extreme"])
def test_the_formula_is_the_same_down_to_eps(
    theirs: Any, name: str, log_range: tuple[float, float]
) -> None:
    given = params(name, log_range)
    seen = log_prob(ours, name, given, torch.float64)
    expected = log_prob(theirs, name, given, torch.float64)
    # 2e-9: torch's softplus, which scvi-tools uses, leaves out exp(-20).
    torch.testing.assert_close(seen, expected, rtol=1e-9, atol=4e-9)


@each_law
@pytest.mark.parametrize("log_range", [(-3.0, 3.0), (-8.0, 10.0)], ids=["usual", "wide"])
def test_float32_is_at_least_as_near_to_float64(
    theirs: Any, name: str, log_range: tuple[float, float]
) -> None:
    given = params(name, log_range)
    exact = log_prob(theirs, name, given, torch.float64)

    def errors(module: Any) -> Tensor:
        return (log_prob(module, name, given, torch.float32).double() - exact).abs()

    our_errors, their_errors = errors(ours), errors(theirs)
    assert our_errors.mean() <= their_errors.mean()
    assert our_errors.quantile(0.99) <= their_errors.quantile(0.99)


@each_law
def test_draws_are_the_same_for_a_seed(theirs: Any, name: str) -> None:
    given = params(name, (-3.0, 3.0), n=500)
    draws = []
    for module in (ours, theirs):
        torch.manual_seed(4)
        draws.append(getattr(module, name)(**given).sample())
    assert torch.equal(*draws)
