"""Registry, codes and sizes are those of scvi-tools' AnnDataManager on the same AnnData."""

import warnings
from inspect import signature
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from scvi_dist.data import open_store
from scvi_dist.data.coded_obs import CodedObs
from scvi_dist.data.manager import AnnDataManager
from scvi_dist.data.schema import Schema, SetupArgs, fit_schema, transfer_schema
from scvi_dist.errors import SchemaMismatch

pytestmark = pytest.mark.parity

N = 90

SETUPS = {
    "nothing": SetupArgs(),
    "text batch": SetupArgs(batch_key="text"),
    "categorical batch": SetupArgs(batch_key="declared"),
    "integer batch": SetupArgs(batch_key="integer"),
    "bool batch": SetupArgs(batch_key="flag"),
    "float labels": SetupArgs(labels_key="decimal"),
    "integer levels": SetupArgs(batch_key="levels"),
    "layer": SetupArgs(layer="counts", batch_key="text"),
    "size factor": SetupArgs(size_factor_key="depth"),
    "covariates": SetupArgs(
        categorical_covariate_keys=("declared", "text", "flag"),
        continuous_covariate_keys=("depth", "integer"),
    ),
    "empty lists": SetupArgs(categorical_covariate_keys=(), continuous_covariate_keys=()),
    "all": SetupArgs(
        layer="counts",
        batch_key="text",
        labels_key="declared",
        size_factor_key="depth",
        categorical_covariate_keys=("integer", "levels"),
        continuous_covariate_keys=("decimal",),
    ),
}

UNLABELED = {
    "first of the text labels": SetupArgs(labels_key="text", unlabeled_category="a"),
    "in the middle": SetupArgs(batch_key="flag", labels_key="text", unlabeled_category="b"),
    "last": SetupArgs(labels_key="text", unlabeled_category="c"),
    "not among them": SetupArgs(labels_key="text", unlabeled_category="Unknown"),
    "of declared labels": SetupArgs(labels_key="declared", unlabeled_category="z"),
    "a number": SetupArgs(labels_key="integer", unlabeled_category=3),
}


@pytest.fixture(scope="module")
def scvi() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scvi
    return scvi


@pytest.fixture
def adata() -> anndata.AnnData:
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (N, 7)).astype(np.float32)
    order = rng.permutation(N)
    obs = pd.DataFrame(
        {
            "text": np.array(["b", "c", "a"])[order % 3],
            "declared": pd.Categorical(
                np.array(["z", "m", "a"])[order % 3], categories=["z", "unused", "m", "a"]
            ),
            "integer": np.array([10, 3, 200])[order % 3],
            "levels": pd.Categorical(order % 3, categories=[2, 0, 1]),
            "flag": order % 2 == 0,
            "decimal": np.array([0.5, -1.25, 3.0])[order % 3],
            "depth": rng.uniform(0.5, 2.0, N),
        },
        index=[f"cell{i}" for i in range(N)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(7)])
    return anndata.AnnData(counts, obs=obs, var=var, layers={"counts": counts + 1})


def theirs(scvi: Any, adata: anndata.AnnData, setup: SetupArgs, **more: Any) -> Any:
    """scvi-tools' manager of a copy that it may write into."""
    model = scvi.model.SCVI
    keys = {
        name: list(value) if isinstance(value, tuple) else value
        for name in SetupArgs.__dataclass_fields__
        if name in signature(model.setup_anndata).parameters
        for value in [getattr(setup, name)]
    }
    if setup.unlabeled_category is not None:
        model = scvi.model.SCANVI
        keys["unlabeled_category"] = setup.unlabeled_category
    copy = adata.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.setup_anndata(copy, **keys, **more)
        return model(copy).adata_manager


def ours(adata: anndata.AnnData, setup: SetupArgs) -> AnnDataManager:
    store = open_store(adata, layer=setup.layer)
    name = "SCVI" if setup.unlabeled_category is None else "SCANVI"
    return AnnDataManager(store, fit_schema(store, setup), name, adata)


def same(seen: Any, expected: Any) -> bool:
    """Equal in value, order and kind of container."""
    if isinstance(expected, np.ndarray):
        return (
            isinstance(seen, np.ndarray)
            and seen.dtype.kind == expected.dtype.kind
            and bool(np.array_equal(seen, expected))
        )
    if hasattr(expected, "items"):
        return set(seen) == set(expected) and all(same(seen[k], expected[k]) for k in expected)
    return bool(seen == expected) and isinstance(seen, type(expected))


