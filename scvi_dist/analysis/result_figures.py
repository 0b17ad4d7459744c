"""Pictures of what was found of cells: genes that differ, and samples that differ.

Axis suffixes: ``g`` genes, ``c`` comparisons.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_dist.analysis import figures
from scvi_dist.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PANELS = 12
MOST_POINTS = 20_000
CALLED, OTHER = "#d55e00", "#b8bec4"
_LABEL_WIDTH = 20
"""Letters of a line of a colour bar's label."""
_SMALLEST = 1e-4
"""Probabilities below are drawn as this: draws cannot tell them apart."""


def volcanoes(table: pd.DataFrame, path: str | os.PathLike[str], title: str = "") -> Path:
    """Change against certainty, a panel for each comparison; the file written.

    Parameters
    ----------
    table
        Of ``differential_expression``, in either mode. Beyond twelve comparisons the first ones
        are drawn.
    """
    names = list(dict.fromkeys(table["comparison"]))[:MAX_PANELS]
    n_columns = min(4, len(names))
    n_rows = -(-len(names) // n_columns)
    figure = figures.new_figure(3.6 * n_columns + 0.4, 3.3 * n_rows + 0.6)
    for number, name in enumerate(names):
        axes = figure.add_subplot(n_rows, n_columns, number + 1)
        part = table[table["comparison"] == name]
        x, y, x_name, y_name = _volcano_axes(part)
        called = called_genes(part)
        _points(axes, x[~called], y[~called], OTHER)
        _points(axes, x[called], y[called], CALLED)
        _name_genes(axes, x, y, part.index.to_numpy(), called)
        axes.axvline(0, color=figures.QUIET, lw=0.8, ls=":")
        axes.set_title(
            f"{name}\n{int(called.sum()):,} of {len(part):,} called",
            loc="left",
            fontsize=10,
            color=figures.INK,
        )
        axes.set_xlabel(x_name, fontsize=9, color=figures.INK)
        axes.set_ylabel(y_name, fontsize=9, color=figures.INK)
        figures.strip(axes, ("top", "right"))
    return figures.write(figure, path, title)


def dots(
    table: pd.DataFrame, path: str | os.PathLike[str], title: str = "", per_group: int = 4
) -> Path:
    """The leading genes of each comparison in all of them; the file written.

    Colour is the log fold change, size the share of cells of the first group that have the gene.
    """
    names = list(dict.fromkeys(table["comparison"]))[:30]
    genes = leading_genes(table, names, per_group)
    if not genes:
        raise ConfigError("no gene to draw: the table has no rows.")
    lfc_cg, share_cg = _by_comparison(table, names, genes)
    figure = figures.new_figure(
        2.6 + 0.27 * len(genes) + 0.06 * max(map(len, names)), 2.0 + 0.34 * len(names)
    )
    axes = figure.add_subplot(1, 1, 1)
    top = max(float(np.nanquantile(np.abs(lfc_cg), 0.98)), 1e-6)
    x_cg, y_cg = np.meshgrid(np.arange(len(genes)), np.arange(len(names)))
    drawn = axes.scatter(
        x_cg.ravel(),
        y_cg.ravel(),
        c=lfc_cg.ravel(),
        s=4 + 110 * share_cg.ravel(),
        cmap="RdBu_r",
        vmin=-top,
        vmax=top,
        lw=0.3,
        edgecolors="#777777",
    )
    axes.set_xticks(range(len(genes)), genes, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xlim(-0.7, len(genes) - 0.3)
    axes.set_ylim(len(names) - 0.4, -0.6)
    figures.strip(axes, ("top", "right", "left", "bottom"))
    axes.tick_params(length=0)
    bar = figure.colorbar(
        drawn, ax=axes, shrink=min(1.0, 4 / len(names) + 0.2), aspect=12, pad=0.01
    )
    bar.set_label("log2 fold change", fontsize=9)
    bar.outline.set_visible(False)
    _size_legend(axes)
    return figures.write(figure, path, title)


def heat_map(
    values: pd.DataFrame, path: str | os.PathLike[str], title: str = "", label: str = ""
) -> Path:
    """A table of numbers as colours, symmetric about 0, its axes named as the table's are; the
    file written."""
    figure = figures.new_figure(
        2.8 + 0.42 * values.shape[1] + 0.06 * max(map(len, map(str, values.index))),
        2.2 + 0.32 * values.shape[0],
    )
    axes = figure.add_subplot(1, 1, 1)
    x = values.to_numpy(dtype=float)
    finite = np.abs(x[np.isfinite(x)])
    top = float(np.quantile(finite, 0.98)) if finite.size else 1.0
    drawn = axes.imshow(x, cmap="RdBu_r", vmin=-top or -1.0, vmax=top or 1.0, aspect="auto")
    axes.set_xticks(range(values.shape[1]), list(map(str, values.columns)), rotation=90, fontsize=8)
    axes.set_yticks(range(values.shape[0]), list(map(str, values.index)), fontsize=8)
    axes.set_xlabel(str(values.columns.name or ""), fontsize=9)
    axes.set_ylabel(str(values.index.name or ""), fontsize=9)
    figures.strip(axes, ("top", "right", "left", "bottom"))
    axes.tick_params(length=0)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, aspect=14, pad=0.02)
    # A table of few rows is lower than the label is long.
    bar.set_label(fill(label, _LABEL_WIDTH), fontsize=9)
    bar.outline.set_visible(False)
    return figures.write(figure, path, title)


def called_genes(part: pd.DataFrame) -> np.ndarray:
    """bool ``[g]``: rows that are called; in vanilla mode those with a large Bayes factor."""
    named = [name for name in part.columns if str(name).startswith("is_de_fdr_")]
    if named:
        return part[named[0]].to_numpy(dtype=bool)
    return np.abs(part["bayes_factor"].to_numpy()) > 3


def leading_genes(table: pd.DataFrame, names: Sequence[str], per_group: int) -> list[str]:
    """Genes that go up most surely in each comparison, each once, in the order of comparisons."""
    genes: list[str] = []
    for name in names:
        part = table[table["comparison"] == name]
        up = part[_change(part) > 0]
        called = called_genes(up)
        # Called ones with a large change first, then whatever goes up.
        order = np.lexsort((-_change(up), ~called))
        genes += up.index[order[:per_group]].astype(str).tolist()
    return list(dict.fromkeys(genes))


def _by_comparison(
    table: pd.DataFrame, names: Sequence[str], genes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    lfc, share = [], []
    for name in names:
        part = table[table["comparison"] == name]
        part = part[~part.index.duplicated()].reindex(genes)
        lfc.append(_change(part))
        has_share = "non_zeros_proportion1" in part
        share.append(
            part["non_zeros_proportion1"].to_numpy() if has_share else np.full(len(genes), 0.5)
        )
    return np.array(lfc), np.nan_to_num(np.array(share))


def _change(part: pd.DataFrame) -> np.ndarray:
    if "lfc_mean" in part:
        return part["lfc_mean"].to_numpy(dtype=float)
    tiny = np.finfo(float).tiny
    return np.log2((part["scale1"] + tiny) / (part["scale2"] + tiny)).to_numpy(dtype=float)


def _volcano_axes(part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, str, str]:
    x = _change(part)
    if "proba_not_de" in part:
        y = -np.log10(np.maximum(part["proba_not_de"].to_numpy(dtype=float), _SMALLEST))
        return x, y, "log2 fold change", "-log10 P(no change)"
    y = np.abs(part["bayes_factor"].to_numpy(dtype=float))
    return x, y, "log2 fold change", "|Bayes factor|"


def _points(axes: "Axes", x: np.ndarray, y: np.ndarray, colour: str) -> None:
    rows = figures.subsample(len(x), MOST_POINTS)
    axes.scatter(x[rows], y[rows], s=7, lw=0, alpha=0.7, color=colour, rasterized=True)


def _name_genes(
    axes: "Axes", x: np.ndarray, y: np.ndarray, genes: np.ndarray, called: np.ndarray
) -> None:
    """Name the called genes with the largest changes, at most three on either side."""
    for side in (1, -1):
        rows = np.flatnonzero(called & (side * x > 0))
        for row in rows[np.argsort(-side * x[rows], kind="stable")][:3]:
            axes.annotate(
                str(genes[row]),
                (x[row], y[row]),
                xytext=(0, 3),
                textcoords="offset points",
                fontsize=7,
                ha="center",
                color=figures.INK,
            )


def _size_legend(axes: "Axes") -> None:
    from matplotlib.lines import Line2D

    handles: list[Any] = [
        Line2D(
            [],
            [],
            ls="",
            marker="o",
            ms=np.sqrt(4 + 110 * share),
            color="#bbbbbb",
            label=f"{share:.0%}",
        )
        for share in (0.1, 0.5, 1.0)
    ]
    axes.legend(
        handles=handles,
        title="cells with it",
        title_fontsize=8,
        fontsize=8,
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=3,
    )
