"""What each analysis computes."""

import builtins
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, issparse

from scvi_dist.analysis.count_draws import draw_by_cell
from scvi_dist.analysis.expression import (
    ExpressionOptions,
    normalized_expression,
    sampled_expression,
)
from scvi_dist.analysis.importance import (
    ImportanceOptions,
    importance_sampled_expression,
    importance_weights,
)
from scvi_dist.analysis.latent import latent_representation
from scvi_dist.analysis.library import library_size_moments
from scvi_dist.analysis.parameters import latent_library_size, likelihood_parameters
from scvi_dist.analysis.predictive import PredictiveOptions, posterior_predictive_sample
from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import StoreCells, StreamConfig
from scvi_dist.data import open_store
from scvi_dist.data.schema import fit_schema
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.distributions import (
    NegativeBinomial,
    Normal,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from scvi_dist.errors import ConfigError
from scvi_dist.module import VAE
from tests.unit.analysis.conftest import N_CELLS, N_GENES, SETUP, make_adata, make_module

LAWS: dict[str, Any] = {
    "nb": lambda mu, theta: NegativeBinomial(mu=mu, theta=theta),
    "zinb": lambda mu, theta: ZeroInflatedNegativeBinomial(
        mu=mu, theta=theta, zi_logits=torch.full_like(mu, -1.0)
    ),
    "poisson": lambda mu, theta: Poisson(rate=mu),
    "normal": lambda mu, theta: Normal(mu, theta),
}


def _cells(source: OpenSource, indices: Any = None, **config: Any) -> StoreCells:
    return StoreCells(source, Selection(source.store.n_obs, indices), StreamConfig(**config))


@pytest.mark.parametrize("name", LAWS)
def test_draws_follow_their_law_and_their_cell(name: str) -> None:
    mu = torch.tensor([0.5, 3.0, 40.0]).expand(3_000, 3).contiguous()
    theta = torch.tensor([0.7, 2.0, 9.0])
    law = LAWS[name](mu, theta)
    keys = np.arange(3_000, dtype=np.uint64)
    before = torch.random.get_rng_state()
    counts = draw_by_cell(law, keys)
    assert torch.equal(torch.random.get_rng_state(), before)
    error = (law.variance[0] / 3_000).sqrt()
    assert ((counts.mean(0) - law.mean[0]).abs() < 5 * error).all()
    assert torch.allclose(counts.var(0), law.variance[0], rtol=0.3)
    order = [5, 2, 2, 700]
    few = LAWS[name](mu[:4], theta)
    assert torch.equal(draw_by_cell(few, keys[order]), counts[order])


def test_laws_of_other_kinds_are_refused() -> None:
    law = torch.distributions.Gamma(torch.ones(2, 2), 1.0)
    with pytest.raises(ConfigError, match="Gamma"):
        draw_by_cell(law, np.arange(2, dtype=np.uint64))


# Expression


def test_expression_as_another_batch(module: VAE, source: OpenSource) -> None:
    own = normalized_expression(module, _cells(source), ExpressionOptions())
    batch = source.coded_obs.take(np.arange(N_CELLS))["batch"][:, 0]
    as_batch = [
        normalized_expression(module, _cells(source), ExpressionOptions(transform_batch=(b,)))
        for b in range(3)
    ]
    for b in range(3):
        np.testing.assert_allclose(as_batch[b][batch == b], own[batch == b], rtol=1e-5)
        assert not np.allclose(as_batch[b][batch != b], own[batch != b], rtol=1e-3)
    several = ExpressionOptions(transform_batch=(0, 2, None))
    np.testing.assert_allclose(
        normalized_expression(module, _cells(source), several),
        (as_batch[0] + as_batch[2] + own) / 3,
        rtol=1e-5,
    )


def test_expression_scales_and_selects(module: VAE, source: OpenSource) -> None:
    own = normalized_expression(module, _cells(source), ExpressionOptions())
    np.testing.assert_allclose(own.sum(1), 1, rtol=1e-5)
    genes = np.array([1, 4, 9])
    scaled = ExpressionOptions(library_size=1e4, genes=genes)
    np.testing.assert_allclose(
        normalized_expression(module, _cells(source), scaled), own[:, genes] * 1e4, rtol=1e-5
    )
    library = latent_library_size(module, _cells(source), give_mean=False)
    latent = ExpressionOptions(library_size="latent")
    np.testing.assert_allclose(
        normalized_expression(module, _cells(source), latent), own * library, rtol=1e-5
    )


def test_samples_of_expression(module: VAE, source: OpenSource) -> None:
    all_of_them = normalized_expression(
        module, _cells(source), ExpressionOptions(n_samples=5, return_mean=False)
    )
    assert all_of_them.shape == (5, N_CELLS, N_GENES)
    assert all_of_them.std(0).min() > 0
    mean = normalized_expression(module, _cells(source), ExpressionOptions(n_samples=5))
    np.testing.assert_allclose(mean, all_of_them.mean(0), rtol=1e-5)


def test_samples_over_all_cells(module: VAE, source: OpenSource) -> None:
    cells = _cells(source, [4, 50, 7], seed=3)
    values, selection = sampled_expression(
        module, cells, ExpressionOptions(), n_samples_overall=600
    )
    rows = selection.rows()
    assert values.shape == (600, N_GENES)
    assert set(rows) == {4, 50, 7}
    assert np.abs(np.unique(rows, return_counts=True)[1] - 200).max() < 70
    assert len(np.unique(values, axis=0)) == 600
    mean = normalized_expression(module, cells, ExpressionOptions(n_samples=300))
    for i, row in enumerate([4, 50, 7]):
        np.testing.assert_allclose(values[rows == row].mean(0), mean[i], rtol=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 0}, "n_samples"),
        ({"transform_batch": ()}, "no batch"),
        ({"library_size": "latnet"}, "'latent'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExpressionOptions(**options)


def test_one_of_n_samples_and_n_samples_overall(module: VAE, source: OpenSource) -> None:
    with pytest.raises(ConfigError, match="not both"):
        sampled_expression(
            module, _cells(source), ExpressionOptions(n_samples=2), n_samples_overall=5
        )


def test_important_draws_are_drawn_more_often(module: VAE, source: OpenSource) -> None:
    cells = _cells(source, [4, 50, 7, 50], seed=3)
    options = ExpressionOptions(genes=np.array([2, 0]))
    settings = ImportanceOptions(n_mc_samples=30, n_mc_samples_per_pass=100)
    weights = importance_weights(module, cells, settings, options, n_samples=8)
    assert weights.shape == (4, 8)
    assert weights.sum() == pytest.approx(1.0)
    values, selection = importance_sampled_expression(
        module, cells, options, settings, n_samples_overall=31
    )
    every = normalized_expression(module, cells, replace(options, n_samples=8, return_mean=False))
    rows = selection.rows()
    assert values.shape == (31, 2)
    for value, row in zip(values, rows, strict=True):
        candidates = every[:, cells.selection.rows() == row].reshape(-1, 2)
        assert np.isclose(candidates, value, rtol=1e-4).all(1).any()
    many, _ = importance_sampled_expression(
        module, cells, options, settings, n_samples_overall=4_000
    )
    n = 4_000 // 4 + 1
    exact = importance_weights(module, cells, settings, options, n_samples=n)
    all_draws = normalized_expression(
        module, cells, replace(options, n_samples=n, return_mean=False)
    )
    expected = np.einsum("ns,sng->g", exact, all_draws)
    np.testing.assert_allclose(many.mean(0), expected, rtol=0.05)
    truncated = importance_weights(
        module, cells, replace(settings, truncation=True), options, n_samples=8
    )
    assert truncated.min() > weights.min()


def test_weights_that_cannot_be_had(module: VAE, source: OpenSource) -> None:
    cells, settings = _cells(source), ImportanceOptions()
    with pytest.raises(ConfigError, match="one batch"):
        importance_sampled_expression(
            module,
            cells,
            ExpressionOptions(transform_batch=(0, 1)),
            settings,
            n_samples_overall=5,
        )
    logistic = make_module(latent_distribution="ln")
    with pytest.raises(ConfigError, match="latent_distribution='normal'"):
        importance_weights(logistic, cells, settings, ExpressionOptions(), n_samples=1)
    with pytest.raises(ConfigError, match="at least 1"):
        ImportanceOptions(max_cells=0)


# Latent space


def test_a_logistic_normal_space(source: OpenSource) -> None:
    module = make_module(latent_distribution="ln")
    mean = latent_representation(module, _cells(source), mc_samples=2_000)
    draw = latent_representation(module, _cells(source), give_mean=False)
    loc, _ = latent_representation(module, _cells(source), return_dist=True)
    for z in (mean, draw):
        np.testing.assert_allclose(z.sum(1), 1, rtol=1e-5)
    assert (loc < 0).any()
    other = latent_representation(module, _cells(source, seed=1), mc_samples=2_000)
    np.testing.assert_allclose(mean, other, atol=0.05)
    with pytest.raises(ConfigError, match="mc_samples"):
        latent_representation(module, _cells(source), mc_samples=0)


# Posterior predictive


def test_predictive_samples_follow_the_likelihood(module: VAE, source: OpenSource) -> None:
    cells = _cells(source, np.arange(20))
    counts = posterior_predictive_sample(module, cells, PredictiveOptions(n_samples=300)).todense()
    assert counts.shape == (20, N_GENES, 300)
    assert (counts == np.floor(counts)).all()
    values = likelihood_parameters(module, cells, n_samples=300, give_mean=False)
    expected = (values["mean"] * (1 - values["dropout"])).mean(0)
    assert np.corrcoef(counts.mean(2).ravel(), expected.ravel())[0, 1] > 0.95
    np.testing.assert_allclose(counts.mean(), expected.mean(), rtol=0.05)


def test_predictive_samples_of_some_genes_as_other_batches(module: VAE, source: OpenSource) -> None:
    genes = np.array([3, 8])
    whole = posterior_predictive_sample(module, _cells(source), PredictiveOptions()).todense()
    part = posterior_predictive_sample(module, _cells(source), PredictiveOptions(genes=genes))
    np.testing.assert_array_equal(part.todense(), whole[:, genes])
    two = PredictiveOptions(transform_batch=(0, 1))
    mean = posterior_predictive_sample(module, _cells(source), two).todense()
    assert set(np.unique(mean % 1)) <= {0.0, 0.5}


@pytest.mark.parametrize("n_samples", [1, 3])
def test_predictive_samples_without_the_package_sparse(
    module: VAE, source: OpenSource, monkeypatch: pytest.MonkeyPatch, n_samples: int
) -> None:
    options = PredictiveOptions(n_samples=n_samples)
    expected = posterior_predictive_sample(module, _cells(source), options).todense()
    real_import = builtins.__import__

    def without_sparse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "sparse":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sparse)
    got = posterior_predictive_sample(module, _cells(source), options)
    assert issparse(got) == (n_samples == 1)
    np.testing.assert_array_equal(got.toarray() if n_samples == 1 else got, expected)


