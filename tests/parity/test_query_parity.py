"""Query mapping as in scvi-tools: the same weights after surgery, the same gradients."""

import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch

from scvi_dist.model import SCVI

pytestmark = pytest.mark.parity

MODELS: dict[str, dict[str, Any]] = {
    "default": {},
    "seen by the encoder": {"encode_covariates": True, "n_layers": 2},
    "first layer only": {"deeply_inject_covariates": False, "n_layers": 2, "gene_likelihood": "nb"},
    "latent library": {"use_observed_lib_size": False, "dispersion": "gene-batch"},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "usual": {},
    "unfrozen": {"unfrozen": True},
    "dropout": {"freeze_dropout": True},
    "expression": {"freeze_expression": False},
    "decoder": {"freeze_decoder_first_layer": False},
    "norms": {"freeze_batchnorm_encoder": False, "freeze_batchnorm_decoder": True},
}


@pytest.fixture(scope="module")
def adata(shared_data: Path) -> anndata.AnnData:
    whole = anndata.read_h5ad(shared_data / "scvi_tools_1.4.2_scvi_mixology" / "adata.h5ad")
    cells = whole[:120, :60].copy()
    return cells[np.asarray(cells.X.sum(1)).ravel() > 0].copy()


def _query(adata: anndata.AnnData) -> anndata.AnnData:
    query = adata[40:70].copy()
    query.obs["batch"] = np.where(np.arange(query.n_obs) % 3 == 0, "new", query.obs["batch"])
    return query


@pytest.fixture(scope="module", params=MODELS)
def references(
    request: pytest.FixtureRequest,
    adata: anndata.AnnData,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Any]:
    """The folder of a reference, and the class that wrote it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scvi = pytest.importorskip("scvi")
        cells = adata.copy()
        scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
        torch.manual_seed(1)
        model = scvi.model.SCVI(cells, n_hidden=16, n_latent=4, **MODELS[request.param])
        model.is_trained_ = True
        folder = tmp_path_factory.mktemp("reference") / "model"
        model.save(folder)
    return folder, scvi.model.SCVI


def _gradients(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Parameter -> gradient of a training step's loss, zeros where it has none."""
    module.train()
    torch.manual_seed(7)
    loss = module(tensors, loss_kwargs={"kl_weight": 0.7})[-1].loss
    loss.backward()
    grads = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in module.named_parameters()
    }
    return {name: grad.numpy() for name, grad in grads.items()}


@pytest.mark.parametrize("options", OPTIONS)
def test_the_same_is_trained_from_the_same_weights(
    references: tuple[Path, Any], adata: anndata.AnnData, options: str
) -> None:
    folder, theirs_class = references
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        theirs = theirs_class.load_query_data(
            _query(adata), str(folder), accelerator="cpu", **OPTIONS[options]
        )
        loader = theirs._make_data_loader(adata=theirs.adata, batch_size=64)
        tensors = next(iter(loader))
    torch.manual_seed(3)
    ours = SCVI.load_query_data(_query(adata), folder, accelerator="cpu", **OPTIONS[options])
    known, own = theirs.module.state_dict(), ours.module.state_dict()
    assert set(known) == set(own)
    for name, value in known.items():
        np.testing.assert_allclose(own[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
    assert not ours.is_trained
    mapping = theirs.adata_manager.get_state_registry("batch").categorical_mapping
    assert ours.schema.categories["batch"] == tuple(mapping)
    assert mapping[-1] == "new"

    expected = _gradients(theirs.module, tensors)
    got = _gradients(ours.module, tensors)
    largest = max(float(np.abs(grad).max()) for grad in expected.values())
    for name, grad in expected.items():
        # Some gradients are zero but for rounding: a bias in front of batch norm.
        scale = max(float(np.abs(grad).max()), 0.05 * largest)
        np.testing.assert_allclose(got[name], grad, atol=1e-5 * scale, err_msg=name)
    for name, value in theirs.module.state_dict().items():
        # Batch norm's statistics: those that are frozen have not moved.
        np.testing.assert_allclose(
            ours.module.state_dict()[name], value, rtol=1e-5, atol=1e-6, err_msg=name
        )
