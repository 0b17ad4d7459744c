"""What ``scvi-dist de``, ``da`` and ``ppc`` compute and draw."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scvi_dist.console import Display
from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.job.analysis_run import Asked, Found, checked_column, run_analysis

if TYPE_CHECKING:
    from scvi_dist.analysis.passes.engines import Executor
    from scvi_dist.data import Store

__all__ = [
    "AbundanceOptions",
    "Asked",
    "ExpressionOptions",
    "PredictiveOptions",
    "differential_abundance",
    "differential_expression",
    "parse_delta",
    "predictive_check",
]

_SHOWN_GROUPS = 12
_MOMENTS = {
    "cv_cell": "coefficient of variation of cells",
    "cv_gene": "coefficient of variation of genes",
    "zero_fraction": "share of zeros of genes",
}
_METRICS = (*_MOMENTS, "calibration", "diff_exp")
_RAW = "Raw"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpressionOptions:
    """Which populations are compared, and how."""

    groupby: str
    group1: tuple[str, ...] = ()
    """All where there is none."""
    group2: str | None = None
    """All other cells where None."""
    mode: Literal["change", "vanilla"] = "change"
    estimator: Literal["sample", "full"] = "sample"
    delta: float | None = 0.25
    """Found in the data where None."""
    batch_correction: bool = False
    fdr: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.fdr < 1:
            raise ConfigError(f"--fdr lies between 0 and 1, seen {self.fdr}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class AbundanceOptions:
    """Which samples, and what the heat map's rows are."""

    sample_key: str
    groupby: str | None = None
    cells_posterior: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictiveOptions:
    """Which metrics, on which cells."""

    metrics: tuple[str, ...] = _METRICS
    n_samples: int = 10
    groupby: str | None = None
    cells: int | None = None
    modality: str | None = None

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in _METRICS:
                raise ConfigError(f"--metrics {name}: {did_you_mean(name, _METRICS)}")
        if not self.metrics or self.n_samples < 1 or (self.cells is not None and self.cells < 1):
            raise ConfigError("--metrics names at least one; --n-samples and --cells are positive.")


def parse_delta(given: str) -> float | None:
    """The log fold change that ``--delta`` says; None for ``auto``."""
    if given == "auto":
        return None
    try:
        return float(given)
    except ValueError:
        raise ConfigError(f"--delta takes a number or 'auto', seen {given!r}.") from None


# Differential expression


def differential_expression(asked: Asked, display: Display, options: ExpressionOptions) -> Path:
    """``scvi-dist de``."""

    def compute(model: Any, store: "Store", executor: "Executor") -> Found:
        checked_column(store, options.groupby, "--groupby")
        table = model.differential_expression(
            groupby=options.groupby,
            group1=list(options.group1) or None,
            group2=options.group2,
            mode=options.mode,
            delta=options.delta,
            batch_correction=options.batch_correction,
            fdr_target=options.fdr,
            estimator=options.estimator,
            seed=asked.seed,
            dask=executor,
            silent=True,
        )
        return _described_expression(table.rename_axis("feature"))

    title = f"{options.groupby}: {' and '.join(options.group1) or 'each'} against "
    title += options.group2 or "all other cells"

    def draw(tables: Mapping[str, pd.DataFrame], folder: Path) -> list[Path]:
        from scvi_dist.analysis import result_figures

        table = tables["de"]
        return [
            result_figures.volcanoes(table, folder / "volcano.png", title),
            result_figures.dots(table, folder / "dots.png", title),
        ]

    return run_analysis("de", asked, options, compute, draw, display)


def _described_expression(table: pd.DataFrame) -> Found:
    from scvi_dist.analysis.result_figures import called_genes, leading_genes

    names = list(dict.fromkeys(table["comparison"]))
    counts = {name: int(called_genes(table[table["comparison"] == name]).sum()) for name in names}
    lines = [
        f"{counts[name]:>6,}  {name}: {', '.join(leading_genes(table, [name], 5))}"
        for name in names[:_SHOWN_GROUPS]
    ]
    if len(names) > _SHOWN_GROUPS:
        lines.append(f"…and {len(names) - _SHOWN_GROUPS} more comparisons")
    metrics = {
        "de/comparisons": float(len(names)),
        "de/called_mean": float(np.mean(list(counts.values()))),
        "de/called_least": float(min(counts.values())),
    }
    bound = table.attrs.get("lfc_error_bound")
    rows = {"comparisons": f"{len(names)}", "genes called": "\n".join(lines)}
    if bound is not None:
        metrics["de/lfc_error_bound"] = float(bound)
        rows["error of LFC"] = f"at most {float(bound):.3g}, of histograms"
    # What is known of the whole table travels beside it; not every value fits Parquet's notes.
    table.attrs = {}
    return Found(tables={"de": table}, metrics=metrics, rows=rows)


