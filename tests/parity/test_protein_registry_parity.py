"""The registry of genes and proteins is scvi-tools', of an AnnData and of a MuData."""

import warnings
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from scvi_dist.data.manager import AnnDataManager
from scvi_dist.data.multimodal.mudata_setup import mudata_setup
from scvi_dist.data.open import open_store
from scvi_dist.data.schema import Schema, SetupArgs, fit_schema

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

N, P = 40, 6
KEY = "adt"
CASES: dict[str, dict[str, Any]] = {
    "table": {"batch_key": "batch"},
    "missing proteins": {"batch_key": "batch", "missing": True},
    "panels": {"batch_key": "batch", "panel_key": "panel", "missing": True},
    "no batch": {"size_factor_key": "depth"},
    "array": {"batch_key": "batch", "is_array": True},
    "array, names in uns": {"is_array": True, "protein_names_uns_key": "names"},
    "covariates": {
        "categorical_covariate_keys": ["panel", "batch"],
        "continuous_covariate_keys": ["depth"],
        "layer": "counts",
    },
}


def make_cells(missing: bool = False, is_array: bool = False) -> anndata.AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "batch": np.array(["b", "a"])[np.arange(N) % 2],
            "panel": pd.Categorical(np.array(["y", "x"])[np.arange(N) // 20], ["y", "x"]),
            "depth": rng.uniform(0.5, 2.0, N),
        },
        index=[f"cell{i}" for i in range(N)],
    )
    x = rng.poisson(1.0, (N, 5)).astype(np.float32) + 1
    proteins = rng.poisson(4.0, (N, P)).astype(np.float32) + 1
    if missing:
        proteins[(obs["batch"] == "a").to_numpy(), 1:3] = 0
        proteins[(obs["panel"] == "x").to_numpy(), 4] = 0
    names = [f"CD{i}" for i in range(P)]
    table: Any = pd.DataFrame(proteins, index=obs.index, columns=names)
    return anndata.AnnData(
        x,
        obs=obs,
        obsm={KEY: proteins if is_array else table},
        layers={"counts": x + 1},
        uns={"names": np.array(names, dtype=object)},
    )


def as_lists(value: Any) -> Any:
    """Arrays and lists as lists, mappings as dicts: what has to be equal."""
    if isinstance(value, np.ndarray | list | tuple | pd.Index):
        return [as_lists(item) for item in np.asarray(value).tolist()]
    if hasattr(value, "items"):
        return {key: as_lists(item) for key, item in value.items()}
    return value


def assert_same(ours: AnnDataManager, theirs: Any) -> None:
    for part in ("field_registries", "setup_args", "setup_method_name", "model_name"):
        got, expected = (as_lists(m.registry[part]) for m in (ours, theirs))
        assert got == expected, part
    assert dict(ours.summary_stats) == dict(theirs.summary_stats)
    back = Schema.from_registry(theirs.registry)
    # Numbered proteins are numbers there, and names of proteins here.
    assert back == ours.schema
    if "panel" in ours.data_registry:
        codes = np.asarray(theirs.get_from_registry("panel"))
        np.testing.assert_array_equal(ours.get_from_registry("panel"), codes)
    proteins = np.asarray(theirs.get_from_registry("proteins"))
    np.testing.assert_array_equal(np.asarray(ours.get_from_registry("proteins")), proteins)


@pytest.mark.parametrize("case", CASES)
def test_of_an_anndata(scvi: Any, case: str) -> None:
    keys = dict(CASES[case])
    cells = make_cells(keys.pop("missing", False), keys.pop("is_array", False))
    copy = cells.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scvi.model.TOTALVI.setup_anndata(copy, KEY, **keys)
        theirs = scvi.model.TOTALVI(copy).adata_manager
    of_uns = keys.get("protein_names_uns_key")
    listed = {k: tuple(v) if isinstance(v, list) else v for k, v in keys.items()}
    setup = SetupArgs(
        **listed, protein_key=KEY, protein_names=tuple(cells.uns[of_uns]) if of_uns else None
    )
    store = open_store(cells, layer=setup.layer)
    assert_same(AnnDataManager(store, fit_schema(store, setup), "TOTALVI", cells), theirs)


def make_mudata(cells: anndata.AnnData) -> Any:
    mudata = pytest.importorskip("mudata")
    rna = anndata.AnnData(cells.X, obs=cells.obs[["batch", "depth"]], var=cells.var)
    table = cells.obsm[KEY]
    var = pd.DataFrame(index=table.columns)
    of_proteins = anndata.AnnData(
        table.to_numpy(), obs=cells.obs[["panel"]], var=var, layers={"counts": table.to_numpy() * 2}
    )
    with mudata.set_options(pull_on_update=False):
        both = mudata.MuData({"rna": rna, "prot": of_proteins})
    both.obs["donor"] = pd.Categorical(np.array(["d1", "d0"])[np.arange(N) % 2])
    return both


@pytest.mark.parametrize(
    ("keys", "within"),
    [
        ({"batch_key": "donor"}, {}),
        ({"batch_key": "batch", "protein_layer": "counts"}, {"batch_key": "rna"}),
        (
            {"batch_key": "panel", "size_factor_key": "depth"},
            {"batch_key": "prot", "size_factor_key": "rna"},
        ),
        (
            {
                "categorical_covariate_keys": ["panel"],
                "continuous_covariate_keys": ["depth"],
                "batch_key": "donor",
                "panel_key": "donor",
            },
            {"categorical_covariate_keys": "prot", "continuous_covariate_keys": "rna"},
        ),
    ],
)
def test_of_a_mudata(scvi: Any, keys: dict[str, Any], within: dict[str, str]) -> None:
    modalities = {"rna_layer": "rna", "protein_layer": "prot", **within}
    both = make_mudata(make_cells(missing=True))
    copy = both.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scvi.model.TOTALVI.setup_mudata(copy, modalities=modalities, **keys)
        theirs = scvi.model.TOTALVI(copy).adata_manager
        store = open_store(both, modality="rna")
        schema = fit_schema(store, mudata_setup(keys, modalities))
    manager = AnnDataManager(store, schema, "TOTALVI", both)
    assert_same(manager, theirs)
    counts = theirs.get_from_registry("X")
    np.testing.assert_array_equal(manager.get_from_registry("X"), counts)
