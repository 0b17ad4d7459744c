"""Pictures of a training run and of a latent space, as PNG files sized for a screen.

Drawn on figures of their own, never through pyplot: no global state, no display, any thread.
Axis suffixes: ``n`` cells, ``k`` latent.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

from scvi_dist.errors import ConfigError

DPI = 120
INK = "#262626"
QUIET = "#8a8a8a"

EIGHT_COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#f0e442",
    "#4d4d4d",
)
"""Okabe and Ito's palette: told apart with every common colour vision."""

# fmt: off
MANY_COLOURS = (
    "#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255",
    "#aa4499", "#6699cc", "#ee8866", "#004488", "#bbcc33", "#ee3377", "#555555", "#e8601c",
    "#7bafde", "#4eb265", "#ae76a3", "#a5170e",
)
# fmt: on
"""Paul Tol's muted colours and further ones of his; numbers in the map help as well."""

OTHER_COLOUR = "#d0d0d0"
MAX_NAMED = len(MANY_COLOURS)

History = Mapping[str, Sequence[tuple[int, float]]]
"""Metric -> (epoch, value) in order."""

PANELS = (
    ("Negative ELBO", "nats per cell", "elbo"),
    ("Reconstruction error", "nats per cell", "reconstruction_loss"),
    ("KL divergence of the latent", "nats per cell", "kl_local"),
    ("Loss", "nats per cell, KL weighted", "loss"),
)
"""Title, unit, and stem of scvi-tools' metric names."""

LINES = (
    ("training", "#0072b2", "-", ("{}_train", "train_{}_epoch", "train_{}")),
    ("validation", "#d55e00", "--", ("{}_validation", "validation_{}")),
)
"""Label, colour, dashes and the names that a stem may have."""

Curve = tuple[str, dict[str, Any], np.ndarray]
"""Label, how it is drawn, and points ``[points, 2]``."""


