"""SCVI trains from a TileDB-SOMA experiment, with cells read by Ray and with cells read here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from training_jobs import toy_cells

from scvi_dist.data import open_store
from scvi_dist.data.soma.soma_writer import write_soma
from scvi_dist.dataloaders.loader import LoaderConfig
from scvi_dist.model import SCVI

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def trained(path: Path, engine: str) -> SCVI:
    SCVI.setup_anndata(path, batch_key="batch")
    torch.manual_seed(0)
    model = SCVI(path, n_hidden=8, n_latent=3)
    model.train(max_epochs=1, batch_size=26, engine=engine)
    return model


def test_both_engines_train_alike_from_soma(local_ray: None, tmp_path: Path) -> None:
    """Reader processes get the locator, and open handles of their own."""
    path = tmp_path / "cells.soma"
    write_soma(open_store(toy_cells()), path)
    by_ray, here = trained(path, "ray"), trained(path, "local")
    np.testing.assert_allclose(
        by_ray.get_latent_representation(), here.get_latent_representation(), rtol=1e-5, atol=1e-6
    )
    for name in here.history:
        np.testing.assert_allclose(by_ray.history[name], here.history[name], rtol=1e-5)
    assert LoaderConfig().engine == "auto"
