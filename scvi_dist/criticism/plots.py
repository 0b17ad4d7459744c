"""Pictures of posterior predictive checks: PNG files sized for a screen.

Axis suffixes: ``f`` features, ``n`` cells.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_dist.analysis.figures import (
    EIGHT_COLOURS,
    INK,
    QUIET,
    new_figure,
    strip,
    subsample,
    write,
)
from scvi_dist.criticism.names import RAW_COLUMN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEW = 4_000
"""Points up to which each is drawn; more are counted in hexagons."""
_MAX_POINTS = 200_000
_MAX_GROUPS = 30
_MAX_PANELS = 6
_COLUMNS = 3
_AGREEMENT = (
    ("lfc_pearson", "log fold change,\nPearson"),
    ("lfc_spearman", "log fold change,\nSpearman"),
    ("roc_auc", "area under\nROC curve"),
    ("pr_auc", "area under\nprecision-recall"),
    ("gene_f1", "F1 of\ntop genes"),
)
"""Column of the summary -> heading."""


def scatter(
    table: pd.DataFrame,
    path: str | os.PathLike[str],
    what: str,
    unit: str,
    *,
    is_log: bool = False,
) -> Path:
    """Values of each model against the observed, a panel for each model; the file written.

    Parameters
    ----------
    table
        A column for each model and ``Raw``.
    what, unit
        Heading, and what one point is.
    is_log
        Whether axes are logarithmic.
    """
    names = [name for name in table.columns if name != RAW_COLUMN]
    figure = new_figure(5.2 * len(names), 5.4)
    for index, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), index + 1)
        pair = table[[RAW_COLUMN, name]].to_numpy(float)
        pair = pair[np.isfinite(pair).all(1)]
        if is_log:
            pair = pair[(pair > 0).all(1)]
        _draw_cloud(axes, pair[subsample(len(pair), _MAX_POINTS)], is_log)
        _name_axes(axes, f"{what}, observed", f"{what}, drawn by {name}")
        axes.set_title(f"{len(pair):,} {unit}", loc="left", fontsize=11, color=QUIET)
    return write(figure, path, "")


def calibration(coverage: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Share of observed counts within each credible interval, against its width."""
    figure = new_figure(6.2, 5.4)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=QUIET, lw=1.2, ls=":", label="perfectly calibrated")
    for number, name in enumerate(coverage.columns):
        curve = coverage[name].sort_index()
        colour = EIGHT_COLOURS[number % len(EIGHT_COLOURS)]
        axes.plot(curve.index, curve, color=colour, lw=2, marker="o", ms=5, label=str(name))
    low = min(float(coverage.to_numpy().min()), float(coverage.index.min()))
    low = max(0.0, np.floor(low * 10 - 0.5) / 10)
    axes.set_xlim(low, 1.01)
    axes.set_ylim(low, 1.01)
    _name_axes(axes, "width of the credible interval", "share of observed counts within it")
    axes.grid(color="#e8e8e8", lw=0.8)
    axes.legend(frameon=False, fontsize=10, loc="best")
    return write(figure, path, "")


