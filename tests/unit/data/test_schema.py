"""A schema depends on what the cells are, never on where they lie or in which order."""

import json
import pickle
import warnings
from itertools import pairwise

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.data import open_store
from scvi_dist.data.schema import Schema, SetupArgs, check_setup, fit_schema, transfer_schema
from scvi_dist.errors import ConfigError, FieldNotFound, SchemaMismatch

SETUP = SetupArgs(
    batch_key="batch",
    labels_key="kind",
    size_factor_key="depth",
    categorical_covariate_keys=("plate", "sex"),
    continuous_covariate_keys=("age",),
    unlabeled_category="?",
)


def make_adata(n: int = 60, seed: int = 0, genes: str = "abcde") -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "batch": rng.permutation(np.array(["b10", "b9", "a"])[np.arange(n) % 3]),
            "kind": rng.permutation(np.array(["?", "T", "B"])[np.arange(n) % 3]),
            "plate": pd.Categorical(np.arange(n) % 3, categories=[2, 0, 7, 1]),
            "sex": np.arange(n) % 2 == 0,
            "depth": rng.uniform(0.5, 2.0, n),
            "age": rng.integers(20, 80, n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    counts = rng.poisson(1.0, (n, len(genes))).astype(np.float32)
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=list(genes)))


@pytest.fixture
def adata() -> anndata.AnnData:
    return make_adata()


@pytest.fixture
def schema(adata: anndata.AnnData) -> Schema:
    return fit_schema(open_store(adata), SETUP)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1_000), chunk_rows=st.integers(1, 70))
def test_order_of_rows_and_size_of_chunks_change_nothing(seed: int, chunk_rows: int) -> None:
    adata = make_adata()
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    # Not adata[order]: that drops unused categories.
    shuffled = anndata.AnnData(adata.X[order], obs=adata.obs.iloc[order], var=adata.var)
    expected = fit_schema(open_store(adata), SETUP)
    found = fit_schema(open_store(shuffled), SETUP, chunk_rows=chunk_rows)
    assert found == expected
    assert found.digest() == expected.digest()


@pytest.mark.parametrize("cuts", [[0, 20, 60], [0, 1, 2, 59, 60], [0, 33, 34, 60]])
def test_shards_in_any_order_have_the_codes_of_the_whole(schema: Schema, cuts: list[int]) -> None:
    adata = make_adata()
    shards = [
        anndata.AnnData(adata.X[a:b], obs=adata.obs.iloc[a:b], var=adata.var)
        for a, b in pairwise(cuts)
    ]
    for order in (shards, shards[::-1]):
        assert fit_schema(open_store(order), SETUP) == schema


def test_sizes_are_those_a_model_needs(schema: Schema) -> None:
    assert (schema.n_obs, schema.n_vars, schema.n_batch, schema.n_labels) == (60, 5, 3, 3)
    assert schema.n_cats_per_cov == [4, 2]
    assert (schema.n_continuous_cov, schema.continuous_columns) == (1, ("age",))
    assert schema.size_factor_column == "depth"
    assert schema.categories == {"batch": ("a", "b10", "b9"), "labels": ("T", "B", "?")}
    assert schema.joint_categories == {"plate": (2, 0, 7, 1), "sex": (False, True)}


def test_without_keys_there_is_one_constant_batch_and_label(adata: anndata.AnnData) -> None:
    schema = fit_schema(open_store(adata), SetupArgs())
    assert (schema.n_batch, schema.n_labels) == (1, 1)
    assert schema.n_cats_per_cov is None
    encoded = schema.encode(adata.obs[[]])
    assert set(encoded) == {"batch", "labels"}
    assert not any(codes.any() for codes in encoded.values())


def test_json_and_pickle_give_the_same_schema(schema: Schema) -> None:
    for copy in (Schema.from_json(schema.to_json()), pickle.loads(pickle.dumps(schema))):
        assert copy == schema
        assert copy.digest() == schema.digest()
        assert hash(copy) == hash(schema)
        types = [type(v) for values in copy.categories.values() for v in values]
        assert types == [type(v) for values in schema.categories.values() for v in values]
    assert len(schema.digest()) == 32
    int(schema.digest(), 16)


