"""Saved models of genes and proteins: of older releases, and brought to other cells."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from scvi_dist.data.proteins import ProteinMask
from scvi_dist.data.schema import Schema
from scvi_dist.model.file_format import SavedModel
from scvi_dist.model.label_setup import release_of
from scvi_dist.module.totalvae import TOTALVAE

FIRST_WITH_SOFTPLUS = (1, 2)
"""The release of scvi-tools since which the background's spread is a softplus."""

_EFFICIENCY = "log_per_batch_efficiency"


def legacy_background(arguments: Mapping[str, Any], scvi_version: Any) -> dict[str, Any]:
    """Constructor arguments of a saved model, of which the background's may have to be completed.

    Before scvi-tools 1.2 the spread of the background was an exponential.
    """
    version = release_of(scvi_version)
    if version is None or version >= FIRST_WITH_SOFTPLUS:
        return dict(arguments)
    given = arguments.get("extra_decoder_kwargs") or {}
    return {**arguments, "extra_decoder_kwargs": {"activation_function_bg": "exp", **given}}


def with_efficiency(schema: Schema, saved: SavedModel) -> SavedModel:
    """The file with the batches' efficiencies, which older releases do not have: all are 1."""
    if _EFFICIENCY in saved.state_dict:
        return saved
    none = torch.zeros(schema.n_proteins, schema.n_batch)
    return replace(saved, state_dict={**saved.state_dict, _EFFICIENCY: none})


def remasked(module: TOTALVAE, mask: ProteinMask | None) -> TOTALVAE:
    """The module with the same weights for cells of which other proteins were measured."""
    with torch.random.fork_rng(devices=[]):
        other = TOTALVAE(**{**module.init_args, "protein_batch_mask": mask})
    other.load_state_dict(module.state_dict())
    return other.to(module.device)