# Parameters and library sizes


@pytest.mark.parametrize(
    ("likelihood", "names"),
    [
        ("zinb", {"mean", "dropout", "dispersions"}),
        ("nb", {"mean", "dispersions"}),
        ("poisson", {"mean"}),
        ("normal", {"mean", "dispersions"}),
    ],
)
def test_likelihood_parameters(source: OpenSource, likelihood: str, names: set[str]) -> None:
    module = make_module(gene_likelihood=likelihood)
    cells = _cells(source, [5, 1, 8])
    assert {k: v.shape for k, v in likelihood_parameters(module, cells).items()} == dict.fromkeys(
        names, (3, N_GENES)
    )
    samples = likelihood_parameters(module, cells, n_samples=4)
    assert {v.shape for v in samples.values()} == {(4, 3, N_GENES)}
    means = likelihood_parameters(module, cells, n_samples=4, give_mean=True)
    for name, value in means.items():
        np.testing.assert_allclose(value, samples[name].mean(0), rtol=1e-5)


def test_observed_and_latent_library_sizes(module: VAE, source: OpenSource) -> None:
    totals = np.asarray(make_adata().X.sum(1))
    observed = latent_library_size(module, _cells(source), give_mean=False)
    np.testing.assert_allclose(observed, totals, rtol=1e-5)
    with pytest.raises(ConfigError, match="give_mean=False"):
        latent_library_size(module, _cells(source))
    prior = {
        "library_log_means": np.zeros((1, 3), np.float32),
        "library_log_vars": np.ones((1, 3), np.float32),
    }
    latent = make_module(use_observed_lib_size=False, **prior)
    mean = latent_library_size(latent, _cells(source))
    draws = [latent_library_size(latent, _cells(source, seed=s), give_mean=False) for s in range(2)]
    assert mean.shape == (N_CELLS, 1)
    assert not np.array_equal(*draws)