@pytest.mark.parametrize("change", [{"version": 99}, {"format": "other"}])
def test_json_of_another_format_is_refused_by_name(schema: Schema, change: dict) -> None:
    content = {**json.loads(schema.to_json()), **change}
    with pytest.raises(SchemaMismatch, match=str(next(iter(change.values())))):
        Schema.from_json(json.dumps(content))


def test_every_part_shows_in_the_digest(adata: anndata.AnnData, schema: Schema) -> None:
    others = [
        fit_schema(open_store(make_adata(n=63)), SETUP),
        fit_schema(open_store(make_adata(genes="abcdf")), SETUP),
        fit_schema(open_store(adata), SetupArgs(batch_key="batch")),
        fit_schema(open_store(adata), SetupArgs(batch_key="kind")),
    ]
    digests = {s.digest() for s in [schema, *others]}
    assert len(digests) == 5


def test_the_registry_gives_the_schema_back(schema: Schema) -> None:
    registry = schema.registry("SCANVI", "1.4.2")
    assert Schema.from_registry(registry) == schema
    assert registry["setup_args"]["unlabeled_category"] == "?"
    assert registry["model_name"] == "SCANVI"


def test_a_registry_without_a_part_is_refused_by_name(schema: Schema) -> None:
    registry = schema.registry("SCVI")
    del registry["field_registries"]["batch"]["state_registry"]
    with pytest.raises(SchemaMismatch, match="state_registry"):
        Schema.from_registry(registry)


def test_gene_names_may_come_from_beside_the_registry(schema: Schema) -> None:
    registry = schema.registry("SCVI")
    del registry["field_registries"]["X"]["state_registry"]["column_names"]
    with pytest.raises(SchemaMismatch, match="var_names"):
        Schema.from_registry(registry)
    assert Schema.from_registry(registry, np.array(schema.var_names)) == schema


def test_encode_gives_small_codes_and_float32(adata: anndata.AnnData, schema: Schema) -> None:
    encoded = schema.encode(adata.obs)
    widths = {key: values.shape[1] for key, values in encoded.items()}
    assert widths == {
        "batch": 1,
        "labels": 1,
        "size_factor": 1,
        "extra_categorical_covs": 2,
        "extra_continuous_covs": 1,
    }
    dtypes = {key: values.dtype for key, values in encoded.items()}
    assert dtypes["batch"] == dtypes["extra_categorical_covs"] == np.int8
    assert dtypes["size_factor"] == dtypes["extra_continuous_covs"] == np.float32


def test_encode_names_unknown_categories_and_the_store(
    adata: anndata.AnnData, schema: Schema
) -> None:
    adata.obs.loc[adata.obs_names[:4], "batch"] = "new"
    with pytest.raises(SchemaMismatch, match=r"obs\['batch'\] of s3://x: .*'new' \(4 cells\)"):
        schema.encode(adata.obs, "s3://x")


@pytest.mark.parametrize(
    ("setup", "error", "message"),
    [
        (SetupArgs(batch_key="bach"), FieldNotFound, "did you mean 'batch'"),
        (SetupArgs(continuous_covariate_keys=("age", "kind")), SchemaMismatch, "numbers.*'kind'"),
        (SetupArgs(size_factor_key="plate"), SchemaMismatch, "category"),
        (SetupArgs(layer="counts"), ConfigError, "layer='counts'"),
    ],
)
def test_a_setup_that_does_not_fit_is_refused_before_reading(
    adata: anndata.AnnData, setup: SetupArgs, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_setup(open_store(adata), setup)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"categorical_covariate_keys": "plate"}, "list"),
        ({"continuous_covariate_keys": ["age", "age"]}, "twice"),
        ({"unlabeled_category": "?"}, "labels_key"),
    ],
)
def test_setup_arguments_that_contradict_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SetupArgs(**arguments)


