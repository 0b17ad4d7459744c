"""A Ray of its own, which tests may do harm to."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def frail_ray() -> Iterator[None]:
    """A Ray on this machine with three logical CPUs, gone after the tests of a file."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray")
    if ray.is_initialized():
        # That of other tests: only workers are killed here, which it survives.
        yield
        return
    ray.init(
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=200_000_000,
    )
    yield
    ray.shutdown()