def loss_curves(history: History, path: str | os.PathLike[str], title: str = "") -> Path:
    """Curves of training and validation, a panel for each part of the loss; the file written.

    Parameters
    ----------
    history
        By scvi-tools' metric names; panels without any value are left out.
    path
        PNG file; its folder is made.
    title
        Above the panels.
    """
    panels = [(name, unit, _curves_of(history, stem)) for name, unit, stem in PANELS]
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        raise ConfigError(
            f"no curve to draw: expected metrics such as 'elbo_train', seen {sorted(history)}."
        )
    n_columns = min(2, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = new_figure(6.0 * n_columns, 3.6 * n_rows + 0.5)
    for index, (name, unit, curves) in enumerate(panels):
        axes = figure.add_subplot(n_rows, n_columns, index + 1)
        _draw_curves(axes, curves)
        axes.set_title(name, loc="left", fontsize=12, color=INK)
        axes.set_ylabel(unit, fontsize=10, color=INK)
        axes.set_xlabel("epoch", fontsize=10, color=INK)
    return write(figure, path, title)


def latent_map(
    position_n2: np.ndarray,
    colour_by: Mapping[str, Sequence[Any] | np.ndarray | pd.Series],
    path: str | os.PathLike[str],
    title: str = "",
    seed: int = 0,
) -> Path:
    """Cells in the plane, one panel side by side for each way to colour them; the file written.

    Parameters
    ----------
    position_n2
        As :func:`layout` gives it.
    colour_by
        Heading -> label of each cell. Beyond twenty labels the rarest are drawn grey.
    path
        PNG file; its folder is made.
    title
        Above the panels.
    seed
        Of the order in which cells are drawn: no label lies on top of another as a whole.
    """
    figure = new_figure(6.6 * len(colour_by), 6.9)
    order = np.random.default_rng(seed).permutation(len(position_n2))
    for index, (heading, labels) in enumerate(colour_by.items()):
        axes = figure.add_subplot(1, len(colour_by), index + 1)
        _draw_cells(axes, position_n2, np.asarray(labels).astype(str), order)
        axes.set_title(heading, loc="left", fontsize=13, color=INK)
    return write(figure, path, title)


def layout(latent_nk: np.ndarray, seed: int = 0, max_iter: int = 500) -> np.ndarray:
    """A place in the plane for each cell: float32 ``[n, 2]``, by t-SNE from a PCA start.

    Quadratic in patience: give it at most some thousand cells (:func:`subsample`).

    Source: van der Maaten and Hinton 2008; start and settings after Kobak and Berens 2019.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    n, k = latent_nk.shape
    if n < 10 or k <= 2:
        # Too few for neighbourhoods, or nothing to reduce.
        plane = (
            PCA(min(2, n, k), random_state=seed).fit_transform(latent_nk) if n > 1 else latent_nk
        )
        return np.pad(plane, ((0, 0), (0, max(0, 2 - plane.shape[1]))))[:, :2].astype(np.float32)
    tsne = TSNE(
        init="pca",
        perplexity=min(30.0, (n - 1) / 3),
        learning_rate="auto",
        max_iter=max_iter,
        random_state=seed,
    )
    return tsne.fit_transform(np.asarray(latent_nk, dtype=np.float32)).astype(np.float32)


def subsample(n: int, at_most: int = 5_000, seed: int = 0) -> np.ndarray:
    """Rows to draw: int64, ascending, all of them if they are few enough."""
    if n <= at_most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, at_most, replace=False))


def _curves_of(history: History, stem: str) -> list[Curve]:
    """What a panel shows; metrics without any value are left out."""
    curves = []
    for label, colour, dashes, patterns in LINES:
        names = [pattern.format(stem) for pattern in patterns]
        values = next((history[name] for name in names if history.get(name)), None)
        if values is not None:
            style = {"color": colour, "ls": dashes, "marker": "o" if len(values) < 30 else None}
            curves.append((label, style, np.asarray(values, dtype=float)))
    return curves


def _draw_curves(axes: "Axes", curves: list[Curve]) -> None:
    from matplotlib.ticker import MaxNLocator

    for label, style, points in curves:
        last = points[-1, 1]
        axes.plot(points[:, 0], points[:, 1], label=f"{label}: {last:,.5g}", lw=2, ms=4, **style)
    values = np.concatenate([points[:, 1] for _, _, points in curves])
    finite = values[np.isfinite(values)]
    if len(finite) > 20:
        # The first epochs are far off; without a cut they flatten the rest of the curve.
        low, high = finite.min(), np.quantile(finite, 0.98)
        axes.set_ylim(low - 0.05 * (high - low or 1), high + 0.1 * (high - low or 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(axis="y", color="#e8e8e8", lw=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=10)
    strip(axes, ("top", "right"))


def _draw_cells(axes: "Axes", position_n2: np.ndarray, labels: np.ndarray, order: Any) -> None:
    names, counts = np.unique(labels, return_counts=True)
    by_size = names[np.argsort(-counts, kind="stable")]
    shown = sorted(by_size[:MAX_NAMED].tolist(), key=_natural_key)
    few = len(shown) <= len(EIGHT_COLOURS)
    colour_of = dict(zip(shown, EIGHT_COLOURS if few else MANY_COLOURS, strict=False))
    colours = np.array([colour_of.get(label, OTHER_COLOUR) for label in labels])
    size = float(np.clip(40_000 / max(len(labels), 1), 4, 40))
    axes.scatter(*position_n2[order].T, c=colours[order], s=size, lw=0, alpha=0.85)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.04)
    strip(axes, ("top", "right", "bottom", "left"))
    entries = list(colour_of.items())
    if not few:
        # So many colours cannot be told apart by everybody: numbers say it too.
        _number_groups(axes, position_n2, labels, shown)
        entries = [(f"{i}  {name}", colour) for i, (name, colour) in enumerate(entries, start=1)]
    if len(names) > len(shown):
        n_cells = int(counts[~np.isin(names, shown)].sum())
        entries.append((f"{len(names) - len(shown)} others ({n_cells:,} cells)", OTHER_COLOUR))
    _legend(axes, entries)


def _number_groups(
    axes: "Axes", position_n2: np.ndarray, labels: np.ndarray, shown: Sequence[str]
) -> None:
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=2.5, foreground="white")]
    for number, name in enumerate(shown, start=1):
        x, y = np.median(position_n2[labels == name], axis=0)
        axes.text(x, y, str(number), ha="center", va="center", fontsize=11, path_effects=outline)


def _legend(axes: "Axes", entries: Sequence[tuple[str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], ls="", marker="o", ms=8, color=colour, label=_shortened(name))
        for name, colour in entries
    ]
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=min(4, len(handles)) if len(handles) <= 12 else 3,
        frameon=False,
        fontsize=10,
        handletextpad=0.1,
        columnspacing=1.0,
    )


def new_figure(width: float, height: float) -> "Figure":
    """A figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    FigureCanvasAgg(figure)
    return figure


def write(figure: "Figure", path: str | os.PathLike[str], title: str) -> Path:
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold", color=INK)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    figure.savefig(part, format="png")
    part.replace(target)
    return target


def strip(axes: "Axes", sides: Sequence[str]) -> None:
    for side in sides:
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=QUIET, labelsize=9, labelcolor=INK)


def _natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts ``type 2`` before ``type 10``."""
    import re

    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts)


def _shortened(name: str) -> str:
    """Cut in the middle: long names often differ at their end."""
    return name if len(name) <= 28 else f"{name[:15]}…{name[-12:]}"
