"""A small set of cells with every kind of field, in memory."""

from collections.abc import Callable
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scvi_dist.batch import CellBatch
from scvi_dist.data.manager import AnnDataManager
from scvi_dist.data.open import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.dataloaders.source import OpenSource

N_CELLS, N_GENES = 613, 40

SETUP = SetupArgs(
    batch_key="batch",
    labels_key="kind",
    size_factor_key="size",
    categorical_covariate_keys=("donor", "site"),
    continuous_covariate_keys=("age",),
)


@dataclass(frozen=True)
class Cells:
    """An AnnData and what it should come out as."""

    adata: ad.AnnData
    source: OpenSource
    x_ng: np.ndarray

    def check(self, batch: CellBatch) -> None:
        """A minibatch holds what the AnnData has in its rows."""
        np.testing.assert_array_equal(batch["X"].numpy(), self.x_ng[batch.rows])
        expected = self.source.coded_obs.take(batch.rows)
        assert set(batch.fields) == set(expected)
        for key, values_nk in expected.items():
            np.testing.assert_array_equal(batch[key].numpy(), values_nk)


def counts(n_cells: int, n_genes: int) -> np.ndarray:
    """float32 counts, a third of them zero, no empty cell."""
    x_ng = np.random.default_rng(0).poisson(1.1, (n_cells, n_genes)).astype(np.float32)
    x_ng[:, 0] += 1
    return x_ng


def annotated(x_ng: np.ndarray) -> ad.AnnData:
    n = len(x_ng)
    rng = np.random.default_rng(1)
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(rng.choice(["a", "b", "c"], n)),
            "kind": pd.Categorical(rng.choice(["T", "B"], n)),
            "donor": pd.Categorical(rng.choice(["d1", "d2", "d3"], n)),
            "site": pd.Categorical(rng.choice(["s1", "s2"], n)),
            "age": rng.random(n),
            "size": rng.random(n) + 0.5,
        },
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(x_ng.shape[1])])
    return ad.AnnData(sparse.csr_matrix(x_ng), obs=obs, var=var)


@pytest.fixture(scope="session")
def make_cells() -> Callable[[np.ndarray], Cells]:
    """Cells of given counts, as an open source."""

    def make(x_ng: np.ndarray) -> Cells:
        adata = annotated(x_ng)
        store = open_store(adata)
        return Cells(adata, OpenSource(store, fit_schema(store, SETUP)), x_ng)

    return make


@pytest.fixture(scope="session")
def cells(make_cells: Callable[[np.ndarray], Cells]) -> Cells:
    return make_cells(counts(N_CELLS, N_GENES))


@pytest.fixture(scope="session")
def manager(cells: Cells) -> AnnDataManager:
    return AnnDataManager(cells.source.store, cells.source.schema, "SCVI", cells.adata)
