"""URLs: one way to name a file or a folder, on this machine or anywhere fsspec reaches.

A local path stays a path; everything else has a scheme (``s3://``, ``https://``, ``memory://``).
Credentials come from the environment: a URL or an option that carries one is refused when a store
is opened, and :func:`redact_url` is what logs, messages and MLflow get to see.
"""

import glob
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from scvi_dist.data.remote.remote_config import split_options
from scvi_dist.data.remote.retries import persist
from scvi_dist.errors import (
    ConfigError,
    MissingDependency,
    StoreChanged,
    StoreCorrupt,
    StoreError,
    StoreNotFound,
    StoreUnreachable,
    did_you_mean,
)

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>)\]]+")
_LOCAL_SCHEMES = frozenset({"file", "local"})
_S3_SCHEMES = frozenset({"s3", "s3a"})
# In these the part before "@" is the name of a container, not of a user.
_CONTAINER_SCHEMES = frozenset({"abfs", "abfss", "wasb", "wasbs"})
_SECRET_OPTION = re.compile(
    r"(^|_)(key|secret|token|password|passwd|pwd|credentials?|connection_string|sas)($|_)", re.I
)
# Ways to find a token, not tokens (gcsfs).
_NO_SECRETS = frozenset({None, True, False, "anon", "google_default", "cache", "cloud"})
_CLIENTS = frozenset({"aiohttp", "aiobotocore", "botocore", "gcsfs", "google", "azure"})
_T = TypeVar("_T")
_STAMP_KEYS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "updated")


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What tells one version of a file from another, without reading it."""

    size: int
    """Bytes."""
    stamp: str
    """Time of change in nanoseconds (local) or ETag, generation or time (remote); may be ``""``."""


def scheme_of(url: str | os.PathLike[str]) -> str:
    """The scheme in lower case; ``"file"`` for a local path, ``a::b`` chains give the first."""
    match = _SCHEME.match(os.fspath(url).split("::", 1)[0])
    if match:
        return match[1].lower()
    return "file" if "::" not in os.fspath(url) else os.fspath(url).split("::", 1)[0].lower()


def is_remote(url: str | os.PathLike[str]) -> bool:
    """Whether the URL leads anywhere but the local file system."""
    return scheme_of(url) not in _LOCAL_SCHEMES


def redact_url(url: str | os.PathLike[str]) -> str:
    """The URL without user name, password, query or fragment; a local path as it is."""
    return "::".join(_redact_link(link) for link in os.fspath(url).split("::"))


def redact_text(text: str) -> str:
    """A message of another library with every URL in it redacted."""
    return _URL_IN_TEXT.sub(lambda match: redact_url(match[0]), text)


def _redact_link(link: str) -> str:
    match = _SCHEME.match(link)
    if match is None:
        return link
    rest = link[match.end() :]
    if match[1].lower() in _LOCAL_SCHEMES:
        return link
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    port = authority.rpartition("@")[2].rpartition(":")[2] if ":" in authority else "0"
    if not port.rstrip("]").isalnum() or (not port.isdigit() and "@" in rest):
        # A password with an unescaped "/", "?" or "#": what follows the last "@" is the host.
        rest = rest.rpartition("@")[2]
    elif "@" in authority and not _names_container(match[1], authority):
        rest = rest[authority.rindex("@") + 1 :]
    return match[0] + re.split(r"[?#]", rest, maxsplit=1)[0]


def _names_container(scheme: str, authority: str) -> bool:
    return scheme.lower() in _CONTAINER_SCHEMES and ":" not in authority.partition("@")[0]


def refuse_secrets(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> None:
    """Raise :class:`ConfigError` if a password is in the URL or a secret among the options."""
    for link in os.fspath(url).split("::"):
        match = _SCHEME.match(link)
        authority = re.split(r"[/?#]", link[match.end() :], maxsplit=1)[0] if match else ""
        if match and "@" in authority and not _names_container(match[1], authority):
            raise ConfigError(
                f"{redact_url(url)}: the URL holds a user name or a password, which would travel "
                "to logs and checkpoints. Give credentials by environment variables or by the "
                "configuration file of the storage service."
            )
    for name, value in (storage_options or {}).items():
        if isinstance(value, Mapping):
            refuse_secrets(url, value)
        elif _SECRET_OPTION.search(name) and not (_is_plain(value) and value in _NO_SECRETS):
            raise ConfigError(
                f"storage option {name!r} for {redact_url(url)} looks like a secret, which would "
                "travel to logs and checkpoints. Give credentials by environment variables (such "
                "as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or by the configuration file of "
                "the storage service."
            )


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, str))


def normalise_url(url: str | os.PathLike[str]) -> str:
    """One spelling of a URL: absolute path without ``file://``, no slash at the end.

    ``~`` is the home directory. Symbolic links stay. Two spellings of one local file give one
    string, so that it can serve as a key.
    """
    text = os.fspath(url)
    if is_remote(text):
        scheme, mark, rest = text.partition("://")
        if "::" in text or not mark:
            return text
        return f"{scheme.lower()}://{rest.rstrip('/') if '?' not in rest else rest}"
    path = re.sub(r"^(file|local)://", "", text, flags=re.I)
    return os.path.abspath(os.path.expanduser(path))


def join_url(url: str | os.PathLike[str], *parts: str) -> str:
    """``url/part/part``, for local paths and for URLs (whose query stays at the end)."""
    text = normalise_url(url)
    if not is_remote(text):
        return os.path.join(text, *parts)
    base, mark, query = text.partition("?")
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)]) + mark + query


def filesystem_of(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> "tuple[AbstractFileSystem, str]":
    """The fsspec file system of a URL, and the path by which that file system knows it."""
    import fsspec

    _, options = split_options(storage_options)
    try:
        fs, path = fsspec.core.url_to_fs(normalise_url(url), **options)
    except ImportError as error:
        raise MissingDependency(
            f"{redact_url(url)}: reading {scheme_of(url)}:// needs a package that is not "
            f"installed: {error}"
        ) from error
    except ValueError as error:
        raise StoreError(
            f"{redact_url(url)}: fsspec knows no way to {scheme_of(url)}://; "
            f"{did_you_mean(scheme_of(url), fsspec.available_protocols())}"
        ) from error
    return fs, path


def reading_filesystem(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> "tuple[AbstractFileSystem, str]":
    """The file system of a URL for reading: its client does not retry by itself, for we count."""
    config, options = split_options(storage_options)
    if scheme_of(url) not in _S3_SCHEMES:
        return filesystem_of(url, options)
    client = {
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "read_timeout": config.timeout_s,
        "connect_timeout": min(config.timeout_s, 10.0),
        "max_pool_connections": config.concurrency,
    }
    options["config_kwargs"] = {**client, **options.get("config_kwargs", {})}
    fs, path = filesystem_of(url, options)
    fs.retries = 1
    return fs, path


def _ask(
    url: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None,
    ask: "Callable[[AbstractFileSystem, str], _T]",
) -> _T:
    """The answer of a remote file system, asked again while it is busy.

    Raises :class:`StoreUnreachable` after the last attempt, and :class:`StoreNotFound`.
    """
    config, _ = split_options(storage_options)
    fs, path = reading_filesystem(url, storage_options)
    try:
        return persist(lambda: ask(fs, path), config)
    except FileNotFoundError:
        raise not_found(url) from None
    except Exception as error:
        if isinstance(error, (StoreError, TypeError)) or not _is_network(error):
            raise
        raise unreadable(redact_url(url), "it", error)  # noqa: B904 (it sets the cause)


def exists(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> bool:
    """Whether a file or a folder is there."""
    if not is_remote(url):
        return os.path.exists(normalise_url(url))
    return bool(_ask(url, storage_options, lambda fs, path: fs.exists(path)))


def is_folder(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> bool:
    """Whether a folder (or a prefix of an object store) is there."""
    if not is_remote(url):
        return os.path.isdir(normalise_url(url))
    return bool(_ask(url, storage_options, lambda fs, path: fs.isdir(path)))


def names_in(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> list[str]:
    """Names of what lies directly in a folder."""
    if not is_remote(url):
        return os.listdir(normalise_url(url))
    entries = _ask(url, storage_options, lambda fs, path: fs.ls(path, detail=False))
    return [entry.rstrip("/").rpartition("/")[2] for entry in entries]


def matching(
    pattern: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> list[str]:
    """URLs of what a pattern with ``*``, ``?``, ``[…]`` or ``**`` matches; none is an answer."""
    if not is_remote(pattern):
        return glob.glob(normalise_url(pattern), recursive=True)
    return _ask(
        pattern,
        storage_options,
        lambda fs, path: [fs.unstrip_protocol(match) for match in fs.glob(path)],
    )


def open_file(
    url: str | os.PathLike[str],
    mode: str = "rb",
    storage_options: Mapping[str, Any] | None = None,
    **fsspec_options: Any,
) -> BinaryIO:
    """A binary file object. Raises :class:`StoreNotFound` where nothing is there to read."""
    fs, path = filesystem_of(url, storage_options)
    try:
        return cast(BinaryIO, fs.open(path, mode, **fsspec_options))
    except FileNotFoundError:
        raise not_found(url) from None


def file_facts(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> FileFacts:
    """Size and version of a file. Raises :class:`StoreNotFound` where there is none."""
    if is_remote(url):
        return _ask(url, storage_options, lambda fs, path: facts_of_info(fs.info(path)))
    try:
        status = os.stat(normalise_url(url))
    except FileNotFoundError:
        raise not_found(url) from None
    return FileFacts(status.st_size, str(status.st_mtime_ns))


def facts_of_info(known: Mapping[str, Any]) -> FileFacts:
    """Size and version of a file, from what an fsspec file system tells of it."""
    stamp = next((str(known[key]) for key in _STAMP_KEYS if known.get(key)), "")
    return FileFacts(int(known.get("size") or 0), stamp or str(known.get("created", "")))


def _is_network(error: BaseException) -> bool:
    client = type(error).__module__.partition(".")[0]
    known = (ConnectionError, TimeoutError, PermissionError)
    return isinstance(error, known) or client in _CLIENTS


def unreadable(where: str, what: str, error: Exception) -> StoreError:
    """The error for a part of a store that could not be read; its cause is shown if no URL in
    its message holds a secret.
    """
    told = redact_text(str(error)) or type(error).__name__
    problem: Any
    if isinstance(error, FileNotFoundError):
        problem = StoreChanged(
            f"{where}: {what} is gone: {told}. It was there when the store was opened; somebody "
            "has removed or replaced the store since."
        )
    elif isinstance(error, PermissionError) or "credentials" in told.lower():
        problem = StoreUnreachable(
            f"{where}: {what} could not be fetched: {told}. Give credentials that may read it by "
            "the environment, or storage_options={'anon': True} for public data."
        )
        problem.may_pass = False
    elif _is_network(error):
        problem = StoreUnreachable(
            f"{where}: {what} could not be fetched: {told}. Try again later."
        )
    else:
        problem = StoreCorrupt(
            f"{where}: {what} cannot be read: {told}. The store is damaged or was not copied to "
            "its end."
        )
    problem.__cause__ = error if told == str(error) else None
    problem.__suppress_context__ = True
    return problem


def not_found(url: str | os.PathLike[str]) -> StoreNotFound:
    """The error for a URL with nothing behind it; names the nearest sibling of a local path."""
    shown = redact_url(normalise_url(url))
    if is_remote(url):
        return StoreNotFound(f"nothing is at {shown}, or these credentials may not see it.")
    folder = Path(shown).parent
    if not folder.is_dir():
        return StoreNotFound(f"nothing is at {shown}: the folder {folder} does not exist either.")
    names = [entry.name for entry in folder.iterdir()]
    return StoreNotFound(f"nothing is at {shown}; {did_you_mean(Path(shown).name, names)}")
