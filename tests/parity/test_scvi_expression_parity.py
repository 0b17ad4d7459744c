"""Expression and predictive samples: SCVI's and those of scvi-tools' SCVI."""

from typing import Any

import numpy as np
import pytest
from scvi_pairs import BATCHES, fails_there, quiet, uses_prior

from scvi_dist.model import SCVI

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("library_size", [1, 1e4, "latent"])
def test_expression_agrees(pair: tuple[SCVI, Any], library_size: Any) -> None:
    ours, theirs = pair
    if fails_there(theirs):
        assert ours.get_normalized_expression(indices=[1], n_samples=2).shape == (1, 80)
        return
    genes = theirs.adata.var_names[::-2].tolist()
    batches = BATCHES if theirs.summary_stats.n_batch > 1 else None
    arguments = {
        "indices": np.arange(40)[::-1],
        "gene_list": genes,
        "library_size": library_size,
        "transform_batch": batches,
        "n_samples": 100,
    }
    with quiet():
        expected = theirs.get_normalized_expression(**arguments)
    got = ours.get_normalized_expression(**arguments)
    assert got.index.tolist() == expected.index.tolist()
    assert got.columns.tolist() == expected.columns.tolist()
    if library_size == "latent" and uses_prior(ours):
        # Draws of a log-normal size with a large variance: there is no telling from 150 of them.
        return
    np.testing.assert_allclose(got.mean(0), expected.mean(0), rtol=0.05)
    assert np.corrcoef(got.to_numpy().ravel(), expected.to_numpy().ravel())[0, 1] > 0.98


def test_shapes_and_types_of_expression_are_equal(pair: tuple[SCVI, Any]) -> None:
    ours, theirs = pair
    if fails_there(theirs):
        pytest.skip("scvi-tools cannot decode several draws with a batch embedding")
    for arguments in (
        {},
        {"return_numpy": True},
        {"n_samples": 3},
        {"n_samples": 3, "return_mean": False},
        {"n_samples_overall": 20, "return_numpy": True},
        {"n_samples_overall": 400, "return_numpy": True},
    ):
        with quiet():
            expected = theirs.get_normalized_expression(indices=[4, 1, 7], **arguments)
        got = ours.get_normalized_expression(indices=[4, 1, 7], **arguments)
        assert type(got) is type(expected), arguments
        assert got.shape == expected.shape, arguments
    many = {"indices": [4], "n_samples_overall": 400, "return_numpy": True}
    with quiet():
        expected = theirs.get_normalized_expression(**many)
    got = ours.get_normalized_expression(**many)
    top = np.argsort(expected.mean(0))[-5:]
    np.testing.assert_allclose(got.mean(0)[top], expected.mean(0)[top], rtol=0.2)


def test_predictive_samples_agree(pair: tuple[SCVI, Any]) -> None:
    ours, theirs = pair
    if fails_there(theirs):
        pytest.skip("scvi-tools cannot decode several draws with a batch embedding")
    arguments = {"indices": np.arange(40)[::-1], "n_samples": 40}
    with quiet():
        expected = theirs.posterior_predictive_sample(**arguments)
        one = theirs.posterior_predictive_sample(indices=[3, 1])
    got = ours.posterior_predictive_sample(**arguments)
    assert (type(got), got.shape, got.dtype) == (type(expected), expected.shape, expected.dtype)
    assert ours.posterior_predictive_sample(indices=[3, 1]).shape == one.shape
    a, b = got.todense(), expected.todense()
    np.testing.assert_allclose(a.mean(), b.mean(), rtol=0.5 if uses_prior(ours) else 0.05)
    # As like each other as two halves of one sample.
    halves = np.corrcoef(b[..., :20].mean(2).ravel(), b[..., 20:].mean(2).ravel())[0, 1]
    assert np.corrcoef(a.mean(2).ravel(), b.mean(2).ravel())[0, 1] > halves - 0.05
    if ours.module.gene_likelihood != "normal":
        np.testing.assert_allclose((a == 0).mean(), (b == 0).mean(), atol=0.01)
