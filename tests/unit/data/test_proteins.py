"""Counts of proteins: who measured which, in which order, and what is no count."""

import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.data.manager import AnnDataManager
from scvi_dist.data.multimodal.mudata_setup import mudata_arguments, mudata_setup
from scvi_dist.data.open import open_store
from scvi_dist.data.schema import Schema, fit_schema, transfer_schema
from scvi_dist.data.schema_pass import protein_reader
from scvi_dist.data.setup import SetupArgs
from scvi_dist.errors import BadCounts, ConfigError, FieldNotFound, SchemaMismatch

NAMES = ["CD3", "CD4", "CD8", "CD19"]
N = 60
SETUP = SetupArgs(batch_key="batch", protein_key="adt")


def cells_of(
    proteins_np: np.ndarray, panels: np.ndarray, names: list[str] = NAMES
) -> anndata.AnnData:
    n = len(proteins_np)
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"batch": pd.Categorical(panels)}, index=[f"c{i}" for i in range(n)])
    table = pd.DataFrame(proteins_np, index=obs.index, columns=names)
    x_ng = rng.poisson(1.0, (n, 3)).astype(np.float32) + 1
    return anndata.AnnData(x_ng, obs=obs, obsm={"adt": table})


def counts(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).poisson(4.0, (N, len(NAMES))).astype(np.float32)


def three_batches() -> np.ndarray:
    return np.array(["b2", "b0", "b1"])[np.arange(N) % 3]


@given(
    seed=st.integers(0, 2**16),
    n_panels=st.integers(1, 5),
    sparsity=st.floats(0.0, 1.0),
    chunk_rows=st.integers(1, 80),
)
@settings(max_examples=20, deadline=None)
def test_a_protein_is_measured_in_a_panel_if_a_cell_of_it_has_a_count(
    seed: int, n_panels: int, sparsity: float, chunk_rows: int
) -> None:
    rng = np.random.default_rng(seed)
    proteins_np = rng.poisson(2.0, (40, 4)) * (rng.random((40, 4)) > sparsity)
    panels = np.array([f"p{k}" for k in rng.integers(0, n_panels, 40)])
    levels = np.append(np.unique(panels), "empty")
    cells = cells_of(proteins_np.astype(np.float32), panels)
    cells.obs["batch"] = pd.Categorical(panels, categories=levels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        schema = fit_schema(open_store(cells), SETUP, chunk_rows)
    seen = {
        str(code): tuple((proteins_np[panels == level] > 0).any(0).tolist())
        for code, level in enumerate(levels[:-1])
    }
    lacks = not all(all(has) for has in seen.values())
    assert schema.protein_batch_mask == (seen if lacks else None)
    assert schema.protein_names == tuple(NAMES)
    assert schema.dense_bytes_per_cell == 16


def test_panels_of_their_own_take_the_place_of_batches() -> None:
    proteins_np = counts() + 1
    panel = np.where(np.arange(N) < 20, "small", "large")
    proteins_np[panel == "small", 2] = 0
    cells = cells_of(proteins_np, three_batches())
    cells.obs["panel"] = panel
    schema = fit_schema(
        open_store(cells), SetupArgs(batch_key="batch", panel_key="panel", protein_key="adt")
    )
    assert schema.panel_registry_key == "panel"
    assert (schema.n_panel, schema.n_batch) == (2, 3)
    assert schema.protein_batch_mask == {"0": (True,) * 4, "1": (True, True, False, True)}
    codes = schema.encode(cells.obs)["panel"][:, 0]
    np.testing.assert_array_equal(codes, (panel == "small").astype(int))
    assert fit_schema(open_store(cells), SETUP).protein_batch_mask is None


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (-1.0, "-1"), (np.inf, "inf")])
def test_what_is_no_count_is_refused_by_row_and_protein(value: float, shown: str) -> None:
    proteins_np = counts()
    proteins_np[41, 2] = value
    with pytest.raises(BadCounts, match=f"row 41 has {shown} for 'CD8'"):
        fit_schema(open_store(cells_of(proteins_np, three_batches())), SETUP, chunk_rows=7)


