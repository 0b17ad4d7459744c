"""What the h5ad and the Zarr form of an AnnData share: which elements there are and what
kind of matrix each is (anndata 0.7 to 0.12). Tables are in ``anndata_table``.

An :class:`ElementTree` is what the adapters supply; nothing here knows h5py or zarr.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from scvi_dist.errors import FieldNotFound, StoreCorrupt, UnsupportedStore, did_you_mean

SHUFFLED = "scvi_dist_shuffle"
"""Attribute of the root of a store whose cells were written in random order."""


class StoredArray(Protocol):
    """An array of a store, not yet read."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype:
        """Type on disk; kind ``O``, ``S``, ``U`` or ``T`` for text."""

    @property
    def chunk_rows(self) -> int:
        """Entries along the first axis that storage keeps together; 1 if any can be read alone."""

    def read(self, spans: np.ndarray, dtype: Any = None) -> np.ndarray:
        """Members of ascending spans ``[m, 2]`` along the first axis, as one array."""


@runtime_checkable
class NarrowingArray(Protocol):
    """An array whose integers can be made short while they are read."""

    def read_narrow(self, spans: np.ndarray) -> np.ndarray | None:
        """Members as uint16; ``None`` where they are not all read so, or one does not fit."""


class ElementTree(Protocol):
    """The elements of one AnnData on disk, by path (``obs/batch/codes``). Safe in threads."""

    @property
    def where(self) -> str:
        """URL without secrets, for messages."""

    def kind(self, path: str) -> Literal["group", "array"] | None: ...

    def children(self, path: str) -> list[str]: ...

    def attributes(self, path: str) -> Mapping[str, Any]:
        """Attributes as Python values; a reference to an element is its path."""

    def array(self, path: str) -> StoredArray: ...

    def element(self, path: str) -> Any:
        """A whole element as anndata reads it: a table, an array, a dictionary."""

    def stamp(self, paths: Sequence[str]) -> str:
        """What changes when the content of these arrays does, found without reading them."""

    def version(self) -> str:
        """What changes when the store is written to; ``""`` where finding it takes time."""

    def size_on_disk(self) -> int | None:
        """Bytes, where that is cheap to know."""

    def close(self) -> None: ...


def native(dtype: np.dtype) -> np.dtype:
    """The same type in this machine's byte order."""
    return dtype.newbyteorder("=") if dtype.kind in "iufc" else dtype


def as_text(values: np.ndarray) -> np.ndarray:
    """Any array of text as an object array of ``str``."""
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8").astype(object)
    if values.dtype.kind != "O":
        return values.astype(object) if values.dtype.kind in "UT" else values.astype("U")
    if len(values) and isinstance(values[0], bytes):
        return np.array([value.decode() for value in values], dtype=object)
    return values


@dataclass(frozen=True, slots=True)
class MatrixElement:
    """Where a matrix is, and how it is stored."""

    path: str
    encoding: Literal["csr", "dense"]
    shape: tuple[int, int]


def layer_path(layer: str | None) -> str:
    """The path of a layer: ``None`` is X, ``"raw"`` is raw.X."""
    if layer is None:
        return "X"
    return "raw/X" if layer == "raw" else f"layers/{layer}"


def list_layers(tree: ElementTree) -> tuple[str, ...]:
    """Names of layers in order, then ``raw`` if present."""
    names = sorted(tree.children("layers")) if tree.kind("layers") == "group" else []
    return (*names, "raw") if tree.kind("raw/X") else tuple(names)


def find_matrix(tree: ElementTree, layer: str | None) -> MatrixElement:
    """The matrix of a layer. Raises :class:`FieldNotFound` and :class:`UnsupportedStore`."""
    path = layer_path(layer)
    if tree.kind(path) is None:
        have = list_layers(tree)
        if layer is None:
            raise FieldNotFound(
                f"{tree.where} has no X; open one of its layers instead: {', '.join(have) or '-'}."
            )
        raise FieldNotFound(f"{tree.where} has no layer {layer!r}; {did_you_mean(layer, have)}")
    return matrix_at(tree, path)


def matrix_at(tree: ElementTree, path: str) -> MatrixElement:
    """What kind of matrix an element is. Raises :class:`UnsupportedStore` for other kinds."""
    if tree.kind(path) == "array":
        axes = tree.array(path).shape
        if len(axes) != 2:
            raise UnsupportedStore(f"{tree.where}: {path} has {len(axes)} axes, expected 2.")
        return MatrixElement(path, "dense", (int(axes[0]), int(axes[1])))
    attributes = tree.attributes(path)
    encoding = str(attributes.get("encoding-type") or attributes.get("h5sparse_format", ""))
    if encoding.startswith("csc"):
        raise UnsupportedStore(
            f"{tree.where}: {path} is stored by columns (CSC), so that reading a few cells would "
            "read all of it. Write it by rows once: adata = anndata.read_h5ad(path) or "
            "read_zarr(path); adata.X = adata.X.tocsr() (or the layer); adata.write_h5ad(new)."
        )
    if not encoding.startswith("csr"):
        raise UnsupportedStore(
            f"{tree.where}: {path} has the encoding {encoding or 'none'!r}; expected a CSR or a "
            "dense matrix as anndata writes them."
        )
    shape = attributes.get("shape", attributes.get("h5sparse_shape"))
    if shape is None or len(shape) != 2:
        raise StoreCorrupt(f"{tree.where}: {path} does not say its shape (attribute 'shape').")
    return MatrixElement(path, "csr", (int(shape[0]), int(shape[1])))
