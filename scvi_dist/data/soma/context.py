"""How TileDB is opened: one tuned context for every set of options, shared by a process's stores.

Options are TileDB's own configuration keys (``vfs.s3.region``, ...), as ``storage_options``.
Credentials come from the environment (``AWS_ACCESS_KEY_ID``, ``TILEDB_REST_TOKEN``, ...).
"""

import os
from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any

from scvi_dist.data.filesystem import redact_url, refuse_secrets

if TYPE_CHECKING:
    from tiledbsoma import SOMATileDBContext

BUFFER_BYTES = 16 << 20
"""What TileDB fills, for each column, before it hands a table over."""

_TUNED: dict[str, Any] = {
    # The default is 1 GiB for each column of each reader.
    "soma.init_buffer_bytes": BUFFER_BYTES,
    # Tiles that a query holds at once; the default is 10 GiB.
    "sm.mem.total_budget": 1 << 30,
    # In TileDB 2.30 (tiledbsoma 2.3) the merge ahead of a read frees memory of a query that may be
    # gone by then: two of five busy processes died within 20,000 reads of a table of ten fragments,
    # none without it. Mended in TileDB's pull request 5723; reads are no slower without.
    "sm.query.sparse_global_order.preprocess_tile_merge": "0",
}
_CONTEXTS: dict[tuple[Any, ...], "SOMATileDBContext"] = {}
_LOCK = Lock()


def context_of(options: Mapping[str, Any]) -> "SOMATileDBContext":
    """The context with these options on top of the tuned ones; not shared with forked processes."""
    import tiledbsoma

    config = {**_TUNED, **{name: _plain(value) for name, value in options.items()}}
    key = (os.getpid(), *sorted(config.items()))
    with _LOCK:
        if key not in _CONTEXTS:
            _CONTEXTS[key] = tiledbsoma.SOMATileDBContext(tiledb_config=config)
        return _CONTEXTS[key]


def _plain(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def refuse_secret_config(url: str, options: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for a URL or a TileDB option that holds a secret."""
    refuse_secrets(url, {name.replace(".", "_"): value for name, value in options.items()})


def shown(url: str) -> str:
    """The URL for messages and logs."""
    return redact_url(url)
