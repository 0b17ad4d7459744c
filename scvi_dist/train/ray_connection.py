"""The Ray that a run works with: one that is there, or a local one that is started."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from scvi_dist.errors import ConfigError
from scvi_dist.train.configs import RayConfig
from scvi_dist.train.local_ray import quiet_ray, start_local_ray
from scvi_dist.train.ray_address import is_joined, join_cluster

_OUR_NODES: set[str] = set()
"""Nodes of the local Rays that this process has started."""


@contextmanager
def connected(config: RayConfig) -> Iterator[bool]:
    """A Ray to work with; whether it is a local one that was started here.

    Raises
    ------
    ConfigError
        This process is connected to another cluster than the one that was named.
    """
    if ray.is_initialized() and config.address is not None:
        _leave_another(config.address)
    if not ray.is_initialized():
        _start(config)
    is_ours = _node_id() in _OUR_NODES
    try:
        yield is_ours
    finally:
        if config.shutdown and is_ours:
            ray.shutdown()


def _leave_another(address: str) -> None:
    """End a local Ray of an earlier run, where this run is to be on a cluster."""
    if _node_id() in _OUR_NODES:
        if address == "auto" or not is_joined(address):
            ray.shutdown()
    elif not is_joined(address):
        raise ConfigError(
            f"address: this process is connected to another Ray than {address}. Call "
            "ray.shutdown() before, or give no address to train on the one that it is connected to."
        )


def _start(config: RayConfig) -> None:
    if config.address is not None or "RAY_ADDRESS" in os.environ:
        quiet_ray()
        join_cluster(config.address)
        return
    start_local_ray(config.local_cpus(n_cores()))
    _OUR_NODES.add(_node_id())


def _node_id() -> str:
    return ray.get_runtime_context().get_node_id()


def check_resources(num_workers: int, resources: Mapping[str, float]) -> None:
    """Refuse what this Ray will never have, instead of waiting for it."""
    there = ray.cluster_resources()
    for name, amount in resources.items():
        if num_workers * amount > there.get(name, 0):
            raise ConfigError(
                f"{num_workers} workers with {amount:g} {name} each need {num_workers * amount:g} "
                f"{name}, but the Ray of this process has {there.get(name, 0):g}. Ask for fewer "
                "workers, set resources_per_worker, give the address of a larger cluster, or call "
                "ray.shutdown() so that a Ray that is large enough is started."
            )


@contextmanager
def environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Variables that are set inside, where they were not."""
    new = {k: v for k, v in defaults.items() if k not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def n_cores() -> int:
    """Cores of this host."""
    return os.cpu_count() or 1