# Differential abundance


def differential_abundance(asked: Asked, display: Display, options: AbundanceOptions) -> Path:
    """``scvi-dist da``."""

    def compute(model: Any, store: "Store", executor: "Executor") -> Found:
        checked_column(store, options.sample_key, "--sample-key")
        rows_key = options.groupby or options.sample_key
        checked_column(store, rows_key, "--groupby")
        table = model.differential_abundance(
            sample_key=options.sample_key,
            num_cells_posterior=options.cells_posterior,
            seed=asked.seed,
            dask=executor,
        )
        if table.shape[1] < 2:
            raise ConfigError(
                f"--sample-key {options.sample_key}: all cells are of one sample, "
                f"{table.columns[0]!r}; there is nothing to compare it with."
            )
        labels = store.read_obs([rows_key])[rows_key].astype(str).to_numpy()
        means = mean_enrichment(table, labels).rename_axis(rows_key)
        strongest = means.stack().sort_values(key=np.abs, ascending=False)[:_SHOWN_GROUPS]
        return Found(
            tables={"da": table.rename_axis("cell"), "da_means": means},
            metrics={"da/samples": float(table.shape[1])},
            rows={
                "samples": f"{table.shape[1]}",
                "strongest": "\n".join(
                    f"{value:+.3f}  {row} in {sample}" for (row, sample), value in strongest.items()
                ),
            },
        )

    title = f"Where cells of {options.sample_key} lie"

    def draw(tables: Mapping[str, pd.DataFrame], folder: Path) -> list[Path]:
        from scvi_dist.analysis import result_figures

        label = "log density, less means of cell and sample"
        path = folder / "abundance.png"
        means = tables["da_means"].rename_axis(columns=f"density of each {options.sample_key}")
        return [result_figures.heat_map(means, path, title, label)]

    return run_analysis("da", asked, options, compute, draw, display)


def mean_enrichment(table: pd.DataFrame, labels: np.ndarray) -> pd.DataFrame:
    """Mean over the cells of each label of log densities, less each cell's and sample's mean.

    What is left is how much more of a label's cells lie where a sample is dense than one expects.
    """
    centred = table.sub(table.mean(axis=1), axis=0)
    centred = centred - centred.mean()
    centred.columns = [str(name) for name in centred.columns]
    return centred.groupby(labels).mean()


# Posterior predictive checks


def predictive_check(asked: Asked, display: Display, options: PredictiveOptions) -> Path:
    """``scvi-dist ppc``."""

    def compute(model: Any, store: "Store", executor: "Executor") -> Found:
        from scvi_dist.criticism import create_criticism_report

        if options.groupby is not None:
            checked_column(store, options.groupby, "--groupby")
        rows = None
        if options.cells is not None and options.cells < store.n_obs:
            rng = np.random.default_rng(asked.seed)
            rows = np.sort(rng.choice(store.n_obs, options.cells, replace=False))
        report = create_criticism_report(
            model,
            skip_metrics=[name for name in _METRICS if name not in options.metrics],
            n_samples=options.n_samples,
            label_key=options.groupby,
            save_folder=asked.out,
            indices=rows,
            modality=options.modality,
            seed=asked.seed,
            executor=executor,
        )
        return _described_check(report.check)

    def draw(tables: Mapping[str, pd.DataFrame], folder: Path) -> list[Path]:
        # The report has drawn them.
        return sorted(folder.glob("*.png"))

    return run_analysis("ppc", asked, options, compute, draw, display)


def _described_check(check: Any) -> Found:
    found = Found(tables={}, files=["report.html", "report.md", "metrics.json"])
    for name, what in _MOMENTS.items():
        if name in check.metrics:
            table = found.tables[name] = check.metrics[name]
            model = next(column for column in table.columns if column != _RAW)
            error = float((table[model] - table[_RAW]).abs().mean())
            r = float(table[model].corr(table[_RAW]))
            found.metrics |= {f"ppc/{name}_mae": error, f"ppc/{name}_pearson": r}
            found.rows[what] = f"mean error {error:.4g}, correlation {r:.3f}"
    if "calibration" in check.metrics:
        found.tables["calibration"] = check.metrics["calibration"]
        found.tables["coverage"] = check.coverage
        error = float(check.metrics["calibration"].iloc[0, 0])
        found.metrics["ppc/calibration_error"] = error
        found.rows["calibration error"] = f"{error:.4g} (0 is best)"
    if "diff_exp" in check.metrics:
        summary = check.metrics["diff_exp"]["summary"]
        found.tables["diff_exp"] = summary
        for name in summary.select_dtypes("number").columns.drop("n_cells", errors="ignore"):
            value = float(summary[name].mean())
            found.metrics[f"ppc/de_{name}"] = value
            found.rows[f"DE: {name}"] = f"{value:.4g} (mean of groups)"
    return found
