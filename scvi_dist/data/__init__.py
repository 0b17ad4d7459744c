"""Where rows are: one contract, :class:`Store`, and an adapter for every kind of store.

Names load on first use, so that the adapters' libraries are imported only when needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvi_dist.data.describe import StoreDescription, describe_store
    from scvi_dist.data.manager import AnnDataManager
    from scvi_dist.data.open import as_store, open_store
    from scvi_dist.data.store import Range, Store, StoreLocator, ranges_of

_HOME = {
    "AnnDataManager": "scvi_dist.data.manager",
    "Range": "scvi_dist.data.store",
    "Store": "scvi_dist.data.store",
    "StoreDescription": "scvi_dist.data.describe",
    "StoreLocator": "scvi_dist.data.store",
    "as_store": "scvi_dist.data.open",
    "describe_store": "scvi_dist.data.describe",
    "open_store": "scvi_dist.data.open",
    "ranges_of": "scvi_dist.data.store",
}

__all__ = [
    "AnnDataManager",
    "Range",
    "Store",
    "StoreDescription",
    "StoreLocator",
    "as_store",
    "describe_store",
    "open_store",
    "ranges_of",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'scvi_dist.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
