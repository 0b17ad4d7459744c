"""PosteriorPredictiveCheck: counts that models draw, beside the counts that were observed.

Axis suffixes: ``n`` cells, ``f`` features, ``s`` samples, ``c`` groups, ``i`` intervals.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from scvi_dist.analysis.passes.engines import Executor, resolve_executor
from scvi_dist.analysis.predictive_pass import (
    MODEL,
    RAW,
    Feature,
    Grouping,
    PredictivePass,
    PredictiveStatistics,
    cells_at_once,
    coefficient_of_variation,
    mean_of_numbers,
)
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.criticism.agreement import DEOptions, Groups, fold_changes, table_of, tests_of
from scvi_dist.criticism.names import (
    CALIBRATION,
    CV_CELL,
    CV_GENE,
    DIFF_EXP,
    METRICS,
    RAW_COLUMN,
    ZERO_FRACTION,
    checked_intervals,
    described,
)
from scvi_dist.criticism.observed import ObservedCounts, cells_of, feature_of, shared_features
from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.model.binding import Source
from scvi_dist.model.latent_model import Indices, LatentModel

Dims = Literal["cells", "features"]
EXACT_BYTES = 64 << 20
"""Normalised values that may be kept for exact ranks; beyond, values are counted in bins."""
_MOMENTS = (CV_CELL, CV_GENE, ZERO_FRACTION)
_MAX_BINS = 256


class PosteriorPredictiveCheck:
    """Compares counts drawn from models' posterior predictive laws with the observed counts.

    Cells are streamed: memory does not grow with their number, but by one number a cell and model
    for the coefficients of variation of cells. The draws follow from ``seed`` and from each cell;
    a metric that is asked for later sees the same ones.

    Parameters
    ----------
    adata
        The cells: an AnnData or MuData, a path or URL, a list of them, or a store; each model's
        own where None. They need not be those that the models were trained on.
    models_dict
        Name -> trained model of counts. All have the same features.
    count_layer_key
        Layer with the observed counts; those that the models read where None.
    n_samples
        Draws of each cell.
    indices
        Rows of the cells, or a mask; all cells where None.
    modality
        ``"rna"`` (where None) or ``"protein"``, or the modality's name in a MuData.
    seed
        Of the draws; taken from torch's global generator where None.
    batch_size
        Cells whose draws are in memory at a time; as many as fit some 16 MB where None.
    dask
        Where to compute: threads of this process where None, or what
        :func:`~scvi_dist.analysis.passes.engines.resolve_executor` takes.
    executor
        Runs the passes, instead of ``dask``.

    Attributes
    ----------
    metrics
        Under scvi-tools' keys: ``cv_cell``, ``cv_gene``, ``zero_fraction`` (of zeros, by feature):
        tables with a column for each model and ``Raw``; ``calibration``: an error for each model;
        ``diff_exp``: the table ``summary``, and ``lfc_per_model_per_group``.
    coverage
        Width of each interval -> share of observed counts within it, for each model.
    """

    def __init__(
        self,
        adata: Source,
        models_dict: Mapping[str, LatentModel],
        count_layer_key: str | None = None,
        n_samples: int = 10,
        indices: Indices = None,
        modality: str | None = None,
        *,
        seed: int | None = None,
        batch_size: int | None = None,
        dask: Any = None,
        executor: Executor | None = None,
    ) -> None:
        if RAW_COLUMN in models_dict or not models_dict:
            raise ConfigError(
                f"models_dict names at least one model, and none of them {RAW_COLUMN!r}; seen "
                f"{list(models_dict)}."
            )
        self.adata = adata
        self.models = dict(models_dict)
        self.count_layer_key = count_layer_key
        self.n_samples = PredictiveStatistics(n_samples=n_samples).n_samples
        self.modality = modality
        self.seed = int(torch.randint(2**31, ()).item()) if seed is None else seed
        self.metrics: dict[str, Any] = {}
        self.coverage: pd.DataFrame | None = None
        self._dask, self._executor = dask, executor
        self._feature: Feature = feature_of(self.models, modality)
        self.features: pd.Index = shared_features(self.models, self._feature)
        size = batch_size or cells_at_once(len(self.features), n_samples)
        self._cells = {
            name: cells_of(model, adata, indices, size, self.seed)
            for name, model in self.models.items()
        }
        self._observed = ObservedCounts(self.models, adata, self._feature, count_layer_key)
        self._moments: dict[str, dict[str, np.ndarray]] = {}

    @property
    def n_cells(self) -> int:
        """Cells that are looked at."""
        return self._first_cells.n_cells

    @property
    def _first_cells(self) -> StoreCells:
        return next(iter(self._cells.values()))

    def obs_names(self) -> pd.Index:
        """Names of the cells."""
        return pd.Index(self._first_cells.obs_names(), name="cells")

    def __repr__(self) -> str:
        return (
            "--- Posterior Predictive Checks ---\n"
            f"n_samples = {self.n_samples}\n"
            f"raw_counts shape = ({self.n_cells}, {len(self.features)})\n"
            f"models: {list(self.models)}\n"
            f"metrics: \n{described(self.metrics)}"
        )

    # Metrics, one by one

    def coefficient_of_variation(self, dim: Dims = "cells") -> None:
        """Standard deviation over mean, over cells (``cv_gene``) or over features (``cv_cell``).

        Of each draw by itself; the mean over draws in which it exists.
        """
        if dim not in ("cells", "features"):
            raise ConfigError(f"dim={dim!r}; {did_you_mean(str(dim), ('cells', 'features'))}")
        self.run([CV_GENE if dim == "cells" else CV_CELL])

    def zero_fraction(self) -> None:
        """Share of cells in which a feature's count is 0."""
        self.run([ZERO_FRACTION])

    def calibration_error(
        self, confidence_intervals: Sequence[float] | float | None = None
    ) -> None:
        """How far the share of counts within credible intervals is from the intervals' width.

        The sum over intervals of the squared difference; lower is better. Each model is judged by
        its own draws.

        Parameters
        ----------
        confidence_intervals
            Quantiles in ascending order, an even number: the first and the last make an interval,
            the second and the last but one, and so on. A number: the central interval so wide.
        """
        self.run([CALIBRATION], confidence_intervals=confidence_intervals)

    def differential_expression(
        self,
        de_groupby: str | None = None,
        de_method: Literal["t-test", "wilcoxon"] = "t-test",
        n_samples: int = 1,
        cell_scale_factor: float = 1e4,
        p_val_thresh: float = 1e-3,
        n_top_genes_fallback: int = 100,
    ) -> None:
        """Whether the drawn counts show the differential expression that the observed show.

        See :class:`~scvi_dist.criticism.DEOptions` for the arguments. Groups are the models'
        labels where ``de_groupby`` is None. Wilcoxon's ranks are exact for as many cells as fit
        64 MB; for more, normalised values are counted in up to 256 bins.
        """
        options = DEOptions(
            de_groupby=de_groupby,
            de_method=de_method,
            n_samples=n_samples,
            cell_scale_factor=cell_scale_factor,
            p_val_thresh=p_val_thresh,
            n_top_genes_fallback=n_top_genes_fallback,
        )
        self.run([DIFF_EXP], de=options)

    # All in one pass

    def run(
        self,
        metrics: Iterable[str] = (CV_CELL, CV_GENE, ZERO_FRACTION, CALIBRATION),
        *,
        confidence_intervals: Sequence[float] | float | None = None,
        de: DEOptions | None = None,
    ) -> None:
        """Compute metrics with one pass over the cells for each model.

        Parameters
        ----------
        metrics
            Keys of :attr:`metrics`.
        confidence_intervals
            As :meth:`calibration_error` takes them.
        de
            As :meth:`differential_expression` takes it.
        """
        wanted = list(metrics)
        for name in wanted:
            if name not in METRICS:
                raise ConfigError(f"no metric {name!r}; {did_you_mean(str(name), METRICS)}")
        groups, options = None, DEOptions() if de is None else de
        if DIFF_EXP in wanted:
            groups = self._groups(options)
        asked = PredictiveStatistics(
            n_samples=self.n_samples,
            feature=self._feature,
            moments=bool(set(wanted) & set(_MOMENTS)) and not self._moments,
            intervals=checked_intervals(confidence_intervals) if CALIBRATION in wanted else (),
            grouping=None if groups is None else self._grouping(groups, options),
        )
        results: dict[str, dict[str, np.ndarray]] = {}
        if asked.moments or asked.intervals or asked.grouping is not None:
            results = self._computed(asked)
        if asked.moments:
            self._moments = {name: _without_groups(of) for name, of in results.items()}
        for name, compute in self._of_moments().items():
            if name in wanted:
                self.metrics[name] = compute()
        if asked.intervals:
            self._judge_calibration(results, asked.intervals)
        if groups is not None:
            assert asked.grouping is not None
            self._judge_expression(results, groups, options, asked.grouping)

    def _computed(self, asked: PredictiveStatistics) -> dict[str, dict[str, np.ndarray]]:
        """Model -> results of its pass; those of the observed counts are the first model's."""
        results: dict[str, dict[str, np.ndarray]] = {}
        with resolve_executor(self._executor or self._dask) as run:
            for number, (name, model) in enumerate(self.models.items()):
                which = replace(asked, raw=number == 0)
                one_pass = PredictivePass(which, self._observed.counts_of(name))
                results[name] = dict(run(one_pass, model.module, self._cells[name]))
        return results

    def _groups(self, options: DEOptions) -> Groups:
        column = options.de_groupby
        if column is None:
            column = self._first_cells.source.schema.setup.labels_key
        if column is None:
            raise ConfigError(
                "differential expression needs groups of cells: name a column of obs as "
                "de_groupby (the models were set up without labels)."
            )
        source, selection = self._first_cells.source, self._first_cells.selection
        labels = source.store.read_obs([column])[column]
        groups = Groups.of(labels.iloc[selection.rows()])
        if len(groups.names) < 2:
            raise ConfigError(
                f"{source.where}: differential expression compares groups; {column!r} has "
                f"{len(groups.names)} among these {self.n_cells} cells."
            )
        return groups

    def _grouping(self, groups: Groups, options: DEOptions) -> Grouping:
        n_values = options.n_samples * len(self.features)
        n_bins = EXACT_BYTES // (4 * groups.n_codes * n_values)
        grouping = Grouping(
            codes=groups.codes,
            n_groups=groups.n_codes,
            n_samples=options.n_samples,
            target_sum=options.cell_scale_factor,
            n_bins=int(np.clip(n_bins, 16, _MAX_BINS)),
        )
        if options.de_method == "t-test":
            return grouping
        fits = self.n_cells * n_values * 4 <= EXACT_BYTES
        return replace(grouping, ranks="exact" if fits else "histogram")

    # From sums to metrics

    def _of_moments(self) -> dict[str, Any]:
        return {
            CV_CELL: lambda: self._table("cv_cell", self.obs_names()),
            CV_GENE: lambda: self._table("cv_gene", self.features),
            ZERO_FRACTION: lambda: self._table("zero_fraction", self.features),
        }

    def _table(self, what: str, index: pd.Index) -> pd.DataFrame:
        columns = {name: (results, MODEL) for name, results in self._moments.items()}
        columns[RAW_COLUMN] = next(iter(self._moments.values())), RAW
        values = {name: _METRIC[what](*of) for name, of in columns.items()}
        if what != "zero_fraction":
            values[RAW_COLUMN] = np.nan_to_num(values[RAW_COLUMN])
        return pd.DataFrame(values, index=index)

    def _judge_calibration(
        self,
        results: Mapping[str, Mapping[str, np.ndarray]],
        intervals: Sequence[tuple[float, float]],
    ) -> None:
        widths_i = np.array([above - below for below, above in intervals])
        shares = {
            name: result["inside"] / (result["n_cells"][0] * len(self.features))
            for name, result in results.items()
        }
        self.coverage = pd.DataFrame(shares, index=pd.Index(widths_i, name="width"))
        errors = {name: [((share - widths_i) ** 2).sum()] for name, share in shares.items()}
        self.metrics[CALIBRATION] = pd.DataFrame(errors, index=["features"])

    def _judge_expression(
        self,
        results: Mapping[str, dict[str, np.ndarray]],
        groups: Groups,
        options: DEOptions,
        grouping: Grouping,
    ) -> None:
        first = next(iter(results.values()))
        raw = tests_of(first, RAW, 0, grouping)
        tables, changes = [], {}
        for name, result in results.items():
            samples = [tests_of(result, MODEL, s, grouping) for s in range(options.n_samples)]
            table = table_of(raw, samples, first["group_cells"], groups, options)
            table.insert(table.columns.get_loc("group") + 1, "model", name)
            tables.append(table)
            changes[name] = fold_changes(raw, samples, groups, self.features)
        summary = pd.concat(tables, ignore_index=True)
        self.metrics[DIFF_EXP] = {"lfc_per_model_per_group": changes, "summary": summary}


def _without_groups(results: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is kept for metrics that are asked for later."""
    large = ("group_sum", "group_square", "values", "histogram")
    return {name: value for name, value in results.items() if not name.endswith(large)}


def _cv_gene(results: Mapping[str, np.ndarray], who: str) -> np.ndarray:
    total_sf, square_sf = results[f"{who}_sum"], results[f"{who}_square"]
    cv_sf = coefficient_of_variation(total_sf, square_sf, results["n_cells"][0])
    return mean_of_numbers(cv_sf, axis=0)


def _zero_fraction(results: Mapping[str, np.ndarray], who: str) -> np.ndarray:
    return 1 - results[f"{who}_nonzero"].mean(axis=0) / results["n_cells"][0]


_METRIC = {
    "cv_cell": lambda results, who: results[f"{who}_cv_cell"],
    "cv_gene": _cv_gene,
    "zero_fraction": _zero_fraction,
}
"""Metric -> its values from the sums of the draws, or of the observed counts."""
