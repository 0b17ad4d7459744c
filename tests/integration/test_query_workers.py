"""Query mapping by workers: what is frozen stays frozen on its way to them, and in their steps."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from scvi_dist.model import SCVI

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]

WEIGHT = "decoder.px_decoder.fc_layers.Layer 0.0.weight"
N, G = 120, 10


def _cells(seed: int, batches: list[str]) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    return anndata.AnnData(
        csr_matrix(rng.poisson(3.0, (N, G)).astype(np.float32) + 1),
        obs=pd.DataFrame(
            {"batch": pd.Categorical(rng.choice(batches, N))}, index=[f"c{i}" for i in range(N)]
        ),
        var=pd.DataFrame(index=[f"g{i}" for i in range(G)]),
    )


@pytest.mark.usefixtures("local_ray")
def test_two_workers_train_what_one_process_trains(tmp_path: Path) -> None:
    cells = _cells(0, ["a", "b"])
    SCVI.setup_anndata(cells, batch_key="batch")
    torch.manual_seed(0)
    reference = SCVI(cells, n_hidden=8, n_latent=3)
    arguments = {"max_epochs": 2, "batch_size": 36, "plan_kwargs": {"weight_decay": 0.0}}
    states = []
    for workers in ({}, {"num_workers": 2, "run_dir": tmp_path / "run"}):
        torch.manual_seed(1)
        query = SCVI.load_query_data(_cells(1, ["b", "new"]), reference)
        before = {name: value.clone() for name, value in query.module.state_dict().items()}
        query.train(**arguments, **workers)
        after = query.module.state_dict()
        assert torch.equal(after[WEIGHT][:, :3], before[WEIGHT][:, :3])
        assert not torch.equal(after[WEIGHT][:, 3:], before[WEIGHT][:, 3:])
        for name, value in after.items():
            if name.startswith("z_encoder") and "num_batches" not in name:
                assert torch.equal(value, before[name]), name
        states.append(after)
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, rtol=1e-3, atol=1e-4, err_msg=name)