def test_fractions_are_warned_of_once() -> None:
    proteins_np = counts() + 0.5
    with pytest.warns(UserWarning, match="row 0 has .* for 'CD3'") as told:
        fit_schema(open_store(cells_of(proteins_np, three_batches())), SETUP, chunk_rows=7)
    assert len(told) == 1


def test_other_data_is_brought_to_the_order_of_proteins_by_name() -> None:
    proteins_np = counts()
    schema = fit_schema(open_store(cells_of(proteins_np, three_batches())), SETUP)
    order = [3, 0, 2, 1]
    more_np = np.column_stack([proteins_np[:, order], np.ones(N)])
    lacking = proteins_np.copy()
    lacking[:, 1] = 0
    others = open_store(cells_of(more_np, three_batches(), [NAMES[i] for i in order] + ["CD56"]))
    transferred, _ = transfer_schema(schema, others)
    assert transferred.protein_names == schema.protein_names
    reader = protein_reader(others, SETUP, transferred.protein_names)
    np.testing.assert_array_equal(reader.read([(5, 9), (0, 2)]), proteins_np[[5, 6, 7, 8, 0, 1]])
    np.testing.assert_array_equal(reader.read_at(np.array([7, 7, 0])), proteins_np[[7, 7, 0]])
    transferred, _ = transfer_schema(schema, open_store(cells_of(lacking, three_batches())))
    assert transferred.protein_batch_mask is not None
    assert all(
        seen == (True, False, True, True) for seen in transferred.protein_batch_mask.values()
    )
    few = cells_of(proteins_np[:, :3], three_batches(), NAMES[:3])
    with pytest.raises(SchemaMismatch, match=r"lacks 1 of the 4 proteins .*'CD19'"):
        transfer_schema(schema, open_store(few))


def test_proteins_without_names_are_told_by_place() -> None:
    cells = cells_of(counts(), three_batches())
    cells.obsm["adt"] = cells.obsm["adt"].to_numpy()
    schema = fit_schema(open_store(cells), SETUP)
    assert schema.protein_names == ("0", "1", "2", "3")
    named = SetupArgs(batch_key="batch", protein_key="adt", protein_names=tuple(NAMES))
    assert fit_schema(open_store(cells), named).protein_names == tuple(NAMES)
    cells.obsm["adt"] = cells.obsm["adt"][:, :2]
    with pytest.raises(SchemaMismatch, match="2 proteins, but the model was set up with 4"):
        transfer_schema(schema, open_store(cells))
    with pytest.raises(SchemaMismatch, match="2 columns, but 4 names"):
        fit_schema(open_store(cells), named)


def test_what_is_not_there_is_refused_with_the_nearest_name() -> None:
    store = open_store(cells_of(counts(), three_batches()))
    with pytest.raises(FieldNotFound, match="did you mean 'adt'"):
        fit_schema(store, SetupArgs(protein_key="adtt"))
    with pytest.raises(FieldNotFound, match="did you mean 'batch'"):
        fit_schema(store, SetupArgs(protein_key="adt", panel_key="batsh"))
    with pytest.raises(ConfigError, match="need protein_key"):
        SetupArgs(panel_key="panel")
    with pytest.raises(ConfigError, match="list of names"):
        SetupArgs(protein_key="adt", protein_names="CD3")  # type: ignore[arg-type]


def masked_cells() -> anndata.AnnData:
    proteins_np = counts()
    proteins_np[three_batches() == "b1", 3] = 0
    cells = cells_of(proteins_np, three_batches())
    cells.obs["panel"] = pd.Categorical(np.where(three_batches() == "b1", "x", "y"))
    return cells


MUDATA = mudata_setup(
    {
        "protein_layer": "raw",
        "batch_key": "batch",
        "panel_key": "panel",
        "categorical_covariate_keys": ["donor", "site"],
        "continuous_covariate_keys": ["age"],
    },
    {
        "rna_layer": "rna",
        "protein_layer": "prot",
        "batch_key": "rna",
        "categorical_covariate_keys": "prot",
    },
)


