"""What is no address of a cluster is refused; where nothing listens, that is said at once."""

import socket
from typing import Any

import pytest

from scvi_dist.errors import ClusterUnreachable, ConfigError
from scvi_dist.train.ray_address import join_cluster


@pytest.mark.parametrize("address", ["http://head:8265", "https://head"])
def test_a_dashboard_is_not_joined(address: str) -> None:
    with pytest.raises(ConfigError, match="scvi-dist submit") as refused:
        join_cluster(address)
    assert "ray://HEAD:10001" in str(refused.value)


def test_an_address_of_a_client_has_a_port() -> None:
    with pytest.raises(ConfigError, match="ray://head, which names no port"):
        join_cluster("ray://head")


@pytest.mark.parametrize("scheme", ["ray://", ""])
def test_where_nothing_listens_no_cluster_is_waited_for(scheme: str) -> None:
    # Bound, so that no other process gets the port, and not listening.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ClusterUnreachable, match=r"no Ray cluster answers at .*refused"):
            join_cluster(address)


def test_a_head_that_is_slow_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = ConnectionAbortedError("RuntimeError: Starting Ray client server failed. See")
    answers: list[Exception | None] = [slow, slow, None]
    asked = []

    def init(**options: Any) -> None:
        asked.append(options["address"])
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    monkeypatch.setattr("ray.init", init)
    join_cluster(None)
    assert asked == [None] * 3
    answers[:] = [slow, slow, slow]
    with pytest.raises(ClusterUnreachable, match="Starting Ray client server failed"):
        join_cluster(None)
    answers[:] = [ConnectionError("no such host")]
    with pytest.raises(ClusterUnreachable, match="no such host"):
        join_cluster(None)
