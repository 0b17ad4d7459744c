"""The data of a model of marker genes: those genes, size factors, and facts of all cells.

Axis suffixes: ``n`` cells, ``g`` marker genes, ``c`` types.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.analysis.marker_statistics import (
    MarkerStatistics,
    library_totals,
    marker_statistics,
    size_factors,
)
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.data.manager import AnnDataManager
from scvi_dist.data.open import open_store
from scvi_dist.data.schema import Schema, SetupArgs, fit_schema
from scvi_dist.data.store import Store
from scvi_dist.data.views.obs_column import with_obs_column
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.errors import ConfigError, FieldNotFound, SchemaMismatch, did_you_mean
from scvi_dist.model.binding import DataBinding, Source

SIZE_FACTOR_COLUMN = "scvi_dist_size_factor"
"""Column of obs under which computed size factors appear."""
_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class LibraryReference:
    """What computed size factors are multiples of; other data is measured against the same."""

    mean_total: float
    """Mean over the cells of the sum of counts over all genes of the store."""
    n_genes: int
    """Genes of the store."""

    @staticmethod
    def from_attribute(value: Mapping[str, Any] | None) -> "LibraryReference | None":
        return None if value is None else LibraryReference(**value)

    def prepare(self, store: Store) -> Store:
        """The store with size factors, which are computed in one pass if it has none."""
        if SIZE_FACTOR_COLUMN in store.obs_columns:
            return store
        where = store.locator.redacted_url
        if store.n_vars != self.n_genes:
            warnings.warn(
                f"{where} has {store.n_vars} genes, but the model's size factors were computed "
                f"over {self.n_genes}: those of these cells are not on the same scale. Give a "
                f"store with all genes, or size factors in obs[{SIZE_FACTOR_COLUMN!r}].",
                UserWarning,
                stacklevel=2,
            )
        layer = store.locator.layer
        schema = fit_schema(store, SetupArgs(layer=layer))
        totals_n = library_totals(StoreCells(OpenSource(store, schema)))
        factors_n = size_factors(totals_n, where, self.mean_total)
        return with_obs_column(store, SIZE_FACTOR_COLUMN, factors_n)


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkerData:
    """Data in the form that a model of marker genes works on."""

    binding: DataBinding
    """Its schema has the marker genes alone, in the store's order."""
    statistics: MarkerStatistics
    reference: LibraryReference | None
    """None where size factors were given."""


def marker_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table of marker genes, checked; genes as text.

    Raises
    ------
    ConfigError
        It is no table of finite numbers, or genes or types occur twice.
    """
    if not isinstance(table, pd.DataFrame):
        raise ConfigError(
            "cell_type_markers is a DataFrame of genes (rows) by cell types (columns), 1 where a "
            f"gene is a marker of a type; seen a {type(table).__name__}."
        )
    table = table.set_axis(table.index.map(str), axis=0)
    for what, names in (("genes (rows)", table.index), ("cell types (columns)", table.columns)):
        if names.has_duplicates:
            raise ConfigError(
                f"cell_type_markers: {what} occur more than once, such as "
                f"{names[names.duplicated()][0]!r}."
            )
    is_numeric = all(pd.api.types.is_numeric_dtype(dtype) for dtype in table.dtypes)
    if table.empty or not is_numeric or not np.isfinite(table.to_numpy(np.float64)).all():
        raise ConfigError(
            "cell_type_markers has to hold 0 or 1 for every gene and type; seen "
            f"{table.shape[0]} genes, {table.shape[1]} types, and columns of "
            f"{', '.join(sorted({str(dtype) for dtype in table.dtypes}))}."
        )
    return table


def bind_markers(source: Source, model_name: str, markers: Sequence[str]) -> MarkerData:
    """The marker genes of data that was set up, with size factors; one pass over its counts.

    Raises
    ------
    FieldNotFound
        None of the marker genes is in the data.
    SchemaMismatch
        A size factor is not positive.
    ConfigError
        All counts of the marker genes are equal.

    Warns
    -----
    UserWarning
        Some marker genes are not in the data; cells are empty.
    """
    given = DataBinding.of(source, model_name).manager_for()
    genes = _genes(given.schema, markers, given.store.locator.redacted_url)
    if given.schema.setup.size_factor_key is None and SIZE_FACTOR_COLUMN in given.store.obs_columns:
        # Written here earlier, beside a model.
        given = _with_key(given)
    is_computed = given.schema.setup.size_factor_key is None
    statistics, totals_n = _pass_over(given, genes, is_computed)
    if statistics.largest <= statistics.smallest:
        raise ConfigError(
            f"{given.store.locator.redacted_url}: every count of the {len(genes)} marker genes is "
            f"{statistics.largest:g}; there is nothing to tell types by."
        )
    reference = None
    manager = given
    if totals_n is not None:
        mean_total, n_genes = float(totals_n.mean()), given.store.n_vars
        reference = LibraryReference(mean_total=mean_total, n_genes=n_genes)
        factors_n = size_factors(totals_n, given.store.locator.redacted_url)
        store = with_obs_column(given.store, SIZE_FACTOR_COLUMN, factors_n)
        manager = _with_key(AnnDataManager(store, given.schema, model_name, given.adata))
    else:
        _check_positive(given)
    schema = replace(manager.schema, var_names=tuple(genes))
    view = open_store(manager.store, genes=genes)
    bound = AnnDataManager(view, schema, model_name, given.adata)
    binding = marker_binding(schema, model_name, reference, source, bound)
    return MarkerData(binding=binding, statistics=statistics, reference=reference)


def marker_binding(
    schema: Schema,
    model_name: str,
    reference: LibraryReference | None,
    source: Source = None,
    manager: AnnDataManager | None = None,
) -> DataBinding:
    """A binding that computes the size factors of other data where the model's were computed."""
    binding = DataBinding(schema, model_name, source, manager)
    if schema.setup.size_factor_key == SIZE_FACTOR_COLUMN and reference is not None:
        binding.prepare = partial(LibraryReference.prepare, reference)
    return binding


