"""A pattern or a folder in place of a store: the stores that it stands for, in sorted order."""

import os
import re
from collections.abc import Mapping
from typing import Any

from scvi_dist.data.filesystem import (
    exists,
    is_folder,
    is_remote,
    join_url,
    matching,
    names_in,
    normalise_url,
    redact_url,
)
from scvi_dist.errors import StoreNotFound, did_you_mean

_PATTERN = re.compile(r"[*?\[]")
_REMOTE_PATTERN = re.compile(r"[*\[]")  # there a "?" begins a query


def is_pattern(url: str | os.PathLike[str]) -> bool:
    """Whether this is a pattern such as ``shards/*.h5ad``; a local file of that name is none."""
    text = os.fspath(url)
    if is_remote(text):
        return "::" not in text and _REMOTE_PATTERN.search(text.partition("?")[0]) is not None
    return _PATTERN.search(text) is not None and not os.path.lexists(normalise_url(text))


def urls_matching(
    pattern: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> list[str]:
    """What matches, sorted by name. Raises :class:`StoreNotFound` where nothing does."""
    found = matching(pattern, storage_options)
    if not found:
        raise StoreNotFound(
            f"nothing matches {redact_url(normalise_url(pattern))}; {_near(pattern)}"
        )
    return sorted(normalise_url(url) for url in found)


def _near(pattern: str | os.PathLike[str]) -> str:
    folder = os.path.dirname(normalise_url(pattern))
    if is_remote(pattern) or _PATTERN.search(folder):
        return "is the beginning of the pattern right, and may these credentials list it?"
    if not os.path.isdir(folder):
        return f"the folder {folder} does not exist."
    return did_you_mean(os.path.basename(os.fspath(pattern)), os.listdir(folder))


def urls_in_folder(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> list[str]:
    """What lies directly in a folder, sorted by name, hidden files left out."""
    if not exists(url, storage_options) or not is_folder(url, storage_options):
        return []
    names = names_in(url, storage_options)
    kept = sorted({name for name in names if name and name[0] not in "._"})
    return [join_url(url, name) for name in kept]
