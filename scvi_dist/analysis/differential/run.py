"""Differential expression of any number of comparisons: one table, by either estimator.

Axis suffixes: ``f`` features: genes, then proteins.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.analysis.differential.counts import Columns, counts_of, taking_part
from scvi_dist.analysis.differential.decode import DecodeOptions
from scvi_dist.analysis.differential.full import histogram_columns
from scvi_dist.analysis.differential.groups import Comparison, Grouping
from scvi_dist.analysis.differential.options import DifferentialOptions
from scvi_dist.analysis.differential.outliers import without_outliers
from scvi_dist.analysis.differential.pairs import compared_draws
from scvi_dist.analysis.differential.sample import Executor, sampled
from scvi_dist.analysis.differential.table import table_of
from scvi_dist.analysis.passes.cell_pass import Parts, run_here
from scvi_dist.analysis.raw_statistics import RawStatisticsPass
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.errors import ConfigError
from scvi_dist.module.base import BaseModule


def differential_expression(
    module: BaseModule,
    cells: StoreCells,
    grouping: Grouping,
    options: DifferentialOptions,
    how: DecodeOptions | None = None,
    run: Executor | None = None,
) -> pd.DataFrame:
    """The tables of all comparisons, one after the other.

    Parameters
    ----------
    module
        A trained module.
    cells
        All cells of a store.
    grouping
        What is compared.
    options
        How.
    how
        Which features, and the scale of proteins.
    run
        Runs passes over cells; in this thread where None.

    Returns
    -------
    A table with a row for each feature of each comparison. ``attrs["estimator"]`` says how it was
    made; with the estimator ``"full"``, ``attrs["lfc_error_bound"]`` is what the LFC's median and
    intervals, and the delta that probabilities are of, may be off by through histograms, and
    ``attrs["outside_histograms"]`` the largest share of draws of a feature for which that does not
    hold.

    Raises
    ------
    ConfigError
        The options ask for counts that minified data does not have.
    """
    how = DecodeOptions() if how is None else how
    run = run_here if run is None else run
    has_counts = _has_counts(cells, options)
    if options.filter_outlier_cells:
        groupings = without_outliers(module, cells, grouping, run)
    else:
        groupings = iter([grouping])
    names_f = feature_names(cells, how)
    compute = _by_sample if options.estimator == "sample" else _by_histograms
    tables, facts = [], {"estimator": options.estimator}
    for part in groupings:
        for comparison, columns in compute(
            module, cells, part, options, how, run, has_counts, facts
        ):
            tables.append(table_of(columns, comparison, options, names_f, is_named=part.is_named))
    table = pd.concat(tables) if len(tables) > 1 else tables[0]
    table.attrs = facts
    return table


def _by_sample(
    module: BaseModule,
    cells: StoreCells,
    grouping: Grouping,
    options: DifferentialOptions,
    how: DecodeOptions,
    run: Executor,
    has_counts: bool,
    facts: dict[str, Any],
) -> Iterator[tuple[Comparison, Columns]]:
    sums = None
    if has_counts and (options.all_stats or _finds_pseudocount(options)):
        those, codes_n = taking_part(cells, grouping)
        sums = run(RawStatisticsPass(codes_n, grouping.n_strata), None, those, Parts())
    draws = sampled(module, cells, grouping, options, how, run)
    for comparison, drawn in zip(grouping.comparisons, draws, strict=True):
        counts = None if sums is None else counts_of(sums, comparison, grouping.n_strata)
        means = None if counts is None else counts.means(how)
        columns = compared_draws(drawn, options, means)
        if counts is not None and options.all_stats:
            columns |= counts.columns(how)
        yield comparison, columns


def _by_histograms(
    module: BaseModule,
    cells: StoreCells,
    grouping: Grouping,
    options: DifferentialOptions,
    how: DecodeOptions,
    run: Executor,
    has_counts: bool,
    facts: dict[str, Any],
) -> Iterator[tuple[Comparison, Columns]]:
    found = histogram_columns(module, cells, grouping, options, how, run, has_counts)
    for name, value in found.facts.items():
        facts[name] = max(facts.get(name, 0.0), value)
    for comparison, columns, counts in found.columns:
        if counts is not None and options.all_stats:
            columns |= counts.columns(how)
        yield comparison, columns


def feature_names(cells: StoreCells, how: DecodeOptions) -> np.ndarray:
    """Names of the rows of a table, object array of str."""
    schema = cells.source.schema
    names = list(schema.var_names) * how.genes
    names += [f"{name}_protein" for name in schema.protein_names] * how.proteins
    return np.array(names, dtype=object)


def _finds_pseudocount(options: DifferentialOptions) -> bool:
    return options.mode == "change" and options.pseudocounts is None


def _has_counts(cells: StoreCells, options: DifferentialOptions) -> bool:
    minified = cells.source.schema.minified
    if minified is None or minified.has_counts:
        return True
    if _finds_pseudocount(options):
        raise ConfigError(
            f"{cells.source.where} is minified data without counts, from which a pseudocount would "
            "be found: give pseudocounts a number, such as 1e-8."
        )
    if options.all_stats:
        warnings.warn(
            f"{cells.source.where} is minified data without counts: the table has no statistics of "
            "counts. all_stats=False says that this is known.",
            UserWarning,
            stacklevel=4,
        )
    return False
