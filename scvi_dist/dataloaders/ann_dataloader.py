"""AnnDataLoader, as users of scvi-tools know it: dictionaries of tensors in the caller's order."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scvi_dist.batch import REGISTRY_KEYS, CellBatch, SparseCounts
from scvi_dist.data.manager import AnnDataManager
from scvi_dist.dataloaders.collate import dense_tensor
from scvi_dist.dataloaders.loader import LoaderConfig
from scvi_dist.dataloaders.ordered_loader import OrderedLoader
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.errors import FieldNotFound, did_you_mean


class AnnDataLoader:
    """Minibatches of an AnnData or any other store, as dictionaries of tensors.

    Parameters
    ----------
    adata_manager
        A manager, as ``setup_anndata`` makes it.
    indices
        Rows to load, in this order; ``None`` for all. A boolean array selects rows.
    batch_size
        Cells of a minibatch.
    shuffle
        Draw another order for every iteration, with torch's random numbers: the order that
        scvi-tools' loader would draw from the same state.
    drop_last
        Leave out a last minibatch that is not full.
    data_and_attributes
        Registry keys to load, or a dictionary from key to numpy type; ``None`` for all.
    iter_ndarray
        numpy arrays in place of tensors.
    load_sparse_tensor
        Leave ``X`` sparse: a ``torch.sparse_csr`` tensor.
    config
        Budget, threads and limits of reading.

    Raises
    ------
    FieldNotFound
        A key is not in the registry.
    PlanError
        A row does not exist.
    """

    def __init__(
        self,
        adata_manager: AnnDataManager,
        indices: Sequence[int] | Sequence[bool] | np.ndarray | None = None,
        batch_size: int = 128,
        shuffle: bool = False,
        drop_last: bool = False,
        data_and_attributes: Sequence[str] | dict[str, Any] | None = None,
        iter_ndarray: bool = False,
        load_sparse_tensor: bool = False,
        config: LoaderConfig | None = None,
    ) -> None:
        self._keys = _keys(adata_manager, data_and_attributes)
        source = OpenSource(
            adata_manager.store,
            adata_manager.schema,
            check_counts=False,
            coded_obs=adata_manager.coded_obs(),
        )
        given = None if indices is None else np.asarray(indices)
        self._loader = OrderedLoader(source, given, batch_size, config)
        self.indices = self._loader.indices
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self._as_arrays, self._sparse = iter_ndarray, load_sparse_tensor

    def __len__(self) -> int:
        full, rest = divmod(len(self.indices), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # torch's DataLoader draws a seed for its workers in every iteration, and its sampler one
        # of its own: drawing both gives the order, and leaves the random state, of scvi-tools.
        _draw_seed()
        rows = self.indices
        if self.shuffle:
            generator = torch.Generator().manual_seed(_draw_seed())
            rows = rows[torch.randperm(len(rows), generator=generator).numpy()]
        if self.drop_last:
            rows = rows[: len(self) * self.batch_size]
        for batch in self._loader.batches(rows):
            yield {key: self._value(batch, key, dtype) for key, dtype in self._keys.items()}

    def _value(self, batch: CellBatch, key: str, dtype: Any) -> Tensor | np.ndarray:
        if key != REGISTRY_KEYS.X_KEY:
            value = batch[key]
        elif self._sparse and not self._as_arrays:
            return _sparse_csr(batch.x)
        else:
            value = dense_tensor(batch.x) if isinstance(batch.x, SparseCounts) else batch.x
        array = value.numpy() if dtype is None else value.numpy().astype(dtype, copy=False)
        return array if self._as_arrays else torch.from_numpy(array)


def _keys(manager: AnnDataManager, wanted: Sequence[str] | dict[str, Any] | None) -> dict[str, Any]:
    """Registry key -> numpy type, or ``None`` for float32 and int64 as the field suggests."""
    known = list(manager.data_registry)
    if wanted is None:
        return dict.fromkeys(known)
    for key in wanted:
        if key not in known:
            raise FieldNotFound(f"the registry has no data {key!r}; {did_you_mean(key, known)}")
    return dict(wanted) if isinstance(wanted, dict) else dict.fromkeys(wanted)


def _draw_seed() -> int:
    return int(torch.empty((), dtype=torch.int64).random_().item())


def _sparse_csr(x: SparseCounts | Tensor) -> Tensor:
    if isinstance(x, Tensor):
        return x.to_sparse_csr()
    # torch wants both index arrays of one type.
    return torch.sparse_csr_tensor(
        x.indptr, x.indices.long(), x.data, size=x.shape, check_invariants=False
    )
