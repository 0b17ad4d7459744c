"""What travels from a store to a module: rows of counts as CSR, and a minibatch of cells.

Axis suffixes: ``n`` cells, ``g`` genes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


class REGISTRY_KEYS:
    """The keys under which a module finds its inputs; the strings are scvi-tools'."""

    X_KEY = "X"
    BATCH_KEY = "batch"
    SAMPLE_KEY = "sample"
    LABELS_KEY = "labels"
    PROTEIN_EXP_KEY = "proteins"
    CAT_COVS_KEY = "extra_categorical_covs"
    CONT_COVS_KEY = "extra_continuous_covs"
    INDICES_KEY = "ind_x"
    SIZE_FACTOR_KEY = "size_factor"
    MINIFY_TYPE_KEY = "minify_type"
    LATENT_QZM_KEY = "latent_qzm"
    LATENT_QZV_KEY = "latent_qzv"
    OBSERVED_LIB_SIZE = "observed_lib_size"


@dataclass(frozen=True, slots=True)
class CsrRows:
    """Rows of a count matrix in compressed sparse row form, on the CPU, as a store gave them.

    Column indices of a row need not be sorted; none occurs twice.
    """

    indptr: np.ndarray
    """int64 ``[n + 1]``; starts at 0."""
    indices: np.ndarray
    """Any integer type, ``[nnz]``: gene of each entry. Stores that keep 16 bits give 16 bits."""
    data: np.ndarray
    """``[nnz]``: value of each entry, in the store's dtype."""
    n_genes: int

    @property
    def n_cells(self) -> int:
        return len(self.indptr) - 1

    @property
    def nbytes(self) -> int:
        return self.indptr.nbytes + self.indices.nbytes + self.data.nbytes

    def take(self, rows: np.ndarray) -> "CsrRows":
        """The given rows, in the given order; a row may occur more than once."""
        starts = self.indptr[rows]
        lengths = self.indptr[np.asarray(rows) + 1] - starts
        indptr = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=indptr[1:])
        source = np.repeat(starts - indptr[:-1], lengths) + np.arange(indptr[-1])
        return CsrRows(indptr, self.indices[source], self.data[source], self.n_genes)

    @staticmethod
    def concatenate(parts: Sequence["CsrRows"]) -> "CsrRows":
        """The rows of all parts, in order. At least one part is needed."""
        if len(parts) == 1:
            return parts[0]
        offsets = np.cumsum([0] + [part.indptr[-1] for part in parts])
        indptr = np.concatenate(
            [parts[0].indptr[:1]]
            + [p.indptr[1:] + o for p, o in zip(parts, offsets[:-1], strict=True)]
        )
        return CsrRows(
            indptr,
            np.concatenate([p.indices for p in parts]),
            np.concatenate([p.data for p in parts]),
            parts[0].n_genes,
        )

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.csr_matrix [n, g]`` that shares values with this one."""
        from scipy.sparse import csr_matrix

        shape = (self.n_cells, self.n_genes)
        # scipy warns of types other than its own two.
        short = self.indices.dtype.itemsize < 4
        indices = self.indices.astype(np.int32) if short else self.indices
        return csr_matrix((self.data, indices, self.indptr), shape=shape, copy=False)

    def to_dense(self, dtype: Any = np.float32) -> np.ndarray:
        """``[n, g]``, a new array."""
        dense_ng = np.zeros((self.n_cells, self.n_genes), dtype=dtype)
        rows = np.repeat(np.arange(self.n_cells), np.diff(self.indptr))
        dense_ng[rows, self.indices] = self.data
        return dense_ng


@dataclass(frozen=True, slots=True)
class SparseCounts:
    """A minibatch of counts as CSR tensors; stays sparse until it is on the device."""

    indptr: Tensor
    """int64 ``[n + 1]``."""
    indices: Tensor
    """int32 or int64 ``[nnz]``."""
    data: Tensor
    """float32 ``[nnz]``."""
    n_genes: int

    @property
    def shape(self) -> tuple[int, int]:
        # A tensor takes long to say its length.
        return self.indptr.shape[0] - 1, self.n_genes

    def to_dense(self) -> Tensor:
        """float32 ``[n, g]`` on the device of the entries.

        ``torch.sparse_csr_tensor(...).to_dense()`` is several times slower on a CPU.
        """
        n, g = self.shape
        lengths = self.indptr[1:] - self.indptr[:-1]
        rows = torch.repeat_interleave(
            torch.arange(n, device=self.data.device), lengths, output_size=len(self.data)
        )
        dense_ng = torch.zeros(n * g, dtype=self.data.dtype, device=self.data.device)
        dense_ng[rows * g + self.indices] = self.data
        return dense_ng.view(n, g)

    def to(self, device: Any, non_blocking: bool = False) -> "SparseCounts":
        return SparseCounts(
            self.indptr.to(device, non_blocking=non_blocking),
            self.indices.to(device, non_blocking=non_blocking),
            self.data.to(device, non_blocking=non_blocking),
            self.n_genes,
        )

    def pin_memory(self) -> "SparseCounts":
        return SparseCounts(
            self.indptr.pin_memory(),
            self.indices.pin_memory(),
            self.data.pin_memory(),
            self.n_genes,
        )


@dataclass(frozen=True, slots=True)
class CellBatch:
    """One rank's cells of one global minibatch, as a module sees them.

    Reads like the mapping of tensors that scvi-tools' modules take: ``batch["X"]`` is dense,
    ``batch["batch"]`` is int64 ``[n, 1]``, and so on for every key of :class:`REGISTRY_KEYS`
    that the schema has.
    """

    x: SparseCounts | Tensor
    """Counts ``[n, g]``."""
    fields: dict[str, Tensor]
    """Registry key -> ``[n, k]``; int64 for categorical keys, float32 otherwise."""
    rows: np.ndarray
    """int64 ``[n]``: row of each cell in the store."""
    position: int = 0
    """Cells of this epoch's global order that come before this global minibatch."""
    start: int = 0
    """This rank's cells are items ``start … start + n`` of the global minibatch."""
    n_global: int = 0
    """Cells of the global minibatch, over all ranks."""
    n_padding: int = 0
    """Cells at the end of this batch that only fill it up: they carry no loss."""
    loss_scale: float = 1.0
    """Factor on this rank's mean loss that makes the mean over ranks the mean over cells."""
    step: int = 0
    """Index of the global minibatch in its epoch."""
    labelled: "CellBatch | None" = None
    """Cells of another stream, whose labels are known, that the same step learns from."""
    _dense: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    @property
    def n_cells(self) -> int:
        return int(self.x.shape[0])

    @property
    def n_real(self) -> int:
        """Cells that count."""
        return self.n_cells - self.n_padding

    def dense_x(self) -> Tensor:
        """float32 ``[n, g]``; computed once."""
        if isinstance(self.x, Tensor):
            return self.x
        if not self._dense:
            self._dense.append(self.x.to_dense())
        return self._dense[0]

    def __getitem__(self, key: str) -> Tensor:
        return self.dense_x() if key == REGISTRY_KEYS.X_KEY else self.fields[key]

    def get(self, key: str, default: Tensor | None = None) -> Tensor | None:
        return self[key] if key in self else default  # noqa: SIM401

    def __contains__(self, key: object) -> bool:
        return key == REGISTRY_KEYS.X_KEY or key in self.fields

    def keys(self) -> Iterator[str]:
        yield REGISTRY_KEYS.X_KEY
        yield from self.fields

    __iter__ = keys

    def __len__(self) -> int:
        return 1 + len(self.fields)

    def to(self, device: Any, non_blocking: bool = False) -> "CellBatch":
        return replace(
            self,
            x=self.x.to(device, non_blocking=non_blocking),
            fields={k: v.to(device, non_blocking=non_blocking) for k, v in self.fields.items()},
            labelled=None if self.labelled is None else self.labelled.to(device, non_blocking),
            _dense=[],
        )

    def pin_memory(self) -> "CellBatch":
        return replace(
            self,
            x=self.x.pin_memory(),
            fields={k: v.pin_memory() for k, v in self.fields.items()},
            labelled=None if self.labelled is None else self.labelled.pin_memory(),
            _dense=[],
        )
