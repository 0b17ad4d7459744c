"""What a user holds: models of cells. Names load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvi_dist.model.cellassign import CellAssign
    from scvi_dist.model.scanvi import SCANVI
    from scvi_dist.model.scvi import SCVI
    from scvi_dist.model.totalvi import TOTALVI

_HOME = {
    "CellAssign": "scvi_dist.model.cellassign",
    "SCANVI": "scvi_dist.model.scanvi",
    "SCVI": "scvi_dist.model.scvi",
    "TOTALVI": "scvi_dist.model.totalvi",
}

__all__ = ["SCANVI", "SCVI", "TOTALVI", "CellAssign"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'scvi_dist.model' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
