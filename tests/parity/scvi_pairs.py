"""Models of scvi-tools for the tests that compare SCVI with them."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anndata
import numpy as np
import torch

from scvi_dist.model import SCVI

BATCHES = ["celseq2", "dropseq"]
SETUPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({"batch_key": "batch"}, {}),
    "nb, two layers, by batch": (
        {"batch_key": "batch", "labels_key": "label_20pct"},
        {"gene_likelihood": "nb", "n_layers": 2, "dispersion": "gene-batch", "n_hidden": 32},
    ),
    "poisson, ln": ({}, {"gene_likelihood": "poisson", "latent_distribution": "ln"}),
    "normal, by cell": (
        {"batch_key": "batch", "layer": "counts"},
        {"gene_likelihood": "normal", "dispersion": "gene-cell"},
    ),
    "covariates": (
        {
            "batch_key": "batch",
            "categorical_covariate_keys": ["cell_type"],
            "continuous_covariate_keys": ["depth"],
        },
        {"encode_covariates": True, "batch_representation": "embedding"},
    ),
    "latent library": ({"batch_key": "batch"}, {"use_observed_lib_size": False}),
    "size factor": (
        {"batch_key": "batch", "size_factor_key": "size"},
        {"dispersion": "gene-label", "labels_key": None},
    ),
}


@contextmanager
def quiet() -> Iterator[None]:
    """scvi-tools and its dependencies warn of many things."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def theirs_of(scvi: Any, adata: anndata.AnnData, name: str) -> Any:
    """A model of scvi-tools with weights that are far from their initial values."""
    setup, arguments = SETUPS[name]
    setup = {**setup, **{k: v for k, v in arguments.items() if k == "labels_key"}}
    arguments = {k: v for k, v in arguments.items() if k != "labels_key"}
    with quiet():
        cells = adata.copy()
        scvi.model.SCVI.setup_anndata(cells, **setup)
        torch.manual_seed(1)
        model = scvi.model.SCVI(cells, **arguments)
    with torch.no_grad():
        for key, value in model.module.state_dict().items():
            if key.endswith("running_mean"):
                value.normal_(0.0, 0.3)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 2.0)
    model.module.eval()
    model.is_trained_ = True
    return model


def uses_prior(model: SCVI) -> bool:
    """Whether library sizes are drawn too, so that estimates vary more."""
    return not model.module.use_observed_lib_size


def fails_there(model: Any) -> bool:
    """scvi-tools cannot decode several draws with a batch embedding."""
    return model.module.batch_representation == "embedding"


def mean_of(draw: Callable[[], Any], n: int) -> np.ndarray:
    return np.mean([np.asarray(draw()) for _ in range(n)], axis=0)
