"""Which rows go where, and when: plans of reading and the loaders that carry them out.

Names load on first use, so that a plan imports neither torch nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvi_dist.dataloaders.ann_dataloader import AnnDataLoader
    from scvi_dist.dataloaders.datamodule import CellDataModule
    from scvi_dist.dataloaders.loader_config import LoaderConfig
    from scvi_dist.dataloaders.split import Split, SplitConfig

_HOME = {
    "AnnDataLoader": "scvi_dist.dataloaders.ann_dataloader",
    "CellDataModule": "scvi_dist.dataloaders.datamodule",
    "LoaderConfig": "scvi_dist.dataloaders.loader_config",
    "Split": "scvi_dist.dataloaders.split",
    "SplitConfig": "scvi_dist.dataloaders.split",
}

__all__ = ["AnnDataLoader", "CellDataModule", "LoaderConfig", "Split", "SplitConfig"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'scvi_dist.dataloaders' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
