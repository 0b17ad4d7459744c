"""Names of genes and cells: shared between stores, compared, and refused where they repeat."""

import hashlib
from collections.abc import Iterable, Sequence
from weakref import WeakValueDictionary

import numpy as np
import pandas as pd

from scvi_dist.data.store import Store
from scvi_dist.errors import SchemaMismatch

_SHOWN = 5
_CHUNK_ROWS = 1 << 20
_KNOWN: "WeakValueDictionary[str, np.ndarray]" = WeakValueDictionary()
"""Digest -> the one array of these names that this process keeps."""


def names_digest(names: Iterable[str]) -> str:
    """32 hex digits of names in their order."""
    return hashlib.sha256("\0".join(names).encode()).hexdigest()[:32]


def shared_names(names: np.ndarray) -> np.ndarray:
    """An equal array that all who ask for these names share.

    A thousand shards of one atlas name the same 20,000 genes; once they are 2 MB, each for
    itself they are gigabytes.
    """
    return _KNOWN.setdefault(names_digest(names), names)


def listed(names: Sequence[object] | np.ndarray, shown: int = _SHOWN) -> str:
    """The first few names, quoted, for messages."""
    told = ", ".join(repr(str(name)) for name in names[:shown])
    return f"{told}, …" if len(names) > shown else told


def repeated(names: np.ndarray) -> np.ndarray:
    """The distinct names that occur more than once, in order of their second occurrence."""
    index = pd.Index(names, dtype=object)
    return index[index.duplicated()].unique().to_numpy(dtype=object)


def check_unique_genes(names: np.ndarray, where: str) -> None:
    """Raise :class:`SchemaMismatch` that lists the genes of ``var`` that occur more than once."""
    twice = repeated(names)
    if len(twice) == 0:
        return
    first = np.flatnonzero(names == twice[0])[:2].tolist()
    raise SchemaMismatch(
        f"{where}: {len(twice)} gene names of var occur more than once: {listed(twice)} (the "
        f"first one in columns {first[0]} and {first[1]}). Genes are told apart by their names: "
        "make them unique (adata.var_names_make_unique()) and write the store again."
    )


def check_unique_cells(store: Store, chunk_rows: int = _CHUNK_ROWS) -> None:
    """Raise :class:`SchemaMismatch` that lists the cells of ``obs`` whose name is not their own.

    Reads the names once, ``chunk_rows`` at a time, and keeps 16 bytes a cell.
    """
    hashes = np.empty(store.n_obs, dtype=np.uint64)
    for start in range(0, store.n_obs, chunk_rows):
        stop = min(start + chunk_rows, store.n_obs)
        hashes[start:stop] = pd.util.hash_array(store.obs_names(start, stop), categorize=False)
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    if len(same) == 0:
        return
    found = {int(order[i]): int(order[i + 1]) for i in same}
    told = []
    for first in sorted(found)[:_SHOWN]:
        one, other = store.obs_names(first, first + 1)[0], found[first]
        if one == store.obs_names(other, other + 1)[0]:
            told.append(f"{one!r} (rows {first} and {other})")
    raise SchemaMismatch(
        f"{store.locator.redacted_url}: {len(same)} cells have the name of another cell in obs: "
        f"{', '.join(told)}. Make the names unique (adata.obs_names_make_unique()) and write the "
        "store again."
    )
