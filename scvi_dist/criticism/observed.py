"""The cells and the observed counts that several models are judged by."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.analysis.predictive_pass import Feature
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.data.manager import opened_for
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.errors import ConfigError, SchemaMismatch, did_you_mean
from scvi_dist.model.binding import Source
from scvi_dist.model.latent_model import Indices, LatentModel

_SAME: dict[str, Feature] = {"rna": "rna", "protein": "protein"}


def cells_of(
    model: LatentModel, adata: Source, indices: Indices, batch_size: int, seed: int
) -> StoreCells:
    """The cells as a trained model sees them; it must be one of counts, and these be there."""
    if not isinstance(model, LatentModel):
        raise ConfigError(
            "a posterior predictive check takes models of counts (SCVI, SCANVI, TOTALVI), not "
            f"{type(model).__name__}."
        )
    model._check_if_trained()
    cells = model._cells_of(adata, indices, batch_size, None, seed)
    assert isinstance(cells, StoreCells), "no dataloader was given"
    model._look_at_counts("PosteriorPredictiveCheck", cells)
    return cells


def feature_of(models: Mapping[str, Any], modality: str | None) -> Feature:
    """Whether genes or proteins are meant.

    Raises
    ------
    ConfigError
        A model has no such modality, or has several that come from a MuData and none is named.
    """
    found: set[Feature] = set()
    for name, model in models.items():
        schema = model.schema
        within = dict(schema.setup.modalities or ())
        if within and modality is None:
            raise ConfigError(
                f"{name}: the model was set up with a MuData; say which modality to check, one "
                f"of {', '.join(sorted(within.values()))}."
            )
        known = dict(_SAME) if schema.n_proteins else {"rna": _SAME["rna"]}
        if within:
            known |= {within["rna_layer"]: "rna", within["protein_layer"]: "protein"}
        chosen = modality or "rna"
        if chosen not in known:
            raise ConfigError(f"{name}: no modality {chosen!r}; {did_you_mean(chosen, known)}")
        found.add(known[chosen])
    if len(found) > 1:
        raise ConfigError(f"modality={modality!r} is genes in one model and proteins in another.")
    return found.pop()


def shared_features(models: Mapping[str, Any], feature: Feature) -> pd.Index:
    """Names of the features, which all models have in the same order.

    Raises
    ------
    SchemaMismatch
        Models have different features.
    """
    names = {
        name: np.asarray(
            model.schema.var_names if feature == "rna" else model.schema.protein_names, dtype=object
        )
        for name, model in models.items()
    }
    first, expected = next(iter(names.items()))
    for name, seen in names.items():
        if len(seen) != len(expected) or not bool((seen == expected).all()):
            raise SchemaMismatch(
                f"models that are compared need the same features in the same order: {first!r} "
                f"has {len(expected)}, {name!r} has {len(seen)}"
                f"{'' if len(seen) != len(expected) else ' in another order'}."
            )
    return pd.Index(expected, name="features")


class ObservedCounts:
    """Where each model's pass finds the counts that were observed.

    Raises
    ------
    ConfigError
        Models read different layers and ``layer`` does not say which, or proteins have none.
    """

    def __init__(
        self, models: Mapping[str, LatentModel], adata: Source, feature: Feature, layer: str | None
    ) -> None:
        layers = {name: model.schema.setup.layer for name, model in models.items()}
        if layer is not None and feature == "protein":
            raise ConfigError("count_layer_key names a layer of genes; proteins have none.")
        if layer is None and feature == "rna" and len(set(layers.values())) > 1:
            shown = ", ".join(f"{name}: {of or 'X'}" for name, of in layers.items())
            raise ConfigError(
                f"the models read different layers ({shown}); say with count_layer_key which of "
                "them holds the observed counts."
            )
        self._sources: dict[str, OpenSource | None] = {
            name: None if layer is None or layer == layers[name] else _at_layer(model, adata, layer)
            for name, model in models.items()
        }

    def counts_of(self, name: str) -> OpenSource | None:
        """Source of the counts; None where they are those that the model reads."""
        return self._sources[name]


def _at_layer(model: LatentModel, adata: Source, layer: str) -> OpenSource:
    manager = model._binding.manager_for(adata)
    given = adata if adata is not None else manager.adata
    given = manager.store if given is None else given
    store = opened_for(replace(manager.schema.setup, layer=layer), given)
    if store.n_obs != manager.store.n_obs:
        raise SchemaMismatch(
            f"layer {layer!r} has {store.n_obs} cells, the model's data {manager.store.n_obs}."
        )
    return OpenSource(store, manager.schema, check_counts=False)
