"""Whether workers can do what they are about to be asked to."""

from typing import Any

from distributed import Client

from scvi_dist.analysis.passes.engines import EngineConfig
from scvi_dist.errors import EngineError

_PACKAGES = ("scvi-dist", "torch", "numpy", "anndata")
"""Packages whose versions decide whether results are the same."""


def scheduler_of(client: Client) -> str:
    """The scheduler, for messages."""
    return f"the Dask scheduler at {client.scheduler.address if client.scheduler else 'none'}"


def check_workers(client: Client, config: EngineConfig) -> None:
    """Wait for a worker, and see that all of them have our versions.

    Raises
    ------
    EngineError
        There is no worker, or another version.
    """
    where = scheduler_of(client)
    try:
        client.wait_for_workers(1, timeout=config.worker_limit_s)
    except TimeoutError as error:
        raise EngineError(
            f"{where} has no workers after {config.worker_limit_s:g} s. Start some with "
            "'dask worker' and the scheduler's address."
        ) from error
    versions: Any = client.get_versions(packages=list(_PACKAGES))
    mine = versions["client"]["packages"]
    names = ("python", "cloudpickle", "distributed", *_PACKAGES)
    for worker, facts in sorted(versions["workers"].items()):
        theirs = facts["packages"] if facts else {}
        other = [
            f"{name} {theirs.get(name) or 'is missing'} (here {mine.get(name)})"
            for name in names
            if _release(name, theirs.get(name)) != _release(name, mine.get(name))
        ]
        if other:
            raise EngineError(
                f"worker {worker} of {where} has other packages than this process: "
                f"{', '.join(other)}. Install the same ones for both; results would differ, or "
                "there would be none."
            )


def _release(name: str, version: object) -> object:
    """Python's patch releases understand each other."""
    return ".".join(str(version).split(".")[:2]) if name == "python" else version
