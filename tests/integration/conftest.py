"""Several hosts for the tests that need them."""

from collections.abc import Iterator

import pytest
from local_hosts import Hosts, local_hosts


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