def test_missing_categories_are_refused_with_row_and_store(adata: anndata.AnnData) -> None:
    adata.obs["batch"] = adata.obs["batch"].astype("category")
    adata.obs.loc[adata.obs_names[41], "batch"] = np.nan
    with pytest.raises(SchemaMismatch, match=r"obs\['batch'\] of ram://.*row 41"):
        fit_schema(open_store(adata), SETUP, chunk_rows=7)


def test_few_cells_are_warned_of(adata: anndata.AnnData) -> None:
    adata.obs.loc[adata.obs_names[:2], "batch"] = "tiny"
    with pytest.warns(UserWarning, match=r"'tiny' \(2\)"):
        fit_schema(open_store(adata), SETUP)


# --- transfer ---------------------------------------------------------------------------------


def test_transfer_to_the_same_data_changes_nothing(adata: anndata.AnnData, schema: Schema) -> None:
    found, genes = transfer_schema(schema, open_store(adata))
    assert found == schema
    assert genes is None


@pytest.mark.parametrize("genes", ["edcba", "xeydcba", "abcdez"])
def test_genes_are_put_in_order_by_name(schema: Schema, genes: str) -> None:
    query = make_adata(genes=genes)
    found, order = transfer_schema(schema, open_store(query))
    assert order is not None
    assert tuple(query.var_names[order]) == schema.var_names == found.var_names


def test_missing_genes_are_counted_and_named(schema: Schema) -> None:
    with pytest.raises(SchemaMismatch, match=r"2 of the schema's 5 .*'d', 'e'"):
        transfer_schema(schema, open_store(make_adata(genes="abcxyz")))


def test_genes_of_one_name_cannot_be_put_in_order(schema: Schema) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # anndata's own, about names
        query = make_adata(genes="aabcde")
        with pytest.raises(SchemaMismatch, match="more than once: 'a'"):
            transfer_schema(schema, open_store(query))


def query_with(column: str, value: object) -> anndata.AnnData:
    query = make_adata(n=30, seed=1)
    values = query.obs[column].astype(object).to_numpy(copy=True)
    values[:4] = value
    query.obs[column] = pd.Series(values, index=query.obs_names).infer_objects()
    return query


@pytest.mark.parametrize(
    ("column", "value"), [("batch", "0new"), ("batch", ""), ("plate", 5), ("plate", -1)]
)
def test_unknown_categories_are_an_error_or_an_extension(
    schema: Schema, column: str, value: object
) -> None:
    store = open_store(query_with(column, value))
    with pytest.raises(SchemaMismatch, match=rf"{column}.*{value!r} \(4 cells\)"):
        transfer_schema(schema, store)
    found, _ = transfer_schema(schema, store, extend_categories=True)
    before, after = (
        s.categories["batch"] if column == "batch" else s.joint_categories[column]
        for s in (schema, found)
    )
    assert after == (*before, value)
    assert found.encode(store.read_obs(SETUP.obs_columns))["batch"].min() >= 0


def test_new_categories_are_appended_sorted(schema: Schema) -> None:
    query = make_adata(n=30, seed=1)
    query.obs["batch"] = np.array(["z", "b9", "c", "1"])[np.arange(30) % 4]
    found, _ = transfer_schema(schema, open_store(query), extend_categories=True)
    assert found.categories["batch"] == (*schema.categories["batch"], "1", "c", "z")


def test_labels_with_an_unlabeled_category_are_never_extended(schema: Schema) -> None:
    store = open_store(query_with("kind", "NK"))
    with pytest.raises(SchemaMismatch, match="'NK'"):
        transfer_schema(schema, store, extend_categories=True)


def test_unused_levels_of_other_data_are_not_unknown(schema: Schema) -> None:
    query = make_adata(n=30, seed=1)
    query.obs["batch"] = pd.Categorical(query.obs["batch"], categories=["new", "b9", "a", "b10"])
    found, _ = transfer_schema(schema, open_store(query))
    assert found.categories == schema.categories


def test_categories_of_another_kind_do_not_mix(schema: Schema) -> None:
    query = make_adata(n=30, seed=1)
    query.obs["batch"] = np.arange(30) % 2
    with pytest.raises(SchemaMismatch, match="different kinds"):
        transfer_schema(schema, open_store(query), extend_categories=True)
