"""The importance estimate is a mean of weights, however it is cut into passes."""

import math

import pytest
import torch

from scvi_dist.errors import ConfigError
from scvi_dist.module.marginal import importance_estimate


@pytest.mark.parametrize("n_per_pass", [1, 3, 7, 20, 50])
def test_the_estimate_is_the_mean_of_exactly_as_many_weights(n_per_pass: int) -> None:
    weights = torch.rand(20, 5)
    drawn = iter(weights)
    estimate = importance_estimate(
        lambda n: torch.stack([next(drawn) for _ in range(n)]).log(), 20, n_per_pass
    )
    torch.testing.assert_close(estimate, weights.mean(0).log())
    assert next(drawn, None) is None


def test_weights_of_any_size_do_not_overflow() -> None:
    estimate = importance_estimate(lambda n: torch.full((n, 2), -5_000.0), 4, 2)
    torch.testing.assert_close(estimate, torch.full((2,), -5_000.0))
    assert math.isfinite(float(estimate.sum()))


@pytest.mark.parametrize(("n_samples", "n_per_pass"), [(0, 1), (1, 0)])
def test_no_samples_are_refused(n_samples: int, n_per_pass: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        importance_estimate(lambda n: torch.zeros(n, 1), n_samples, n_per_pass)
