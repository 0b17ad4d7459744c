"""What a trained model is asked at the end of a run: how good it is, and what the cells look like.

Axis suffixes: ``n`` cells, ``k`` latent.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.analysis import figures
from scvi_dist.analysis.elbo import elbo, reconstruction_error
from scvi_dist.analysis.latent import latent_representation
from scvi_dist.analysis.output import Output
from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import StoreCells, StreamConfig
from scvi_dist.config import RunConfig
from scvi_dist.data import Store
from scvi_dist.dataloaders.source import OpenSource

OBS_ROWS = 1 << 20
"""Rows of obs in memory at a time."""

Told = Callable[[float], None]
"""Takes the part done, 0 … 1."""


def evaluate(model: Any, source: OpenSource, rows: np.ndarray, seed: int) -> dict[str, float]:
    """ELBO and reconstruction error, means over some cells, in nats per cell.

    The ELBO is higher where the model is better; the reconstruction error is lower.
    """
    cells = _cells(source, rows, seed)
    error = reconstruction_error(model.module, cells)
    return {
        "elbo": float(elbo(model.module, cells)),
        **{name: float(value) for name, value in error.items()},
    }


def write_latent(model: Any, source: OpenSource, path: Path, told: Told) -> str:
    """The latent space of all cells, written to a Zarr store shard by shard; its URL."""
    config = StreamConfig(on_progress=lambda done, total: told(done / max(total, 1)))
    cells = StoreCells(source, None, config)
    return str(latent_representation(model.module, cells, out=Output(url=path)))


def write_predictions(model: Any, path: Path) -> str:
    """Probabilities of labels or types of all cells, written to a Zarr store; its URL."""
    return str(model.predict(out=path))


def draw_loss(history: Mapping[str, pd.DataFrame] | None, path: Path, title: str) -> Path | None:
    """The loss curves; None where a history has none."""
    points = {
        name: [(int(at), float(value)) for at, value in table.iloc[:, 0].items()]
        for name, table in (history or {}).items()
    }
    known = {stem for _, _, stem in figures.PANELS}
    if not any(any(stem in name for stem in known) for name in points):
        return None
    return figures.loss_curves(points, path, title)


def draw_map(model: Any, source: OpenSource, config: RunConfig, path: Path) -> Path:
    """A map of the latent space, with a panel for each column that colours it."""
    store = source.store
    seed = config.train.fit.seed
    rows = figures.subsample(store.n_obs, config.output.map_cells, seed)
    latent_nk = latent_representation(model.module, _cells(source, rows, seed))
    assert isinstance(latent_nk, np.ndarray)
    columns = colour_columns(config, store)
    labels = read_labels(store, columns, rows)
    colour_by = {f"coloured by {name}": labels[name] for name in columns} or {
        "": np.full(len(rows), "all cells")
    }
    of = f" of {store.n_obs:,}" if len(rows) < store.n_obs else ""
    return figures.latent_map(
        figures.layout(latent_nk, seed),
        colour_by,
        path,
        title=f"Latent space of {len(rows):,}{of} cells",
        seed=seed,
    )


def colour_columns(config: RunConfig, store: Store) -> list[str]:
    """Columns of obs that colour the map; with none asked for: the batches, and labels."""
    if config.output.colour_by is not None:
        return list(config.output.colour_by)
    setup = config.setup
    labels = setup.labels_key or ("cell_type" if "cell_type" in store.obs_columns else None)
    return [name for name in dict.fromkeys((setup.batch_key, labels)) if name is not None]


def read_labels(store: Store, columns: Sequence[str], rows: np.ndarray) -> pd.DataFrame:
    """Columns of obs of some rows, ascending; a million rows of obs in memory at a time."""
    parts = []
    for start in range(0, store.n_obs if columns else 0, OBS_ROWS):
        stop = min(start + OBS_ROWS, store.n_obs)
        inside = rows[(rows >= start) & (rows < stop)] - start
        if len(inside):
            parts.append(store.read_obs(list(columns), start, stop).iloc[inside].astype(str))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(columns))


def some_of(rows: np.ndarray, at_most: int, seed: int) -> np.ndarray:
    """Some of the rows, ascending; all of them if they are few enough."""
    return np.sort(np.asarray(rows))[figures.subsample(len(rows), at_most, seed)]


def _cells(source: OpenSource, rows: np.ndarray, seed: int) -> StoreCells:
    return StoreCells(source, Selection(source.store.n_obs, rows), StreamConfig(seed=seed))
