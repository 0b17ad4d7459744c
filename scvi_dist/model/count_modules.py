"""Modules of the size of the data."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from scvi_dist.analysis.library import library_size_moments
from scvi_dist.analysis.protein_background import background_prior
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.data.manager import AnnDataManager
from scvi_dist.data.schema import Schema
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.errors import ConfigError
from scvi_dist.model.binding import DataBinding
from scvi_dist.module.scanvae import SCANVAE
from scvi_dist.module.totalvae import TOTALVAE
from scvi_dist.module.vae import VAE


def new_vae(binding: DataBinding, arguments: Mapping[str, Any]) -> VAE:
    """A module of the data's sizes, with new weights."""
    sizes = _sizes(binding, bool(arguments["use_observed_lib_size"]))
    return VAE(n_labels=binding.schema.n_labels, **sizes, **arguments)


def new_scanvae(binding: DataBinding, arguments: Mapping[str, Any], n_labels: int) -> SCANVAE:
    """A module of the data's sizes that predicts so many classes, with new weights."""
    sizes = _sizes(binding, bool(arguments["use_observed_lib_size"]))
    return SCANVAE(n_labels=n_labels, **sizes, **arguments)


def new_totalvae(
    binding: DataBinding,
    arguments: Mapping[str, Any],
    *,
    masks_proteins: bool,
    looks_at_cells: bool,
) -> TOTALVAE:
    """A module of genes and proteins of the data's sizes, with new weights.

    Parameters
    ----------
    masks_proteins
        Whether proteins without counts in a panel were not measured there.
    looks_at_cells
        Whether the prior of the background begins where some cells' counts have theirs.
    """
    schema = binding.schema
    if not schema.n_proteins:
        raise ConfigError(
            f"{binding.model_name} needs counts of proteins; this data was set up without."
        )
    prior: dict[str, Any] = {}
    if looks_at_cells and binding.manager is not None and _has_counts(schema):
        mean, scale = background_prior(_source_of(binding.manager))
        prior = {"protein_background_prior_mean": mean, "protein_background_prior_scale": scale}
    sizes = _sizes(binding, bool(arguments.get("use_observed_lib_size", True)))
    return TOTALVAE(
        n_input_genes=sizes.pop("n_input"),
        n_input_proteins=schema.n_proteins,
        n_labels=schema.n_labels,
        protein_batch_mask=schema.protein_batch_mask if masks_proteins else None,
        n_panel=schema.n_panel,
        panel_key=schema.panel_registry_key,
        **prior,
        **sizes,
        **arguments,
    )


def _has_counts(schema: Schema) -> bool:
    return schema.minified is None or schema.minified.has_counts


def _source_of(manager: AnnDataManager) -> OpenSource:
    return OpenSource(manager.store, manager.schema, coded_obs=manager.coded_obs())


def _sizes(binding: DataBinding, observes_library: bool) -> dict[str, Any]:
    """Arguments of a module that follow from its data."""
    schema = binding.schema
    has_size_factor = schema.size_factor_column is not None
    moments: dict[str, Any] = {}
    if not has_size_factor and not observes_library:
        means, variances = _library_moments(binding)
        moments = {"library_log_means": means, "library_log_vars": variances}
    return {
        "n_input": schema.n_vars,
        "n_batch": schema.n_batch,
        "n_continuous_cov": schema.n_continuous_cov,
        "n_cats_per_cov": schema.n_cats_per_cov,
        "use_size_factor_key": has_size_factor,
        **moments,
    }


def _library_moments(binding: DataBinding) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the log library sizes of each batch, ``[1, n_batch]``.

    A model without data is about to get them with its weights.
    """
    n_batch = binding.schema.n_batch
    manager = binding.manager
    if manager is None:
        shape = (1, n_batch)
        return np.zeros(shape, np.float32), np.ones(shape, np.float32)
    return library_size_moments(StoreCells(_source_of(manager)), n_batch)
