"""One look at a store for what a schema remembers: categories, proteins, and the genes' order."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scvi_dist.data.categories import CategoryCount
from scvi_dist.data.proteins import ProteinPass, ProteinReader, order_of
from scvi_dist.data.setup import SetupArgs
from scvi_dist.data.store import Store
from scvi_dist.errors import SchemaMismatch

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Seen:
    """What one pass over a store has found."""

    counts: dict[str, CategoryCount]
    """Column of obs -> cells of each category."""
    proteins: ProteinPass | None

    def warn(self) -> None:
        """Of categories with few cells, and of counts of proteins that are not whole."""
        for count in self.counts.values():
            count.warn_if_few()
        if self.proteins is not None:
            self.proteins.warn_if_broken()


def look_at(store: Store, setup: SetupArgs, protein_names: Sequence[str], chunk_rows: int) -> Seen:
    """One pass over the columns of obs and the proteins; numbers are checked on the way."""
    where = store.locator.redacted_url
    coded = dict.fromkeys(c for f in setup.obs_fields if f.is_categorical for c in f.columns)
    counts = {column: CategoryCount(f"obs[{column!r}] of {where}") for column in coded}
    numerical = [f for f in setup.obs_fields if not f.is_categorical and not f.is_empty]
    proteins = None
    if setup.protein_key is not None:
        at = f"obsm[{setup.protein_key!r}] of {where}"
        reader = protein_reader(store, setup, protein_names)
        proteins = ProteinPass(reader, protein_names, at)
    n_rows = store.n_obs if setup.obs_columns or proteins is not None else 0
    for start in range(0, n_rows, chunk_rows):
        stop = min(start + chunk_rows, store.n_obs)
        obs = store.read_obs(setup.obs_columns, start, stop)
        for column, count in counts.items():
            count.add(obs[column], start)
        for field in numerical:
            field.encode(obs, (), where, start)
        if proteins is not None:
            panels = None if setup.panel_column is None else obs[setup.panel_column]
            proteins.add(panels, start, stop)
    return Seen(counts, proteins)


def protein_reader(store: Store, setup: SetupArgs, protein_names: Sequence[str]) -> ProteinReader:
    """Reads the counts of these proteins, which are put in this order by name.

    Raises
    ------
    SchemaMismatch
        The store lacks some of them.
    """
    key = setup.protein_key
    assert key is not None, "the setup has proteins"
    columns = order_of(store, key, protein_names, setup.protein_names)
    return ProteinReader(store, key, columns, len(protein_names))


def gene_order(var_names: tuple[str, ...], store: Store) -> np.ndarray | None:
    """Columns of the store that are the schema's genes, in the schema's order; None: as it is."""
    names = store.var_names
    if len(names) == len(var_names) and bool(np.all(names == np.array(var_names, dtype=object))):
        return None
    where = store.locator.redacted_url
    column = {name: i for i, name in enumerate(names.tolist())}
    missing = [name for name in var_names if name not in column]
    if missing:
        raise SchemaMismatch(
            f"{where} has {len(names)} genes, but {len(missing)} of the schema's {len(var_names)} "
            f"are not among them: {_named(missing)}. Seen: {_named(names[:_SHOWN].tolist())}. "
            "Use data with the same gene names, or add the missing genes to it."
        )
    repeated = [n for n, many in Counter(names.tolist()).items() if many > 1]
    ambiguous = sorted(set(repeated) & set(var_names))
    if ambiguous or len(set(var_names)) < len(var_names):
        raise SchemaMismatch(
            f"{where}: its genes are in another order than the schema's and cannot be put in "
            f"order, because names occur more than once: {_named(ambiguous)}. "
            "Make the names unique."
        )
    return np.array([column[name] for name in var_names], dtype=np.int64)


def _named(names: Sequence[str]) -> str:
    return ", ".join(repr(n) for n in names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
