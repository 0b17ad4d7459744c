"""CellAssign trained by Ray workers is the CellAssign that this process trains."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from scvi_dist.data import open_store
from scvi_dist.model import CellAssign
from scvi_dist.train import SaveCheckpoint

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.mark.usefixtures("local_ray")
def test_two_workers_end_where_one_process_ends(tmp_path: Path) -> None:
    """The bound on parameters holds in every step of every worker, or weights would differ."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"batch": pd.Categorical(rng.choice(["a", "b"], 301))},
        index=[f"cell{i}" for i in range(301)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(20)])
    counts = csr_matrix(rng.poisson(3.0, (301, 20)).astype(np.float32))
    anndata.AnnData(counts, obs=obs, var=var).write_h5ad(tmp_path / "cells.h5ad")
    markers = pd.DataFrame(
        {"T": [1, 1, 0, 0, 0, 0], "B": [0, 0, 1, 1, 0, 0], "NK": [0, 0, 0, 0, 1, 1]},
        index=[f"gene{i}" for i in (2, 5, 7, 8, 11, 13)],
    )
    models = []
    saver = SaveCheckpoint(monitor="elbo_validation")
    there_only = {"num_workers": 2, "run_dir": tmp_path / "run", "callbacks": [saver]}
    for workers in ({}, there_only):
        CellAssign.setup_anndata(tmp_path / "cells.h5ad", batch_key="batch")
        torch.manual_seed(0)
        model = CellAssign(tmp_path / "cells.h5ad", markers)
        model.train(6, lr=0.3, batch_size=51, accelerator="cpu", **workers)
        models.append(model)
    here, there = models
    weights = here.module.state_dict()
    torch.testing.assert_close(there.module.state_dict(), weights, rtol=1e-4, atol=1e-5)
    assert (weights["delta_log"] == torch.tensor(np.log(2), dtype=torch.float32)).any()
    np.testing.assert_allclose(there.predict(), here.predict(), rtol=1e-3, atol=1e-5)
    for name in ("elbo_train", "elbo_validation"):
        np.testing.assert_allclose(there.history[name][name], here.history[name][name], rtol=1e-4)
    best = CellAssign.load(saver.best_model_path, tmp_path / "cells.h5ad", accelerator="cpu")
    assert saver.best_model_score == pytest.approx(here.history["elbo_validation"].min(), rel=1e-4)
    np.testing.assert_allclose(best.predict().sum(axis=1), 1, rtol=1e-5)
    # Workers read a copy of the marker genes, with the size factors that were computed here.
    (copy,) = (tmp_path / "run" / "data").iterdir()
    store = open_store(copy)
    assert store.shape == (301, 6)
    assert "scvi_dist_size_factor" in store.obs_columns