def as_bound(manager: AnnDataManager) -> AnnDataManager:
    """The same cells, as an AnnData of the marker genes with the size factors where in memory."""
    adata, schema = manager.adata, manager.schema
    if adata is None or adata.isbacked:
        return AnnDataManager(manager.store, schema, manager.model_name)
    cells = adata[:, list(schema.var_names)].copy()
    factors_n1 = manager.coded_obs().take(np.arange(cells.n_obs))[REGISTRY_KEYS.SIZE_FACTOR_KEY]
    cells.obs[schema.setup.size_factor_key] = factors_n1[:, 0]
    store = open_store(cells, layer=schema.setup.layer)
    return AnnDataManager(store, schema, manager.model_name, cells)


def _with_key(manager: AnnDataManager) -> AnnDataManager:
    setup = replace(manager.schema.setup, size_factor_key=SIZE_FACTOR_COLUMN)
    schema = replace(manager.schema, setup=setup)
    return AnnDataManager(manager.store, schema, manager.model_name, manager.adata)


def _genes(schema: Schema, markers: Sequence[str], where: str) -> list[str]:
    """The marker genes that are there, in the order of the store."""
    wanted = set(markers)
    genes = [gene for gene in schema.var_names if gene in wanted]
    missing = sorted(wanted - set(genes))
    if not genes:
        raise FieldNotFound(
            f"{where}: none of the {len(wanted)} genes of cell_type_markers is among its "
            f"{schema.n_vars} genes; {did_you_mean(missing[0], schema.var_names)}"
        )
    if missing:
        warnings.warn(
            f"{where}: {len(missing)} of {len(wanted)} genes of cell_type_markers are not there "
            f"and are left out: {', '.join(missing[:_SHOWN])}{', …' if missing[_SHOWN:] else ''}",
            UserWarning,
            stacklevel=4,
        )
    return genes


def _pass_over(
    manager: AnnDataManager, genes: list[str], is_computed: bool
) -> tuple[MarkerStatistics, np.ndarray | None]:
    """Statistics of the genes; total counts over all genes only where they are asked for."""
    schema = manager.schema
    coded = manager.coded_obs()
    if not is_computed:
        narrow = replace(schema, var_names=tuple(genes))
        return marker_statistics(StoreCells(OpenSource(manager.store, narrow, True, coded))), None
    columns = np.flatnonzero(np.isin(np.asarray(schema.var_names, dtype=object), genes))
    totals_n = np.empty(manager.store.n_obs)
    cells = StoreCells(OpenSource(manager.store, schema, True, coded))
    return marker_statistics(cells, columns, totals_n), totals_n


def _check_positive(manager: AnnDataManager) -> None:
    key = REGISTRY_KEYS.SIZE_FACTOR_KEY
    factors_n = manager.coded_obs().take(np.arange(manager.store.n_obs))[key][:, 0]
    bad = np.flatnonzero(factors_n <= 0)
    if len(bad):
        column = manager.schema.setup.size_factor_key
        raise SchemaMismatch(
            f"obs[{column!r}] of {manager.store.locator.redacted_url}: size factors are positive; "
            f"{len(bad)} are not (row {bad[0]}: {factors_n[bad[0]]:g}). Leave these cells out, or "
            "give no size_factor_key to have size factors computed."
        )
