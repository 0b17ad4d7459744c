"""How objects behind a URL are read: attempts, waits, limits, and a cache of blocks on disk.

The settings travel inside a store's ``storage_options``, under the one key that fsspec never sees,
so that they reach every process that opens the store.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from scvi_dist.errors import ConfigError, did_you_mean

OWN_OPTIONS = "scvi_dist"
"""Key of ``storage_options`` for :class:`RemoteConfig`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteConfig:
    """How remote stores (h5ad, Zarr) are read."""

    attempts: int = 6
    """Tries of one request before an error, where the service is busy or the line is bad."""
    first_wait_s: float = 0.25
    """Wait before the second try, in seconds; doubles with every further one."""
    longest_wait_s: float = 20.0
    """Longest wait between two tries, in seconds."""
    timeout_s: float = 60.0
    """Longest time for one request, in seconds."""
    concurrency: int = 32
    """Requests of one read that are under way at once."""
    cache_dir: str | None = None
    """Folder on a local disk that keeps what was read; ``None``: nothing is kept."""
    cache_bytes: int = 20 << 30
    """Most bytes in that folder, over all processes that use it."""
    cache_block_bytes: int = 1 << 20
    """Size of a block in the cache: what is fetched at least."""

    def __post_init__(self) -> None:
        for name in ("attempts", "concurrency", "cache_block_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, seen {getattr(self, name)}.")
        for name in ("first_wait_s", "longest_wait_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, seen {getattr(self, name)}.")
        if self.timeout_s <= 0:
            raise ConfigError(f"timeout_s must be positive, seen {self.timeout_s}.")
        if self.cache_bytes < 2 * self.cache_block_bytes:
            raise ConfigError(
                f"cache_bytes ({self.cache_bytes}) must hold at least two blocks of "
                f"cache_block_bytes ({self.cache_block_bytes})."
            )

    def as_options(self) -> dict[str, Any]:
        """The settings that are not the defaults, as they stand in ``storage_options``."""
        default = asdict(RemoteConfig())
        changed = {name: value for name, value in asdict(self).items() if value != default[name]}
        return {OWN_OPTIONS: changed} if changed else {}


def split_options(
    storage_options: Mapping[str, Any] | None,
) -> tuple[RemoteConfig, dict[str, Any]]:
    """Our own settings among storage options, and what is left for fsspec.

    Raises
    ------
    ConfigError
        For a setting that does not exist, with the nearest one.
    """
    left = dict(storage_options or {})
    own = left.pop(OWN_OPTIONS, None) or {}
    known = [field.name for field in fields(RemoteConfig)]
    if not isinstance(own, Mapping):
        raise ConfigError(
            f"storage_options[{OWN_OPTIONS!r}] must be a mapping of {', '.join(known)}; seen "
            f"{own!r:.60}."
        )
    for name in own:
        if name not in known:
            raise ConfigError(
                f"storage_options[{OWN_OPTIONS!r}] has no {name!r}; {did_you_mean(name, known)}"
            )
    return RemoteConfig(**own), left
