"""What is in a matrix, in a few numbers that do not depend on the order of its cells.

They are gathered while rows stream by, merge by addition, and say what the smallest type is that
holds the counts, and whether two stores hold the same cells.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from scvi_dist.batch import CsrRows
from scvi_dist.data.hashing import splitmix64

_MASK = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """Facts of some rows of a matrix; add them to have those of all."""

    n_cells: int = 0
    n_entries: int = 0
    """Entries that are not 0."""
    total: float = 0.0
    """Sum of all values."""
    lowest: float = 0.0
    """Smallest value, or 0."""
    largest: float = 0.0
    """Largest value, or 0."""
    is_integral: bool = True
    """Whether every value is a whole number."""
    checksum: int = 0
    """Sum of a hash of each cell, modulo 2^64."""

    @staticmethod
    def of(block: CsrRows) -> "Content":
        """Facts of a block of rows."""
        data = block.data
        if data.dtype.kind == "b":
            data = data.astype(np.uint8)
        present = data != 0
        is_integral = data.dtype.kind in "iu" or bool((np.floor(data) == data).all())
        return Content(
            n_cells=block.n_cells,
            n_entries=int(np.count_nonzero(present)),
            total=float(data.sum(dtype=np.float64)) if len(data) else 0.0,
            lowest=min(0.0, float(data.min())) if len(data) else 0.0,
            largest=max(0.0, float(data.max())) if len(data) else 0.0,
            is_integral=is_integral,
            checksum=_checksum(block.indptr, block.indices, data, present),
        )

    def __add__(self, other: "Content") -> "Content":
        return Content(
            n_cells=self.n_cells + other.n_cells,
            n_entries=self.n_entries + other.n_entries,
            total=self.total + other.total,
            lowest=min(self.lowest, other.lowest),
            largest=max(self.largest, other.largest),
            is_integral=self.is_integral and other.is_integral,
            checksum=(self.checksum + other.checksum) & _MASK,
        )

    def value_type(self, stored: np.dtype) -> np.dtype:
        """The smallest unsigned integer type that holds the values; ``stored`` if none does."""
        if self.is_integral and self.lowest >= 0:
            for kind in (np.uint8, np.uint16, np.uint32):
                if self.largest <= np.iinfo(kind).max:
                    return np.dtype(kind)
        return stored

    def to_json(self) -> dict[str, Any]:
        """As JSON values; the checksum as text, for it needs all 64 bits."""
        return {**asdict(self), "checksum": f"{self.checksum:016x}"}

    @staticmethod
    def from_json(tree: dict[str, Any]) -> "Content":
        """What :meth:`to_json` made."""
        return Content(**{**tree, "checksum": int(tree["checksum"], 16)})


def index_type(n_genes: int) -> np.dtype:
    """The smallest integer type for the number of a gene; signed where that costs nothing.

    scipy warns of matrices whose indices are of an unsigned type.
    """
    if n_genes <= 1 << 15:
        return np.dtype(np.int16)
    return np.dtype(np.uint16 if n_genes <= 1 << 16 else np.int32)


def pointer_type(n_entries: int) -> np.dtype:
    """Type of row pointers: what scipy takes for a matrix with so many entries."""
    return np.dtype(np.int32 if n_entries <= np.iinfo(np.int32).max else np.int64)


def _checksum(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, present: np.ndarray
) -> int:
    """Order of entries in a row and zeros that are stored make no difference."""
    bits = data.astype(np.float32).view(np.uint32).astype(np.uint64)
    keys = (bits << np.uint64(32)) | indices.astype(np.uint64)
    hashes = np.where(present, splitmix64(keys), np.uint64(0))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes, dtype=np.uint64)])
    return int(splitmix64(np.diff(sums[indptr])).sum(dtype=np.uint64))
