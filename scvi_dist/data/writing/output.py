"""Where output goes: what is there already, and files that appear only when they are whole."""

import os
from collections.abc import Mapping
from typing import Any

from scvi_dist.data.filesystem import (
    exists,
    filesystem_of,
    is_remote,
    join_url,
    normalise_url,
    redact_url,
)
from scvi_dist.errors import OutputExists

STATE = ".scvi_dist"
"""Folder in an unfinished output that says how far it is."""

_REPLACEABLE = ("zarr.json", ".zgroup", STATE)


def make_way(
    url: str | os.PathLike[str],
    overwrite: bool,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Raise :class:`OutputExists` if something is at ``url``, or remove it if that is asked for.

    Only a Zarr store or an empty folder is ever removed.
    """
    if not exists(url, storage_options):
        return
    shown = redact_url(normalise_url(url))
    fs, path = filesystem_of(url, storage_options)
    is_empty = is_empty_folder(url, storage_options)
    if not overwrite and not is_empty:
        raise OutputExists(f"{shown} exists. Pass overwrite=True to replace it.")
    is_ours = any(exists(join_url(url, name), storage_options) for name in _REPLACEABLE)
    if not (is_empty or is_ours):
        raise OutputExists(
            f"{shown} exists and is not a Zarr store, so it is not removed even with "
            "overwrite=True. Choose another URL."
        )
    fs.rm(path, recursive=True)


def is_empty_folder(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None) -> bool:
    """Whether there is a folder with nothing in it."""
    fs, path = filesystem_of(url, storage_options)
    return bool(fs.isdir(path)) and not fs.ls(path, detail=False)


def put_whole(url: str, content: bytes, storage_options: Mapping[str, Any] | None = None) -> None:
    """A file that is there either whole or not at all."""
    fs, path = filesystem_of(url, storage_options)
    if is_remote(url):
        # Object stores show an object when it is complete.
        fs.pipe_file(path, content)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    partial = f"{path}.partial-{os.getpid()}"
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def remove_state(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> None:
    """Remove what says how far an unfinished output is."""
    fs, path = filesystem_of(join_url(url, STATE), storage_options)
    if fs.exists(path):
        fs.rm(path, recursive=True)
