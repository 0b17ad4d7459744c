"""A Ray of its own for the tests that need one, and one of several hosts."""

from collections.abc import Iterator

import pytest
from local_hosts import Hosts, local_hosts


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray on this machine with four logical CPUs, whose node may read; the tests of a session
    share it."""
    import ray

    from scvi_dist.train.local_ray import start_local_ray

    if ray.is_initialized():
        pytest.fail("a Ray is running in this process already; tests start their own")
    start_local_ray(
        4,
        object_store_memory=400_000_000,
        resources={"reader": 2},
        labels={"role": "reader"},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def made_hosts() -> Iterator[Hosts]:
    """The hosts of a session, whether they are up or not."""
    with local_hosts() as made:
        yield made


@pytest.fixture(scope="module")
def hosts(made_hosts: Hosts) -> Hosts:
    """A head and two workers with two logical CPUs each, all up; files that use them share them."""
    made_hosts.change("up", "2")
    return made_hosts
