"""Elements are found and tables decoded in every encoding that anndata has written."""

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

from scvi_dist.data import open_store
from scvi_dist.data.on_disk.layout import as_text, native
from scvi_dist.errors import FieldNotFound, StoreCorrupt, UnsupportedStore
from scvi_dist.testing import small_atlas, write_atlas

SUFFIXES = ["h5ad", "2.zarr", "3.zarr"]


def write(adata: Any, folder: Path, suffix: str, **options: Any) -> Path:
    version = 2 if suffix == "2.zarr" else 3
    return write_atlas(adata, folder / f"a.{suffix}", zarr_format=version, **options)


def atlas_with(obs: dict[str, Any], n: int = 6) -> Any:
    table = pd.DataFrame(obs, index=[f"c{i}" for i in range(n)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.AnnData(np.eye(n, 3, dtype="f4"), obs=table)


COLUMNS: dict[str, tuple[Any, str]] = {
    "int8": (np.arange(6, dtype="i1"), "number"),
    "uint64": (np.arange(6, dtype="u8"), "number"),
    "float32": (np.array([0, 1, np.nan, 3, 4, 5], dtype="f4"), "number"),
    "bool": (np.arange(6) % 2 == 0, "bool"),
    "text": (["", "b", "ß", "d", "e", "f\n"], "string"),
    "category": (pd.Categorical(["b", "a", None, "b", "a", "a"], ["z", "b", "a"]), "category"),
    "ordered": (pd.Categorical([3, 1, 2, 1, 1, 1], [3, 2, 1], ordered=True), "category"),
    "float category": (pd.Categorical([0.5, 1.5, 0.5, None, 1.5, 0.5]), "category"),
    "bool category": (pd.Categorical([True, False, True, None, True, True]), "category"),
    "empty category": (pd.Categorical([None] * 6, ["never"]), "category"),
    "nullable int": (pd.array([1, None, 3, 4, 5, 6], dtype="Int32"), "number"),
    "nullable bool": (pd.array([True, None, False, True, True, None], dtype="boolean"), "bool"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_columns_come_back_as_anndata_gives_them(suffix: str, tmp_path: Path) -> None:
    adata = atlas_with({name: values for name, (values, _) in COLUMNS.items()})
    with open_store(write(adata, tmp_path, suffix)) as store:
        assert store.obs_columns == {name: kind for name, (_, kind) in COLUMNS.items()}
        for window in ((0, 6), (1, 4), (5, 6), (3, 3)):
            table = store.read_obs(list(COLUMNS), *window)
            expected = adata.obs.iloc[slice(*window)].reset_index(drop=True)
            pd.testing.assert_frame_equal(table, expected, check_index_type=False)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nullable_text_has_none_where_it_is_missing(suffix: str, tmp_path: Path) -> None:
    adata = atlas_with({"note": pd.array(["a", None, "c", "d", "e", "f"], dtype="string")})
    with anndata.settings.override(allow_write_nullable_strings=True):
        path = write(adata, tmp_path, suffix, convert_strings_to_categoricals=False)
    with open_store(path) as store:
        assert store.obs_columns == {"note": "string"}
        assert store.read_obs(["note"])["note"].tolist() == ["a", None, "c", "d", "e", "f"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_row_names_are_text(suffix: str, tmp_path: Path) -> None:
    adata = atlas_with({})
    path = write(adata, tmp_path, suffix)
    with open_store(path) as store:
        assert store.obs_columns == {}
        assert store.read_obs([], 1, 3).shape == (2, 0)
        assert store.obs_names(2, 4).tolist() == ["c2", "c3"]
        assert store.var_names.tolist() == ["0", "1", "2"]


def test_an_index_with_a_name_of_its_own(tmp_path: Path) -> None:
    adata = atlas_with({"a": range(6)})
    adata.obs.index.name = "barcode"
    with open_store(write_atlas(adata, tmp_path / "a.h5ad")) as store:
        assert list(store.obs_columns) == ["a"]
        assert store.obs_names(0, 1).tolist() == ["c0"]


def test_number_names_become_text(tmp_path: Path) -> None:
    path = write_atlas(atlas_with({}), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        del file["obs/_index"]
        file["obs/_index"] = np.arange(10, 16)
    with open_store(path) as store:
        assert store.obs_names().tolist() == ["10", "11", "12", "13", "14", "15"]


def test_fixed_length_text(tmp_path: Path) -> None:
    path = write_atlas(atlas_with({"a": list("uvwxyz")}), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        for name, values in (("_index", [f"c{i}" for i in range(6)]), ("a", ["ä", *"vwxyz"])):
            del file[f"obs/{name}"]
            file["obs"].create_dataset(name, data=np.char.encode(values, "utf-8"))
    with open_store(path) as store:
        assert store.obs_names().tolist() == [f"c{i}" for i in range(6)]
        assert store.read_obs(["a"], 0, 2)["a"].tolist() == ["ä", "v"]


def test_legacy_categories_of_zarr(tmp_path: Path) -> None:
    path = write_atlas(atlas_with({"a": list("uvwuvw")}), tmp_path / "a.zarr", zarr_format=2)
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    del root["obs/a"]
    categories = root.create_array("obs/__categories/a", data=np.array(["w", "v", "u"]))
    codes = root.create_array("obs/a", data=np.array([2, 1, 0, 2, 1, -1], dtype="i1"))
    codes.attrs["categories"] = categories.name
    (path / ".zmetadata").unlink()
    with open_store(path) as store:
        column = store.read_obs(["a"])["a"]
        assert column.tolist() == ["u", "v", "w", "u", "v", np.nan]
        assert column.cat.categories.tolist() == ["w", "v", "u"]
        assert list(store.obs_columns) == ["a"]


def test_columns_of_other_kinds_are_left_out(tmp_path: Path) -> None:
    path = write_atlas(atlas_with({"a": range(6)}), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        file["obs/wide"] = np.zeros((6, 2))
        file["obs/complex"] = np.zeros(6, dtype=complex)
        file["obs"].create_group("odd").attrs["encoding-type"] = "something-new"
    with open_store(path) as store:
        assert list(store.obs_columns) == ["a"]
        with pytest.raises(FieldNotFound, match=r"'wide'.*not read"):
            store.read_obs(["wide"])


def test_obsm_of_every_kind(tmp_path: Path) -> None:
    adata = small_atlas()
    adata.obsm["sparse"] = sparse.random(57, 4, 0.3, format="csr", random_state=0)
    adata.obsm["column"] = np.arange(57.0)[:, np.newaxis]
    adata.obsm["text"] = pd.DataFrame({"t": adata.obs["barcode"]})
    adata.obsm["mixed"] = pd.DataFrame({"b": adata.obs["is_doublet"], "i": adata.obs["age"]})
    for suffix in SUFFIXES:
        with open_store(write(adata, tmp_path, suffix)) as store:
            widths = {"column": 1, "mixed": 2, "pca": 5, "proteins": 3, "sparse": 4}
            assert store.obsm_keys == widths
            got = store.read_obsm("sparse", [(50, 57), (0, 3)])
            expected = adata.obsm["sparse"].toarray().astype("f4")
            np.testing.assert_array_equal(got, expected[[*range(50, 57), 0, 1, 2]])
            mixed = store.read_obsm("mixed", [(0, 3)])
            np.testing.assert_array_equal(mixed[:, 1], [0, np.nan, 2])
            with pytest.raises(FieldNotFound, match="text"):
                store.read_obsm("text", [(0, 1)])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_layers_are_listed_and_missing_ones_named(suffix: str, tmp_path: Path) -> None:
    with open_store(write(small_atlas(), tmp_path, suffix)) as store:
        assert store.layers == ("counts", "spliced", "raw")
        url = store.locator.url
    with pytest.raises(FieldNotFound, match="did you mean 'spliced'"):
        open_store(url, layer="splced")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_x_names_the_layers(suffix: str, tmp_path: Path) -> None:
    adata = small_atlas()
    adata.X = None
    path = write(adata, tmp_path, suffix)
    with pytest.raises(FieldNotFound, match=r"no X.*counts, spliced, raw"):
        open_store(path)
    with open_store(path, layer="counts") as store:
        assert store.shape == adata.shape


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_columns_are_refused_with_the_remedy(suffix: str, tmp_path: Path) -> None:
    adata = small_atlas()
    adata.layers["counts"] = adata.layers["counts"].tocsc()
    path = write(adata, tmp_path, suffix)
    with pytest.raises(UnsupportedStore, match=r"layers/counts .*CSC.*tocsr"):
        open_store(path, layer="counts")
    open_store(path).close()


def test_tables_of_anndata_before_0_7_are_refused(tmp_path: Path) -> None:
    path = write_atlas(atlas_with({}), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        del file["obs"]
        file["obs"] = np.zeros(6, dtype=[("index", "S3"), ("a", "f4")])
    with pytest.raises(UnsupportedStore, match=r"before 0\.7"):
        open_store(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_atlas_without_cells_or_counts(suffix: str, tmp_path: Path) -> None:
    for n in (0, 3):
        names = pd.DataFrame(index=[f"c{i}" for i in range(n)])
        adata = anndata.AnnData(sparse.csr_matrix((n, 4), dtype="f4"), obs=names)
        (tmp_path / str(n)).mkdir()
        with open_store(write(adata, tmp_path / str(n), suffix)) as store:
            assert store.shape == (n, 4)
            assert store.read_rows([(0, n)]).to_dense().tolist() == [[0.0] * 4] * n
            assert store.bytes_per_cell == 8
            assert store.chunk_rows == 1
            assert len(store.digest()) == 32


def test_codes_beyond_the_categories(tmp_path: Path) -> None:
    path = write_atlas(atlas_with({"a": list("uvwuvw")}), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        file["obs/a/codes"][4] = 3
    with open_store(path) as store:
        assert store.read_obs(["a"], 0, 4)["a"].tolist() == list("uvwu")
        with pytest.raises(StoreCorrupt, match=r"obs/a has code 3 in row 4.*3 categories"):
            store.read_obs(["a"], 3, 6)


def test_text_of_every_type() -> None:
    expected = ["a", "ß"]
    for values in (
        np.array(expected),
        np.array(expected, dtype=object),
        np.array([v.encode() for v in expected]),
        np.array([v.encode() for v in expected], dtype=object),
        np.array(expected, dtype=np.dtypes.StringDType()),
    ):
        assert as_text(values).dtype == object
        assert as_text(values).tolist() == expected


def test_native_types() -> None:
    assert native(np.dtype(">f4")) == np.dtype("f4")
    assert native(np.dtypes.StringDType()) == np.dtypes.StringDType()
