"""A manager answers from its schema and store, and leaves the user's data alone."""

import gc
import weakref

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scvi_dist.data import open_store
from scvi_dist.data.manager import AnnDataManager, recall, remember
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.errors import ConfigError, FieldNotFound, SchemaMismatch

N = 30
SETUP = SetupArgs(
    batch_key="batch",
    categorical_covariate_keys=("plate",),
    continuous_covariate_keys=("age", "depth"),
    size_factor_key="depth",
)


def make_adata(genes: str = "abcd", seed: int = 0) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "batch": np.array(["x", "y", "z"])[np.arange(N) % 3],
            "plate": np.arange(N) % 2,
            "age": rng.integers(20, 80, N),
            "depth": rng.uniform(0.5, 2.0, N),
        },
        index=[f"cell{i}" for i in range(N)],
    )
    counts = csr_matrix(rng.poisson(1.0, (N, len(genes))).astype(np.float32))
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=list(genes)))


def make_manager(adata: anndata.AnnData, model_name: str = "SCVI") -> AnnDataManager:
    store = open_store(adata)
    return AnnDataManager(store, fit_schema(store, SETUP), model_name, adata)


@pytest.fixture
def adata() -> anndata.AnnData:
    return make_adata()


@pytest.fixture
def manager(adata: anndata.AnnData) -> AnnDataManager:
    return make_manager(adata)


def test_sizes_places_and_states_agree(manager: AnnDataManager) -> None:
    assert manager.summary_stats == {
        "n_vars": 4,
        "n_cells": N,
        "n_batch": 3,
        "n_labels": 1,
        "n_extra_categorical_covs": 1,
        "n_extra_continuous_covs": 2,
    }
    assert manager.summary_stats.n_batch == len(
        manager.get_state_registry("batch").categorical_mapping
    )
    assert manager.data_registry.X.attr_name == "X"
    assert manager.data_registry.size_factor.attr_key == "depth"
    assert manager.registry["_scvi_uuid"] == manager.adata_uuid


def test_everything_registered_can_be_had(manager: AnnDataManager, adata: anndata.AnnData) -> None:
    found = {key: manager.get_from_registry(key) for key in manager.data_registry}
    assert found["X"] is adata.X
    assert {len(pd.DataFrame(v)) for key, v in found.items() if key != "X"} == {N}
    np.testing.assert_array_equal(found["extra_categorical_covs"]["plate"], adata.obs["plate"])
    assert list(found["extra_continuous_covs"].index) == list(adata.obs_names)
    np.testing.assert_allclose(found["size_factor"][:, 0], adata.obs["depth"], rtol=1e-6)


@pytest.mark.parametrize("method", ["get_state_registry", "get_from_registry"])
def test_an_unknown_key_gets_the_nearest_name(manager: AnnDataManager, method: str) -> None:
    with pytest.raises(FieldNotFound, match="did you mean 'batch'"):
        getattr(manager, method)("batches")
    with pytest.raises(AttributeError, match="did you mean 'n_batch'"):
        _ = manager.summary_stats.n_batches


def test_the_uuid_is_that_of_the_data(manager: AnnDataManager) -> None:
    assert make_manager(make_adata()).adata_uuid == manager.adata_uuid
    assert make_manager(make_adata(seed=1)).adata_uuid != manager.adata_uuid


def test_nothing_is_written_into_the_adata(adata: anndata.AnnData) -> None:
    before, attributes = adata.copy(), set(vars(adata))
    manager = make_manager(adata)
    remember(adata, manager)
    for key in manager.data_registry:
        manager.get_from_registry(key)
    manager.transfer_fields(adata)
    assert (list(adata.uns), list(adata.obsm), list(adata.layers)) == ([], [], [])
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert (adata.X != before.X).nnz == 0
    assert set(vars(adata)) == attributes


def test_transfer_puts_genes_in_order(manager: AnnDataManager) -> None:
    query = make_adata(genes="dbac", seed=2)
    found = manager.transfer_fields(query)
    np.testing.assert_array_equal(
        found.get_from_registry("X").toarray(), query[:, list("abcd")].X.toarray()
    )
    assert found.adata is query
    assert tuple(found.store.var_names) == found.schema.var_names == manager.schema.var_names


