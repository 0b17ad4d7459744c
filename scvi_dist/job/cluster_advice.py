"""What is easily missed when a run goes to a cluster."""

import os

from scvi_dist.config import RunConfig
from scvi_dist.train.configs import RayConfig


def is_on_cluster(config: RunConfig) -> bool:
    """Whether the workers may be on other hosts than this process."""
    return config.train.ray.address is not None or "RAY_ADDRESS" in os.environ


def of_tracking(config: RunConfig, uri: str) -> str | None:
    """About MLflow's address."""
    if not is_on_cluster(config) or "sqlite" not in uri:
        return None
    return (
        "MLflow writes to a file on this host. Workers on hosts that do not see it lose their "
        "metrics, and a database on network storage may break: set tracking.uri to a server."
    )


def of_devices(config: RunConfig, ray: RayConfig | None) -> str | None:
    """About GPUs that might stay idle: a head often has none, its workers have."""
    guessed = config.train.fit.accelerator == "auto" and not config.train.ray.use_gpu
    if ray is None or ray.use_gpu or not guessed or not is_on_cluster(config):
        return None
    return (
        "training on CPUs, as this host has no GPU for each worker; if the cluster has them, say "
        "train.accelerator=gpu."
    )
