"""Which engine reads the cells of a run, and why. Pure."""

from dataclasses import dataclass

from scvi_dist.data.filesystem import is_remote
from scvi_dist.data.store import StoreLocator
from scvi_dist.dataloaders.loader import LoaderConfig
from scvi_dist.dataloaders.source import is_in_memory
from scvi_dist.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine, and the reason in a sentence."""

    engine: str
    """``local`` or ``ray``."""
    reason: str


def choose_engine(
    config: LoaderConfig, locator: StoreLocator, *, under_ray: bool, n_cpus: float, world: int
) -> EngineChoice:
    """The engine that a run uses.

    Parameters
    ----------
    config
        Its ``engine`` decides unless it is ``auto``.
    locator
        The store.
    under_ray
        Whether Ray Train runs the ranks.
    n_cpus
        CPUs of the machine or of the Ray cluster.
    world
        Number of ranks; each of them keeps a CPU busy.

    Raises
    ------
    ConfigError
        If Ray is asked for and the store exists in this process only.
    """
    in_memory = is_in_memory(locator)
    if config.engine == "ray":
        if in_memory:
            raise ConfigError(
                "engine 'ray' was asked for, but the data is an AnnData in this process's memory, "
                "which no other process can read. Write it to a store first "
                "(scvi_dist.data.write_zarr), or use engine 'local'."
            )
        return EngineChoice("ray", "Ray Data reads because the configuration says so.")
    if config.engine == "local":
        return EngineChoice(
            "local", "each rank reads in its own process because the configuration says so."
        )
    if not under_ray:
        return EngineChoice("local", "the run is one process, which reads for itself.")
    if in_memory:
        return EngineChoice("local", "the data is in this process's memory.")
    spare = n_cpus - world
    if spare < config.reader_cpus and not _is_remote(locator):
        return EngineChoice(
            "local",
            f"each rank reads in its own process: the store is on a local disk, and of "
            f"{n_cpus:g} CPUs {world} train, which leaves {max(0.0, spare):g} for Ray Data's "
            f"readers where one needs {config.reader_cpus:g}.",
        )
    return EngineChoice(
        "ray", f"Ray Data reads on the cluster's {n_cpus:g} CPUs and streams to {world} ranks."
    )


def _is_remote(locator: StoreLocator) -> bool:
    if locator.parts:
        return any(_is_remote(part) for part in locator.parts)
    return is_remote(locator.url)