def test_transfer_extends_only_when_asked(manager: AnnDataManager) -> None:
    query = make_adata(seed=2)
    query.obs["batch"] = query.obs["batch"].replace("x", "w")
    with pytest.raises(SchemaMismatch, match="'w'"):
        manager.transfer_fields(query)
    found = manager.transfer_fields(query, extend_categories=True)
    assert found.summary_stats.n_batch == 4
    assert manager.summary_stats.n_batch == 3


def test_view_registry_shows_keys_and_categories(
    manager: AnnDataManager, capsys: pytest.CaptureFixture[str]
) -> None:
    manager.view_registry(hide_state_registries=True)
    short = capsys.readouterr().out
    manager.view_registry()
    full = capsys.readouterr().out
    assert "n_batch" in short
    assert "codes of batch" in full
    assert "codes of batch" not in short


# --- which data was set up ---------------------------------------------------------------------


def test_a_setup_is_recalled_by_the_object(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    remember(adata, manager)
    assert recall(adata) is manager
    with pytest.raises(ConfigError, match=r"this AnnData is not set up for SCVI\. .*not a copy"):
        recall(adata.copy())
    with pytest.raises(ConfigError, match=r"SCANVI\.setup_anndata"):
        recall(adata, "SCANVI")


def test_a_setup_outlives_its_manager(adata: anndata.AnnData) -> None:
    manager = make_manager(adata)
    schema = manager.schema
    remember(adata, manager)
    del manager
    gc.collect()
    again = recall(adata)
    assert again.schema == schema
    assert again.adata is adata


def test_a_setup_keeps_no_data_alive() -> None:
    adata = make_adata()
    remember(adata, make_manager(adata))
    recall(adata).coded_obs()
    gone = weakref.ref(adata)
    del adata
    gc.collect()
    assert gone() is None


def test_each_class_of_model_has_its_own_setup(adata: anndata.AnnData) -> None:
    managers = {name: make_manager(adata, name) for name in ("SCVI", "SCANVI")}
    for manager in managers.values():
        remember(adata, manager)
    assert all(recall(adata, name) is manager for name, manager in managers.items())
    newer = make_manager(adata)
    remember(adata, newer)
    assert recall(adata, "SCVI") is newer
    assert recall(adata, "SCANVI") is managers["SCANVI"]


def test_urls_are_recalled_in_any_spelling(tmp_path, adata: anndata.AnnData) -> None:
    path = tmp_path / "data.h5ad"
    adata.write_h5ad(path)
    store = open_store(path)
    remember(str(path), AnnDataManager(store, fit_schema(store, SETUP)))
    store.close()
    gc.collect()
    for spelling in (path, f"file://{path}", str(tmp_path / "." / "data.h5ad")):
        found = recall(spelling)
        assert found.summary_stats.n_batch == 3
        assert found.adata is None
        assert found.get_from_registry("X").shape == (N, 4)
    found.store.close()
    with pytest.raises(ConfigError, match=r"other\.h5ad"):
        recall(tmp_path / "other.h5ad")


def test_stores_and_lists_are_sources_too(tmp_path, adata: anndata.AnnData) -> None:
    paths = [str(tmp_path / f"{i}.h5ad") for i in range(2)]
    for path in paths:
        adata.write_h5ad(path)
    with open_store(paths) as both:
        manager = AnnDataManager(both, fit_schema(both, SETUP))
        remember(paths, manager)
        remember(both, manager)
        assert recall(paths) is manager
        assert recall(both) is manager
        assert manager.summary_stats.n_cells == 2 * N


def test_files_are_not_written_either(tmp_path, adata: anndata.AnnData) -> None:
    path = tmp_path / "data.h5ad"
    adata.write_h5ad(path)
    before = path.read_bytes()
    with open_store(path) as store:
        manager = AnnDataManager(store, fit_schema(store, SETUP))
        for key in manager.data_registry:
            manager.get_from_registry(key)
    assert path.read_bytes() == before
    with h5py.File(path) as file:
        assert set(file["obs"]) == {"_index", *adata.obs.columns}
