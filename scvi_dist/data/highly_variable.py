"""Highly variable genes of a store of any size, as Seurat v3 and scanpy choose them.

Source: Stuart, Butler et al., Comprehensive integration of single-cell data, Cell 177 (2019),
STAR Methods "Feature selection for individual datasets"; for several batches, "Feature selection
for integrated analysis of multiple datasets" in the same place. Names and results are those of
``scanpy.pp.highly_variable_genes(flavor="seurat_v3")``.

Axis suffixes: ``b`` batches, ``g`` genes.
"""

from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from scvi_dist.data.counts import CountReport, check_counts, raise_or_warn
from scvi_dist.data.gene_moments import BatchColumn, BlockReading, Excess, GeneMoments, blocks_of
from scvi_dist.data.names import check_unique_genes
from scvi_dist.data.open import as_store
from scvi_dist.data.store import Store
from scvi_dist.errors import ConfigError, MissingDependency, SchemaMismatch, did_you_mean

Flavor = Literal["seurat_v3", "seurat_v3_paper"]

_PARABOLA = 3
"""Points that fix one."""
_SORTED_BY: dict[str, tuple[list[str], list[bool]]] = {
    "seurat_v3": (["highly_variable_rank", "highly_variable_nbatches"], [True, False]),
    "seurat_v3_paper": (["highly_variable_nbatches", "highly_variable_rank"], [False, True]),
}


def highly_variable_genes(
    store: Any,
    *,
    n_top_genes: int = 2000,
    flavor: Flavor = "seurat_v3",
    batch_key: str | None = None,
    span: float = 0.3,
    check_values: bool = True,
    reading: BlockReading | None = None,
) -> pd.DataFrame:
    """The genes whose counts vary more than their mean lets expect, as a table.

    Two passes over the counts; the second reads only genes with a count so large that it is
    clipped, and is left out where there are none. In memory are a few blocks of cells and seven
    numbers for each batch and gene.

    Parameters
    ----------
    store
        A store, or whatever :func:`~scvi_dist.data.open.open_store` takes; cells and genes are
        chosen there (``layer``, ``obs_filter``, ``genes``). Counts, not normalised.
    n_top_genes
        Genes to choose.
    flavor
        ``seurat_v3`` ranks by the median rank over batches, then by the number of batches that
        chose the gene; ``seurat_v3_paper`` the other way round.
    batch_key
        Column of obs; genes are ranked in each batch on its own.
    span
        Share of the genes that each local regression looks at.
    check_values
        Refuse negative and missing counts, warn of fractional ones.
    reading
        Threads, size of blocks and progress.

    Returns
    -------
    pandas.DataFrame
        Index: gene names in the store's order. Columns ``means`` and ``variances`` (over all
        cells), ``highly_variable_rank`` (from 0; NaN: not among the first of any batch),
        ``variances_norm`` (mean over batches), ``highly_variable``, and with ``batch_key``
        ``highly_variable_nbatches``.

    Raises
    ------
    ConfigError
        An argument is out of range, or the regression fails for a batch.
    SchemaMismatch
        Gene names repeat, there are no cells, or a cell has no batch.
    BadCounts
        A count is negative, infinite or NaN.
    MissingDependency
        scikit-misc, whose loess is used, is not installed.
    """
    _check_arguments(n_top_genes, flavor, span)
    opened = as_store(store)
    reading = reading or BlockReading()
    where = opened.locator.redacted_url
    check_unique_genes(opened.var_names, where)
    if 0 in opened.shape:
        raise SchemaMismatch(
            f"{where}: {opened.n_obs} cells x {opened.n_vars} genes leave nothing to choose from."
        )
    batches = BatchColumn.of(opened, batch_key)
    moments = _count_all(opened, batches, check_values, reading)
    expected_bg = np.stack(
        [
            _expected_deviation(mean_g, variance_g, span, _told(batches, b, moments, where))
            for b, (mean_g, variance_g) in enumerate(
                zip(moments.means_bg, moments.variances_bg, strict=True)
            )
        ]
    )
    norm_bg = _normalised_variances(opened, batches, moments, expected_bg, reading)
    table = _ranked(opened.var_names, norm_bg, moments, n_top_genes, flavor)
    return table if batch_key is not None else table.drop(columns="highly_variable_nbatches")


def _check_arguments(n_top_genes: int, flavor: str, span: float) -> None:
    if flavor not in get_args(Flavor):
        raise ConfigError(
            f"flavor={flavor!r} is not one that is computed from counts; "
            f"{did_you_mean(flavor, get_args(Flavor))}"
        )
    if n_top_genes < 1:
        raise ConfigError(f"n_top_genes: expected 1 or more, seen {n_top_genes}.")
    if not 0 < span <= 1:
        raise ConfigError(f"span: expected a share above 0 and at most 1, seen {span}.")


