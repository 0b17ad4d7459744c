"""Nodes that do not answer are told from those that do."""

import socket

from scvi_dist.train.ray_controller import _amounts, _answers, _until


def test_a_node_answers_while_its_port_does() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        node = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": server.getsockname()[1]}
        assert _answers(node)
    assert not _answers(node)


def test_resources_are_told_without_what_ray_counts_for_itself() -> None:
    told = {"CPU": 2.0, "memory": 1e9, "object_store_memory": 1e9, "node:10.0.0.1": 1.0, "GPU": 1}
    assert _amounts(told) == "2 CPU, 1 GPU"
    assert _amounts({}) == "nothing"


def test_waiting_ends_with_the_condition_or_the_limit() -> None:
    looks = iter([False, True])
    _until(lambda: next(looks), 60)
    assert list(looks) == []
    _until(lambda: False, 0)
