"""Codes in memory are those that the schema gives, row by row, at the size announced."""

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.data import open_store
from scvi_dist.data.coded_obs import CodedObs
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.errors import SchemaMismatch

N = 50
SETUPS = [
    SetupArgs(),
    SetupArgs(batch_key="batch"),
    SetupArgs(labels_key="many", size_factor_key="depth"),
    SetupArgs(
        batch_key="batch",
        categorical_covariate_keys=("many", "batch"),
        continuous_covariate_keys=("depth", "age"),
    ),
]


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "batch": np.array(["x", "y"])[np.arange(N) % 2],
            # More levels than an int8 can count.
            "many": pd.Categorical(np.arange(N) % 5, categories=range(300)),
            "depth": rng.uniform(0.5, 2.0, N),
            "age": rng.integers(20, 80, N),
        },
        index=[f"cell{i}" for i in range(N)],
    )
    return anndata.AnnData(np.ones((N, 3), dtype=np.float32), obs=obs)


@pytest.mark.parametrize("setup", SETUPS)
@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.integers(0, N - 1), max_size=80), chunk_rows=st.integers(1, N + 1))
def test_take_is_the_encoding_of_those_rows(
    adata: anndata.AnnData, setup: SetupArgs, rows: list[int], chunk_rows: int
) -> None:
    store = open_store(adata)
    schema = fit_schema(store, setup)
    expected = schema.encode(adata.obs.iloc[rows])
    coded = CodedObs(schema, store, chunk_rows)
    taken = coded.take(np.array(rows, dtype=np.int64))
    assert list(taken) == list(expected)
    for key, values in taken.items():
        np.testing.assert_array_equal(values, expected[key])
        assert values.dtype == (np.int64 if expected[key].dtype.kind == "i" else np.float32)
    assert coded.nbytes == CodedObs.estimate_nbytes(schema, N)


def test_constant_columns_take_no_memory(adata: anndata.AnnData) -> None:
    store = open_store(adata)
    assert CodedObs(fit_schema(store, SetupArgs()), store).nbytes == 0


@pytest.mark.parametrize("row", [-1, N])
def test_rows_that_do_not_exist_are_refused(adata: anndata.AnnData, row: int) -> None:
    store = open_store(adata)
    coded = CodedObs(fit_schema(store, SETUPS[1]), store)
    with pytest.raises(IndexError, match=str(row)):
        coded.take(np.array([0, row]))


def test_data_that_the_schema_does_not_know_is_refused(adata: anndata.AnnData) -> None:
    schema = fit_schema(open_store(adata), SETUPS[1])
    other = adata.copy()
    other.obs.loc[other.obs_names[33], "batch"] = "z"
    with pytest.raises(SchemaMismatch, match="'z'"):
        CodedObs(schema, open_store(other), chunk_rows=10)


def test_a_digest_tells_other_cells(adata: anndata.AnnData) -> None:
    schema = fit_schema(open_store(adata), SETUPS[1])

    def digest(cells: anndata.AnnData, chunk_rows: int = 200_000) -> str:
        return CodedObs(schema, open_store(cells), chunk_rows).digest()

    assert digest(adata) == digest(adata.copy(), chunk_rows=7)
    other = adata.copy()
    other.obs["batch"] = adata.obs["batch"].to_numpy()[::-1]
    assert digest(other) != digest(adata)
