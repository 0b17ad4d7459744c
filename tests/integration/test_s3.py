"""Stores behind the S3 protocol, on a server of our own, with everything that goes wrong there."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_proxy import Fault, Proxy, fault_proxy

from scvi_dist.data import open_store
from scvi_dist.data.writing.convert import convert_store
from scvi_dist.data.writing.shuffle_store import shuffle_store
from scvi_dist.data.writing.validate import validate_store
from scvi_dist.data.writing.writer import write_zarr
from scvi_dist.errors import (
    OutputExists,
    StoreChanged,
    StoreCorrupt,
    StoreNotFound,
    StoreUnreachable,
)
from scvi_dist.testing import dense_of, small_atlas, write_atlas

pytestmark = pytest.mark.integration

BUCKET = "atlases"
KINDS = ("a.h5ad", "gzip.h5ad", "3.zarr", "sharded.zarr")
FAST = {"first_wait_s": 0.001, "longest_wait_s": 0.01}


@pytest.fixture(scope="module")
def atlas() -> Any:
    return small_atlas(n=300, g=40)


@pytest.fixture(scope="module")
def proxy(atlas: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """An S3 server with the same atlas in several forms, behind a proxy."""
    s3fs = pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    folder = tmp_path_factory.mktemp("s3")
    write_atlas(atlas, folder / "a.h5ad")
    write_atlas(atlas, folder / "gzip.h5ad", compression="gzip")
    write_atlas(atlas, folder / "3.zarr")
    with open_store(folder / "a.h5ad") as store:
        write_zarr(store, folder / "sharded.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        host, port = server.get_host_and_port()
        try:
            public = {"ACL": "public-read"}
            fs = s3fs.S3FileSystem(
                endpoint_url=f"http://{host}:{port}", s3_additional_kwargs=public
            )
            fs.mkdir(BUCKET, acl="public-read")
            fs.put(str(folder), f"{BUCKET}/atlas", recursive=True)
            with fault_proxy(host, port) as running:
                yield running
        finally:
            server.stop()
            shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _fresh(proxy: Proxy) -> None:
    proxy.forget()


def options(proxy: Proxy, anon: bool = False, **own: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"endpoint_url": proxy.url, "scvi_dist": {**FAST, **own}}
    return found | {"anon": True} if anon else found


def url(kind: str) -> str:
    return f"s3://{BUCKET}/atlas/{kind}"


def check(kind: str, atlas: Any, storage_options: dict[str, Any]) -> None:
    """Everything a store has, against the AnnData."""
    rows = np.random.default_rng(0).integers(0, 300, 80)
    with open_store(url(kind), storage_options=storage_options) as store:
        block = store.read_rows_at(rows)
        np.testing.assert_array_equal(block.to_dense(), dense_of(atlas)[rows])
        assert store.read_obs(["batch"])["batch"].tolist() == atlas.obs["batch"].tolist()
        np.testing.assert_array_equal(
            store.read_obsm("pca", [(250, 300)]), atlas.obsm["pca"][250:].astype("f4")
        )
        assert store.digest() == store.locator.open().digest()


@pytest.mark.parametrize("anon", [False, True], ids=["environment", "anonymous"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bucket_reads_like_a_folder(kind: str, anon: bool, proxy: Proxy, atlas: Any) -> None:
    check(kind, atlas, options(proxy, anon))


@pytest.mark.parametrize("kind", ["gzip.h5ad", "sharded.zarr"])
@pytest.mark.parametrize("fault", ["503", "reset", "truncate"])
def test_what_fails_now_and_then_is_read_all_the_same(
    fault: str, kind: str, proxy: Proxy, atlas: Any
) -> None:
    proxy.faults += [Fault(fault, times=3), Fault("delay", delay_s=0.01, times=5)]
    check(kind, atlas, options(proxy))
    assert proxy.faults[0].times == 0


def test_a_request_that_hangs_is_asked_again(proxy: Proxy, atlas: Any) -> None:
    proxy.faults.append(Fault("delay", match="gzip.h5ad", times=1, delay_s=2.0))
    check("gzip.h5ad", atlas, options(proxy, timeout_s=1.5))


@pytest.mark.parametrize("kind", ["gzip.h5ad", "sharded.zarr"])
@pytest.mark.parametrize("fault", ["503", "reset", "truncate"])
def test_what_never_works_is_told_with_url_rows_and_attempts(
    fault: str, kind: str, proxy: Proxy
) -> None:
    with open_store(url(kind), storage_options=options(proxy, attempts=3)) as store:
        store.read_rows([(0, 1)])
        proxy.faults.append(Fault(fault, match=kind))
        proxy.requests.clear()
        # Rows that share no block with those that were read.
        with pytest.raises(StoreUnreachable, match="could not be fetched") as raised:
            store.read_rows([(290, 300)])
    text = str(raised.value)
    for part in (url(kind), "3 attempts", "rows 290 to 300"):
        assert part in text
    assert proxy.count(kind) >= 3


def test_opening_a_store_that_never_answers(proxy: Proxy) -> None:
    proxy.faults.append(Fault("503"))
    for kind in KINDS:
        with pytest.raises(StoreUnreachable, match=rf"{kind}.*2 attempts"):
            open_store(url(kind), storage_options=options(proxy, attempts=2))


def test_what_is_not_allowed_is_told_at_once(proxy: Proxy) -> None:
    proxy.faults.append(Fault("403"))
    for kind in ("a.h5ad", "3.zarr"):
        proxy.requests.clear()
        with pytest.raises(StoreUnreachable, match="Give credentials"):
            open_store(url(kind), storage_options=options(proxy))
        assert len(proxy.requests) < 6


@pytest.mark.parametrize("kind", ["no.h5ad", "no.zarr"])
def test_what_was_never_there(kind: str, proxy: Proxy) -> None:
    with pytest.raises(StoreNotFound, match=f"nothing is at s3://{BUCKET}/atlas/{kind}"):
        open_store(url(kind), storage_options=options(proxy))


@pytest.mark.parametrize(
    ("kind", "key", "error"),
    [
        ("gzip.h5ad", "", StoreChanged),
        ("sharded.zarr", "/X/data/c/0", StoreCorrupt),
        ("3.zarr", "/X/data/c/0", StoreCorrupt),
    ],
)
def test_an_object_that_vanishes_is_told_at_once(
    kind: str, key: str, error: type[Exception], proxy: Proxy, atlas: Any
) -> None:
    import s3fs

    fs = s3fs.S3FileSystem(endpoint_url=proxy.url)
    path = f"{BUCKET}/atlas/{kind}{key}"
    kept = fs.cat_file(path)
    with open_store(url(kind), storage_options=options(proxy)) as store:
        fs.rm_file(path)
        proxy.requests.clear()
        try:
            with pytest.raises(error, match=r"not there|is gone") as raised:
                store.read_rows([(280, 300)])
        finally:
            fs.pipe_file(path, kept)
    assert url(kind) in str(raised.value)
    asked = [path.partition("?")[0] for method, path in proxy.requests if method == "GET"]
    assert sum(path.endswith(f"{kind}{key}") for path in asked) == 1


def test_stores_are_written_to_a_bucket_too(proxy: Proxy, atlas: Any) -> None:
    where = options(proxy)
    small = atlas[:60].copy()
    small.obs = small.obs[["batch"]]
    del small.layers, small.obsm, small.raw
    with open_store(small) as store:
        for name, copy in (("copied.zarr", convert_store), ("shuffled.zarr", shuffle_store)):
            copy(store, url(name), storage_options=where)
            with open_store(url(name), storage_options=where) as found:
                validation = validate_store(found)
                assert validation.is_valid, validation.problems
                assert validation.content == validate_store(store).content
            with pytest.raises(OutputExists):
                copy(store, url("3.zarr"), storage_options=where)


@pytest.mark.parametrize("kind", ["gzip.h5ad", "sharded.zarr"])
def test_what_is_cached_is_not_fetched_again(
    kind: str, proxy: Proxy, atlas: Any, tmp_path: Path
) -> None:
    cached = options(proxy, cache_dir=str(tmp_path / "cache"), cache_block_bytes=4096)
    check(kind, atlas, cached)
    assert sum(method == "GET" and kind in path for method, path in proxy.requests) > 0
    proxy.requests.clear()
    check(kind, atlas, cached)
    fetched = [p for method, p in proxy.requests if method == "GET" and "list-type" not in p]
    assert fetched == []


def test_a_cached_object_that_was_replaced_is_read_anew(
    proxy: Proxy, atlas: Any, tmp_path: Path
) -> None:
    import s3fs

    fs = s3fs.S3FileSystem(endpoint_url=proxy.url)
    cached = options(proxy, cache_dir=str(tmp_path / "cache"))
    changed = atlas.copy()
    changed.X = changed.X * 2
    for adata in (atlas, changed):
        fs.put_file(str(write_atlas(adata, tmp_path / "x.h5ad")), f"{BUCKET}/atlas/x.h5ad")
        with open_store(url("x.h5ad"), storage_options=cached) as store:
            block = store.read_rows([(0, 300)])
            np.testing.assert_array_equal(block.to_dense(), dense_of(adata))
        (tmp_path / "x.h5ad").unlink()
    fs.rm_file(f"{BUCKET}/atlas/x.h5ad")
