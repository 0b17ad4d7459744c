"""scvi-tools' models on atlases that fit neither in memory nor on one machine.

Names load on first use, so that ``import scvi_dist`` stays fast.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "SCVI": "scvi_dist.model",
    "open_store": "scvi_dist.data",
    "REGISTRY_KEYS": "scvi_dist.batch",
}

__all__ = ["REGISTRY_KEYS", "SCVI", "__version__", "open_store"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'scvi_dist' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
