"""Joining a Ray cluster by its address."""

import socket

import ray
from ray.exceptions import AuthenticationError
from ray.util.client import ray as ray_client

from scvi_dist.errors import ClusterUnreachable, ConfigError

PORTS = "auto, HEAD:6379 (from a host of the cluster) or ray://HEAD:10001 (from elsewhere)"
PROBE_S = 10.0
"""How long a cluster's port may take to answer; Ray itself tries for half a minute and more."""
CHANCES = 3
"""Attempts to join while a head is slow."""
_CLIENT = "ray://"
_SLOW = "Starting Ray client server failed"
"""What Ray says where a client's server has not answered in time."""


def join_cluster(address: str | None) -> None:
    """Connect this process to the cluster at ``address``; ``None``: at RAY_ADDRESS.

    Raises
    ------
    ConfigError
        It is an address of something else.
    ClusterUnreachable
        No cluster answers, or it wants another token. This process is connected to none then.
    """
    if address is not None:
        _check_listens(address)
    told = address or "RAY_ADDRESS"
    try:
        _init(address)
    except AuthenticationError as error:
        ray.shutdown()
        raise ClusterUnreachable(
            f"the Ray cluster at {told} takes processes with its own token only. Set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH)."
        ) from error
    except (ConnectionError, RuntimeError) as error:
        # Ray would send what is asked of it later to a client that is not there.
        ray.shutdown()
        raise ClusterUnreachable(
            f"no Ray cluster lets this process join at {told}; expected {PORTS}: {error}"
        ) from error


def _init(address: str | None) -> None:
    """Connect; a head that is too busy to start a client's server in Ray's half minute is asked
    again."""
    for chance in range(1, CHANCES + 1):
        try:
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        except ConnectionError as error:
            if chance == CHANCES or _SLOW not in str(error):
                raise
            ray.shutdown()
        else:
            return


def is_joined(address: str) -> bool:
    """Whether the cluster that this process is connected to is the one at ``address``."""
    if address == "auto":
        return True
    if address.startswith(_CLIENT):
        client = ray_client.get_context().client_worker
        return client is not None and _same(client._conn_str, address.removeprefix(_CLIENT))
    return _same(ray.get_runtime_context().gcs_address, address)


def _check_listens(address: str) -> None:
    """Refuse what is no address of a cluster, and say at once where nothing listens."""
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"address: expected {PORTS}; seen {address}, which is a dashboard's. A run file is "
            "sent there by 'scvi-dist submit'."
        )
    host, _, port = address.removeprefix(_CLIENT).rpartition(":")
    if not (host and port.isdigit()):
        if address.startswith(_CLIENT):
            raise ConfigError(f"address: expected {PORTS}; seen {address}, which names no port.")
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterUnreachable(
            f"no Ray cluster answers at {address}: {error}. Expected {PORTS}; a head's port 10001 "
            "takes clients from elsewhere where 'ray start --head' has run with ray[default] or "
            "ray[client], and no firewall is between."
        ) from error


def _same(left: str, right: str) -> bool:
    return left == right or _resolved(left) == _resolved(right)


def _resolved(address: str) -> str:
    """With the host's number instead of its name; this host's as Ray knows it."""
    host, _, port = address.rpartition(":")
    try:
        number = socket.gethostbyname(host)
    except OSError:
        return address
    return f"{ray.util.get_node_ip_address() if number.startswith('127.') else number}:{port}"