def agreement(summary: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """A row of points for each group, largest first; a panel for each measure of agreement."""
    names = list(dict.fromkeys(summary["model"]))
    order = summary.drop_duplicates("group").sort_values("n_cells", ascending=False)
    shown = order["group"].tolist()[:_MAX_GROUPS]
    sizes = dict(zip(order["group"], order["n_cells"], strict=True))
    figure = new_figure(12.5, 1.7 + 0.34 * len(shown))
    first: Any = None
    for index, (column, heading) in enumerate(_AGREEMENT):
        axes = figure.add_subplot(1, len(_AGREEMENT), index + 1, sharey=first)
        for number, name in enumerate(names):
            rows = summary[summary["model"] == name].set_index("group").loc[shown]
            # Models side by side: on one line they would hide each other.
            y = np.arange(len(shown)) + 0.22 * (number - (len(names) - 1) / 2)
            colour = EIGHT_COLOURS[number % len(EIGHT_COLOURS)]
            axes.scatter(rows[column].astype(float), y, s=42, color=colour, label=str(name))
        axes.set_title(heading, loc="left", fontsize=10, color=INK)
        axes.set_xlim(min(-0.03, float(summary[column].min(skipna=True)) - 0.05), 1.03)
        axes.grid(axis="both", color="#e8e8e8", lw=0.8)
        axes.set_axisbelow(True)
        strip(axes, ("top", "right", "left"))
        if first is None:
            first = axes
            labels = [f"{_cut(name)}  ({sizes[name]:,})" for name in shown]
            axes.set_yticks(range(len(shown)), labels)
            axes.set_ylim(len(shown) - 0.5, -0.5)
        else:
            axes.tick_params(labelleft=False)
    if len(names) > 1:
        first.legend(frameon=False, fontsize=9, loc="lower left")
    return write(figure, path, "")


def fold_changes(
    tables: Mapping[str, pd.DataFrame], order: list[str], path: str | os.PathLike[str]
) -> Path:
    """Log fold changes of the largest groups, drawn against observed."""
    shown = order[:_MAX_PANELS]
    n_columns = min(_COLUMNS, len(shown))
    n_rows = -(-len(shown) // n_columns)
    figure = new_figure(4.3 * n_columns, 4.3 * n_rows)
    for index, group in enumerate(shown):
        axes = figure.add_subplot(n_rows, n_columns, index + 1)
        pair = tables[group][["raw", "approx"]].to_numpy(float)
        pair = pair[np.isfinite(pair).all(1)]
        # A gene that one side never expresses has a fold change of some -20 or 20.
        bound = np.quantile(np.abs(pair), 0.99, axis=0).max() if len(pair) else 1.0
        pair = pair[(np.abs(pair) <= bound).all(1)]
        _draw_cloud(axes, pair[subsample(len(pair), _MAX_POINTS)], False)
        axes.axhline(0, color="#d8d8d8", lw=0.8, zorder=0)
        axes.axvline(0, color="#d8d8d8", lw=0.8, zorder=0)
        _name_axes(axes, "log₂ fold change, observed", "drawn")
        axes.set_title(_cut(group), loc="left", fontsize=12, color=INK)
    return write(figure, path, "")


def _draw_cloud(axes: "Axes", pair: np.ndarray, is_log: bool) -> None:
    """Points about the diagonal, on two equal axes."""
    if is_log:
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain_ticks(axes)
    if not len(pair):
        axes.text(0.5, 0.5, "no values", ha="center", transform=axes.transAxes, color=QUIET)
        return
    low, high = _limits(pair, is_log)
    axes.plot([low, high], [low, high], color=QUIET, lw=1.2, ls=":", zorder=3)
    if len(pair) <= _FEW:
        size = float(np.clip(12_000 / len(pair), 5, 30))
        axes.scatter(*pair.T, s=size, lw=0, alpha=0.45, color=EIGHT_COLOURS[0], rasterized=True)
    else:
        scale = {"xscale": "log", "yscale": "log"} if is_log else {}
        extent = (np.log10(low), np.log10(high)) if is_log else (low, high)
        axes.hexbin(
            *pair.T,
            gridsize=70,
            bins="log",
            mincnt=1,
            cmap="viridis",
            extent=(*extent, *extent),
            linewidths=0.1,
            **scale,
        )
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal", adjustable="box")


def _plain_ticks(axes: "Axes") -> None:
    """1, 2, 5, 10, … instead of powers of ten, which short axes have too few of."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def _limits(pair: np.ndarray, is_log: bool) -> tuple[float, float]:
    low, high = float(pair.min()), float(pair.max())
    if is_log:
        return low / 1.15, high * 1.15
    margin = 0.03 * (high - low or 1.0)
    return low - margin, high + margin


def _name_axes(axes: "Axes", x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=10, color=INK)
    axes.set_ylabel(y, fontsize=10, color=INK)
    axes.set_axisbelow(True)
    strip(axes, ("top", "right"))


def _cut(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:14]}…{name[-9:]}"
