"""Query mapping: other cells on a reference, whatever genes and batches they have."""

import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csc_matrix, csr_matrix
from scvi_models import G, make_adata

from scvi_dist.data import open_store
from scvi_dist.data.writing.writer import write_zarr
from scvi_dist.errors import ConfigError, SchemaMismatch
from scvi_dist.model import SCVI


def make_query(n: int = 40) -> anndata.AnnData:
    query = make_adata(seed=7, n=n)
    batch = np.where(np.arange(n) % 2 == 0, "b1", "new")
    query.obs["batch"] = pd.Categorical(batch)
    return query


FROZEN = {"plan_kwargs": {"weight_decay": 0.0}}


def test_a_query_is_trained_and_the_reference_stays(model: SCVI, tmp_path: Path) -> None:
    model.save(tmp_path / "reference")
    for reference in (model, tmp_path / "reference"):
        query = SCVI.load_query_data(make_query(), reference)
        assert query.schema.categories["batch"] == ("b0", "b1", "new")
        assert not query.is_trained
        before = query.module.decoder.px_decoder.fc_layers[0][0].weight.detach().clone()
        query.train(max_epochs=3, batch_size=10, **FROZEN)
        after = query.module.decoder.px_decoder.fc_layers[0][0].weight.detach()
        assert torch.equal(after[:, :3], before[:, :3])
        assert not torch.equal(after[:, 5:], before[:, 5:])
        # The encoder sees no covariates, so cells lie where the reference puts them.
        own = make_adata(seed=1, n=40)
        np.testing.assert_array_equal(
            query.get_latent_representation(own), model.get_latent_representation(own)
        )
        query.save(tmp_path / "query", overwrite=True)
        back = SCVI.load(tmp_path / "query", adata=make_query())
        np.testing.assert_array_equal(
            back.get_latent_representation(), query.get_latent_representation()
        )


def test_a_store_is_a_query_as_an_anndata_is(model: SCVI, tmp_path: Path) -> None:
    write_zarr(open_store(make_query()), tmp_path / "q.zarr")
    latents = []
    for data in (make_query(), str(tmp_path / "q.zarr")):
        torch.manual_seed(0)
        query = SCVI.load_query_data(data, model, unfrozen=True)
        query.train(max_epochs=2, batch_size=10)
        latents.append(query.get_latent_representation())
    np.testing.assert_allclose(latents[0], latents[1], rtol=1e-4, atol=1e-5)


def test_a_query_of_a_query(model: SCVI) -> None:
    first = SCVI.load_query_data(make_query(), model)
    first.train(max_epochs=1, batch_size=10, **FROZEN)
    third = make_adata(seed=8, n=20)
    third.obs["batch"] = pd.Categorical(["newer"] * 20)
    second = SCVI.load_query_data(third, first)
    assert second.schema.categories["batch"] == ("b0", "b1", "new", "newer")
    np.testing.assert_allclose(
        second.module.decoder.px_decoder.fc_layers[0][0].weight.detach()[:, :6],
        first.module.decoder.px_decoder.fc_layers[0][0].weight.detach(),
    )


def test_a_registry_makes_a_query_without_data(model: SCVI) -> None:
    registry = SCVI.load_query_data(make_query(), model).registry
    query = SCVI.load_query_data(registry=registry, reference_model=model)
    assert query.adata is None
    assert query.schema.n_batch == 3
    other = make_adata(seed=2)
    other.obs["batch"] = other.obs["batch"].cat.reorder_categories(["b1", "b0"])
    SCVI.setup_anndata(other, batch_key="batch")
    with pytest.raises(SchemaMismatch, match="begin with the reference's"):
        SCVI.load_query_data(registry=SCVI(other).registry, reference_model=model)


def test_what_cannot_be_mapped_is_told(model: SCVI) -> None:
    query = make_query()
    with pytest.raises(ConfigError, match="provide a reference model"):
        SCVI.load_query_data(query)
    with pytest.raises(ConfigError, match="needs the query"):
        SCVI.load_query_data(reference_model=model)
    with pytest.raises(ConfigError, match="not a datamodule"):
        SCVI.load_query_data(query, model, datamodule=object())
    with pytest.raises(SchemaMismatch, match=r"transfer_batch=False.*'new'"):
        SCVI.load_query_data(query, model, transfer_batch=False)
    with pytest.raises(SchemaMismatch, match="prepare_query_anndata"):
        SCVI.load_query_data(query[:, :5].copy(), model)

    class Other(SCVI):
        """A model of another class."""

    with pytest.raises(ConfigError, match="SCVI model; Other"):
        Other.load_query_data(query, model)


