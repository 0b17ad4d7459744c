"""SCVI trained by Ray workers is the SCVI that this process trains."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from scvi_dist.errors import ConfigError
from scvi_dist.model import SCANVI, SCVI

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def _atlas() -> anndata.AnnData:
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, (300, 20)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(rng.choice(["a", "b"], 300)),
            "kind": rng.choice(["T", "B", "unknown"], 300),
        },
        index=[f"cell{i}" for i in range(300)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(20)])
    return anndata.AnnData(csr_matrix(counts), obs=obs, var=var)


def _model(adata: anndata.AnnData) -> SCVI:
    SCVI.setup_anndata(adata, batch_key="batch")
    torch.manual_seed(0)
    return SCVI(adata, n_hidden=16, n_latent=4)


@pytest.mark.usefixtures("local_ray")
def test_workers_train_an_anndata_in_memory(tmp_path: Path) -> None:
    """The cells are written to the run's folder once, since workers cannot see this memory."""
    adata = _atlas()
    here, there = _model(adata), _model(adata)
    arguments = {"max_epochs": 2, "batch_size": 64, "check_val_every_n_epoch": 1}
    here.train(**arguments)
    seen = []
    there.train(**arguments, num_workers=2, run_dir=tmp_path / "run", on_progress=seen.append)
    assert [p.suffix for p in (tmp_path / "run" / "data").iterdir()] == [".zarr"]
    assert seen[-1].fraction == 1.0
    np.testing.assert_allclose(
        there.get_latent_representation(), here.get_latent_representation(), rtol=1e-3, atol=1e-4
    )
    for name in ("elbo_train", "elbo_validation"):
        np.testing.assert_allclose(there.history[name][name], here.history[name][name], rtol=1e-4)
    np.testing.assert_array_equal(there.train_indices, here.train_indices)
    # A model of labels begins where workers have left off.
    labels = SCANVI.from_scvi_model(there, "unknown", "kind")
    labels.train(max_steps=3, batch_size=64)
    assert set(labels.predict()) <= {"T", "B"}
    assert labels.was_pretrained
    with pytest.raises(ConfigError, match="callbacks"):
        there.train(1, num_workers=2, run_dir=tmp_path / "other", callbacks=[object()])
