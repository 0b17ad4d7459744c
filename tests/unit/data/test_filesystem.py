"""URLs: redacted, normalised, refused where they hold a secret."""

from pathlib import Path

import fsspec
import pytest

from scvi_dist.data.filesystem import (
    exists,
    file_facts,
    is_folder,
    is_remote,
    join_url,
    normalise_url,
    open_file,
    redact_text,
    redact_url,
    refuse_secrets,
    scheme_of,
    unreadable,
)
from scvi_dist.errors import (
    ConfigError,
    StoreChanged,
    StoreCorrupt,
    StoreError,
    StoreNotFound,
    StoreUnreachable,
)

REDACTED = [
    ("/data/a b?c@d.h5ad", "/data/a b?c@d.h5ad"),
    ("s3://bucket/key@1/x.zarr", "s3://bucket/key@1/x.zarr"),
    ("s3://KEY:PA55@bucket/x", "s3://bucket/x"),
    ("https://user:PA55@host:8080/x", "https://host:8080/x"),
    ("https://user@host/x", "https://host/x"),
    ("https://host/x?X-Amz-Signature=PA55#f", "https://host/x"),
    ("https://user:PA5/5@host/x", "https://host/x"),
    ("https://user:PA5#5@host/x", "https://host/x"),
    ("simplecache::https://user:PA55@host/x?token=PA55", "simplecache::https://host/x"),
    ("zip://a.h5ad::s3://KEY:PA55@bucket/x.zip", "zip://a.h5ad::s3://bucket/x.zip"),
    ("abfs://container@account.dfs.core.windows.net/x", None),
    ("abfs://user:PA55@account/x", "abfs://account/x"),
    ("file:///a/b?c", "file:///a/b?c"),
    ("gs://bucket/a:b@c", "gs://bucket/a:b@c"),
]


@pytest.mark.parametrize(("url", "expected"), REDACTED)
def test_redacted_urls_hold_no_secret(url: str, expected: str | None) -> None:
    assert redact_url(url) == (url if expected is None else expected)
    assert "PA5" not in redact_url(url)
    assert redact_url(redact_url(url)) == redact_url(url)


def test_urls_inside_messages_are_redacted() -> None:
    text = "403, url='https://host/x?sig=PA55' (see s3://K:PA55@b/y) and 3://4"
    assert redact_text(text) == "403, url='https://host/x' (see s3://b/y) and 3://4"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError("truncated"), StoreCorrupt),
        (ConnectionResetError("reset"), StoreUnreachable),
        (TimeoutError(), StoreUnreachable),
        (FileNotFoundError("gone"), StoreChanged),
    ],
)
def test_network_errors_are_not_called_damage(error: Exception, kind: type[Exception]) -> None:
    problem = unreadable("s3://b/x", "X/data", error)
    assert type(problem) is kind
    assert "s3://b/x: X/data" in str(problem)
    assert problem.__cause__ in (error, None)


def test_a_cause_that_tells_a_secret_is_dropped() -> None:
    told = unreadable("w", "x", OSError("GET https://h/x?sig=PA55 failed"))
    assert told.__cause__ is None
    assert "PA55" not in str(told)
    plain = OSError("eof")
    assert unreadable("w", "x", plain).__cause__ is plain


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("s3://KEY:PA55@bucket/x", {}),
        ("https://PA55@host/x", {}),
        ("simplecache::https://u:PA55@host/x", {}),
        ("s3://bucket/x", {"secret": "PA55"}),
        ("s3://bucket/x", {"key": "PA55"}),
        ("s3://bucket/x", {"aws_secret_access_key": "PA55"}),
        ("abfs://c@a/x", {"account_key": "PA55"}),
        ("abfs://c@a/x", {"connection_string": "PA55"}),
        ("https://h/x", {"token": "PA55"}),
        ("s3://b/x", {"client_kwargs": {"aws_session_token": "PA55"}}),
    ],
)
def test_secrets_are_refused_and_not_repeated(url: str, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as raised:
        refuse_secrets(url, options)
    assert "PA55" not in str(raised.value)


def test_what_is_no_secret_is_accepted() -> None:
    refuse_secrets("/a/b:c@d", None)
    refuse_secrets("abfs://container@account/x", {"anon": True, "account_name": "a"})
    refuse_secrets("gs://bucket/x", {"token": "anon"})
    refuse_secrets("s3://bucket/k@y", {"endpoint_url": "http://h", "key": None, "requester": 1})


def test_spellings_of_one_path_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = str(tmp_path / "a.h5ad")
    for spelling in ("a.h5ad", "./a.h5ad", "b/../a.h5ad", "~/a.h5ad", f"file://{expected}"):
        assert normalise_url(spelling) == expected
    assert normalise_url(Path("a.h5ad")) == expected
    assert normalise_url("a.zarr/") == str(tmp_path / "a.zarr")


def test_remote_urls_keep_their_path() -> None:
    assert normalise_url("S3://Bucket/Key/") == "s3://Bucket/Key"
    assert normalise_url("https://h/x?y=/") == "https://h/x?y=/"
    assert normalise_url("zip://a::/b/c.zip") == "zip://a::/b/c.zip"


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("/a", "file"),
        ("a::b", "a"),
        ("FILE:///a", "file"),
        ("s3://b/c", "s3"),
        ("simplecache::s3://b", "simplecache"),
    ],
)
def test_schemes(url: str, scheme: str) -> None:
    assert scheme_of(url) == scheme
    assert is_remote(url) == (scheme != "file")


def test_joining() -> None:
    assert join_url("/a/b", "c", "d.json") == "/a/b/c/d.json"
    assert join_url("s3://b/x/", "/c/", "d") == "s3://b/x/c/d"
    assert join_url("https://h/x?sig=1", "c") == "https://h/x/c?sig=1"


@pytest.mark.parametrize("scheme", ["", "memory:/"])
def test_files_here_and_elsewhere_take_one_way(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}{tmp_path}/f.bin"
    assert not exists(url)
    with pytest.raises(StoreNotFound, match=r"f\.bin"):
        open_file(url)
    with pytest.raises(StoreNotFound):
        file_facts(url)
    with open_file(url, "wb") as file:
        file.write(b"four")
    assert exists(url)
    assert not is_folder(url)
    assert is_folder(f"{scheme}{tmp_path}")
    with open_file(url) as file:
        assert file.read() == b"four"
    before = file_facts(url)
    assert before.size == 4
    with open_file(url, "wb") as file:
        file.write(b"fives")
    assert file_facts(url) != before
    fsspec.filesystem("memory").store.clear()


def test_missing_files_name_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "atlas.h5ad").touch()
    with pytest.raises(StoreNotFound, match=r"did you mean 'atlas\.h5ad'"):
        open_file(tmp_path / "atlsa.h5ad")
    with pytest.raises(StoreNotFound, match="does not exist either"):
        open_file(tmp_path / "no" / "atlas.h5ad")


def test_unknown_schemes_name_the_nearest() -> None:
    with pytest.raises(StoreError, match="did you mean 'http"):
        exists("httpz://host/x")
