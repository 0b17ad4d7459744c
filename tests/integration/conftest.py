"""A Ray of its own for the tests that need one."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray on this machine with four logical CPUs; the tests of a session share it."""
    import ray

    from scvi_dist.train.local_ray import start_local_ray

    if ray.is_initialized():
        pytest.fail("a Ray is running in this process already; tests start their own")
    start_local_ray(4, object_store_memory=400_000_000)
    yield
    ray.shutdown()
