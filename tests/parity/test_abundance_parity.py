"""Differential abundance and scvi-tools': the same log-densities from the same posteriors."""

from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scvi_pairs import quiet, theirs_of

from scvi_dist.analysis.abundance import Mixtures, Samples
from scvi_dist.model import SCVI

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def models(
    scvi: Any, adata: anndata.AnnData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SCVI, Any]:
    cells = adata.copy()
    rng = np.random.default_rng(0)
    cells.obs["donor"] = pd.Categorical(rng.choice(["d3", "d1", "d2"], cells.n_obs))
    theirs = theirs_of(scvi, cells, "default")
    folder = tmp_path_factory.mktemp("theirs") / "model"
    theirs.save(folder, save_anndata=True)
    return SCVI.load(folder), theirs


@pytest.mark.parametrize("dof", [None, 3.0])
def test_log_densities_are_equal_given_the_same_scales(
    models: tuple[SCVI, Any], dof: float | None
) -> None:
    _, theirs = models
    with quiet():
        theirs.differential_abundance(sample_key="donor", dof=dof)
        places = theirs.get_latent_representation()
        mean, variance = theirs.get_latent_representation(return_dist=True)
    expected = theirs.adata.obsm["da_log_probs"]
    samples = Samples.of(theirs.adata.obs["donor"].to_numpy(dtype=object))
    those = samples.components
    # scvi-tools gives the components the posterior's variance as their standard deviation.
    mixtures = Mixtures(mean[those], variance[those], samples.bounds, dof)
    assert list(samples.names) == list(expected.columns)
    np.testing.assert_allclose(mixtures.log_density(places), expected, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("dof", [None, 2.5])
def test_log_densities_are_those_of_torch_in_double_precision(
    models: tuple[SCVI, Any], dof: float | None
) -> None:
    ours, _ = models
    got = ours.differential_abundance(sample_key="donor", dof=dof)
    mean, variance = (
        torch.as_tensor(x).double() for x in ours.get_latent_representation(return_dist=True)
    )
    donors = ours.adata.obs["donor"].to_numpy()
    for name in got.columns:
        is_in = torch.from_numpy(donors == name)
        loc, scale = mean[is_in], variance[is_in].sqrt()
        law = (
            torch.distributions.Normal(loc, scale)
            if dof is None
            else torch.distributions.StudentT(dof, loc, scale)
        )
        weights = torch.distributions.Categorical(logits=torch.zeros(len(loc), dtype=torch.double))
        parts = torch.distributions.Independent(law, 1)
        expected = torch.distributions.MixtureSameFamily(weights, parts).log_prob(mean)
        np.testing.assert_allclose(got[name], expected, rtol=1e-6, atol=1e-6)


def test_names_and_places_are_scvi_tools(models: tuple[SCVI, Any]) -> None:
    ours, theirs = models
    with quiet():
        theirs.differential_abundance(sample_key="donor")
    table = ours.differential_abundance(sample_key="donor")
    expected = theirs.adata.obsm["da_log_probs"]
    pd.testing.assert_frame_equal(ours.adata.obsm["da_log_probs"], table)
    assert list(table.columns) == list(expected.columns)
    assert list(table.index) == list(expected.index)
    assert table.dtypes.tolist() == expected.dtypes.tolist()
