"""What of an experiment is opened: measurements, layers, filters, times; and what is refused."""

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiledbsoma
import tiledbsoma.io
from soma_experiments import make_census, scatter

from scvi_dist.data import open_store
from scvi_dist.data.soma.context import context_of
from scvi_dist.data.soma.options import SomaOptions, soma_locator
from scvi_dist.data.soma.soma_writer import write_soma
from scvi_dist.errors import (
    ConfigError,
    FieldNotFound,
    StoreChanged,
    StoreCorrupt,
    StoreError,
    StoreNotFound,
    UnsupportedStore,
)
from scvi_dist.testing import dense_of, small_atlas, write_atlas


@pytest.fixture(scope="module")
def adata() -> Any:
    return small_atlas()


@pytest.fixture(scope="module")
def path(adata: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not write to it."""
    target = tmp_path_factory.mktemp("soma") / "atlas.soma"
    write_soma(open_store(adata), target, layers=("counts",))
    return target


@pytest.fixture(scope="module")
def census(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, pd.DataFrame]:
    rng = np.random.default_rng(0)
    counts_ng = (rng.poisson(2.0, (50, 30)) * (rng.random((50, 30)) < 0.3)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "tissue": rng.choice(["lung", "gut", "blood"], 50),
            "sex": rng.choice(["female", "male", "unknown"], 50),
            "is_primary_data": rng.random(50) < 0.7,
        }
    )
    folder = tmp_path_factory.mktemp("census") / "soma"
    return make_census(folder, counts_ng, obs), counts_ng, obs


# the Census


def test_layout_of_the_census(census: tuple[Path, np.ndarray, pd.DataFrame]) -> None:
    path, counts_ng, obs = census
    store = open_store(f"soma://{path}")
    assert store.layers == ("normalized", "raw")
    np.testing.assert_array_equal(store.read_rows([(0, 50)]).to_dense(), counts_ng)
    assert store.var_names[:2].tolist() == ["ENSG00000000000", "ENSG00000000001"]
    assert store.obs_names(3, 5).tolist() == ["3", "4"]
    assert store.obs_columns["tissue"] == "category"
    assert store.read_obs(["tissue"])["tissue"].tolist() == obs["tissue"].tolist()
    normalized = open_store(str(path), layer="normalized").read_rows([(7, 50)]).to_dense()
    size = np.maximum(counts_ng.sum(axis=1, keepdims=True), 1)
    np.testing.assert_allclose(normalized, (counts_ng / size)[7:], rtol=1e-6)


def test_both_kinds_of_filters_keep_the_same_cells(
    census: tuple[Path, np.ndarray, pd.DataFrame],
) -> None:
    path, counts_ng, obs = census
    keep = ((obs["tissue"] == "lung") & obs["is_primary_data"]).to_numpy()
    by_pandas = open_store(path, obs_filter="tissue == 'lung' and is_primary_data")
    by_tiledb = open_store(
        path, soma={"obs_value_filter": "tissue == 'lung' and is_primary_data == True"}
    )
    for store in (by_pandas, by_tiledb):
        assert store.n_obs == keep.sum()
        np.testing.assert_array_equal(
            store.read_rows([(0, store.n_obs)]).to_dense(), counts_ng[keep]
        )
        assert store.obs_names().tolist() == np.flatnonzero(keep).astype(str).tolist()
        seen = store.read_obs(["sex"], 2, 6)["sex"].tolist()
        assert seen == obs["sex"][keep].tolist()[2:6]
    again = pickle.loads(pickle.dumps(by_tiledb.locator)).open()
    assert again.digest() == by_tiledb.digest() != open_store(path).digest()


@pytest.mark.filterwarnings("ignore:Transforming to str index")
def test_a_filter_on_genes_is_axisquery_s(census: tuple[Path, np.ndarray, pd.DataFrame]) -> None:
    path, counts_ng, _ = census
    names = ["ENSG00000000004", "ENSG00000000011", "ENSG00000000029"]
    options = SomaOptions(var_value_filter=f"feature_id in {names}", obs_value_filter="sex != 'x'")
    store = open_store(path, soma=options)
    assert store.var_names.tolist() == names
    block = store.read_rows([(10, 30), (2, 4)], np.array([2, 0]))
    np.testing.assert_array_equal(block.to_dense(), counts_ng[[*range(10, 30), 2, 3]][:, [29, 4]])
    with (
        tiledbsoma.open(str(path)) as experiment,
        experiment.axis_query(
            "RNA",
            obs_query=tiledbsoma.AxisQuery(value_filter=options.obs_value_filter),
            var_query=tiledbsoma.AxisQuery(value_filter=options.var_value_filter),
        ) as query,
    ):
        expected = query.to_anndata("raw").X.toarray()
    np.testing.assert_array_equal(store.read_rows([(0, 50)]).to_dense(), expected)


# measurements, layers, names


def test_the_only_measurement_needs_no_name(adata: Any, tmp_path: Path) -> None:
    write_soma(open_store(adata[:, :5].copy()), tmp_path / "a.soma", measurement="GEX")
    with pytest.raises(FieldNotFound, match=r"no measurement 'RNA'.*'GEX', 'proteins'"):
        open_store(tmp_path / "a.soma")
    store = open_store(tmp_path / "a.soma", soma={"measurement": "GEX"})
    assert store.n_vars == 5
    proteins = open_store(tmp_path / "a.soma", soma={"measurement": "proteins"})
    np.testing.assert_array_equal(
        proteins.read_rows([(0, 9)]).to_dense(), store.read_obsm("proteins", [(0, 9)])
    )
    assert proteins.obsm_keys == {"GEX": 5}
    np.testing.assert_array_equal(
        proteins.read_obsm("GEX", [(4, 9)]), store.read_rows([(4, 9)]).to_dense()
    )
    alone = adata.copy()
    del alone.obsm["proteins"]
    write_soma(open_store(alone), tmp_path / "b.soma", measurement="GEX")
    assert open_store(tmp_path / "b.soma").n_vars == adata.n_vars


def test_what_tiledbsoma_ingests(adata: Any, tmp_path: Path) -> None:
    """Its own layout, where every column is nullable and unused categories are dropped."""
    without = adata.copy()
    del without.obsm["proteins"]  # it refuses tables
    tiledbsoma.io.from_anndata(str(tmp_path / "a"), without, "RNA")
    store = open_store(tmp_path / "a")
    np.testing.assert_array_equal(store.read_rows([(0, 57)]).to_dense(), dense_of(adata))
    assert {"counts", "data", "raw", "spliced"} <= set(store.layers)
    raw = open_store(store, layer="raw")
    np.testing.assert_array_equal(raw.read_rows([(3, 9)]).to_dense(), dense_of(adata, "raw")[3:9])
    columns = ["batch", "donor", "n_reads", "depth", "is_doublet", "barcode"]
    seen = store.read_obs(columns)
    for name in columns:
        expected = adata.obs[name].astype(object).where(adata.obs[name].notna(), None)
        assert seen[name].astype(object).where(seen[name].notna(), None).tolist() == list(expected)
    assert seen["n_reads"].dtype == np.int64
    np.testing.assert_array_equal(
        store.read_obsm("pca", [(5, 20)]), adata.obsm["pca"][5:20].astype(np.float32)
    )


def test_names_come_from_the_column_that_is_asked_for(path: Path, adata: Any) -> None:
    store = open_store(path, soma={"obs_names": "barcode"})
    assert store.obs_names(2, 4).tolist() == adata.obs["barcode"].iloc[2:4].tolist()
    assert "obs_id" in store.obs_columns
    with pytest.raises(FieldNotFound, match="did you mean 'barcode'"):
        open_store(path, soma={"obs_names": "barcodes"})


def test_rows_that_were_deleted_are_not_there(adata: Any, path: Path, tmp_path: Path) -> None:
    scatter(path, tmp_path / "a.soma")
    digest = open_store(tmp_path / "a.soma").digest()
    gone = [4, 5, 30]
    with tiledbsoma.DataFrame.open(str(tmp_path / "a.soma" / "obs"), "d") as frame:
        frame.delete_cells(([3 * row + 5 for row in gone],))
    store = open_store(tmp_path / "a.soma")
    kept = np.setdiff1d(np.arange(57), gone)
    assert store.n_obs == 54
    assert store.obs_names().tolist() == adata.obs_names[kept].tolist()
    np.testing.assert_array_equal(
        store.read_rows([(2, 40)]).to_dense(), dense_of(adata)[kept[2:40]]
    )
    assert store.digest() != digest


def test_a_table_indexed_by_another_column(adata: Any, path: Path, tmp_path: Path) -> None:
    """The order on disk is that of the index; ours is that of the identifiers."""
    scatter(path, tmp_path / "a.soma")
    uri = str(tmp_path / "a.soma" / "obs")
    with tiledbsoma.open(uri) as frame:
        table, schema = frame.read().concat(), frame.schema
        categories = frame.get_enumeration_values(["batch", "donor", "plate"])
    with tiledbsoma.DataFrame.create(
        f"{uri}2", schema=schema, index_column_names=["depth"], domain=[(0.0, 1e4)]
    ) as frame:
        frame.extend_enumeration_values(categories)
    with tiledbsoma.open(f"{uri}2", "w") as frame:
        frame.write(table)
    with tiledbsoma.open(str(tmp_path / "a.soma"), "d") as experiment:
        del experiment["obs"]
    with tiledbsoma.open(str(tmp_path / "a.soma"), "w") as experiment:
        experiment.set("obs", tiledbsoma.open(f"{uri}2"))
    for options in ({}, {"obs_value_filter": "n_reads < 500"}):
        store = open_store(tmp_path / "a.soma", soma=options)
        names = store.obs_names()
        keep = adata.obs_names.isin(names)
        assert len(names) == 57 or options
        assert names.tolist() == adata.obs_names[keep].tolist()
        depth = store.read_obs(["depth", "n_reads"], 3, 11)
        np.testing.assert_array_equal(depth["depth"], adata.obs["depth"][keep].iloc[3:11])
        np.testing.assert_array_equal(
            store.read_rows([(0, store.n_obs)]).to_dense(), dense_of(adata)[keep]
        )


# times


def test_a_time_shows_the_experiment_as_it_was(adata: Any, tmp_path: Path) -> None:
    uri = tmp_path / "a.soma"
    write_soma(open_store(adata), uri)
    then = int(time.time() * 1000)
    while int(time.time() * 1000) <= then:
        continue
    with tiledbsoma.open(str(uri / "ms" / "RNA" / "X" / "data"), "w") as array:
        row = {"soma_dim_0": [3], "soma_dim_1": [2], "soma_data": np.array([99], np.float32)}
        array.write(tiledbsoma_table(row))
    now, before = open_store(uri), open_store(uri, soma={"timestamp": then})
    assert now.read_rows([(3, 4)]).to_dense()[0, 2] == 99
    np.testing.assert_array_equal(before.read_rows([(0, 57)]).to_dense(), dense_of(adata))
    assert before.digest() != now.digest()
    stamp = pd.Timestamp(then, unit="ms", tz="UTC").isoformat()
    assert SomaOptions(timestamp=stamp).timestamp_ms == then
    assert open_store(uri, soma={"timestamp": stamp}).locator == before.locator


def tiledbsoma_table(columns: dict[str, Any]) -> Any:
    import pyarrow as pa

    return pa.table(columns)


# what is refused


def test_names_that_do_not_exist(path: Path) -> None:
    with pytest.raises(FieldNotFound, match=r"no measurement 'RMA'; did you mean 'RNA'"):
        open_store(path, soma={"measurement": "RMA"})
    with pytest.raises(FieldNotFound, match=r"no layer 'count'; did you mean 'counts'"):
        open_store(path, layer="count")
    with pytest.raises(ConfigError, match=r"no option 'measure'; did you mean 'measurement'"):
        open_store(path, soma={"measure": "RNA"})
    with pytest.raises(FieldNotFound, match=r"did you mean 'n_reads'"):
        open_store(path, soma={"obs_value_filter": "n_read > 3"})
    with pytest.raises(ConfigError, match=r"obs_value_filter 'n_reads = > 3' is not"):
        open_store(path, soma={"obs_value_filter": "n_reads = > 3"})
    with pytest.raises(ConfigError, match="no ISO date"):
        open_store(path, soma={"timestamp": "yesterday"})


def test_places_that_hold_no_experiment(path: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match=r"did you mean 'atlas.soma'"):
        open_store(f"soma://{path.parent}/atlas.sona")
    with pytest.raises(StoreNotFound):
        open_store(tmp_path / "nothing.soma")
    with pytest.raises(UnsupportedStore, match="SOMADataFrame"):
        open_store(path / "obs")
    with pytest.raises(UnsupportedStore, match=r"SOMACollection.*RNA, proteins"):
        open_store(path / "ms")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnsupportedStore, match="not a TileDB-SOMA experiment"):
        open_store(f"soma://{tmp_path}/empty")
    tiledbsoma.Experiment.create(str(tmp_path / "half")).close()
    with pytest.raises(StoreCorrupt, match="no obs"):
        open_store(tmp_path / "half")


def test_secrets_are_refused(path: Path) -> None:
    for name in ("vfs.s3.aws_secret_access_key", "rest.token", "rest.password"):
        with pytest.raises(ConfigError, match="looks like a secret"):
            open_store(path, storage_options={name: "abc"})
    locator = soma_locator("s3://bucket/a", storage_options={"vfs.s3.region": "eu-west-1"})
    assert locator.fsspec_options() == {"vfs.s3.region": "eu-west-1"}


def test_damaged_obs_names_its_rows(adata: Any, tmp_path: Path) -> None:
    write_soma(open_store(adata), tmp_path / "a.soma")
    store = open_store(tmp_path / "a.soma")
    for file in (tmp_path / "a.soma" / "obs" / "__fragments").glob("*/*.tdb"):
        if not file.name.startswith("__"):
            file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(StoreCorrupt, match=r"a\.soma: obs, rows 3 to 9 cannot be read"):
        store.read_obs(["depth"], 3, 9)


def test_cells_added_behind_our_back(path: Path, tmp_path: Path) -> None:
    """A handle sees the table as it was; one that is opened later has another digest."""
    scatter(path, tmp_path / "a.soma")
    store = open_store(tmp_path / "a.soma")
    digest = store.digest()
    uri = str(tmp_path / "a.soma" / "obs")
    with tiledbsoma.open(uri) as frame:
        row = frame.read((slice(5, 5),)).concat()
    place = row.schema.get_field_index("soma_joinid")
    moved = row.set_column(place, row.schema.field(place), [np.array([6])])
    with tiledbsoma.open(uri, "w") as frame:
        frame.write(moved)
    assert store.read_obs(["depth"], 0, 57).shape == (57, 1)
    later = open_store(tmp_path / "a.soma")
    assert later.n_obs == 58
    assert later.digest() != digest == store.digest()
    assert issubclass(StoreChanged, StoreError)


def test_handles_do_not_survive_a_fork_or_closing(path: Path, monkeypatch: Any) -> None:
    store = open_store(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        for read in (lambda: store.read_rows([(0, 1)]), lambda: store.read_obs(["depth"])):
            with pytest.raises(StoreError, match="forked"):
                read()
        store.close()
    assert store.read_rows([(0, 1)]).n_cells == 1
    store.close()
    with pytest.raises(StoreError, match="was closed"):
        store.read_rows([(0, 1)])


# beside other things


def test_an_experiment_is_a_part_of_a_collection(adata: Any, path: Path, tmp_path: Path) -> None:
    other = small_atlas(n=20, seed=3)
    write_atlas(other, tmp_path / "b.h5ad")
    both = open_store([path, tmp_path / "b.h5ad"])
    expected = np.concatenate([dense_of(adata), dense_of(other)])
    with both.locator.open() as again:
        rows = np.array([3, 56, 57, 76, 0])
        np.testing.assert_array_equal(again.read_rows_at(rows).to_dense(), expected[rows])
        proteins = np.concatenate([a.obsm["proteins"].to_numpy() for a in (adata, other)])
        np.testing.assert_array_equal(again.read_obsm("proteins", [(50, 77)]), proteins[50:])


def test_a_process_ends_in_silence(path: Path) -> None:
    """Handles that nobody closed, a thread that reads, warnings as errors."""
    script = (
        "import sys, threading\n"
        "from scvi_dist.data import open_store\n"
        "store = open_store(sys.argv[1])\n"
        "read = lambda: store.read_rows([(0, 20)]) and store.read_obs(['batch'])\n"
        "thread = threading.Thread(target=read)\n"
        "thread.start(); read(); thread.join()\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_tiledb_does_not_merge_tiles_ahead_of_a_read() -> None:
    """It frees memory of queries that have ended: now and then the process dies of it."""
    for options in ({}, {"vfs.s3.region": "eu-west-1"}):
        config = context_of(options).tiledb_config
        assert config["sm.query.sparse_global_order.preprocess_tile_merge"] == "0"
