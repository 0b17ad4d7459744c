"""What a store is, in figures, without reading its matrix."""

from dataclasses import dataclass

from scvi_dist.data.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class ObsColumn:
    """A column of obs."""

    name: str
    kind: str
    """``category``, ``string``, ``number`` or ``bool``."""
    n_categories: int | None
    """``None`` for a column of another kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreDescription:
    """A store in figures; ``None`` where a figure is not known without reading the matrix."""

    url: str
    """Without secrets."""
    kind: str
    layer: str | None
    n_obs: int
    n_vars: int
    layers: tuple[str, ...]
    obs: tuple[ObsColumn, ...]
    obsm: tuple[tuple[str, int], ...]
    """Key and number of columns."""
    chunk_rows: int
    dtype: str | None
    encoding: str | None
    """``csr`` or ``dense``."""
    n_stored: int | None
    """Stored entries of the matrix."""
    density: float | None
    """Share of entries that are stored; for a dense matrix the non-zeros of a sample."""
    bytes_per_cell: float
    """Mean size of a row in memory."""
    size_bytes: int | None
    """Size of the whole store on disk, all layers."""
    digest: str


def describe_store(store: Store) -> StoreDescription:
    """Shape, layers, columns with their categories, obsm, storage and digest of a store."""
    facts = store.storage_facts()
    entries_per_row = (store.bytes_per_cell - 8.0) / 8.0
    return StoreDescription(
        url=store.locator.redacted_url,
        kind=store.locator.kind,
        layer=store.locator.layer,
        n_obs=store.n_obs,
        n_vars=store.n_vars,
        layers=store.layers,
        obs=_describe_columns(store),
        obsm=tuple(store.obsm_keys.items()),
        chunk_rows=store.chunk_rows,
        dtype=facts.dtype,
        encoding=facts.encoding,
        n_stored=facts.n_stored,
        density=entries_per_row / store.n_vars if store.n_vars and store.n_obs else None,
        bytes_per_cell=store.bytes_per_cell,
        size_bytes=facts.size_bytes,
        digest=store.digest(),
    )


def _describe_columns(store: Store) -> tuple[ObsColumn, ...]:
    kinds = store.obs_columns
    coded = [name for name, kind in kinds.items() if kind == "category"]
    # All at once: a collection asks each of its stores once.
    found = store.read_obs(coded, 0, 0)
    numbers = {name: len(found[name].cat.categories) for name in coded}
    return tuple(
        ObsColumn(name=name, kind=kind, n_categories=numbers.get(name))
        for name, kind in kinds.items()
    )