# Preparing


def _with_other_genes(query: anndata.AnnData) -> anndata.AnnData:
    """All genes of the reference but one, two more, in another order."""
    names = ["more0", *query.var_names[:0:-1], "more1"]
    columns = [query.X[:, :1] * 7, *(query.X[:, i] for i in range(G - 1, 0, -1)), query.X[:, :1]]
    x = np.column_stack([c.toarray() for c in columns])
    other = anndata.AnnData(csr_matrix(x), obs=query.obs.copy(), var=pd.DataFrame(index=names))
    other.var["length"] = np.arange(len(names), dtype=float)
    other.layers["counts"] = csc_matrix(x)
    other.layers["dense"] = x.copy()
    other.obsm["umap"] = np.ones((query.n_obs, 2))
    other.uns["note"] = "kept"
    return other


def test_a_query_gets_the_references_genes(model: SCVI, tmp_path: Path) -> None:
    query = make_query()
    expected = query.X.toarray()
    expected[:, 0] = 0
    other = _with_other_genes(query)
    store = open_store(write_zarr(open_store(other), tmp_path / "q.zarr") or tmp_path / "q.zarr")
    padded = SCVI.prepare_query_anndata(other, model, inplace=False)
    assert other.n_vars == G + 1
    np.testing.assert_array_equal(padded.X.toarray(), expected)
    assert (type(padded.X), padded.X.dtype) == (csr_matrix, other.X.dtype)
    np.testing.assert_array_equal(padded.layers["counts"].toarray(), expected)
    assert padded.layers["counts"].format == "csc"
    np.testing.assert_array_equal(padded.layers["dense"], expected)
    assert padded.var_names.tolist() == model.get_var_names().tolist()
    assert np.isnan(padded.var["length"].iloc[0])
    assert padded.uns["note"] == "kept"
    assert padded.obsm["umap"].shape == (query.n_obs, 2)
    view = SCVI.prepare_query_anndata(store, model)
    np.testing.assert_array_equal(view.read_rows([(0, view.n_obs)]).to_dense(), expected)
    assert SCVI.prepare_query_anndata(other, model) is None
    np.testing.assert_array_equal(other.X.toarray(), expected)
    latents = [
        SCVI.load_query_data(data, model, unfrozen=True)._binding.manager_for() for data in (view,)
    ]
    assert latents[0].store is view
    ready = SCVI.prepare_query_anndata(padded, model, inplace=False)
    assert ready is padded, "nothing is left to do"


def test_the_references_genes_can_be_listed(model: SCVI, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    for reference in (model, str(tmp_path / "m")):
        genes = SCVI.prepare_query_anndata(make_query(), reference, return_reference_var_names=True)
        assert isinstance(genes, pd.Index)
        assert genes.tolist() == model.get_var_names().tolist()


def test_too_few_shared_genes_are_told(model: SCVI) -> None:
    few = make_query()[:, :5].copy()
    with pytest.warns(UserWarning, match=r"less than 80% .* 5 of 8"):
        SCVI.prepare_query_anndata(few, model)
    assert few.n_vars == G
    none = make_query()
    none.var_names = [f"ENSG{i}" for i in range(G)]
    with pytest.raises(ConfigError, match="No reference var names found in query data"):
        SCVI.prepare_query_anndata(none, model)


def test_other_genes_can_be_taken_off_the_query(model: SCVI) -> None:
    query = make_query()
    more = anndata.concat(
        [query, anndata.AnnData(csr_matrix(np.ones((40, 1))), obs=query.obs[[]])], axis=1
    )
    more.obs = query.obs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SCVI.load_query_data(more, model)
    assert more.n_vars == G + 1
    SCVI.load_query_data(more, model, inplace_subset_query_vars=True)
    assert more.var_names.tolist() == model.get_var_names().tolist()


def test_a_reference_that_is_trained_again_goes_on(model: SCVI, tmp_path: Path) -> None:
    """Online update: new cells of known batches, from the weights of a file."""
    model.save(tmp_path / "m")
    data: Any = make_adata(seed=5)
    again = SCVI.load(tmp_path / "m", adata=data)
    before = again.module.z_encoder.mean_encoder.weight.detach().clone()
    again.train(max_epochs=1, batch_size=16, plan_kwargs={"lr": 1e-5})
    after = again.module.z_encoder.mean_encoder.weight.detach()
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, before, atol=1e-3, rtol=0)