@pytest.mark.parametrize("name", [*SETUPS, *UNLABELED])
def test_registry_codes_and_sizes_are_scvi_tools(scvi: Any, adata: Any, name: str) -> None:
    setup = {**SETUPS, **UNLABELED}[name]
    expected, seen = theirs(scvi, adata, setup), ours(adata, setup)
    for part in ("field_registries", "model_name", "setup_method_name", "scvi_version"):
        assert same(seen.registry[part], expected.registry[part]), part
    arguments = dict(expected.registry["setup_args"])
    arguments.pop("use_minified", None)
    assert same(seen.registry["setup_args"], arguments)
    assert dict(seen.summary_stats) == dict(expected.summary_stats)
    coded = seen.coded_obs().take(np.arange(N))
    for key in expected.data_registry:
        assert same(seen.data_registry[key], expected.data_registry[key].to_dict())
        values = np.asarray(expected.get_from_registry(key))
        if key == "X":
            np.testing.assert_array_equal(np.asarray(seen.get_from_registry(key)), values)
        else:
            np.testing.assert_array_equal(coded[key], values.astype(coded[key].dtype))
            np.testing.assert_array_equal(
                np.asarray(seen.get_from_registry(key)), values.astype(coded[key].dtype)
            )
    assert set(coded) == set(expected.data_registry) - {"X"}


@pytest.mark.parametrize("name", [*SETUPS, *UNLABELED])
def test_a_schema_is_read_back_from_scvi_tools_registry(scvi: Any, adata: Any, name: str) -> None:
    setup = {**SETUPS, **UNLABELED}[name]
    expected = ours(adata, setup).schema
    found = Schema.from_registry(theirs(scvi, adata, setup).registry)
    assert found == expected


def test_scvi_tools_takes_our_registry_as_a_source(scvi: Any, adata: Any) -> None:
    setup = SETUPS["all"]
    registry = ours(adata, setup).registry
    manager = theirs(scvi, adata, setup, source_registry=registry)
    for key, field in registry["field_registries"].items():
        assert same(manager.registry["field_registries"][key], field), key


def test_transfer_gives_the_codes_that_scvi_tools_gives(scvi: Any, adata: Any) -> None:
    setup = SetupArgs(batch_key="text", categorical_covariate_keys=("integer", "declared"))
    query = adata[: N // 2].copy()
    query.obs["text"] = np.where(query.obs["text"] == "a", "aa", query.obs["text"])
    query.obs["integer"] = np.where(query.obs["integer"] == 3, 5, query.obs["integer"])
    query.obs["declared"] = query.obs["declared"].astype(str)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs(scvi, adata, setup).transfer_fields(query.copy(), extend_categories=True)
    store = open_store(query)
    schema, genes = transfer_schema(ours(adata, setup).schema, store, extend_categories=True)
    assert genes is None
    coded = CodedObs(schema, store).take(np.arange(store.n_obs))
    for key in ("batch", "labels", "extra_categorical_covs"):
        values = np.asarray(expected.get_from_registry(key))
        np.testing.assert_array_equal(coded[key], values)
    assert dict(AnnDataManager(store, schema).summary_stats) == dict(expected.summary_stats)
    with pytest.raises(SchemaMismatch, match="'aa'"):
        transfer_schema(ours(adata, setup).schema, store)


def test_files_of_scvi_tools_hold_schemas_that_fit_their_data(shared_data: Any) -> None:
    import torch

    for name in (
        "scvi_tools_1.4.2_scvi_mixology",
        "scvi_tools_1.4.2_scanvi_mixology",
        "scvi_tools_scanvi_v1.0.3",
    ):
        folder = shared_data / name
        # These files are ours; a user's file goes through the safe reader.
        saved = torch.load(folder / "model.pt", weights_only=False, map_location="cpu")
        registry = saved["attr_dict"]["registry_"]
        schema = Schema.from_registry(registry)
        store = open_store(folder / "adata.h5ad", layer=schema.setup.layer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert fit_schema(store, schema.setup) == schema
        codes = CodedObs(schema, store).take(np.arange(store.n_obs))
        assert codes["batch"].max() < schema.n_batch
        assert schema.n_batch == registry["field_registries"]["batch"]["summary_stats"]["n_batch"]
