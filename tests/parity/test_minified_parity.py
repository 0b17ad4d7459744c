"""Minified data of scvi-tools is read here, and ours there."""

import copy
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from scvi_pairs import quiet

from scvi_dist.model import SCVI

pytestmark = pytest.mark.parity

KINDS = ("latent_posterior_parameters", "latent_posterior_parameters_with_counts")


@pytest.fixture
def theirs(scvi: Any, adata: anndata.AnnData) -> Any:
    with quiet():
        cells = adata.copy()
        scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
        model = scvi.model.SCVI(cells, n_latent=5, n_hidden=16)
        model.is_trained_ = True
        model.module.eval()
        mean, variance = model.get_latent_representation(return_dist=True)
    cells.obsm["X_latent_qzm"], cells.obsm["X_latent_qzv"] = mean, variance
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_we_read_what_scvi_tools_minified(theirs: Any, kind: str, tmp_path: Path) -> None:
    with quiet():
        theirs.minify_adata(kind)
        theirs.save(tmp_path / "m", save_anndata=True)
        mean, variance = theirs.get_latent_representation(return_dist=True)
        expression = theirs.get_normalized_expression(n_samples=100, return_numpy=True)
    ours = SCVI.load(tmp_path / "m")
    assert ours.minified_data_type == kind
    got_mean, got_variance = ours.get_latent_representation(return_dist=True)
    np.testing.assert_allclose(got_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(got_variance, variance, rtol=1e-5)
    got = ours.get_normalized_expression(n_samples=100, return_numpy=True)
    np.testing.assert_allclose(got.mean(0), expression.mean(0), rtol=0.05)
    fields, expected = ours.registry["field_registries"], theirs.registry["field_registries"]
    assert list(fields) == list(expected)
    for key in expected:
        assert fields[key]["data_registry"] == dict(expected[key]["data_registry"]), key
        assert fields[key]["summary_stats"] == expected[key]["summary_stats"], key
    assert dict(ours.adata_manager.summary_stats) == dict(theirs.summary_stats)


@pytest.mark.parametrize("kind", KINDS)
def test_scvi_tools_reads_what_we_minified(
    scvi: Any, theirs: Any, kind: str, tmp_path: Path
) -> None:
    with quiet():
        theirs.save(tmp_path / "whole", save_anndata=True)
        expected = copy.deepcopy(theirs.get_latent_representation(return_dist=True))
        theirs.minify_adata(kind)
    ours = SCVI.load(tmp_path / "whole")
    ours.minify_adata(kind)
    np.testing.assert_allclose(
        ours.adata.obs["observed_lib_size"], theirs.adata.obs["observed_lib_size"], rtol=1e-6
    )
    assert (ours.adata.X != theirs.adata.X).nnz == 0
    ours.save(tmp_path / "small", save_anndata=True)
    with quiet():
        back = scvi.model.SCVI.load(tmp_path / "small")
        got = back.get_latent_representation(return_dist=True)
    assert back.minified_data_type == kind
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
