"""A dashboard's address is none that a process can join a cluster by."""

import pytest

from scvi_dist.errors import ConfigError
from scvi_dist.train.ray_address import join_cluster


@pytest.mark.parametrize("address", ["http://head:8265", "https://head"])
def test_a_dashboard_is_not_joined(address: str) -> None:
    with pytest.raises(ConfigError, match="scvi-dist submit") as refused:
        join_cluster(address)
    assert "ray://HEAD:10001" in str(refused.value)
