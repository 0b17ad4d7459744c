"""AnnDataLoader hands out what scvi-tools' loader hands out."""

import warnings

import numpy as np
import pytest
import torch

from scvi_dist.data.manager import AnnDataManager
from scvi_dist.data.open import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.dataloaders.ann_dataloader import AnnDataLoader

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def managers():
    """Ours and theirs, of the same cells."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scvi = pytest.importorskip("scvi")
        adata = scvi.data.synthetic_iid(batch_size=150, n_genes=30, sparse_format="csr_matrix")
        adata.obs["depth"] = np.linspace(0, 1, adata.n_obs)
        scvi.model.SCVI.setup_anndata(adata.copy(), batch_key="batch", labels_key="labels")
        theirs_of = adata.copy()
        keys = {
            "batch_key": "batch",
            "labels_key": "labels",
            "categorical_covariate_keys": ["labels"],
            "continuous_covariate_keys": ["depth"],
        }
        scvi.model.SCVI.setup_anndata(theirs_of, **keys)
        theirs = scvi.model.SCVI(theirs_of).adata_manager
    store = open_store(adata)
    return AnnDataManager(store, fit_schema(store, SetupArgs(**keys)), "SCVI", adata), theirs


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_same_minibatches(managers, shuffle, drop_last):
    from scvi.dataloaders import AnnDataLoader as TheirLoader

    ours, theirs = managers
    indices = np.random.default_rng(0).permutation(300)[:170]
    settings = {"indices": indices, "batch_size": 64, "shuffle": shuffle, "drop_last": drop_last}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(5)
        expected = list(TheirLoader(theirs, **settings))
        their_state = torch.get_rng_state()
        torch.manual_seed(5)
        got = list(AnnDataLoader(ours, **settings))
        assert torch.equal(torch.get_rng_state(), their_state)
    assert len(got) == len(expected) == (2 if drop_last else 3)
    for mine, peer in zip(got, expected, strict=True):
        assert set(mine) == set(peer)
        for key, value in peer.items():
            assert mine[key].dtype == value.dtype, key
            assert torch.equal(mine[key], value), key
