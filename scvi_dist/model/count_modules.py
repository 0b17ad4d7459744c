"""Modules of the size of the data."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from scvi_dist.analysis.library import library_size_moments
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.model.binding import DataBinding
from scvi_dist.module.vae import VAE


def new_vae(binding: DataBinding, arguments: Mapping[str, Any]) -> VAE:
    """A module of the data's sizes, with new weights."""
    schema = binding.schema
    has_size_factor = schema.size_factor_column is not None
    moments: dict[str, Any] = {}
    if not has_size_factor and not arguments["use_observed_lib_size"]:
        means, variances = _library_moments(binding)
        moments = {"library_log_means": means, "library_log_vars": variances}
    return VAE(
        n_input=schema.n_vars,
        n_batch=schema.n_batch,
        n_labels=schema.n_labels,
        n_continuous_cov=schema.n_continuous_cov,
        n_cats_per_cov=schema.n_cats_per_cov,
        use_size_factor_key=has_size_factor,
        **moments,
        **arguments,
    )


def _library_moments(binding: DataBinding) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the log library sizes of each batch, ``[1, n_batch]``.

    A model without data is about to get them with its weights.
    """
    n_batch = binding.schema.n_batch
    manager = binding.manager
    if manager is None:
        shape = (1, n_batch)
        return np.zeros(shape, np.float32), np.ones(shape, np.float32)
    source = OpenSource(manager.store, manager.schema, coded_obs=manager.coded_obs())
    return library_size_moments(StoreCells(source), n_batch)
