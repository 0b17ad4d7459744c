"""How cells are read: settings that need neither torch nor a store to be checked."""

from dataclasses import dataclass

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
