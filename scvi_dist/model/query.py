"""Query mapping: a model of other data that goes on from a reference."""

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.data.fields import LabelsWithUnlabeledObsField
from scvi_dist.data.joined.padded import PaddedStore
from scvi_dist.data.manager import AnnDataManager, opened_for
from scvi_dist.data.open import open_store
from scvi_dist.data.schema import Schema, transfer_schema
from scvi_dist.data.store import Store
from scvi_dist.errors import ConfigError, SchemaMismatch
from scvi_dist.model.binding import Source, as_adata
from scvi_dist.model.saving import init_arguments
from scvi_dist.module.surgery import FreezeOptions, freeze, transplant

if TYPE_CHECKING:
    from scvi_dist.model.base import BaseModel

Model = TypeVar("Model", bound="BaseModel")


def query_model(
    kind: type[Model],
    source: Source,
    reference: "Model | str | os.PathLike[str]",
    registry: Mapping[str, Any] | None,
    options: FreezeOptions,
    may_extend_batches: bool = True,
) -> Model:
    """A model of query data with a reference's weights, of which a part is frozen.

    Raises
    ------
    ConfigError
        The reference is a model of another class, or there is no data.
    SchemaMismatch
        Genes are missing, or there are new batches and ``may_extend_batches`` is False.
    """
    known = _as_model(kind, reference)
    arguments = init_arguments({"init_params_": known.init_params_}, "the reference")
    if source is not None:
        manager = _query_manager(known, source)
        schema = manager.schema
    elif registry is not None:
        schema = _of_registry(known.schema, registry)
    else:
        raise ConfigError(
            "load_query_data needs the query: an AnnData, a path or URL of a store, or a store; "
            "or its registry."
        )
    if not may_extend_batches and schema.n_batch > known.schema.n_batch:
        new = schema.categories[REGISTRY_KEYS.BATCH_KEY][known.schema.n_batch :]
        raise SchemaMismatch(
            "transfer_batch=False allows no batches that the reference does not have; the query "
            f"has {', '.join(map(repr, new[:5]))}."
        )
    # Every class that can be mapped takes a manager where BaseModel takes a binding.
    make = cast(Any, kind)
    model: Model = (
        kind._of_schema(schema, arguments) if source is None else make(manager, **arguments)
    )
    transplant(known.module, model.module)
    freeze(model.module, options, known.schema.n_batch)
    model.module.eval()
    return model


def _as_model(kind: type[Model], reference: "Model | str | os.PathLike[str]") -> Model:
    if isinstance(reference, str | os.PathLike):
        return kind.load(reference, adata=False, accelerator="cpu")
    if type(reference) is not kind:
        raise ConfigError(
            f"the reference is a {type(reference).__name__} model; {kind.__name__}.load_query_data "
            f"takes a {kind.__name__} model, or the folder of one."
        )
    return reference


def _query_manager(known: "BaseModel", source: Source) -> AnnDataManager:
    """The query in the reference's schema, extended by the query's categories."""
    adata = as_adata(source)
    store = _with_labels(opened_for(known.schema.setup, source), known.schema)
    try:
        schema, genes = transfer_schema(known.schema, store, extend_categories=True)
    except SchemaMismatch as error:
        if np.isin(known.schema.var_names, store.var_names).all():
            raise
        name = type(known).__name__
        raise SchemaMismatch(
            f"{error} {name}.prepare_query_anndata(query, reference) does so with zeros."
        ) from error
    if genes is not None:
        store = open_store(store, genes=list(schema.var_names))
    return AnnDataManager(store, schema, known._binding.model_name, adata)


def _with_labels(store: Store, schema: Schema) -> Store:
    """The store with all cells unlabeled, if labels may be unknown and the column is not there."""
    for field in schema.setup.obs_fields:
        if not isinstance(field, LabelsWithUnlabeledObsField):
            continue
        lacking = [c for c in field.columns if c not in store.obs_columns]
        if lacking:
            warnings.warn(
                f"Missing labels key {lacking[0]}. Filling in with unlabeled category "
                f"{field.unlabeled_category}.",
                UserWarning,
                stacklevel=5,
            )
            return PaddedStore(
                store, store.var_names.tolist(), {lacking[0]: field.unlabeled_category}
            )
    return store


def _of_registry(known: Schema, registry: Mapping[str, Any]) -> Schema:
    """The schema of a registry that extends the reference's."""
    schema = Schema.from_registry(registry, list(known.var_names))
    if schema.var_names != known.var_names:
        raise SchemaMismatch(
            "the registry's genes are not the reference's, in its order. Build it for data that "
            "prepare_query_anndata() has brought to them."
        )
    for key, categories in known.categories.items():
        if schema.categories[key][: len(categories)] != categories:
            raise SchemaMismatch(
                f"the registry's categories of {key!r} do not begin with the reference's: expected "
                f"{list(categories[:5])} first, seen {list(schema.categories[key][:5])}."
            )
    return schema
