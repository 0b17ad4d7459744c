"""Stores behind a web server: range requests, no listing, latency that threads hide."""

import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from range_server import RangeHandler

from scvi_dist.data import open_store
from scvi_dist.errors import StoreCorrupt, StoreNotFound, StoreUnreachable, UnsupportedStore
from scvi_dist.testing import dense_of, small_atlas, write_atlas


@pytest.fixture(scope="module")
def atlas() -> Any:
    return small_atlas(n=300, g=40)


@pytest.fixture(scope="module")
def site(atlas: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("site")
    write_atlas(atlas, folder / "a.h5ad")
    write_atlas(atlas, folder / "gzip.h5ad", compression="gzip")
    write_atlas(atlas, folder / "3.zarr")
    write_atlas(atlas, folder / "2.zarr", zarr_format=2)
    RangeHandler.folder, RangeHandler.sent = folder, {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), RangeHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", ["a.h5ad", "gzip.h5ad", "3.zarr", "2.zarr"])
def test_what_is_behind_a_url_reads_like_a_file(name: str, site: str, atlas: Any) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 300, 80)
    genes = rng.permutation(40)[:7]
    query = "?token=pa55" if name.endswith("h5ad") else ""
    with open_store(f"{site}/{name}{query}") as store:
        assert store.shape == atlas.shape
        block = store.read_rows_at(rows, genes)
        np.testing.assert_array_equal(block.to_dense(), dense_of(atlas)[rows][:, genes])
        assert store.read_obs(["batch"])["batch"].tolist() == atlas.obs["batch"].tolist()
        np.testing.assert_array_equal(
            store.read_obsm("pca", [(250, 300)]), atlas.obsm["pca"][250:].astype("f4")
        )
        assert store.digest() == store.locator.open().digest()
        assert "pa55" not in str(store.locator)


@pytest.mark.parametrize("name", ["no.h5ad?token=pa55", "no.zarr"])
def test_what_is_not_there(name: str, site: str) -> None:
    with pytest.raises(StoreNotFound, match="nothing is at") as raised:
        open_store(f"{site}/{name}")
    assert "pa55" not in str(raised.value)


def test_a_signed_url_of_a_group_is_refused(site: str) -> None:
    with pytest.raises(UnsupportedStore, match="leads to one") as raised:
        open_store(f"{site}/3.zarr?token=pa55")
    assert "pa55" not in str(raised.value)


def test_a_missing_chunk_is_damage(site: str, atlas: Any) -> None:
    path = write_atlas(atlas, RangeHandler.folder / "gap.zarr")
    chunk = path / "X" / "data" / "c" / "0"
    chunk.unlink()
    with open_store(f"{site}/gap.zarr") as store, pytest.raises(StoreCorrupt, match="chunk 0"):
        store.read_rows([(0, 300)])


def test_a_server_that_went_away_is_not_damage(atlas: Any, tmp_path: Path) -> None:
    write_atlas(atlas, tmp_path / "gzip.h5ad", compression="gzip")
    write_atlas(atlas, tmp_path / "a.zarr")
    handler = type("Handler", (RangeHandler,), {"folder": tmp_path, "sent": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    site = f"http://127.0.0.1:{server.server_address[1]}"
    patience = {"scvi_dist": {"attempts": 2, "first_wait_s": 0.001}}
    stores = [
        open_store(f"{site}/{name}", storage_options=patience)
        for name in ("a.zarr", "gzip.h5ad?token=pa55")
    ]
    server.shutdown()
    server.server_close()
    thread.join()
    for store in stores:
        with pytest.raises(StoreUnreachable, match=r"could not be fetched.*2 attempts") as raised:
            store.read_rows([(0, 3)])
        assert "rows 0 to 3" in str(raised.value)
        assert "pa55" not in str(raised.value)
