"""Which genes speak for the label that is predicted: integrated gradients, summed over cells.

Axis suffixes: ``n`` cells, ``g`` genes, ``c`` classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scvi_dist.analysis.streaming import CellGroup, Cells, computed
from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.module.scanvae import SCANVAE

_ATTRIBUTION = "attribution"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttributionOptions:
    """How the integral is computed."""

    n_steps: int = 50
    """Points of the Gauss-Legendre rule."""

    def __post_init__(self) -> None:
        if self.n_steps < 1:
            raise ConfigError(f"n_steps must be at least 1, seen {self.n_steps}.")

    @staticmethod
    def of(given: Mapping[str, Any] | None) -> "AttributionOptions":
        """From keyword arguments; an unknown name is an error with the nearest one."""
        names = [f.name for f in fields(AttributionOptions)]
        for name in given or {}:
            if name not in names:
                raise ConfigError(f"ig_args has no {name!r}; {did_you_mean(name, names)}")
        return AttributionOptions(**(given or {}))


def gene_attributions(
    module: SCANVAE, cells: Cells, var_names: np.ndarray, options: AttributionOptions
) -> pd.DataFrame:
    """What each gene adds to the score of a cell's predicted class, over all cells.

    The attributions of a cell add up to the difference between the score of its class and the
    score that the class has for an empty cell. One pass; only sums over cells are kept.

    Parameters
    ----------
    var_names
        Genes, ``[g]``.

    Returns
    -------
    See :func:`ranked_features`.

    Source
    ------
    Sundararajan, Taly & Yan 2017, "Axiomatic attribution for deep networks", equation 1.
    """
    compute = partial(_attributions, module=module, n_steps=options.n_steps)
    total_g = np.zeros(len(var_names))
    squares_g = np.zeros(len(var_names))
    n_cells = 0
    for _, values in computed(module, cells.groups(), compute):
        found_ng = values[_ATTRIBUTION].double().numpy()
        n_cells += len(found_ng)
        total_g += found_ng.sum(axis=0)
        squares_g += np.square(found_ng).sum(axis=0)
    mean_g = total_g / max(n_cells, 1)
    variance_g = np.maximum(squares_g / max(n_cells, 1) - np.square(mean_g), 0)
    return ranked_features(var_names, mean_g, np.sqrt(variance_g), n_cells)


def ranked_features(
    var_names: np.ndarray, mean_g: np.ndarray, std_g: np.ndarray, n_cells: int
) -> pd.DataFrame:
    """Genes by their mean attribution, the largest first.

    Returns
    -------
    DataFrame with the columns ``feature``, ``feature_idx`` (its column of the counts),
    ``modality``, ``attribution_mean``, ``attribution_std`` and ``cells``.
    """
    order = np.argsort(-mean_g, kind="stable")
    return pd.DataFrame(
        {
            "feature": var_names[order],
            "feature_idx": order,
            "modality": "None",
            "attribution_mean": mean_g[order],
            "attribution_std": std_g[order],
            "cells": n_cells,
        }
    )


def _attributions(group: CellGroup, module: SCANVAE, n_steps: int) -> dict[str, Tensor]:
    """``[n, g]``, of the class that is most probable for each cell."""
    node_p, weight_p = np.polynomial.legendre.leggauss(n_steps)
    # Results are computed without a graph; what the gradient passes through is copied out of that.
    with torch.inference_mode(False), torch.enable_grad():
        given = module._get_inference_input(group.tensors)
        given.pop("x")
        x_ng = group.tensors[REGISTRY_KEYS.X_KEY].clone()
        covariates: dict[str, Any] = {k: None if v is None else v.clone() for k, v in given.items()}
        class_n1 = module.classify(x_ng, **covariates).argmax(dim=-1, keepdim=True)
        gradient_ng = torch.zeros_like(x_ng)
        for node, weight in zip(node_p.tolist(), weight_p.tolist(), strict=True):
            point_ng = (x_ng * ((1 + node) / 2)).requires_grad_()
            score = module.classify(point_ng, **covariates).gather(-1, class_n1).sum()
            gradient_ng += torch.autograd.grad(score, point_ng)[0] * (weight / 2)
        return {_ATTRIBUTION: (x_ng * gradient_ng).detach()}
