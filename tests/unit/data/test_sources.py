"""A pattern or a folder stands for the stores that match, in sorted order."""

from pathlib import Path
from typing import Any

import fsspec
import pytest

from scvi_dist.data import open_store
from scvi_dist.errors import StoreNotFound, UnsupportedStore
from scvi_dist.testing import small_atlas, write_atlas


def test_patterns_and_folders_are_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = small_atlas(n=5)
    (tmp_path / "atlas").mkdir()
    for name in ("b.h5ad", "a10.h5ad", "c.zarr", "a9.h5ad"):
        write_atlas(adata, tmp_path / "atlas" / name)
    (tmp_path / "atlas" / ".hidden.h5ad").write_text("")
    (tmp_path / "atlas" / "notes.txt").write_text("")
    monkeypatch.chdir(tmp_path)

    def names(source: Any) -> list[str]:
        return [Path(part.url).name for part in open_store(source).locator.parts]

    assert names("atlas/*.h5ad") == ["a10.h5ad", "a9.h5ad", "b.h5ad"]
    assert names("atlas/a?.h5ad") == ["a9.h5ad"]
    assert names("**/[bc].*") == ["b.h5ad", "c.zarr"]
    assert (
        names("atlas") == names(tmp_path / "atlas") == ["a10.h5ad", "a9.h5ad", "b.h5ad", "c.zarr"]
    )
    assert names(["atlas/c.zarr", "atlas/a*"]) == ["c.zarr", "a10.h5ad", "a9.h5ad"]


def test_patterns_of_remote_stores(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    adata = small_atlas(n=5)
    try:
        path = write_atlas(adata, tmp_path / "a.h5ad")
        for name in ("2", "1"):
            files.pipe(f"/atlas/{name}.h5ad", path.read_bytes())
        for source in ("memory://atlas/*.h5ad", "memory://atlas"):
            with open_store(source) as store:
                assert [part.url[-6:] for part in store.locator.parts] == ["1.h5ad", "2.h5ad"]
                assert store.n_obs == 10
        with pytest.raises(StoreNotFound, match=r"nothing matches memory://atlas/\*\.zarr"):
            open_store("memory://atlas/*.zarr")
    finally:
        files.store.clear()


def test_patterns_that_match_nothing_or_no_store(tmp_path: Path) -> None:
    (tmp_path / "part.h5ad").mkdir()
    with pytest.raises(StoreNotFound, match=r"nothing matches .*parts\*\.h5ad; did you mean"):
        open_store(tmp_path / "parts*.h5ad")
    with pytest.raises(StoreNotFound, match="nowhere does not exist"):
        open_store(tmp_path / "nowhere" / "*.h5ad")
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(UnsupportedStore, match=r"table\.csv is neither"):
        open_store(tmp_path / "t*")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnsupportedStore, match="empty is neither"):
        open_store(tmp_path / "empty")


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    path = write_atlas(small_atlas(n=5), tmp_path / "a[1].h5ad")
    with open_store(path) as store:
        assert store.locator.kind == "h5ad"
