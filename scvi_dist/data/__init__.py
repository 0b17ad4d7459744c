"""Where rows are: one contract, :class:`Store`, and an adapter for every kind of store.

Names load on first use, so that the adapters' libraries are imported only when needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import read_h5ad
    from anndata.io import read_csv, read_loom, read_text
    from scanpy import read_10x_h5, read_10x_mtx

    from scvi_dist.data.describe import StoreDescription, describe_store
    from scvi_dist.data.highly_variable import highly_variable_genes
    from scvi_dist.data.manager import AnnDataManager
    from scvi_dist.data.open import as_store, open_store
    from scvi_dist.data.simulated.simulate import simulate_atlas
    from scvi_dist.data.simulated.synthetic import synthetic_iid
    from scvi_dist.data.soma.soma_writer import write_soma
    from scvi_dist.data.store import Range, Store, StoreLocator, ranges_of
    from scvi_dist.data.writing.convert import convert_store
    from scvi_dist.data.writing.shuffle_store import shuffle_store
    from scvi_dist.data.writing.validate import validate_store
    from scvi_dist.data.writing.writer import write_h5ad, write_zarr

_HOME = {
    "AnnDataManager": "scvi_dist.data.manager",
    "Range": "scvi_dist.data.store",
    "Store": "scvi_dist.data.store",
    "StoreDescription": "scvi_dist.data.describe",
    "StoreLocator": "scvi_dist.data.store",
    "as_store": "scvi_dist.data.open",
    "convert_store": "scvi_dist.data.writing.convert",
    "describe_store": "scvi_dist.data.describe",
    "highly_variable_genes": "scvi_dist.data.highly_variable",
    "open_store": "scvi_dist.data.open",
    "ranges_of": "scvi_dist.data.store",
    "read_10x_h5": "scanpy",
    "read_10x_mtx": "scanpy",
    "read_csv": "anndata.io",
    "read_h5ad": "anndata",
    "read_loom": "anndata.io",
    "read_text": "anndata.io",
    "shuffle_store": "scvi_dist.data.writing.shuffle_store",
    "simulate_atlas": "scvi_dist.data.simulated.simulate",
    "synthetic_iid": "scvi_dist.data.simulated.synthetic",
    "validate_store": "scvi_dist.data.writing.validate",
    "write_h5ad": "scvi_dist.data.writing.writer",
    "write_soma": "scvi_dist.data.soma.soma_writer",
    "write_zarr": "scvi_dist.data.writing.writer",
}

__all__ = [
    "AnnDataManager",
    "Range",
    "Store",
    "StoreDescription",
    "StoreLocator",
    "as_store",
    "convert_store",
    "describe_store",
    "highly_variable_genes",
    "open_store",
    "ranges_of",
    "read_10x_h5",
    "read_10x_mtx",
    "read_csv",
    "read_h5ad",
    "read_loom",
    "read_text",
    "shuffle_store",
    "simulate_atlas",
    "synthetic_iid",
    "validate_store",
    "write_h5ad",
    "write_soma",
    "write_zarr",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        try:
            home = import_module(_HOME[name])
        except ModuleNotFoundError as error:
            if error.name != _HOME[name]:
                raise
            from scvi_dist.errors import MissingDependency

            raise MissingDependency(
                f"scvi_dist.data.{name} is {_HOME[name]}'s: pip install {_HOME[name]}."
            ) from error
        return getattr(home, name)
    raise AttributeError(f"module 'scvi_dist.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
