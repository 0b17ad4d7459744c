"""Encoders give laws of latent variables, decoders the parts of a likelihood."""

import pickle

import pytest
import torch
from torch.nn import functional as F

from scvi_dist.errors import ConfigError
from scvi_dist.nn import Decoder, DecoderSCVI, Encoder, NoiseStream

N, G, K = 9, 12, 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("distribution", ["normal", "ln"])
def test_a_posterior_is_made_of_its_heads(distribution: str) -> None:
    encoder = Encoder(G, K, distribution=distribution, var_eps=0.5, return_dist=True).eval()
    x = torch.randn(N, G)
    hidden = encoder.encoder(x)
    law, z = encoder(x)
    torch.testing.assert_close(law.loc, encoder.mean_encoder(hidden))
    torch.testing.assert_close(law.variance, encoder.var_encoder(hidden).exp() + 0.5)
    assert z.shape == (N, K)
    if distribution == "ln":
        torch.testing.assert_close(z.sum(-1), torch.ones(N))
        assert (z > 0).all()


def test_a_posterior_can_be_returned_as_its_moments() -> None:
    encoder = Encoder(G, K, n_cat_list=[2], var_activation=F.softplus).eval()
    x, cat = torch.randn(N, G), torch.zeros(N, 1, dtype=torch.long)
    law = encoder.posterior(x, cat)
    mean, variance, z = encoder(x, cat)
    torch.testing.assert_close(mean, law.loc)
    torch.testing.assert_close(variance, law.variance)
    assert not torch.equal(z, mean)
    hidden = encoder.encoder(x, cat)
    torch.testing.assert_close(variance, F.softplus(encoder.var_encoder(hidden)) + 1e-4)


def test_dropout_and_draws_come_from_one_stream() -> None:
    """Two ranks that share a minibatch encode it as one would."""
    noise = NoiseStream()
    encoder = Encoder(G, K, use_batch_norm=False, return_dist=True, noise=noise)
    x = torch.randn(N, G)
    noise.at(0, 0, 0, N, N)
    _, whole = encoder(x)
    parts = []
    for start, stop in ((0, 4), (4, N)):
        noise.at(0, 0, start, stop, N)
        parts.append(encoder(x[start:stop])[1])
    torch.testing.assert_close(torch.cat(parts), whole)
    noise.at(0, 1, 0, N, N)
    assert not torch.allclose(encoder(x)[1], whole)


def test_an_encoder_can_be_pickled() -> None:
    encoder = Encoder(G, K, distribution="ln").eval()
    copied = pickle.loads(pickle.dumps(encoder))
    x = torch.randn(N, G)
    assert torch.equal(copied.posterior(x).loc, encoder.posterior(x).loc)


@pytest.mark.parametrize("shape", [(N,), (4, N)])
def test_rates_are_proportions_times_the_size_of_the_cell(shape: tuple[int, ...]) -> None:
    decoder = DecoderSCVI(K, G, n_cat_list=[2], use_batch_norm=True)
    cat = torch.arange(N).remainder(2).unsqueeze(1)
    z, library = torch.randn(*shape, K), torch.rand(*shape, 1)
    scale, log_theta, rate, zi_logits = decoder("gene-cell", z, library, cat)
    torch.testing.assert_close(scale.sum(-1), torch.ones(shape))
    torch.testing.assert_close(rate, scale * library.exp())
    assert log_theta is not None
    assert zi_logits is not None
    assert log_theta.shape == zi_logits.shape == (*shape, G)


def test_heads_without_use_are_not_computed() -> None:
    decoder = DecoderSCVI(K, G)
    z, library = torch.randn(N, K), torch.zeros(N, 1)
    _, log_theta, _, zi_logits = decoder("gene", z, library, zero_inflated=False)
    assert log_theta is None
    assert zi_logits is None


def test_a_softplus_scale_is_positive_and_free_of_a_sum() -> None:
    decoder = DecoderSCVI(K, G, scale_activation="softplus")
    scale = decoder("gene", torch.randn(N, K), torch.zeros(N, 1))[0]
    assert (scale > 0).all()
    assert not torch.allclose(scale.sum(-1), torch.ones(N))


def test_a_normal_decoder_gives_mean_and_variance() -> None:
    decoder = Decoder(K, G, n_cat_list=[2], n_layers=2).eval()
    z, cat = torch.randn(N, K), torch.zeros(N, 1, dtype=torch.long)
    mean, variance = decoder(z, cat)
    hidden = decoder.decoder(z, cat)
    torch.testing.assert_close(mean, decoder.mean_decoder(hidden))
    torch.testing.assert_close(variance, decoder.var_decoder(hidden).exp())


def test_what_is_exponentiated_leaves_mixed_precision() -> None:
    encoder = Encoder(G, K, return_dist=True)
    decoder = DecoderSCVI(K, G)
    with torch.autocast("cpu", torch.bfloat16):
        law, z = encoder(torch.randn(N, G))
        parts = decoder("gene-cell", z, torch.zeros(N, 1))
    assert {t.dtype for t in (law.loc, law.scale, *parts)} == {torch.float32}
    torch.testing.assert_close(parts[0].sum(-1), torch.ones(N), rtol=1e-5, atol=0)


def test_unknown_choices_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'normal'"):
        Encoder(G, K, distribution="normall")
    with pytest.raises(ConfigError, match="did you mean 'softmax'"):
        DecoderSCVI(K, G, scale_activation="soft-max")
