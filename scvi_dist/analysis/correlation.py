"""Correlation of features over cells, with the model's uncertainty, in one or two passes.

Axis suffixes: ``n`` cells, ``f`` features, ``s`` samples, ``r`` rows: samples of cells.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scvi_dist.analysis.count_draws import gamma_by_cell
from scvi_dist.analysis.expression import decoded
from scvi_dist.analysis.laws import parameters_of
from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import CellGroup, Compute, StoreCells, collect, computed
from scvi_dist.errors import ConfigError
from scvi_dist.module.base import BaseModule

VALUES = "values"
"""The result ``[n, s, f]`` that :func:`correlation_matrix` takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrelationOptions:
    """Which correlation."""

    kind: Literal["spearman", "pearson"] = "spearman"
    n_samples: int = 10
    """Draws for each cell."""
    rna_size_factor: float = 1000.0
    """Library size of all cells."""
    budget_bytes: int = 512 << 20
    """Of the rows that ranks are taken from. Where all rows fit, ranks are exact."""

    def __post_init__(self) -> None:
        if self.kind not in ("spearman", "pearson"):
            raise ConfigError(
                "Unknown correlation type. Choose one of 'spearman', 'pearson'; "
                f"seen {self.kind!r}."
            )
        if self.n_samples < 1 or self.rna_size_factor <= 0:
            raise ConfigError(
                "n_samples must be at least 1 and rna_size_factor positive, seen "
                f"{self.n_samples} and {self.rna_size_factor}."
            )


def feature_correlation(
    module: BaseModule,
    cells: StoreCells,
    options: CorrelationOptions,
    transform_batch: tuple[int | None, ...] = (None,),
) -> np.ndarray:
    """Correlation of genes over cells and draws, ``[f, f]``, the mean over the batches.

    A draw is of the gamma law that the negative binomial is a Poisson mixture over: expression
    with its biological noise and without that of counting.

    Raises
    ------
    ConfigError
        The module's law has no such gamma.

    Source
    ------
    Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics", equation 3.
    """
    return np.mean(
        [
            correlation_matrix(
                module, cells, partial(_denoised, module=module, options=options, batch=b), options
            )
            for b in transform_batch
        ],
        axis=0,
    )


def _denoised(
    group: CellGroup, module: BaseModule, options: CorrelationOptions, batch: int | None
) -> dict[str, Tensor]:
    (law,) = decoded(module, group.tensors, options.n_samples, (batch,))
    rate = options.rna_size_factor * law.get_normalized("scale")
    parameters = parameters_of(law)
    if "theta" in parameters:
        rate = gamma_by_cell(parameters["theta"].expand_as(rate), rate, group.keys)
    elif "rate" not in parameters:
        raise ConfigError(
            f"a {type(law).__name__} law has no expression without counting noise to correlate: "
            "this takes gene_likelihood 'zinb', 'nb' or 'poisson'."
        )
    return {VALUES: rate.movedim(0, 1) if options.n_samples > 1 else rate.unsqueeze(1)}


def correlation_matrix(
    module: BaseModule, cells: StoreCells, compute: Compute, options: CorrelationOptions
) -> np.ndarray:
    """Correlation ``[f, f]`` of what is computed of cells, over cells and samples.

    Memory is that of a few matrices ``[f, f]`` and of ``budget_bytes``, however many cells there
    are. Ranks that are not exact, because not all rows fit, are those among a sample of cells;
    with 10,000 rows coefficients are within about 0.01.

    Parameters
    ----------
    compute
        Gives :data:`VALUES`, ``[n, s, f]``; the same for the same cell whenever it is asked.
    """
    moments = _Moments()
    ranks = _Ranks.of(module, cells, compute, options) if options.kind == "spearman" else None
    for _, values in computed(module, cells.groups(), compute):
        rows_rf = values[VALUES].flatten(0, 1)
        moments.add((rows_rf if ranks is None else ranks(rows_rf)).double().numpy())
    return moments.correlation()


class _Ranks:
    """The mean rank of values among some rows, by feature."""

    def __init__(self, sorted_fr: Tensor) -> None:
        self._sorted_fr = sorted_fr

    @staticmethod
    def of(
        module: BaseModule, cells: StoreCells, compute: Compute, options: CorrelationOptions
    ) -> "_Ranks":
        schema = cells.source.schema
        n_features = schema.n_vars + schema.n_proteins
        fit = options.budget_bytes // (8 * n_features * options.n_samples)
        chosen = cells
        if fit < cells.n_cells:
            rng = np.random.default_rng([cells.config.seed, 0xC0])
            places = np.sort(rng.choice(cells.n_cells, max(2, int(fit)), replace=False))
            # A subset keeps its cells' noise: its rows are rows of the second pass.
            part: Selection = cells.selection.subset(places)
            chosen = StoreCells(cells.source, part, cells.config)
        values = torch.from_numpy(collect(module, chosen, compute)[VALUES])
        return _Ranks(values.flatten(0, 1).T.contiguous().sort(dim=1).values)

    def __call__(self, rows_rf: Tensor) -> Tensor:
        wanted_fr = rows_rf.T.contiguous()
        below = torch.searchsorted(self._sorted_fr, wanted_fr)
        upto = torch.searchsorted(self._sorted_fr, wanted_fr, right=True)
        # Equal values share the mean of their ranks.
        return (below + upto).T / 2


class _Moments:
    """Mean and products of deviations of rows, added up block by block.

    Source: Chan, Golub & LeVeque 1983, equation 2.1b.
    """

    def __init__(self) -> None:
        self._n = 0
        self._mean_f: np.ndarray | float = 0.0
        self._products_ff: np.ndarray | float = 0.0

    def add(self, rows_rf: np.ndarray) -> None:
        n = len(rows_rf)
        mean_f = rows_rf.mean(0)
        centred_rf = rows_rf - mean_f
        shift_f = mean_f - self._mean_f
        total = self._n + n
        self._products_ff = self._products_ff + centred_rf.T @ centred_rf
        self._products_ff += np.outer(shift_f, shift_f) * (self._n * n / total)
        self._mean_f = self._mean_f + shift_f * (n / total)
        self._n = total

    def correlation(self) -> np.ndarray:
        """``[f, f]``; NaN for features that are constant, as NumPy and SciPy give it."""
        products_ff = np.asarray(self._products_ff)
        spread_f = np.sqrt(np.diag(products_ff))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.clip(products_ff / np.outer(spread_f, spread_f), -1.0, 1.0)
