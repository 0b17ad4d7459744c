"""Joining a Ray cluster by its address."""

import ray
from ray.exceptions import AuthenticationError

from scvi_dist.errors import ClusterUnreachable, ConfigError

PORTS = "auto, HEAD:6379 (from a host of the cluster) or ray://HEAD:10001 (from elsewhere)"


def join_cluster(address: str | None) -> None:
    """Connect this process to the cluster at ``address``; ``None``: at RAY_ADDRESS.

    Raises
    ------
    ConfigError
        It is an address of something else.
    ClusterUnreachable
        No cluster answers, or it wants another token.
    """
    if address is not None and address.startswith(("http://", "https://")):
        raise ConfigError(
            f"address: expected {PORTS}; seen {address}, which is a dashboard's. A run file is "
            "sent there by 'scvi-dist submit'."
        )
    told = address or "RAY_ADDRESS"
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    except AuthenticationError as error:
        raise ClusterUnreachable(
            f"the Ray cluster at {told} takes processes with its own token only. Set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH)."
        ) from error
    except (ConnectionError, RuntimeError) as error:
        raise ClusterUnreachable(
            f"no Ray cluster lets this process join at {told}; expected {PORTS}: {error}"
        ) from error
