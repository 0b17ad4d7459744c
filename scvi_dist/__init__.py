"""scvi-tools' models on atlases that fit neither in memory nor on one machine.

Names load on first use, so that ``import scvi_dist`` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvi_dist import (
        criticism,
        data,
        dataloaders,
        distributions,
        external,
        model,
        module,
        nn,
        train,
    )
    from scvi_dist.batch import REGISTRY_KEYS
    from scvi_dist.data.open import open_store
    from scvi_dist.global_settings import settings
    from scvi_dist.model.cellassign import CellAssign
    from scvi_dist.model.scanvi import SCANVI
    from scvi_dist.model.scvi import SCVI
    from scvi_dist.model.totalvi import TOTALVI

__version__ = "0.1.0"

_HOME = {
    "CellAssign": "scvi_dist.model",
    "REGISTRY_KEYS": "scvi_dist.batch",
    "SCANVI": "scvi_dist.model",
    "SCVI": "scvi_dist.model",
    "TOTALVI": "scvi_dist.model",
    "open_store": "scvi_dist.data",
    "settings": "scvi_dist.global_settings",
}
_PACKAGES = (
    "criticism",
    "data",
    "dataloaders",
    "distributions",
    "external",
    "model",
    "module",
    "nn",
    "train",
)
"""Packages that are attributes after ``import scvi_dist``, as scvi-tools' are."""

__all__ = [
    "REGISTRY_KEYS",
    "SCANVI",
    "SCVI",
    "TOTALVI",
    "CellAssign",
    "__version__",
    "criticism",
    "data",
    "dataloaders",
    "distributions",
    "external",
    "model",
    "module",
    "nn",
    "open_store",
    "settings",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"scvi_dist.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'scvi_dist' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
