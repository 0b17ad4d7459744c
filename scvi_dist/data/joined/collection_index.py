"""What a collection of stores knows of its parts without opening them; travels in its locator."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from scvi_dist.data.joined.alignment import ColumnPlan, Join, NamedColumns, source_columns
from scvi_dist.data.joined.parts import LazyParts
from scvi_dist.data.names import names_digest, shared_names
from scvi_dist.data.packing import pack_names, pack_numbers, unpack_names, unpack_numbers
from scvi_dist.data.store import Store
from scvi_dist.errors import StoreChanged


@dataclass(frozen=True)
class CollectionIndex:
    """Cells and genes of every part, and the genes of all."""

    join: Join | None
    chosen: bool
    """Whether the genes were given as a list."""
    cells: np.ndarray
    """int64: cells of each part."""
    gene_digests: tuple[str, ...]
    """Digest of the gene names of each part."""
    var_names: np.ndarray
    """The joined genes, object array of str."""
    part_digests: tuple[str, ...] = ()
    """Digest of each part as it was opened; none if they were not opened to make this."""

    @staticmethod
    def of(parts: LazyParts, join: Join | None, genes: Sequence[str] | None) -> "CollectionIndex":
        """Found by opening every part once. See :meth:`NamedColumns.joined` for what it raises."""
        found = parts.visit(_look_at, keep=False)
        wanted = None if genes is None else np.array([str(gene) for gene in genes], dtype=object)
        columns = NamedColumns([part.names for part in found], parts.where)
        joined = columns.joined(join, wanted)
        digests = {id(names): names_digest(names) for names in columns.distinct.values()}
        index = CollectionIndex(
            join,
            genes is not None,
            np.array([part.n_obs for part in found], dtype=np.int64),
            tuple(digests[id(part.names)] for part in found),
            shared_names(joined),
            tuple(part.digest for part in found),
        )
        for names in columns.distinct.values():
            index._learn(digests[id(names)], names)
        index._versions.update(enumerate(part.version for part in found))
        return index

    @cached_property
    def starts(self) -> np.ndarray:
        """int64: first row of each part, and the number of all rows."""
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.cells)])

    def check(self, part: int, store: Store) -> bool:
        """Raise :class:`StoreChanged` unless the part has the cells and genes it had.

        Returns whether the names of its genes were read, which is done once in a process: it takes
        longer than opening the store.
        """
        is_new = part not in self._versions
        digest = names_digest(store.var_names) if is_new else self.gene_digests[part]
        version = store.version()
        if store.n_obs != self.cells[part]:
            was = f"it had {self.cells[part]} cells when the collection was opened"
        elif digest != self.gene_digests[part]:
            was = "it had other genes when the collection was opened"
        elif self._versions.setdefault(part, version) != version:
            was = "it was written to after it was first opened"
        else:
            if is_new:
                self._learn(digest, store.var_names)
            return is_new
        raise StoreChanged(
            f"{store.locator.redacted_url} was changed: it has {store.n_obs} cells and "
            f"{store.n_vars} genes, and {was}. Start again with the collection as it is now."
        )

    @cached_property
    def _versions(self) -> dict[int, str]:
        """Parts that this process has looked at -> version of their files."""
        return {}

    @cached_property
    def _places(self) -> dict[str, tuple[np.ndarray, ColumnPlan]]:
        """Digest of names -> column of each joined gene there, and how to read all of them."""
        return {}

    def _learn(self, digest: str, names: np.ndarray) -> None:
        if digest not in self._places:
            source_g = source_columns(names, self.var_names)
            self._places[digest] = source_g.astype(np.int32), ColumnPlan.of(source_g, len(names))

    def plan(self, part: int, store: Store, genes: np.ndarray | None) -> ColumnPlan:
        """How to read ``genes`` (places in ``var_names``; ``None``: all) of a part."""
        source_g, whole = self._places[self.gene_digests[part]]
        return whole if genes is None else ColumnPlan.of(source_g[genes], store.n_vars)

    def options(self) -> tuple[tuple[str, Any], ...]:
        """For a locator; :meth:`from_options` gives the index back."""
        distinct = list(dict.fromkeys(self.gene_digests))
        place = {digest: i for i, digest in enumerate(distinct)}
        which = np.array([place[digest] for digest in self.gene_digests])
        return (
            ("join", self.join),
            ("chosen", self.chosen),
            ("cells", pack_numbers(self.cells)),
            ("gene_lists", " ".join(distinct)),
            ("gene_list_of_part", pack_numbers(which)),
            ("genes", pack_names(self.var_names)),
        )

    @staticmethod
    def from_options(options: dict[str, Any]) -> "CollectionIndex":
        """What :meth:`options` was made of."""
        distinct = options["gene_lists"].split(" ")
        which = unpack_numbers(options["gene_list_of_part"])
        return CollectionIndex(
            options["join"],
            options["chosen"],
            unpack_numbers(options["cells"]),
            tuple(distinct[i] for i in which),
            shared_names(unpack_names(options["genes"])),
        )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is asked of a part once, while it is open."""

    n_obs: int
    names: np.ndarray
    digest: str
    version: str


def _look_at(part: int, store: Store) -> _Seen:
    names = shared_names(store.var_names)
    return _Seen(store.n_obs, names, store.digest(), store.version())
