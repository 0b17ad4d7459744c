"""create_criticism_report: how well a model's counts look like the observed, for people.

Axis suffixes: ``n`` cells, ``f`` features.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.criticism.agreement import COLUMNS, DEOptions
from scvi_dist.criticism.check import PosteriorPredictiveCheck
from scvi_dist.criticism.names import (
    CALIBRATION,
    CV_CELL,
    CV_GENE,
    DIFF_EXP,
    METRICS,
    ZERO_FRACTION,
)
from scvi_dist.criticism.report_tables import ALL_CELLS, MODEL_NAME, json_of, tables_of
from scvi_dist.criticism.report_text import (
    FIGURES,
    Document,
    Section,
    html,
    markdown,
    shown,
)
from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.model.binding import Source
from scvi_dist.model.latent_model import Indices, LatentModel

_P_VALUE = 0.2
"""scvi-tools' threshold in its report, which is not that of its check."""
_TEXTS: dict[str, tuple[str, str]] = {
    CV_GENE: (
        "Variation of each gene over cells",
        (
            "Standard deviation over mean of a gene's counts, over all cells. A model that "
            "explains the data has its genes on the diagonal; above it its counts vary too much, "
            "below too little."
        ),
    ),
    CV_CELL: (
        "Variation within each cell over genes",
        "Standard deviation over mean of a cell's counts, over all genes.",
    ),
    ZERO_FRACTION: (
        "Zeros of each gene",
        (
            "Share of cells in which a gene has no count. Above the diagonal the model draws too "
            "many zeros."
        ),
    ),
    CALIBRATION: (
        "Calibration",
        (
            "Share of observed counts that lie within credible intervals of the drawn counts. "
            "Zeros and other ties raise it; where counts seldom tie, {n} draws of a perfect model "
            "hold at most {most:.0%} of them. A model that is further below is too sure of "
            "itself."
        ),
    ),
    DIFF_EXP: (
        "Differential expression",
        (
            "Each group of cells against all others, in the observed and in one draw of counts: "
            "do the same genes stand out, in the same direction and by as much? 1 is perfect; for "
            "the error of the log fold change (lfc_mae, in log2) it is 0."
        ),
    ),
}
"""Metric -> heading, and what it means."""


@dataclass(frozen=True, slots=True)
class CriticismReport:
    """What :func:`create_criticism_report` found."""

    check: PosteriorPredictiveCheck
    """With all tables in its ``metrics``."""
    metrics: dict[str, Any]
    """JSON values, as in ``metrics.json``."""
    markdown: str
    folder: Path | None
    """Where it was written; None if it was not."""


def create_criticism_report(
    model: LatentModel,
    adata: Source = None,
    skip_metrics: Sequence[str] = (),
    n_samples: int = 5,
    label_key: str | None = None,
    save_folder: str | os.PathLike[str] | None = None,
    *,
    indices: Indices = None,
    modality: str | None = None,
    seed: int | None = None,
    dask: Any = None,
    executor: Any = None,
) -> CriticismReport:
    """Judge a model by the counts it draws, and write what was found for people and programs.

    The data is not changed.

    Parameters
    ----------
    model
        A trained model of counts.
    adata
        The cells, as :class:`PosteriorPredictiveCheck` takes them; the model's own where None.
    skip_metrics
        Any of ``cv_cell``, ``cv_gene``, ``zero_fraction``, ``calibration``, ``diff_exp``.
    n_samples
        Draws of each cell.
    label_key
        Column of obs with the groups of cells for ``diff_exp``; the model's labels where None.
        Without either that part is left out, and the report says so.
    save_folder
        Gets ``report.html`` (one file with everything), ``report.md`` with ``figures``, and
        ``metrics.json`` with scvi-tools' keys, which model cards read, and all numbers. Nothing
        is written where None.
    indices, modality, seed, dask, executor
        As :class:`PosteriorPredictiveCheck` takes them. For a MuData the modality of genes where
        None.
    """
    wanted = _wanted(skip_metrics)
    groups = label_key or model.schema.setup.labels_key
    lacks_groups = DIFF_EXP in wanted and groups is None
    if lacks_groups:
        wanted.remove(DIFF_EXP)
    check = PosteriorPredictiveCheck(
        adata,
        {MODEL_NAME: model},
        n_samples=n_samples,
        indices=indices,
        modality=modality or model.schema.setup.rna_modality,
        seed=seed,
        dask=dask,
        executor=executor,
    )
    check.run(wanted, de=DEOptions(de_groupby=groups, p_val_thresh=_P_VALUE))
    parts = _parts_of(model, check) if adata is None and indices is None else {}
    tables = tables_of(check, parts)
    metrics = json_of(check, tables)
    folder = None if save_folder is None else Path(save_folder)
    figures = {} if folder is None else _draw(check, folder / FIGURES)
    document = _document(model, check, tables, figures, lacks_groups)
    text = markdown(document)
    if folder is not None:
        (folder / "report.md").write_text(text, encoding="utf-8")
        page = html(document, folder / FIGURES)
        (folder / "report.html").write_text(page, encoding="utf-8")
        content = json.dumps(metrics, indent=2, allow_nan=False)
        (folder / "metrics.json").write_text(content, encoding="utf-8")
    return CriticismReport(check, metrics, text, folder)


