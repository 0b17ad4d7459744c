"""Query mapping of SCANVI and TOTALVI as in scvi-tools: the same weights, the same gradients."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scvi_pairs import quiet

from scvi_dist import model as own_models

pytestmark = pytest.mark.parity

N, G, P = 90, 24, 5

SETUPS: dict[str, dict[str, Any]] = {
    "SCANVI": {"labels_key": "label", "unlabeled_category": "Unknown", "batch_key": "batch"},
    "TOTALVI": {"protein_expression_obsm_key": "proteins", "batch_key": "batch"},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "usual": {},
    "free classifier": {"freeze_classifier": False},
    "unfrozen": {"unfrozen": True},
    "norms": {"freeze_batchnorm_encoder": False, "freeze_batchnorm_decoder": True},
    "first layers": {"freeze_expression": False, "freeze_decoder_first_layer": False},
}


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    rng = np.random.default_rng(0)
    names = [f"cell{i}" for i in range(N)]
    adata = anndata.AnnData(
        rng.poisson(3.0, (N, G)).astype(np.float32) + 1,
        obs=pd.DataFrame(
            {
                "batch": pd.Categorical(rng.choice(["b0", "b1"], N)),
                "label": pd.Categorical(rng.choice(["x", "y", "z"], N)),
            },
            index=names,
        ),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(G)]),
    )
    adata.obsm["proteins"] = pd.DataFrame(
        rng.poisson(9.0, (N, P)).astype(np.float32), names, [f"p{i}" for i in range(P)]
    )
    return adata


def _query(cells: anndata.AnnData) -> anndata.AnnData:
    query = cells[:50].copy()
    query.obs["batch"] = np.where(np.arange(50) % 2 == 0, "new", query.obs["batch"])
    return query


@pytest.fixture(scope="module", params=SETUPS)
def reference(
    request: pytest.FixtureRequest,
    scvi: Any,
    cells: anndata.AnnData,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Any, Path]:
    """Name of a model, scvi-tools' class, and the folder that it saved a model to."""
    cls = getattr(scvi.model, request.param)
    with quiet():
        adata = cells.copy()
        cls.setup_anndata(adata, **SETUPS[request.param])
        torch.manual_seed(1)
        model = cls(adata, n_latent=4, n_hidden=8)
        model.is_trained_ = True
        folder = tmp_path_factory.mktemp("reference") / "model"
        model.save(folder)
    return request.param, cls, folder


def _gradients(module: Any, tensors: dict[str, torch.Tensor], loss: dict[str, Any]) -> Any:
    module.train()
    torch.manual_seed(7)
    module(tensors, loss_kwargs=loss)[-1].loss.backward()
    return {
        name: np.zeros(p.shape) if p.grad is None else p.grad.numpy()
        for name, p in module.named_parameters()
    }


@pytest.mark.parametrize("options", OPTIONS)
def test_the_same_is_trained_from_the_same_weights(
    reference: tuple[str, Any, Path], cells: anndata.AnnData, options: str
) -> None:
    name, cls, folder = reference
    with quiet():
        torch.manual_seed(3)
        theirs = cls.load_query_data(
            _query(cells), str(folder), accelerator="cpu", **OPTIONS[options]
        )
        loader = theirs._make_data_loader(adata=theirs.adata, batch_size=64)
        tensors = next(iter(loader))
    torch.manual_seed(3)
    own = getattr(own_models, name)
    ours = own.load_query_data(_query(cells), folder, accelerator="cpu", **OPTIONS[options])
    known, got = theirs.module.state_dict(), ours.module.state_dict()
    assert set(known) == set(got)
    for key, value in known.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-6, atol=1e-7, err_msg=key)
    loss: dict[str, Any] = {"kl_weight": 0.7}
    if name == "SCANVI":
        loss |= {"labelled_tensors": tensors, "classification_ratio": 5.0}
    expected = _gradients(theirs.module, tensors, loss)
    trained = _gradients(ours.module, tensors, loss)
    largest = max(float(np.abs(grad).max()) for grad in expected.values())
    for key, grad in expected.items():
        is_norm_of_classifier = key.startswith("classifier") and ".1." in key
        if is_norm_of_classifier and options not in ("free classifier", "unfrozen"):
            # There the batch norm of a frozen classifier is trained all the same.
            assert not trained[key].any()
            continue
        scale = max(float(np.abs(grad).max()), 0.05 * largest)
        np.testing.assert_allclose(trained[key], grad, atol=2e-5 * scale, err_msg=key)


def test_labels_that_are_missing_are_unlabeled(scvi: Any, cells: anndata.AnnData) -> None:
    own = own_models.SCANVI
    adata = cells.copy()
    own.setup_anndata(adata, **SETUPS["SCANVI"])
    model = own(adata, n_latent=4, n_hidden=8)
    query = _query(cells)
    del query.obs["label"]
    with pytest.warns(UserWarning, match="Missing labels key label.*unlabeled category Unknown"):
        mapped = own.load_query_data(query, model)
    assert "label" not in query.obs, "the user's data is not changed"
    mapped.train(max_epochs=1, batch_size=20, plan_kwargs={"weight_decay": 0.0})
    assert set(mapped.predict()) <= {"x", "y", "z"}
