"""One function opens whatever a user hands over, or says why not."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fsspec
import h5py
import pytest

from scvi_dist.data import Store, as_store, open_store
from scvi_dist.data.open import guess_kind, is_anndata, locate
from scvi_dist.errors import ConfigError, StoreNotFound, UnsupportedStore
from scvi_dist.testing import small_atlas, write_atlas


def test_kinds_by_name_or_content(tmp_path: Path) -> None:
    adata = small_atlas()
    h5ad = write_atlas(adata, tmp_path / "a.h5ad")
    assert guess_kind("/nowhere/a.H5AD") == guess_kind("s3://bucket/a.h5ad?versionId=1") == "h5ad"
    assert guess_kind("s3://bucket/a.zarr/") == "zarr"
    for version in (2, 3):
        path = write_atlas(adata, tmp_path / f"{version}.zarr", zarr_format=version)
        bare = path.rename(tmp_path / f"bare{version}")
        assert guess_kind(bare) == "zarr"
        with open_store(bare) as store:
            assert store.shape == adata.shape
    bare = h5ad.rename(tmp_path / "bare")
    assert guess_kind(bare) == "h5ad"
    with open_store(bare, kind="h5ad") as store:
        assert store.locator.kind == "h5ad"


def test_kinds_that_cannot_be_told(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b\n")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "table.csv", tmp_path / "folder"):
        with pytest.raises(UnsupportedStore, match="neither an h5ad file nor a Zarr group"):
            open_store(path)
    with pytest.raises(StoreNotFound, match=r"did you mean 'table\.csv'"):
        open_store(tmp_path / "tabel.csv")
    with pytest.raises(ConfigError, match="did you mean 'h5ad'"):
        open_store(tmp_path / "table.csv", kind="h5da")


def test_remote_content_is_looked_at(tmp_path: Path) -> None:
    path = write_atlas(small_atlas(), tmp_path / "a.h5ad")
    fsspec.filesystem("memory").pipe("/looked/at", path.read_bytes())
    try:
        with open_store("memory://looked/at") as store:
            assert store.locator.kind == "h5ad"
    finally:
        fsspec.filesystem("memory").store.clear()


def test_locators_hold_no_secret() -> None:
    with pytest.raises(ConfigError, match="environment"):
        open_store("s3://bucket/a.zarr", storage_options={"secret": "x"})
    with pytest.raises(ConfigError, match="environment"):
        open_store("s3://key:pa55@bucket/a.zarr")
    locator = locate("https://host/a.zarr?sig=pa55", storage_options={"b": 1, "a": 2})
    assert locator.storage_options == (("a", 2), ("b", 1))
    assert "pa55" not in repr(locator)
    assert locator.redacted_url == "https://host/a.zarr"


def test_nested_options_can_be_hashed_and_come_back() -> None:
    options = {"client_kwargs": {"endpoint_url": "http://h", "retries": [1, 2]}, "anon": True}
    locator = locate("s3://bucket/a.zarr", storage_options=options)
    assert locator.fsspec_options() == options
    again = pickle.loads(pickle.dumps(locator))
    assert again == locator
    assert hash(again) == hash(locator)


def test_unknown_kinds_of_locators() -> None:
    with pytest.raises(UnsupportedStore, match=r"'cloud'.*h5ad, h5mu, memory"):
        replace(locate("/a.h5ad"), kind="cloud").open()


def test_a_store_is_a_store(tmp_path: Path) -> None:
    store = open_store(small_atlas())
    assert open_store(store) is store
    assert as_store(store) is store
    assert isinstance(as_store(write_atlas(small_atlas(), tmp_path / "a.h5ad")), Store)
    assert is_anndata(small_atlas())
    assert not is_anndata(3)
    with pytest.raises(ConfigError, match="got int"):
        open_store(3)  # type: ignore[arg-type]


def test_two_spellings_are_one_locator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atlas(small_atlas(), tmp_path / "a.h5ad")
    monkeypatch.chdir(tmp_path)
    assert open_store("a.h5ad").locator == open_store(f"file://{path}").locator


def test_an_open_file_does_not_keep_others_from_reading(tmp_path: Path) -> None:
    path = write_atlas(small_atlas(), tmp_path / "a.h5ad")
    with open_store(path), open_store(path), h5py.File(path, "r") as file:
        assert "X" in file


def test_imports_stay_light() -> None:
    script = (
        "import sys, scvi_dist.data.open, scvi_dist.data.filesystem, scvi_dist.data.describe\n"
        "from scvi_dist.data import Store, StoreLocator, as_store, open_store, ranges_of\n"
        "heavy = {'anndata', 'h5py', 'zarr', 'numba', 'dask', 'ray', 'mlflow', 'lightning',"
        " 'tiledbsoma', 'sklearn', 'matplotlib', 'pytest'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stderr
