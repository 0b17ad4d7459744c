"""The encoder gives two laws, the decoder the parts of the laws of genes and proteins."""

import pickle

import pytest
import torch

from scvi_dist.errors import ConfigError
from scvi_dist.nn import DecoderTOTALVI, EncoderTOTALVI, NoiseStream
from scvi_dist.nn.totalvi_encoder import MAX_LOG_LIBRARY

N, G, P, K = 9, 12, 5, 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("distribution", ["normal", "ln"])
def test_posteriors_are_made_of_their_heads(distribution: str) -> None:
    encoder = EncoderTOTALVI(G, K, distribution=distribution, n_hidden=8).eval()
    x = torch.randn(N, G)
    qz, ql, latent, untransformed = encoder(x)
    for law, layers, heads in (
        (qz, encoder.encoder, (encoder.z_mean_encoder, encoder.z_var_encoder)),
        (ql, encoder.l_gene_encoder, (encoder.l_gene_mean_encoder, encoder.l_gene_var_encoder)),
    ):
        hidden = layers(x)
        torch.testing.assert_close(law.loc, heads[0](hidden))
        torch.testing.assert_close(law.variance, heads[1](hidden).exp() + 1e-4)
    torch.testing.assert_close(latent["l"], untransformed["l"].exp())
    z = untransformed["z"]
    torch.testing.assert_close(latent["z"], z.softmax(-1) if distribution == "ln" else z)


def test_library_sizes_have_an_upper_end() -> None:
    encoder = EncoderTOTALVI(G, K)
    limit = torch.tensor(MAX_LOG_LIBRARY)
    seen = encoder.l_transformation(torch.stack([limit - 1, limit, limit + 50]))
    torch.testing.assert_close(seen, torch.stack([limit - 1, limit, limit]).exp())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dropout_rate", [0.0, 0.3])
@pytest.mark.parametrize("samples", [(), (4,)])
def test_passing_over_the_library_leaves_the_noise_where_it_would_be(
    training: bool, dropout_rate: float, samples: tuple[int, ...]
) -> None:
    encoder = EncoderTOTALVI(G, K, dropout_rate=dropout_rate, n_hidden=8).train(training)
    x = torch.randn(N, G)
    ql = encoder.library_posterior(x)
    torch.manual_seed(3)
    if not samples:
        encoder.library_posterior(x)
    encoder.noise.rsample(ql, torch.Size(samples))
    expected = torch.rand(1)
    torch.manual_seed(3)
    encoder.pass_over_library(x, torch.Size(samples))
    assert torch.equal(torch.rand(1), expected)


def test_noise_of_cells_has_no_need_to_pass_over_anything() -> None:
    noise = NoiseStream()
    encoder = EncoderTOTALVI(G, K, noise=noise)
    noise.at(0, 0, 0, N, N)
    first = noise.normal_like(torch.empty(N, K))
    noise.at(0, 0, 0, N, N)
    encoder.pass_over_library(torch.randn(N, 1))
    assert torch.equal(noise.normal_like(torch.empty(N, K)), first)


@pytest.mark.parametrize("shape", [(N,), (4, N)])
@pytest.mark.parametrize("background", ["exp", "softplus"])
def test_proteins_have_a_foreground_that_is_no_lower_than_their_background(
    shape: tuple[int, ...], background: str
) -> None:
    decoder = DecoderTOTALVI(
        K, G, P, n_cat_list=[2, 1], n_hidden=8, activation_function_bg=background
    )
    codes = torch.arange(N).remainder(2).unsqueeze(1), torch.zeros(N, 1, dtype=torch.long)
    z, library = torch.randn(*shape, K), torch.rand(*shape, 1)
    genes, proteins, log_background = decoder(z, library, *codes)
    torch.testing.assert_close(genes["scale"].sum(-1), torch.ones(shape))
    torch.testing.assert_close(genes["rate"], genes["scale"] * library)
    assert genes["dropout"].shape == (*shape, G)
    assert (proteins["fore_scale"] >= 1).all()
    assert (proteins["back_beta"] > 0).all()
    torch.testing.assert_close(proteins["rate_back"], log_background.exp())
    torch.testing.assert_close(
        proteins["rate_fore"], proteins["rate_back"] * proteins["fore_scale"]
    )
    foreground = torch.sigmoid(-proteins["mixing"]) * proteins["rate_fore"]
    torch.testing.assert_close(proteins["scale"], foreground / foreground.sum(-1, keepdim=True))
    genes, proteins, mean = decoder(z, library, *codes, zero_inflated=False, use_mean=True)
    assert genes["dropout"] is None
    assert torch.equal(mean, proteins["back_alpha"])


def test_covariates_reach_all_that_is_decoded() -> None:
    decoder = DecoderTOTALVI(K, G, P, n_cat_list=[2], n_hidden=8).eval()
    z, library = torch.randn(N, K), torch.ones(N, 1)
    decoded = [decoder(z, library, torch.full((N, 1), code), use_mean=True)[:2] for code in (0, 1)]
    for one, other in zip(*decoded, strict=True):
        for name, value in one.items():
            assert not torch.equal(value, other[name]), name
    with pytest.raises(ConfigError, match="built for 1 categorical covariates; 0 were given"):
        decoder(z, library)


def test_noise_comes_from_one_stream() -> None:
    """Two ranks that share a minibatch decode it as one would."""
    noise = NoiseStream()
    decoder = DecoderTOTALVI(K, G, P, dropout_rate=0.3, use_batch_norm=False, noise=noise)
    z, library = torch.randn(N, K), torch.ones(N, 1)
    noise.at(0, 0, 0, N, N)
    whole = decoder(z, library)[1]["rate_fore"]
    parts = []
    for start, stop in ((0, 4), (4, N)):
        noise.at(0, 0, start, stop, N)
        parts.append(decoder(z[start:stop], library[start:stop])[1]["rate_fore"])
    torch.testing.assert_close(torch.cat(parts), whole)


def test_they_can_be_pickled() -> None:
    encoder = EncoderTOTALVI(G, K).eval()
    decoder = DecoderTOTALVI(K, G, P).eval()
    again, decoded = (pickle.loads(pickle.dumps(part)) for part in (encoder, decoder))
    x = torch.randn(N, G)
    z = encoder.posterior(x).loc
    assert torch.equal(again.posterior(x).loc, z)
    one = torch.ones(N, 1)
    expected = decoder(z, one, use_mean=True)[1]["rate_fore"]
    assert torch.equal(decoded(z, one, use_mean=True)[1]["rate_fore"], expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EncoderTOTALVI(G, K, distribution="normale"), "latent distribution.*'normal'"),
        (lambda: DecoderTOTALVI(K, G, P, scale_activation="softmix"), "scale activ.*'softmax'"),
        (
            lambda: DecoderTOTALVI(K, G, P, activation_function_bg="softpl"),
            "background.*'softplus'",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(build: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
