"""The formulas of differential expression that look at all genes of a comparison.

Axis suffixes: ``g`` genes (features).
"""

import numpy as np

from scvi_dist.errors import ConfigError

EPS = 1e-8
"""Keeps Bayes factors finite."""
SMALLEST_PSEUDOCOUNT = 1e-10
REDUCED = 1e-3
"""The LFC itself is described with so much of the pseudocount, which would shrink it."""
_QUANTILE = 0.9
_COEFFICIENT, _SMALLEST_DELTA = 0.6, 0.1


def bayes_factor(probability_g: np.ndarray) -> np.ndarray:
    """Logarithm of the odds."""
    return np.log(probability_g + EPS) - np.log(1.0 - probability_g + EPS)


def found_pseudocount(
    largest1_g: np.ndarray, largest2_g: np.ndarray, silent1_g: np.ndarray, silent2_g: np.ndarray
) -> float:
    """A pseudocount that takes changes of genes that are not expressed to 0.

    Parameters
    ----------
    largest1_g, largest2_g
        The largest scale of each gene in each population.
    silent1_g, silent2_g
        Whether a gene is not expressed there.
    """
    found = [
        float(np.quantile(largest_g[silent_g], _QUANTILE))
        if silent_g.any()
        else SMALLEST_PSEUDOCOUNT
        for largest_g, silent_g in ((largest1_g, silent1_g), (largest2_g, silent2_g))
    ]
    return max(SMALLEST_PSEUDOCOUNT, max(found) / len(largest1_g))


def found_delta(lfc_means_g: np.ndarray, seed: int) -> float:
    """The smallest LFC that counts as a change, from the mean LFC of all genes.

    Genes are taken for a mixture of three normal laws: those that go down, those that stay, those
    that go up.

    Raises
    ------
    ConfigError
        There are fewer than three genes.
    """
    from sklearn.mixture import GaussianMixture

    if len(lfc_means_g) < 3:
        raise ConfigError(
            f"delta=None needs at least 3 genes to find one from, seen {len(lfc_means_g)}; give "
            "delta a number."
        )
    mixture = GaussianMixture(n_components=3, random_state=seed).fit(lfc_means_g[:, None])
    means = np.sort(mixture.means_.ravel())
    return float(max(_SMALLEST_DELTA, _COEFFICIENT * np.abs(means[[0, -1]]).mean()))


def called(probability_g: np.ndarray, fdr_target: float) -> np.ndarray:
    """bool: as many of the likeliest genes as keep the expected false discovery rate in bounds.

    Source
    ------
    Boyeau et al. 2019, "Deep generative models for detecting differential expression in single
    cells": the posterior expected false discovery proportion.
    """
    order = np.argsort(-probability_g, kind="stable")
    rate = np.cumsum(1.0 - probability_g[order]) / np.arange(1, len(order) + 1)
    chosen = np.zeros(len(order), dtype=bool)
    chosen[order[: int((rate <= fdr_target).sum())]] = True
    return chosen


def interval_name(level: float, end: str) -> str:
    """Column of the lower (``"min"``) or upper (``"max"``) end of a credible interval."""
    return f"lfc_confidence_interval_{str(level)[:5]}_{end}"
