"""MuData passes the suite: what a MuData on disk or in memory shows is one AnnData."""

import warnings
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

from scvi_dist.data import Store, open_store
from scvi_dist.errors import (
    ConfigError,
    FieldNotFound,
    SchemaMismatch,
    StoreCorrupt,
    UnsupportedStore,
)
from scvi_dist.testing import StoreConformance, dense_of, small_atlas

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mudata


def multimodal(adata: Any, cells: np.ndarray | None = None, *, sparse_x: bool = False) -> Any:
    """The AnnData as a MuData; its proteins are a modality, with these of the cells."""
    rna = adata.copy()
    rna.obs = adata.obs  # copying an AnnData drops unused categories
    table = rna.obsm.pop("proteins")
    cells = np.arange(adata.n_obs) if cells is None else cells
    x = table.to_numpy(np.float32)[cells]
    proteins = anndata.AnnData(
        sparse.csr_matrix(x) if sparse_x else x,
        obs=pd.DataFrame(index=adata.obs_names[cells]),
        var=pd.DataFrame(index=table.columns),
    )
    return together({"rna": rna, "proteins": proteins})


def together(modalities: dict[str, Any], **options: Any) -> Any:
    """A MuData, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mudata.MuData(modalities, **options)


def write(mdata: Any, path: Path, **options: Any) -> Path:
    """Write with mudata, by the suffix of the path, without its warnings; returns the path."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (mdata.write if path.suffix == ".h5mu" else mdata.write_zarr)(path, **options)
    return path


class MuDataConformance(StoreConformance):
    """An AnnData that is a modality has the suite's columns, and again with its name before."""

    starts_process = False

    def test_obs_columns_and_their_kinds(self, store: Store) -> None:
        bare = {name: kind for name, kind in store.obs_columns.items() if ":" not in name}
        prefixed = {f"rna:{name}": kind for name, kind in bare.items()}
        assert store.obs_columns == bare | prefixed
        assert list(bare) == list(small_atlas(n=3).obs.columns)


class TestH5mu(MuDataConformance):
    starts_process = True

    def make_store(self, adata: Any, folder: Path) -> Store:
        return open_store(write(multimodal(adata), folder / "atlas.h5mu"))


class TestCompressedH5mu(MuDataConformance):
    """A MuData file has a block of text before its HDF5, which shifts all chunks."""

    def make_store(self, adata: Any, folder: Path) -> Store:
        mdata = multimodal(adata, sparse_x=True)
        return open_store(write(mdata, folder / "atlas.h5mu", compression="gzip"))


class TestMuDataZarr(MuDataConformance):
    """The proteins in another order, brought in step by name."""

    def make_store(self, adata: Any, folder: Path) -> Store:
        order = np.random.default_rng(0).permutation(adata.n_obs)
        return open_store(write(multimodal(adata, order), folder / "atlas.zarr"))


class TestMuDataInMemory(MuDataConformance):
    in_other_processes = False
    starts_process = True

    def make_store(self, adata: Any, folder: Path) -> Store:
        order = np.random.default_rng(0).permutation(adata.n_obs)
        return open_store(multimodal(adata, order))

    def test_nothing_is_written(self, tmp_path: Path) -> None:
        mdata = multimodal(small_atlas())
        before = mdata.obs.copy(), dense_of(mdata["rna"]).copy(), list(mdata.obsm)
        with open_store(mdata) as store:
            store.read_rows([(0, 9)], np.array([2, 1]))
            store.read_obs(list(store.obs_columns))
            store.read_obsm("proteins", [(0, 3)])
            store.digest()
        pd.testing.assert_frame_equal(mdata.obs, before[0])
        np.testing.assert_array_equal(dense_of(mdata["rna"]), before[1])
        assert list(mdata.obsm) == before[2]


class TestDroppedCells(MuDataConformance):
    """Cells without proteins lie between those that have them."""

    def make_store(self, adata: Any, folder: Path) -> Store:
        more = small_atlas(n=20, seed=9)
        more.obs_names = [f"more-{i}" for i in range(20)]
        more.obs["barcode"] = more.obs_names.tolist()
        n, n_all = adata.n_obs, adata.n_obs + 20
        with warnings.catch_warnings(), anndata.settings.override(remove_unused_categories=False):
            warnings.simplefilter("ignore")
            both = anndata.concat([adata, more], merge="first")
            both.raw = anndata.concat([adata.raw.to_adata(), more.raw.to_adata()], merge="first")
        rows = np.sort(np.random.default_rng(3).choice(n_all, n, replace=False))
        order = np.empty(n_all, dtype=int)
        order[rows] = np.arange(n)
        order[np.setdiff1d(np.arange(n_all), rows)] = np.arange(n, n_all)
        larger = both[order].copy()
        for name in ("batch", "donor", "plate"):
            dtype = adata.obs[name].dtype
            larger.obs[name] = pd.Categorical(larger.obs[name], dtype=dtype)
        mdata = multimodal(larger, np.random.default_rng(0).permutation(rows))
        return open_store(write(mdata, folder / "atlas.h5mu"), unpaired="drop")