def _wanted(skip_metrics: Sequence[str]) -> list[str]:
    for name in skip_metrics:
        if name not in METRICS:
            raise ConfigError(f"skip_metrics: no metric {name!r}; {did_you_mean(name, METRICS)}")
    wanted = [name for name in METRICS if name not in skip_metrics]
    if not wanted:
        raise ConfigError("skip_metrics names every metric: nothing is left to report.")
    return wanted


def _parts_of(model: LatentModel, check: PosteriorPredictiveCheck) -> dict[str, np.ndarray]:
    """Cells of training and of validation, if the model's own cells are looked at."""
    rows = {"training": model.train_indices, "validation": model.validation_indices}
    given = {name: some for name, some in rows.items() if some is not None and len(some)}
    fits = all(some.max() < check.n_cells for some in given.values())
    return given if len(given) == len(rows) and fits else {}


# Pictures and text


def _draw(check: PosteriorPredictiveCheck, folder: Path) -> dict[str, tuple[str, ...]]:
    from scvi_dist.criticism import plots

    metrics = check.metrics
    names: dict[str, tuple[str, ...]] = {}
    clouds = (
        (CV_GENE, "coefficient of variation", "features", True),
        (CV_CELL, "coefficient of variation", "cells", True),
        (ZERO_FRACTION, "share of zeros", "features", False),
    )
    for key, what, unit, is_log in clouds:
        if key in metrics:
            plots.scatter(metrics[key], folder / f"{key}.png", what, unit, is_log=is_log)
            names[key] = (f"{key}.png",)
    if check.coverage is not None:
        plots.calibration(check.coverage, folder / "calibration.png")
        names[CALIBRATION] = ("calibration.png",)
    if DIFF_EXP in metrics:
        summary = metrics[DIFF_EXP]["summary"]
        plots.agreement(summary, folder / "agreement.png")
        order = summary.sort_values("n_cells", ascending=False, kind="stable")["group"].tolist()
        changes = metrics[DIFF_EXP]["lfc_per_model_per_group"][MODEL_NAME]
        plots.fold_changes(changes, order, folder / "fold_changes.png")
        names[DIFF_EXP] = ("agreement.png", "fold_changes.png")
    return names


def _document(
    model: LatentModel,
    check: PosteriorPredictiveCheck,
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, tuple[str, ...]],
    lacks_groups: bool,
) -> Document:
    lead = (
        f"{check.n_samples} draws of the counts of {check.n_cells:,} cells and "
        f"{len(check.features):,} features from the model's posterior predictive law, beside the "
        f"counts observed. Seed {check.seed}."
    )
    sections = [Section(title="At a glance", text=_GLANCE, table=_glance(check, tables))]
    for key, (title, text) in _TEXTS.items():
        if key in tables:
            table, drawn = tables[key], figures.get(key, ())
            n = check.n_samples
            text = text.format(n=n, most=(n - 1) / (n + 1))
            sections.append(Section(title=title, text=text, table=table, figures=drawn))
    if lacks_groups:
        text = "Left out: name a column of obs with groups of cells as label_key."
        sections.append(Section(title=_TEXTS[DIFF_EXP][0], text=text))
    return Document(
        title=f"Posterior predictive checks of {type(model).__name__}", lead=lead, sections=sections
    )


_GLANCE = "One number for each part of this report."


def _glance(check: PosteriorPredictiveCheck, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    rows: list[tuple[str, str, str]] = []
    for key in (CV_GENE, CV_CELL, ZERO_FRACTION):
        if key in tables:
            best = tables[key].iloc[:, -1]["Pearson Correlation"]
            part = tables[key].columns[-1]
            where = "" if part == ALL_CELLS else f", {part} cells"
            rows.append((_TEXTS[key][0], f"correlation with observed{where}", shown(best)))
    if CALIBRATION in check.metrics:
        error = float(check.metrics[CALIBRATION].iloc[0, 0])
        rows.append((_TEXTS[CALIBRATION][0], "calibration error (0 is best)", shown(error)))
    if DIFF_EXP in tables:
        middle = tables[DIFF_EXP][list(COLUMNS)].median()
        for column, what in (("lfc_pearson", "correlation of"), ("roc_auc", "area under ROC,")):
            words = f"{what} log fold changes" if "corr" in what else f"{what} genes found again"
            rows.append((_TEXTS[DIFF_EXP][0], f"{words}, median group", shown(middle[column])))
    return pd.DataFrame(
        [row[1:] for row in rows],
        index=pd.Index([row[0] for row in rows], name="part"),
        columns=["measure", "value"],
    )
