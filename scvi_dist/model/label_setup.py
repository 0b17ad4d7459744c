"""From a model without labels to one with: its data, its arguments, and its first weights."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.data.fields import unlabeled_last
from scvi_dist.data.manager import AnnDataManager, remember
from scvi_dist.data.schema import Schema, fit_schema
from scvi_dist.data.setup import SetupArgs
from scvi_dist.errors import ConfigError
from scvi_dist.model.binding import Source
from scvi_dist.model.saving import init_arguments

if TYPE_CHECKING:
    from scvi_dist.model.base import BaseModel

FIRST_WITH_LOGITS = (1, 1)
"""The release of scvi-tools since which classifiers give logits."""

Model = TypeVar("Model", bound="BaseModel")


def labelled_model(
    kind: type[Model],
    known: "BaseModel",
    labels: tuple[str | None, Any],
    source: Source,
    registry: Mapping[str, Any] | None,
    given: Mapping[str, Any],
) -> Model:
    """A model of labels that begins with the weights of a trained model without.

    Parameters
    ----------
    labels
        Column of the labels, or None for that of ``known``; and the unlabeled category.
    source
        Cells; those of ``known`` where None, none where False.
    registry
        Of data with labels, for a model without cells.
    given
        Constructor arguments that ``known`` does not have.
    """
    arguments = init_arguments({"init_params_": known.init_params_}, "the SCVI model")
    for name in set(given) & set(arguments):
        warnings.warn(
            f"Ignoring param '{name}' as it was already passed in to pretrained SCVI model with "
            f"value {arguments[name]}.",
            UserWarning,
            stacklevel=3,
        )
    arguments = {**given, **arguments}
    if source is False or (source is None and known.adata_manager is None):
        if registry is None:
            setup = _with_labels(known.schema, *labels)
            schema = _schema_without_cells(known.schema, setup)
        else:
            schema = Schema.from_registry(registry, list(known.schema.var_names))
        model = kind._of_schema(schema, arguments)
    else:
        setup = _with_labels(known.schema, *labels)
        found = known.get_anndata_manager(source, required=True)
        manager = _labelled_manager(found, setup, kind.__name__)
        own = found.store if found.adata is None else found.adata
        remember(own if source is None else source, manager)
        # The classes' own constructors take other arguments than their base's.
        make: Any = kind
        model = make(manager, **arguments)
    weights = _starting_weights(known, model)
    model.module.load_state_dict(weights, strict=False)
    model.to_device(known.device)
    return model


def _with_labels(schema: Schema, labels_key: str | None, unlabeled_category: Any) -> SetupArgs:
    """A setup that also says which column holds the labels."""
    key = labels_key if labels_key is not None else schema.setup.labels_key
    if key is None:
        raise ConfigError(
            "A `labels_key` is necessary as the scVI model was initialized without one: give the "
            "column of obs that holds the labels as labels_key=…"
        )
    return replace(schema.setup, labels_key=key, unlabeled_category=unlabeled_category)


def _labelled_manager(known: AnnDataManager, setup: SetupArgs, model_name: str) -> AnnDataManager:
    """The data of another model with labels; everything else keeps the codes that it has."""
    labels_only = SetupArgs(
        layer=setup.layer, labels_key=setup.labels_key, unlabeled_category=setup.unlabeled_category
    )
    labels = fit_schema(known.store, labels_only).categories[REGISTRY_KEYS.LABELS_KEY]
    schema = _with_categories(known.schema, setup, labels)
    return AnnDataManager(known.store, schema, model_name, known.adata)


def _schema_without_cells(known: Schema, setup: SetupArgs) -> Schema:
    """The schema of a model without data, whose labels must be known already."""
    if known.setup.labels_key != setup.labels_key:
        raise ConfigError(
            f"the labels of {setup.labels_key!r} are not known without the cells: give them as "
            "adata=…, or a registry."
        )
    categories = known.categories[REGISTRY_KEYS.LABELS_KEY]
    unlabeled = setup.unlabeled_category
    assert unlabeled is not None, "a setup with labels has one"
    labels = unlabeled_last(categories, unlabeled, "the model's registry")
    return _with_categories(known, setup, labels)


def _with_categories(known: Schema, setup: SetupArgs, labels: tuple[Any, ...]) -> Schema:
    categories = {**known.categories, REGISTRY_KEYS.LABELS_KEY: labels}
    return replace(known, setup=setup, categories=categories)


def _starting_weights(known: "BaseModel", model: "BaseModel") -> dict[str, Tensor]:
    """A model's weights for one that knows labels.

    A dispersion for each label goes to the label's new code; a label that was not known gets the
    mean of the others' logarithms.
    """
    weights = dict(known.module.state_dict())
    if known.init_params_["non_kwargs"].get("dispersion") == "gene-label":
        labels = known.schema.categories[REGISTRY_KEYS.LABELS_KEY]
        column = {label: k for k, label in enumerate(labels)}
        old_gc = weights["px_r"]
        unknown_g = old_gc.mean(dim=1)
        new = [
            old_gc[:, column[label]] if label in column else unknown_g
            for label in model.schema.categories[REGISTRY_KEYS.LABELS_KEY]
        ]
        weights["px_r"] = torch.stack(new, dim=1)
    return weights


def release_of(scvi_version: Any) -> tuple[int, ...] | None:
    """Major and minor number of a release of scvi-tools; None if it cannot be told."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", str(scvi_version))[:2])
    return numbers if len(numbers) == 2 else None


def legacy_classifier(arguments: Mapping[str, Any], scvi_version: Any) -> dict[str, Any]:
    """Constructor arguments of a saved model, of which a classifier's may have to be completed.

    Before scvi-tools 1.1 a classifier gave probabilities unless it was told otherwise.
    """
    version = release_of(scvi_version)
    if version is None or version >= FIRST_WITH_LOGITS:
        return dict(arguments)
    given = arguments.get("classifier_parameters") or {}
    return {**arguments, "classifier_parameters": {"logits": False, **given}}
