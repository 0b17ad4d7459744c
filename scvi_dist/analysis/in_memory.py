"""Cells that workers cannot read."""

from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.dataloaders.source import is_in_memory
from scvi_dist.errors import ConfigError


def refuse_in_memory(cells: StoreCells, workers: str) -> None:
    """Raises :class:`ConfigError` if the cells are in this process only."""
    if is_in_memory(cells.source.store.locator):
        raise ConfigError(
            f"these cells are an AnnData in this process's memory, where {workers} cannot read "
            "them. Use dask=None or dask='threads' (threads of this process), or write the cells "
            "to a file (adata.write_h5ad) and give its path instead of the AnnData."
        )