# which modality, which cells, which columns


def cite(n: int = 30, n_proteins: int = 20) -> Any:
    """rna and prot with clashing columns, prot without the first cells; both have layers."""
    adata = small_atlas(n=n)
    mdata = multimodal(adata, np.arange(n - n_proteins, n)[::-1])
    rna, prot = mdata["rna"], mdata["proteins"]
    prot.layers["dsb"] = prot.X / 7
    prot.obs["batch"] = pd.Categorical(["p0", "p1"] * (n_proteins // 2))
    prot.obs["n_umis"] = np.arange(n_proteins)
    prot.obs["is_control"] = False
    mdata = together({"rna": rna, "prot": prot})
    mdata.obs["batch"] = pd.Categorical([f"site{i % 3}" for i in range(n)])
    mdata.obs["depth"] = np.arange(n) * 1.5
    mdata.obsm["joint"] = np.arange(2.0 * n).reshape(n, 2)
    mdata.obsm["pca"] = np.arange(3.0 * n).reshape(n, 3)
    return mdata


@pytest.fixture(params=["memory", "h5mu", "zarr"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    mdata = cite()
    if request.param == "memory":
        return mdata
    return write(mdata, tmp_path / f"cite.{request.param}")


def test_the_modality_of_the_counts(source: Any) -> None:
    with open_store(source) as store:
        assert store.n_vars == 23
        assert set(store.obsm_keys) == {"prot", "prot:dsb", "joint", "pca", "rna:pca"}
    with open_store(source, modality="prot") as store:
        assert store.shape == (20, 3)
        assert store.obsm_keys["rna"] == 23
        assert {"rna", "rna:counts", "rna:raw", "joint"} <= set(store.obsm_keys)
    with pytest.raises(FieldNotFound, match="did you mean 'prot'"):
        open_store(source, modality="prto")


def test_columns_of_all_and_of_one_modality(source: Any) -> None:
    mdata = cite()
    with open_store(source, unpaired="zeros") as store:
        table = store.read_obs(
            ["batch", "rna:batch", "prot:batch", "depth", "rna:depth", "prot:n_umis"], 5, 30
        )
        assert table["batch"].tolist() == mdata.obs["batch"][5:].tolist()
        assert table["rna:batch"].tolist() == mdata["rna"].obs["batch"][5:].tolist()
        assert table["depth"].tolist() == mdata.obs["depth"][5:].tolist()
        assert table["rna:depth"].tolist() == mdata["rna"].obs["depth"][5:].tolist()
        assert table["prot:batch"].cat.categories.tolist() == ["p0", "p1"]
        assert table["prot:batch"].isna().tolist() == [True] * 5 + [False] * 20
        assert table["prot:n_umis"][5:].tolist() == list(range(19, -1, -1))
        control = store.read_obs(["prot:is_control"])["prot:is_control"]
        assert control.isna().sum() == 10
        assert (control.dropna() == False).all()  # noqa: E712
        with pytest.raises(FieldNotFound, match="did you mean 'prot:batch'"):
            store.read_obs(["prto:batch"])


def test_cells_that_a_modality_lacks(source: Any) -> None:
    mdata = cite()
    x = dense_of(mdata["prot"])
    with open_store(source) as store:
        for read in (
            lambda: store.read_obsm("prot", [(0, 3)]),
            lambda: store.read_obs(["prot:n_umis"]),
        ):
            with pytest.raises(
                SchemaMismatch, match=r"10 of its 30 cells.*'cell-0'.*'drop'.*'zeros'"
            ):
                read()
        assert store.read_obsm("joint", [(3, 5)]).tolist() == [[6, 7], [8, 9]]
        assert store.read_obsm("pca", [(3, 4)]).tolist() == [[9, 10, 11]]
        np.testing.assert_allclose(
            store.read_obsm("rna:pca", [(3, 4)]), mdata["rna"].obsm["pca"][3:4], rtol=1e-6
        )
    with open_store(source, unpaired="zeros") as store:
        values = store.read_obsm("prot", [(8, 30), (0, 2)])
        np.testing.assert_array_equal(
            values, np.concatenate([x[:0], np.zeros((2, 3)), x[::-1], np.zeros((2, 3))])
        )
        dsb = store.read_obsm("prot:dsb", [(10, 30)])
        np.testing.assert_allclose(dsb, x[::-1] / 7, rtol=1e-6)
        assert store.obsm_columns("prot") == ("CD3", "CD4", "CD8")
        assert store.obsm_columns("joint") is None
    with open_store(source, unpaired="drop") as store:
        assert store.obs_names().tolist() == [f"cell-{i}" for i in range(10, 30)]
        np.testing.assert_array_equal(store.read_obsm("prot", [(0, 20)]), x[::-1])
        assert store.read_obs(["depth"], 0, 1)["depth"][0] == 15.0
        with store.locator.open() as again:
            assert again.digest() == store.digest()


def test_layers_of_the_counts_keep_what_is_beside_them(source: Any) -> None:
    with open_store(source, layer="counts", unpaired="drop") as store:
        expected = dense_of(cite()["rna"], "counts")[10:]
        np.testing.assert_array_equal(store.read_rows([(0, 20)]).to_dense(), expected)
        assert store.obsm_keys["prot"] == 3
        with open_store(store, layer="spliced") as other:
            assert other.n_obs == 20


def test_batches_without_proteins_in_a_collection(tmp_path: Path) -> None:
    """CITE-seq and plain RNA side by side: no proteins are zeros."""
    plain = small_atlas(n=12, seed=5)
    plain.obs_names = [f"plain-{i}" for i in range(12)]
    del plain.obsm["proteins"]
    mdata = cite(20, 20)
    store = open_store([write(mdata, tmp_path / "cite.h5mu"), plain], join="outer")
    values = store.read_obsm("prot", [(0, 32)])
    np.testing.assert_array_equal(values[:20], dense_of(mdata["prot"])[::-1])
    assert (values[20:] == 0).all()
    assert store.obsm_columns("prot") == ("CD3", "CD4", "CD8")


def test_modalities_that_cannot_be_told(tmp_path: Path) -> None:
    mdata = cite(20, 20)
    mdata = together({"one": mdata["rna"], "two": mdata["prot"]})
    for source in (mdata, write(mdata, tmp_path / "a.h5mu")):
        with pytest.raises(ConfigError, match=r"'one', 'two'; say which"):
            open_store(source)
        assert open_store(source, modality="two").n_vars == 3
    assert open_store(together({"one": mdata["one"]})).n_vars == 23
    with pytest.raises(ConfigError, match="did you mean 'zeros'"):
        open_store(mdata, unpaired="zero")  # type: ignore[arg-type]


def test_a_modality_of_an_anndata_is_refused(tmp_path: Path) -> None:
    from scvi_dist.testing import write_atlas

    path = write_atlas(small_atlas(n=5), tmp_path / "a.h5ad")
    with pytest.raises(ConfigError, match="is an AnnData, which has no modalities"):
        open_store(path, modality="rna")


def test_modalities_that_share_genes_are_refused(tmp_path: Path) -> None:
    one, two = small_atlas(n=5), small_atlas(n=6)
    two.obs_names = [f"other-{i}" for i in range(6)]
    mdata = together({"rna": one, "more": two}, axis=1)
    for source in (mdata, write(mdata, tmp_path / "a.h5mu")):
        with pytest.raises(UnsupportedStore, match="axis=1"):
            open_store(source)


def test_repeated_cells_of_modalities_out_of_step_are_named() -> None:
    mdata = cite()
    names = mdata["rna"].obs_names.to_numpy(dtype=object).copy()
    names[3] = names[20]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata["rna"].obs_names = names
    with pytest.raises(SchemaMismatch, match="more than once: 'cell-20'"):
        open_store(mdata)


@pytest.mark.parametrize("damage", ["order", "length", "outside"])
@pytest.mark.parametrize("modality", ["rna", "prot"])
def test_maps_that_do_not_fit_are_noticed(damage: str, modality: str, tmp_path: Path) -> None:
    path = write(cite(), tmp_path / "a.h5mu")
    with h5py.File(path, "r+") as file:
        places = file[f"obsmap/{modality}"][:]
        kept = np.flatnonzero(places)
        if damage == "order":
            places[kept] = places[kept[::-1]]
        elif damage == "outside":
            places[kept[2]] = 99
        del file[f"obsmap/{modality}"]
        file[f"obsmap/{modality}"] = places[:-1] if damage == "length" else places
    with pytest.raises(StoreCorrupt, match=rf"obsmap/{modality} does not lead .*mdata\.update"):
        open_store(path)


def test_old_files_without_maps_are_joined_by_name(tmp_path: Path) -> None:
    path = write(cite(), tmp_path / "a.zarr")
    with open_store(path, unpaired="zeros") as store:
        expected = store.read_obsm("prot", [(0, 30)]), store.read_obs(["batch", "prot:n_umis"])
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    del root["obsmap"]
    root.update_attributes({})
    with open_store(path, unpaired="zeros") as store:
        np.testing.assert_array_equal(store.read_obsm("prot", [(0, 30)]), expected[0])
        pd.testing.assert_frame_equal(store.read_obs(["batch", "prot:n_umis"]), expected[1])