def test_library_size_moments() -> None:
    adata = make_adata()
    batch = adata.obs["batch"].astype(str).to_numpy()
    adata.obs["batch"] = adata.obs["batch"].cat.set_categories(["b0", "b1", "b2", "unused"])
    store = open_store(adata)
    cells = StoreCells(
        OpenSource(store, fit_schema(store, SETUP)), config=StreamConfig(budget_bytes=900)
    )
    means, variances = library_size_moments(cells, 4)
    assert means.shape == variances.shape == (1, 4)
    logs = np.log(np.asarray(adata.X.sum(1))).ravel()
    for b in range(3):
        of_batch = logs[batch == f"b{b}"]
        assert means[0, b] == pytest.approx(of_batch.mean(), rel=1e-5)
        assert variances[0, b] == pytest.approx(of_batch.var(), rel=1e-4)
    assert (means[0, 3], variances[0, 3]) == (0.0, 1.0)


def test_empty_cells_pull_the_prior_down_and_are_told_of() -> None:
    adata = make_adata()
    dense = adata.X.toarray()
    dense[[4, 9]] = 0
    adata.X = csr_matrix(dense)
    store = open_store(adata)
    cells = StoreCells(OpenSource(store, fit_schema(store, SETUP)))
    with pytest.warns(UserWarning, match="2 of 60 cells are empty"):
        means, _ = library_size_moments(cells, 3)
    assert np.isfinite(means).all()