@pytest.mark.parametrize(
    "setup",
    [
        SETUP,
        SetupArgs(batch_key="batch", panel_key="panel", protein_key="adt"),
        SetupArgs(
            protein_key="adt", protein_names=("a", "b", "c", "d"), protein_names_uns_key="names"
        ),
    ],
)
def test_a_schema_survives_json_and_scvi_tools_registry(setup: SetupArgs) -> None:
    schema = fit_schema(open_store(masked_cells()), setup)
    assert Schema.from_json(schema.to_json()) == schema
    assert Schema.from_registry(schema.registry("TOTALVI")) == schema


def test_a_mudata_setup_survives_json_and_scvi_tools_registry() -> None:
    assert MUDATA.batch_key == "rna:batch"
    assert MUDATA.panel_key == "rna:panel"
    assert MUDATA.categorical_covariate_keys == ("prot:donor", "prot:site")
    assert (MUDATA.protein_key, MUDATA.rna_modality) == ("prot:raw", "rna")
    columns = {"rna:batch": ("b",), "prot:donor": ("d", "e"), "prot:site": ("s",)}
    schema = Schema(
        setup=MUDATA,
        var_names=("g0", "g1"),
        n_obs=7,
        categories={"batch": columns["rna:batch"], "labels": (0,), "panel": ("x", "y")},
        joint_categories={c: columns[c] for c in ("prot:donor", "prot:site")},
        protein_names=("CD3", "CD4"),
        protein_batch_mask={"0": (True, False), "1": (True, True)},
    )
    assert Schema.from_json(schema.to_json()) == schema
    registry = schema.registry("TOTALVI")
    assert Schema.from_registry(registry) == schema
    names = {"rna": np.array(["g0", "g1"]), "prot": np.array(["CD3", "CD4"])}
    assert Schema.from_registry(registry, names) == schema
    arguments = mudata_arguments(MUDATA)
    assert arguments["batch_key"] == "batch"
    assert mudata_setup(arguments, arguments["modalities"]) == MUDATA


@pytest.mark.parametrize(
    ("modalities", "said"),
    [
        (None, "cannot be None"),
        ({"rna_layer": "rna"}, "protein_layer is"),
        ({"rna_layer": "rna", "protein_layer": "p", "bach_key": "rna"}, "did you mean 'batch_key'"),
    ],
)
def test_modalities_have_to_be_named(modalities: dict[str, str] | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        mudata_setup({}, modalities)


@pytest.mark.parametrize("kind", ["memory", "h5ad", "zarr", "collection", "subset"])
def test_every_kind_of_store_gives_the_same_schema_and_proteins(kind: str, tmp_path: Path) -> None:
    cells = masked_cells()
    cells.uns["names"] = np.array(NAMES, dtype=object)
    source: object = cells
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind in ("h5ad", "zarr"):
            source = tmp_path / f"cells.{kind}"
            (cells.write_h5ad if kind == "h5ad" else cells.write_zarr)(source)
        elif kind == "collection":
            source = [cells[:25].copy(), cells[25:].copy()]
    store = open_store(source)  # type: ignore[arg-type]
    if kind == "subset":
        store = open_store(store, obs_filter="batch == batch")
    expected = fit_schema(open_store(cells), SETUP)
    schema = fit_schema(store, SETUP)
    assert schema == expected
    manager = AnnDataManager(store, schema, "TOTALVI")
    found = manager.get_from_registry("proteins")
    np.testing.assert_array_equal(np.asarray(found), cells.obsm["adt"].to_numpy())
    assert list(found.columns) == NAMES
    assert list(store.read_uns("names")) == NAMES
    with pytest.raises(FieldNotFound, match="uns"):
        store.read_uns("nothing of the kind")


def test_a_digest_tells_other_counts() -> None:
    proteins_np = counts()
    changed = proteins_np.copy()
    changed[59, 0] += 1

    def digests(values: np.ndarray) -> tuple[str, str, str]:
        store = open_store(cells_of(values, three_batches()))
        reader = protein_reader(store, SETUP, NAMES)
        return reader.digest(), reader.digest(N), reader.digest(2)

    assert digests(proteins_np) == digests(proteins_np.copy())
    assert not set(digests(proteins_np)) & set(digests(changed))
