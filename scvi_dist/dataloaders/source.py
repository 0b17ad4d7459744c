"""Where the cells of a loader come from: a store and the codes of its cells."""

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import numpy as np

from scvi_dist.batch import CsrRows
from scvi_dist.data.coded_obs import CodedObs
from scvi_dist.data.minified import MinifiedReader
from scvi_dist.data.schema import Schema
from scvi_dist.data.schema_pass import protein_reader
from scvi_dist.data.store import Store, StoreLocator
from scvi_dist.errors import SchemaMismatch

_KEPT_OPEN = 8
_OPEN: "OrderedDict[tuple[StoreLocator, str, bool], OpenSource]" = OrderedDict()
_LOCK = Lock()


@dataclass(frozen=True)
class CellSource:
    """A store and a schema, in a form that other processes can open."""

    locator: StoreLocator
    schema: Schema
    check_counts: bool = True
    """Look at every value during the first pass: refuse what no count model can take."""

    def open(self) -> "OpenSource":
        """The open source; one for each process, however often it is asked for."""
        if is_in_memory(self.locator):
            # Keeping it would keep the user's AnnData alive.
            return self._open()
        key = self.locator, self.schema.digest(), self.check_counts
        with _LOCK:
            if key not in _OPEN:
                _OPEN[key] = self._open()
                # Others may still read what falls out, so it is not closed here.
                while len(_OPEN) > _KEPT_OPEN:
                    _OPEN.popitem(last=False)
            _OPEN.move_to_end(key)
            return _OPEN[key]

    def reopen(self) -> "OpenSource":
        """The source opened anew, also for those who ask later."""
        with _LOCK:
            _OPEN.pop((self.locator, self.schema.digest(), self.check_counts), None)
        return self.open()

    def _open(self) -> "OpenSource":
        return OpenSource(self.locator.open(), self.schema, self.check_counts)


class OpenSource:
    """An open store, and the codes of its cells once they are asked for.

    Parameters
    ----------
    store
        Where the counts are.
    schema
        Its genes are selected from the store by name, in the schema's order.
    check_counts
        See :class:`CellSource`.
    coded_obs
        The codes, if they are there already; otherwise one pass over obs when first needed.

    Raises
    ------
    SchemaMismatch
        A gene or a protein of the schema is not in the store.
    """

    def __init__(
        self,
        store: Store,
        schema: Schema,
        check_counts: bool = True,
        coded_obs: CodedObs | None = None,
    ) -> None:
        self.store = store
        self.schema = schema
        self.check_counts = check_counts
        self.genes = _genes_of(store, schema)
        """int64: columns of the store to read; ``None`` for all, in the store's order."""
        self.proteins = (
            protein_reader(store, schema.setup, schema.protein_names) if schema.n_proteins else None
        )
        """Reads the counts of proteins; ``None`` where the schema has none."""
        self.minified = None if schema.minified is None else MinifiedReader(store, schema.minified)
        """Reads posteriors in place of counts; ``None`` for data that was not minified."""
        self._coded_obs = coded_obs
        self._lock = Lock()

    @property
    def where(self) -> str:
        """The store's URL, for messages."""
        return self.store.locator.redacted_url

    @property
    def coded_obs(self) -> CodedObs:
        """Codes of all cells of the store."""
        with self._lock:
            if self._coded_obs is None:
                self._coded_obs = CodedObs(self.schema, self.store)
            return self._coded_obs

    @cached_property
    def rows_in_memory(self) -> CsrRows | None:
        """All rows as the module takes them, where nothing has to be read."""
        return self.store.rows_in_memory() if self.genes is None else None

    @property
    def bytes_per_cell(self) -> float:
        """Mean size of what is read of a cell: its counts of genes and of proteins."""
        return self.store.bytes_per_cell + self.schema.dense_bytes_per_cell

    def unchecked(self) -> "OpenSource":
        """The same cells, of which nobody looks at every value."""
        return OpenSource(self.store, self.schema, check_counts=False, coded_obs=self.coded_obs)

    @property
    def cell_source(self) -> CellSource:
        """What another process can open."""
        return CellSource(self.store.locator, self.schema, self.check_counts)


def opened(source: CellSource | OpenSource) -> OpenSource:
    """The source, open."""
    return source.open() if isinstance(source, CellSource) else source


def is_in_memory(locator: StoreLocator) -> bool:
    """Whether a store, or a part of it, exists in this process only."""
    here = locator.kind in ("memory", "obs_column")
    return here or any(is_in_memory(part) for part in locator.parts)


def _genes_of(store: Store, schema: Schema) -> np.ndarray | None:
    names = np.asarray(store.var_names)
    wanted = np.asarray(schema.var_names, dtype=object)
    if len(names) == len(wanted) and bool((names == wanted).all()):
        return None
    place = {name: column for column, name in enumerate(names.tolist())}
    missing = [name for name in wanted.tolist() if name not in place]
    if missing:
        raise SchemaMismatch(
            f"{store.locator.redacted_url} lacks {len(missing)} of the schema's {len(wanted)} "
            f"genes, the first is {missing[0]!r}. Give a store that has them all."
        )
    return np.array([place[name] for name in wanted.tolist()], dtype=np.int64)
