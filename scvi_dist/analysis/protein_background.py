"""Where the background of proteins begins: an empirical prior from a sample of cells.

Axis suffixes: ``n`` cells, ``p`` proteins, ``b`` panels.
"""

import warnings
from collections.abc import Iterator

import numpy as np

from scvi_dist.dataloaders.source import OpenSource

CELLS_A_PANEL = 100
"""Cells of each panel that are looked at."""
FEWEST_PROTEINS = 5
"""Proteins that a panel must have measured for its cells to be looked at."""
CHUNK_ROWS = 1 << 18

NO_MIXTURE = (0.0, 0.05)
"""Mean and standard deviation where no mixture can be fitted."""
NO_CELLS = (0.0, 1.0)
"""Of a panel without cells: the values are not used."""


def background_prior(source: OpenSource) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the log background of the proteins of each panel.

    Of 100 cells of a panel, drawn with replacement, each one's log counts of the proteins that
    were measured are taken for a mixture of two normal laws; the lower one is background, and the
    laws are averaged. Only those cells' proteins are read. As in scvi-tools, NumPy's global
    generator is drawn from: equal seeds give its values.

    Parameters
    ----------
    source
        The cells, and which panel lacks which protein.

    Returns
    -------
    float32 ``[p, b]`` each; equal for all proteins of a panel.

    Source
    ------
    Gayoso et al. 2021, "Joint probabilistic modeling of single-cell multi-omic data with totalVI",
    methods.
    """
    schema, reader = source.schema, source.proteins
    assert reader is not None, "the schema has proteins"
    panels = _Panels(source)
    moments = []
    for panel in range(schema.n_panel):
        n_cells = panels.n_cells[panel]
        measured = np.ones(schema.n_proteins, dtype=bool)
        if schema.protein_batch_mask is not None and n_cells:
            measured = np.array(schema.protein_batch_mask[str(panel)])
        if n_cells == 0:
            moments.append(NO_CELLS)
        elif schema.protein_batch_mask is not None and measured.sum() < FEWEST_PROTEINS:
            moments.append(NO_MIXTURE)
        else:
            drawn = np.random.choice(n_cells, size=CELLS_A_PANEL)
            counts_np = reader.read_at(panels.rows(panel, drawn))
            moments.append(_mean_law(counts_np[:, measured].astype(np.float64)))
    mean_b, scale_b = np.array(moments, dtype=np.float32).T
    shape = (schema.n_proteins, schema.n_panel)
    return np.broadcast_to(mean_b, shape).copy(), np.broadcast_to(scale_b, shape).copy()


class _Panels:
    """The cells of each panel by their number within it, found without a list of all of them."""

    def __init__(self, source: OpenSource) -> None:
        self._source = source
        self._n_panel = source.schema.n_panel
        counts = [np.bincount(codes, minlength=self._n_panel) for _, codes in self._chunks()]
        self._before = np.cumsum([np.zeros(self._n_panel, dtype=np.int64), *counts], axis=0)
        """Cells of each panel before each chunk."""
        self.n_cells: list[int] = self._before[-1].tolist()

    def _chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, self._source.store.n_obs, CHUNK_ROWS):
            yield start, self._codes(start)

    def _codes(self, start: int) -> np.ndarray:
        rows = np.arange(start, min(start + CHUNK_ROWS, self._source.store.n_obs))
        return self._source.coded_obs.take(rows)[self._source.schema.panel_registry_key][:, 0]

    def rows(self, panel: int, numbers: np.ndarray) -> np.ndarray:
        """int64: rows of the store of the panel's cells with these numbers, counted from 0."""
        before_c = self._before[:, panel]
        chunk_n = np.searchsorted(before_c, numbers, side="right") - 1
        found = np.empty(len(numbers), dtype=np.int64)
        for chunk in np.unique(chunk_n).tolist():
            start = chunk * CHUNK_ROWS
            members = np.flatnonzero(self._codes(start) == panel) + start
            here = chunk_n == chunk
            found[here] = members[numbers[here] - before_c[chunk]]
        return found


def _mean_law(counts_np: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the mean of the cells' background laws."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(n_components=2)
    laws = []
    with warnings.catch_warnings():
        # A cell of equal counts has no two components.
        warnings.simplefilter("error", ConvergenceWarning)
        for counts_p in counts_np:
            try:
                mixture.fit(np.log1p(counts_p[:, None]))
            except ConvergenceWarning:
                laws.append(NO_MIXTURE)
                continue
            lower = int(np.argmin(mixture.means_.ravel()))
            variance = mixture.covariances_[lower].item()
            laws.append((mixture.means_[lower].item(), float(np.sqrt(variance))))
    mean_n, scale_n = np.array(laws).T
    return float(mean_n.mean()), float(np.sqrt(np.square(scale_n).sum()) / len(laws))
