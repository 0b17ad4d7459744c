"""Models that scvi-tools keeps under ``scvi.external``. Names load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvi_dist.model.cellassign import CellAssign

_HOME = {"CellAssign": "scvi_dist.model.cellassign"}

__all__ = ["CellAssign"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'scvi_dist.external' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
