"""What changes when the content of a SOMA array does, found without reading it."""

import os
from pathlib import Path
from typing import Any

from scvi_dist.data.filesystem import is_remote, normalise_url


def stamp_of(array: Any, timestamp_ms: int) -> list[Any]:
    """Facts of an open array or table as of a time; JSON values.

    On this machine: what was committed to it, by name (names hold a time and a random number).
    Behind a URL: entries, shape and domain, which TileDB knows from its fragments' metadata.
    """
    if is_remote(array.uri):
        domain = array.non_empty_domain()
        return [int(array._handle.fragment_cell_count()), str(domain), str(array.schema)]
    commits = Path(str(array.uri).removeprefix("file://")) / "__commits"
    names = sorted(os.listdir(commits)) if commits.is_dir() else []
    return [name for name in names if _time_of(name) <= timestamp_ms]


def _time_of(name: str) -> int:
    """Milliseconds in a commit's name; 0 for names of another form."""
    parts = name.split("_")
    return int(parts[2]) if len(parts) > 2 and parts[2].isdigit() else 0


def size_on_disk(url: str) -> int | None:
    """Bytes of a local experiment."""
    if is_remote(url):
        return None
    files = (
        os.path.join(folder, name)
        for folder, _, names in os.walk(normalise_url(url))
        for name in names
    )
    return sum(os.stat(path).st_size for path in files)
