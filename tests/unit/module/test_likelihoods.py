"""From decoded parts to a law, and back to its parameters."""

import pytest
import torch
from torch.distributions import Gamma

from scvi_dist.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from scvi_dist.errors import ConfigError
from scvi_dist.module import likelihood_parameters
from scvi_dist.module.likelihoods import LIKELIHOODS, Decoded, sample_counts

LAWS = {
    "zinb": ZeroInflatedNegativeBinomial,
    "nb": NegativeBinomial,
    "poisson": Poisson,
    "normal": Normal,
}
NAMES = {
    "zinb": {"mean", "dropout", "dispersions"},
    "nb": {"mean", "dispersions"},
    "poisson": {"mean"},
    "normal": {"mean", "dispersions"},
}


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_a_law_gives_back_what_it_was_made_of(name: str, shape: tuple[int, ...]) -> None:
    decoded = Decoded(
        scale=torch.rand(shape),
        rate=torch.rand(shape),
        theta=torch.rand(4) + 0.1,
        zi_logits=torch.randn(shape),
    )
    px = LIKELIHOODS[name](decoded)
    assert type(px) is LAWS[name]
    assert torch.equal(px.get_normalized("mu"), decoded.rate)
    assert torch.equal(px.get_normalized("scale"), decoded.scale)
    parameters = likelihood_parameters(px)
    assert set(parameters) == NAMES[name]
    assert all(value.shape == shape for value in parameters.values())
    expected = {
        "mean": decoded.rate,
        "dispersions": decoded.theta.expand(shape),
        "dropout": decoded.zi_logits.sigmoid(),
    }
    for key, value in parameters.items():
        torch.testing.assert_close(value, expected[key])


def test_a_law_of_another_kind_is_named() -> None:
    with pytest.raises(ConfigError, match="got Gamma"):
        likelihood_parameters(Gamma(torch.ones(1), torch.ones(1)))


def test_poisson_rates_are_cut_before_they_are_drawn_from() -> None:
    px = Poisson(torch.full((200,), 1e12))
    assert sample_counts(px, max_poisson_rate=10.0).max() < 50
