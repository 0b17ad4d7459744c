"""Correlation of genes: what NumPy and SciPy say of all rows at once, in bounded memory."""

from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.stats import spearmanr

from scvi_dist.analysis.correlation import (
    VALUES,
    CorrelationOptions,
    correlation_matrix,
)
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.errors import ConfigError
from scvi_dist.model import SCVI

N, F = 90, 6


@pytest.fixture(scope="module")
def model() -> SCVI:
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(
        csr_matrix(rng.poisson(3.0, (N, F)).astype(np.float32) + 1),
        obs=pd.DataFrame(
            {"batch": pd.Categorical(np.arange(N) % 3)}, index=[f"c{i}" for i in range(N)]
        ),
        var=pd.DataFrame(index=[f"g{i}" for i in range(F)]),
    )
    SCVI.setup_anndata(adata, batch_key="batch")
    torch.manual_seed(0)
    return SCVI(adata, n_hidden=8, n_latent=3)


@pytest.fixture(scope="module")
def cells(model: SCVI) -> StoreCells:
    found = model._cells_of(None, None, 32, None, seed=0)
    assert isinstance(found, StoreCells)
    return found


def _fixed(values_nsf: torch.Tensor) -> Any:
    """A computation that gives each cell its own rows."""
    return lambda group: {VALUES: values_nsf[torch.from_numpy(group.positions)]}


def _rows(seed: int, n_samples: int, ties: bool) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(F, F))
    values = rng.gamma(2.0, size=(N, n_samples, F)) @ mixed + 100.0
    return torch.from_numpy((np.round(values) if ties else values).astype(np.float32))


@pytest.mark.parametrize("n_samples", [1, 4])
@pytest.mark.parametrize("ties", [False, True])
def test_it_is_the_correlation_of_all_rows(
    model: SCVI, cells: StoreCells, n_samples: int, ties: bool
) -> None:
    values = _rows(1, n_samples, ties)
    rows = values.flatten(0, 1).double().numpy()
    options = {
        kind: CorrelationOptions(kind=kind, n_samples=n_samples) for kind in ("pearson", "spearman")
    }
    got = correlation_matrix(model.module, cells, _fixed(values), options["pearson"])
    np.testing.assert_allclose(got, np.corrcoef(rows, rowvar=False), atol=1e-9)
    got = correlation_matrix(model.module, cells, _fixed(values), options["spearman"])
    np.testing.assert_allclose(got, spearmanr(rows)[0], atol=1e-12)


def test_ranks_among_a_sample_are_close(model: SCVI, cells: StoreCells) -> None:
    values = _rows(2, 4, ties=False)
    exact = spearmanr(values.flatten(0, 1).numpy())[0]
    budget = CorrelationOptions(n_samples=4, budget_bytes=8 * F * 4 * 60)
    got = correlation_matrix(model.module, cells, _fixed(values), budget)
    assert np.abs(got - exact).max() > 0, "a sample of the cells was ranked"
    np.testing.assert_allclose(got, exact, atol=0.03)
    # Whatever follows from the sample alone stays true.
    np.testing.assert_allclose(got, got.T)
    np.testing.assert_allclose(np.diag(got), 1.0)


def test_a_constant_feature_has_no_correlation(model: SCVI, cells: StoreCells) -> None:
    values = _rows(3, 1, ties=False)
    values[..., 2] = 5.0
    got = correlation_matrix(
        model.module, cells, _fixed(values), CorrelationOptions(kind="pearson", n_samples=1)
    )
    assert np.isnan(got[2]).all()
    assert np.isfinite(np.delete(np.delete(got, 2, 0), 2, 1)).all()


def test_draws_have_the_mean_and_dispersion_of_the_law(model: SCVI) -> None:
    """Gamma noise of mean ``w`` and variance ``w² / θ`` around each cell's expression."""
    from scvi_dist.analysis.count_draws import gamma_by_cell

    theta, mean = torch.tensor([0.5, 3.0, 40.0]), torch.tensor([2.0, 7.0, 0.1])
    drawn = gamma_by_cell(
        theta.expand(4000, 3), mean.expand(4000, 3), np.arange(4000, dtype=np.uint64)
    ).double()
    torch.testing.assert_close(drawn.mean(0).float(), mean, rtol=0.1, atol=0)
    torch.testing.assert_close(drawn.var(0).float(), mean**2 / theta, rtol=0.2, atol=0)


def test_the_matrix_of_a_model(model: SCVI) -> None:
    table = model.get_feature_correlation_matrix(seed=1)
    assert table.index.tolist() == table.columns.tolist() == model.get_var_names().tolist()
    np.testing.assert_allclose(np.diag(table), 1.0)
    again = model.get_feature_correlation_matrix(seed=1, batch_size=7)
    pd.testing.assert_frame_equal(table, again)
    parts = [
        model.get_feature_correlation_matrix(transform_batch=b, seed=1).to_numpy() for b in (0, 2)
    ]
    both = model.get_feature_correlation_matrix(transform_batch=[0, 2], seed=1)
    np.testing.assert_allclose(both, np.mean(parts, axis=0))
    few = model.get_feature_correlation_matrix(
        indices=np.arange(20), n_samples=3, correlation_type="pearson"
    )
    assert few.shape == (F, F)


def test_what_has_no_correlation_is_told(model: SCVI, cells: StoreCells) -> None:
    with pytest.raises(ConfigError, match="'spearman', 'pearson'"):
        model.get_feature_correlation_matrix(correlation_type="kendall")  # type: ignore[arg-type]
    for wrong in ({"n_samples": 0}, {"rna_size_factor": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            CorrelationOptions(**wrong)
    normal = SCVI(model.adata, gene_likelihood="normal")
    with pytest.raises(ConfigError, match="Normal law"):
        normal.get_feature_correlation_matrix()
