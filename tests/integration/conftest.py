"""A Ray of its own for the tests that need one."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray on this machine with four logical CPUs; the tests of a session share it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    ray = pytest.importorskip("ray")
    if ray.is_initialized():
        pytest.fail("a Ray is running in this process already; tests start their own")
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=400_000_000,
    )
    yield
    ray.shutdown()
