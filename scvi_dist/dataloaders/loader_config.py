"""How cells are read: settings that need neither torch nor a store to be checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from scvi_dist.errors import ConfigError, did_you_mean

ENGINES = ("auto", "local", "ray")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderConfig:
    """How cells are read."""

    engine: str = "auto"
    """``local`` reads in the rank's process, ``ray`` on the cluster's CPUs; see ``engine.py``."""
    budget_bytes: int = 1 << 30
    """What one rank's loaders may hold in cells."""
    n_threads: int = 2
    """Threads of a rank that read (local engine)."""
    window_cells: int = 32_768
    """Cells shuffled together, over all ranks; fewer where the budget asks for it."""
    block_rows: int | None = None
    """Consecutive rows that stay together on their way; ``None``: as the store's chunks suggest."""
    reader_cpus: float = 1.0
    """CPUs that Ray reserves for each reader task."""
    readers: int = 2
    """Most reader tasks that work for a rank at once (Ray engine)."""
    reader_resources: Mapping[str, float] = field(default_factory=dict)
    """Further Ray resources that a reader task takes, such as ``{"reader": 1}`` (Ray engine)."""
    reader_labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of the nodes that may read, such as ``{"role": "reader"}``; ``{}``: all nodes."""
    object_store_bytes: int | None = None
    """Most bytes of cells that a rank's readers keep in Ray's object store; ``None``: as many as
    ``budget_bytes``, and four windows at least."""
    outage_limit_s: float = 300.0
    """How long reading waits for a store that cannot be reached, before an error."""
    wait_limit_s: float = 600.0
    """Longest wait for data before an error."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(
                f"engine {self.engine!r} does not exist; {did_you_mean(self.engine, ENGINES)}"
            )
        for name in ("budget_bytes", "n_threads", "window_cells", "readers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, seen {getattr(self, name)}.")
        for name in ("reader_cpus", "wait_limit_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be positive, seen {getattr(self, name)}.")
        if self.outage_limit_s < 0:
            raise ConfigError(f"outage_limit_s must not be negative, seen {self.outage_limit_s}.")
        if self.object_store_bytes is not None and self.object_store_bytes < 1:
            raise ConfigError(
                f"object_store_bytes must be at least 1, seen {self.object_store_bytes}."
            )
