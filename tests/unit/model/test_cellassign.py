"""CellAssign: what it reads of its cells, trains, answers and writes."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from scvi_dist.data import open_store
from scvi_dist.data.writing.writer import write_zarr
from scvi_dist.errors import BadCounts, ConfigError, FieldNotFound, NotTrained, SchemaMismatch
from scvi_dist.model import CellAssign

N_CELLS, N_GENES, TYPES = 240, 30, ["T", "B", "NK"]
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
FAST = {**QUIET, "max_epochs": 60, "lr": 0.1, "batch_size": 64, "early_stopping": False}


def marker_genes() -> pd.DataFrame:
    """Three markers for each type, in another order than the data's."""
    table = pd.DataFrame(0, index=[f"g{i}" for i in range(9)], columns=TYPES)
    for i in range(9):
        table.iloc[i, i % 3] = 1
    return table.iloc[::-1]


def new_cells(seed: int = 0, n_cells: int = N_CELLS) -> anndata.AnnData:
    """Counts of three types, whose markers are high; two batches."""
    rng = np.random.default_rng(seed)
    types = rng.integers(0, 3, n_cells)
    mean_ng = np.full((n_cells, N_GENES), 2.0)
    for gene in range(9):
        mean_ng[types == gene % 3, gene] *= 8
    mean_ng *= rng.uniform(0.5, 2.0, (n_cells, 1))
    obs = pd.DataFrame(
        {
            "type": [TYPES[t] for t in types],
            "batch": pd.Categorical(rng.choice(["x", "y"], n_cells)),
            "age": rng.normal(size=n_cells),
        },
        index=[f"cell-{seed}-{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)])
    counts_ng = rng.poisson(mean_ng).astype(np.float32)
    return anndata.AnnData(csr_matrix(counts_ng), obs=obs, var=var)


def new_model(source: Any, **setup: Any) -> CellAssign:
    CellAssign.setup_anndata(source, **setup)
    torch.manual_seed(0)
    return CellAssign(source, marker_genes())


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    return new_cells()


@pytest.fixture(scope="module")
def trained(cells: anndata.AnnData) -> CellAssign:
    model = new_model(cells, batch_key="batch", continuous_covariate_keys=["age"])
    model.train(**FAST)
    return model


def test_types_are_found(trained: CellAssign, cells: anndata.AnnData) -> None:
    table = trained.predict()
    assert table.index.tolist() == cells.obs_names.tolist()
    assert table.columns.tolist() == TYPES
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-5)
    assert (table.idxmax(axis=1) == cells.obs["type"]).mean() > 0.99
    assert trained.module.delta_log.detach().min() >= np.log(2) - 1e-6


def test_only_marker_genes_are_read_in_the_order_of_the_store(trained: CellAssign) -> None:
    expected = [f"g{i}" for i in range(9)]
    assert trained.get_var_names().tolist() == expected
    assert trained.cell_type_markers.index.tolist() == expected
    source = trained._binding.open(None, True)
    assert source.store.read_rows([(0, 5)]).n_genes == 9
    np.testing.assert_array_equal(trained.module.rho, trained.cell_type_markers)


def test_size_factors_are_totals_over_all_genes(cells: anndata.AnnData) -> None:
    model = new_model(cells)
    totals_n = np.asarray(cells.X.sum(axis=1)).ravel()
    taken = model.adata_manager.coded_obs().take(np.arange(N_CELLS))["size_factor"]
    np.testing.assert_allclose(taken[:, 0], totals_n / totals_n.mean(), rtol=1e-6)
    named = cells.copy()
    named.obs["given"] = totals_n / totals_n.mean()
    other = new_model(named, size_factor_key="given")
    for key, value in model.module.state_dict().items():
        assert torch.equal(value, other.module.state_dict()[key]), key
    model.train(**{**FAST, "max_epochs": 2})
    other.train(**{**FAST, "max_epochs": 2})
    np.testing.assert_allclose(model.predict(), other.predict(), rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def stores(cells: anndata.AnnData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same cells in all kinds of stores."""
    folder = tmp_path_factory.mktemp("stores")
    cells.write_h5ad(folder / "cells.h5ad")
    write_zarr(open_store(cells), folder / "cells.zarr")
    cells[:100].copy().write_h5ad(folder / "first.h5ad")
    cells[100:].copy().write_h5ad(folder / "second.h5ad")
    dense = cells.copy()
    dense.X = dense.X.toarray()
    return {
        "h5ad": str(folder / "cells.h5ad"),
        "zarr": folder / "cells.zarr",
        "shards": [str(folder / "first.h5ad"), str(folder / "second.h5ad")],
        "dense": dense,
    }


@pytest.mark.parametrize("kind", ["h5ad", "zarr", "shards", "dense"])
def test_any_store_gives_the_same_model(stores: Any, cells: anndata.AnnData, kind: str) -> None:
    """Basis, size factors and column statistics are those of all shards together."""
    expected = new_model(cells, batch_key="batch")
    model = new_model(stores[kind], batch_key="batch")
    for name, value in expected.module.state_dict().items():
        assert torch.equal(value, model.module.state_dict()[name]), name
    for m in (expected, model):
        m.train(**{**FAST, "max_epochs": 1, "batch_size": 216})
    np.testing.assert_allclose(model.predict(), expected.predict(), rtol=1e-3, atol=1e-5)
    assert model.predict().index.tolist() == cells.obs_names.tolist()


def test_other_cells_are_measured_against_the_same_mean(trained: CellAssign) -> None:
    query = new_cells(seed=5, n_cells=50)
    # Twice the depth: relative to their own mean these cells would look like all others.
    query.X = query.X * 2
    table = trained.predict(query)
    assert table.index.tolist() == query.obs_names.tolist()
    assert (table.idxmax(axis=1) == query.obs["type"]).mean() > 0.95
    manager = trained._binding.manager_for(query)
    factors = manager.coded_obs().take(np.arange(50))["size_factor"][:, 0]
    mean = np.asarray(new_cells().X.sum(axis=1)).mean()
    np.testing.assert_allclose(factors, np.asarray(query.X.sum(axis=1)).ravel() / mean, rtol=1e-6)
    with pytest.warns(UserWarning, match="has 9 genes, .* computed over 30"):
        trained.predict(query[:, [f"g{i}" for i in range(9)]].copy())


def test_rows_come_back_in_the_order_asked_for(trained: CellAssign) -> None:
    rows = [7, 3, 3, 200]
    whole = trained.predict()
    pd.testing.assert_frame_equal(trained.predict(indices=rows, batch_size=2), whole.iloc[rows])


def test_probabilities_go_to_a_store(trained: CellAssign, tmp_path: Path) -> None:
    url = trained.predict(out=tmp_path / "types.zarr")
    written = anndata.read_zarr(url)
    expected = trained.predict()
    np.testing.assert_array_equal(written.obsm["X_cell_type_probabilities"], expected)
    assert written.uns["X_cell_type_probabilities_columns"].tolist() == expected.columns.tolist()
    assert (written.obs["prediction"] == expected.idxmax(axis=1)).all()
    assert written.obs_names.tolist() == trained.predict().index.tolist()


def test_a_model_is_saved_and_loaded(
    trained: CellAssign, cells: anndata.AnnData, tmp_path: Path
) -> None:
    expected = trained.predict()
    trained.save(tmp_path / "model")
    without = CellAssign.load(tmp_path / "model", adata=False, accelerator="cpu")
    with pytest.raises(ConfigError, match="has no data"):
        without.predict()
    pd.testing.assert_frame_equal(without.predict(cells), expected)
    loaded = CellAssign.load(tmp_path / "model", adata=cells, accelerator="cpu")
    pd.testing.assert_frame_equal(loaded.predict(), expected)
    assert loaded.cell_type_markers.equals(trained.cell_type_markers)
    again = tmp_path / "again"
    loaded.save(again, save_anndata=True)
    pd.testing.assert_frame_equal(CellAssign.load(again, accelerator="cpu").predict(), expected)


def test_cells_of_a_store_are_saved_with_their_size_factors(stores: Any, tmp_path: Path) -> None:
    model = new_model(stores["zarr"])
    model.train(**{**FAST, "max_epochs": 1})
    model.save(tmp_path / "model", save_anndata=True)
    written = anndata.read_h5ad(tmp_path / "model" / "adata.h5ad")
    assert written.n_vars == 9
    assert "scvi_dist_size_factor" in written.obs
    loaded = CellAssign.load(tmp_path / "model", accelerator="cpu")
    pd.testing.assert_frame_equal(loaded.predict(), model.predict())


def test_training_takes_scvi_tools_arguments(cells: anndata.AnnData) -> None:
    model = new_model(cells)
    with pytest.raises(NotTrained, match="CellAssign"):
        model.predict()
    model.train(3, 1e-2, plan_kwargs={"lr": 5.0, "eps": 1e-3}, **QUIET)
    # Early stopping is on by default, so every epoch was validated.
    assert len(model.history["elbo_validation"]) == 3
    assert "kl_weight" not in model.history
    assert model.module.delta_log.detach().max() < 3
    with pytest.raises(ConfigError, match="early_stopping looks at the validation set"):
        model.train(1, train_size=1.0, **QUIET)
    with pytest.raises(ConfigError, match="did you mean 'max_steps'"):
        model.train(1, max_step=3, **QUIET)
    stopped = new_model(cells)
    stopped.train(50, early_stopping_patience=2, early_stopping_min_delta=1e9, **QUIET)
    assert len(stopped.history["elbo_train"]) == 3


def test_tables_that_are_none(cells: anndata.AnnData) -> None:
    table = marker_genes()
    CellAssign.setup_anndata(cells)
    with pytest.raises(ConfigError, match="cell_type_markers"):
        CellAssign(cells)
    with pytest.raises(ConfigError, match="a DataFrame of genes"):
        CellAssign(cells, table.to_numpy())
    with pytest.raises(ConfigError, match=r"genes \(rows\) occur more than once, such as 'g8'"):
        CellAssign(cells, pd.concat([table, table]))
    with pytest.raises(ConfigError, match="cell types"):
        CellAssign(cells, table.set_axis(["a", "a", "b"], axis=1))
    with pytest.raises(ConfigError, match=r"columns of .*(object|str)"):
        CellAssign(cells, table.astype({"T": str}))
    with pytest.raises(FieldNotFound, match="none of the 9 genes"):
        CellAssign(cells, table.set_axis([f"other{i}" for i in range(9)], axis=0))
    extra = pd.concat([table, pd.DataFrame(1, index=["elsewhere"], columns=TYPES)])
    with pytest.warns(UserWarning, match="1 of 10 genes .* elsewhere"):
        assert CellAssign(cells, extra).n_genes == 9


def changed(cells: anndata.AnnData, where: Any, value: float) -> anndata.AnnData:
    """The cells with other counts at a place."""
    other = cells.copy()
    counts_ng = other.X.toarray()
    counts_ng[where] = value
    other.X = csr_matrix(counts_ng)
    return other


def test_cells_that_cannot_be(cells: anndata.AnnData) -> None:
    empty = changed(cells, (3, slice(None)), 0)
    with pytest.warns(UserWarning, match=r"1 of 240 cells have no counts \(the first is row 3\)"):
        model = new_model(empty)
    model.is_trained = True
    assert np.isfinite(model.predict().to_numpy()).all()
    bad = cells.copy()
    bad.obs["size"] = np.where(np.arange(N_CELLS) == 4, 0.0, 1.0)
    with pytest.raises(SchemaMismatch, match=r"size factors are positive; 1 are not .row 4: 0"):
        new_model(bad, size_factor_key="size")
    flat = changed(cells, (slice(None), slice(0, 9)), 1)
    with pytest.raises(ConfigError, match="every count of the 9 marker genes is 1"):
        new_model(flat)
    negative = changed(cells, (2, 0), -1)
    with pytest.raises(BadCounts, match="row 2"):
        new_model(negative)