def _told(batches: BatchColumn, b: int, moments: GeneMoments, where: str) -> str:
    name = "" if batches.column is None else f", {batches.column} {batches.categories[b]!r}"
    return f"{where}{name} ({moments.cells_b[b]} cells)"


def _count_all(
    store: Store, batches: BatchColumn, check_values: bool, reading: BlockReading
) -> GeneMoments:
    moments = GeneMoments.zeros(len(batches.categories), store.n_vars)
    report = CountReport()
    where = store.locator.redacted_url
    for start, stop, block in blocks_of(store, reading):
        if check_values:
            report += check_counts(block, np.arange(start, stop), where)
            if report.n_nan or report.n_negative:
                break
        moments.add(block, batches.codes(store, start, stop))
        if reading.on_progress is not None:
            reading.on_progress(stop, store.n_obs)
    # Empty cells do no harm here.
    raise_or_warn(replace(report, n_empty=0, first_empty=None), store.var_names, where)
    return moments


def _expected_deviation(
    mean_g: np.ndarray, variance_g: np.ndarray, span: float, where: str
) -> np.ndarray:
    """Standard deviation that a local regression of log variance on log mean expects."""
    try:
        from skmisc.loess import loess
    except ImportError as error:
        raise MissingDependency(
            "choosing highly variable genes needs scikit-misc: pip install 'scvi-dist[hvg]'"
        ) from error

    varies_g = variance_g > 0
    log_variance_g = np.zeros_like(mean_g)
    n_varying = int(varies_g.sum())
    try:
        if n_varying * span < _PARABOLA:  # loess ends the process where it has too few points
            raise ValueError(f"span {span} of them are too few for a parabola")
        model = loess(
            np.log10(mean_g[varies_g]), np.log10(variance_g[varies_g]), span=span, degree=2
        )
        model.fit()
    except ValueError as error:
        raise ConfigError(
            f"{where}: the local regression of variance on mean fails over "
            f"{n_varying} genes that vary ({error}). Leave so small a batch out, join it with "
            "another one, or raise span."
        ) from error
    log_variance_g[varies_g] = model.outputs.fitted_values
    return np.sqrt(10**log_variance_g)


def _normalised_variances(
    store: Store,
    batches: BatchColumn,
    moments: GeneMoments,
    expected_bg: np.ndarray,
    reading: BlockReading,
) -> np.ndarray:
    """float64 ``[b, g]``: variances of standardised counts, clipped at ``sqrt(n)``."""
    n_b1 = moments.cells_b[:, np.newaxis].astype(np.float64)
    means_bg = moments.means_bg
    limits_bg = expected_bg * np.sqrt(n_b1) + means_bg
    excess = _count_excess(store, batches, moments, limits_bg, reading)
    sums_bg = moments.sums_bg - excess.sums_bg + excess.counts_bg * limits_bg
    squares_bg = moments.squares_bg - excess.squares_bg + excess.counts_bg * limits_bg**2
    return (1 / ((n_b1 - 1) * np.square(expected_bg))) * (
        n_b1 * np.square(means_bg) + squares_bg - 2 * sums_bg * means_bg
    )


def _count_excess(
    store: Store,
    batches: BatchColumn,
    moments: GeneMoments,
    limits_bg: np.ndarray,
    reading: BlockReading,
) -> Excess:
    """What the counts above the limits add up to; reads only the genes that have any."""
    total = Excess.above(limits_bg)
    genes = np.flatnonzero((moments.largest_bg > limits_bg).any(axis=0))
    if len(genes) == 0:
        return total
    found = Excess.above(limits_bg[:, genes])
    for start, stop, block in blocks_of(store, reading, genes):
        found.add(block, batches.codes(store, start, stop))
        if reading.on_progress is not None:
            reading.on_progress(stop, store.n_obs)
    for name in ("counts_bg", "sums_bg", "squares_bg"):
        getattr(total, name)[:, genes] = getattr(found, name)
    return total


def _ranked(
    var_names: np.ndarray, norm_bg: np.ndarray, moments: GeneMoments, n_top_genes: int, flavor: str
) -> pd.DataFrame:
    everything = moments.over_all()
    ranks_bg = np.argsort(np.argsort(-norm_bg, axis=1), axis=1).astype(np.float32)
    chosen_bg = ranks_bg < n_top_genes
    median_g = np.ma.median(np.ma.masked_where(~chosen_bg, ranks_bg), axis=0).filled(np.nan)
    table = pd.DataFrame(
        {
            "means": everything.means_bg[0],
            "variances": everything.variances_bg[0],
            "gene_name": var_names,
            "highly_variable_nbatches": chosen_bg.sum(axis=0),
            "highly_variable_rank": median_g,
            "variances_norm": norm_bg.mean(axis=0),
        },
        index=pd.Index(var_names, dtype=object),
    )
    columns, ascending = _SORTED_BY[flavor]
    order = table[columns].sort_values(columns, ascending=ascending, na_position="last").index
    table["highly_variable"] = table.index.isin(order[:n_top_genes])
    return table
