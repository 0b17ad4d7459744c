"""The data of a model: what it was set up with, and other data brought into its schema."""

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from scvi_dist.data.filesystem import normalise_url
from scvi_dist.data.manager import AnnDataManager, forget, opened_for, recall, remember
from scvi_dist.data.minified import minified_in
from scvi_dist.data.open import is_anndata, open_store
from scvi_dist.data.schema import Schema, SetupArgs, fit_schema, transfer_schema
from scvi_dist.data.store import Store
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.errors import ConfigError

Source = Any
"""An AnnData, a path or URL, a list of them, a Store, or an AnnDataManager."""
Prepare = Callable[[Store], Store]

_KEPT = 4


def set_up(source: Source, setup: SetupArgs, model_name: str) -> AnnDataManager:
    """Fit a schema to data and remember it, so that a model can be made from the data alone."""
    store = opened_for(setup, source)
    adata = as_adata(source)
    schema = with_posteriors(fit_schema(store, setup), store, adata, model_name)
    manager = AnnDataManager(store, schema, model_name, adata)
    remember(source, manager)
    return manager


def column_names(keys: Sequence[str] | None) -> tuple[str, ...] | None:
    """Column names as a setup keeps them; a single string is left for the setup to refuse."""
    return keys if keys is None or isinstance(keys, str) else tuple(keys)  # type: ignore[return-value]


def transfer(
    schema: Schema, source: Source, model_name: str, prepare: Prepare | None = None
) -> AnnDataManager:
    """Other data in a schema: genes put in its order by name, the same codes.

    ``prepare`` may put a view before the store, with what the schema wants besides.

    Raises
    ------
    SchemaMismatch
        Genes are missing, or a category is unknown.
    """
    adata = as_adata(source)
    store = opened_for(schema.setup, source)
    if prepare is not None:
        store = prepare(store)
    transferred, genes = transfer_schema(schema, store)
    if genes is not None:
        store = open_store(store, genes=list(schema.var_names))
    transferred = with_posteriors(transferred, store, adata, model_name)
    return AnnDataManager(store, transferred, model_name, adata)


def as_adata(source: Source) -> Any:
    """The source if it is an AnnData, else None."""
    return source if is_anndata(source) else None


def with_posteriors(schema: Schema, store: Store, adata: Any, model_name: str) -> Schema:
    """The schema, which says where the posteriors are if the data was minified."""
    minified = minified_in(store, adata, model_name)
    return schema if minified is None else replace(schema, minified=minified)


class DataBinding:
    """The data that a model works on.

    Parameters
    ----------
    schema
        What the model was set up with.
    model_name
        The model's class.
    source, manager
        The data it was set up with, if it has any.

    Attributes
    ----------
    prepare
        Applied to the store of other data before it is brought into the schema.
    """

    prepare: Prepare | None = None

    def __init__(
        self,
        schema: Schema,
        model_name: str,
        source: Source = None,
        manager: AnnDataManager | None = None,
    ) -> None:
        self.schema = schema
        self.model_name = model_name
        self.manager = manager
        self._source = source
        self._transferred: OrderedDict[Hashable, AnnDataManager] = OrderedDict()

    @staticmethod
    def given(
        source: Source, model_name: str, registry: Mapping[str, Any] | None = None
    ) -> "DataBinding":
        """The binding of what a model is made from: its data, or a registry without data.

        Raises
        ------
        ConfigError
            Neither is there, or the data was not set up.
        """
        if source is not None:
            return DataBinding.of(source, model_name)
        if registry is not None:
            return DataBinding(Schema.from_registry(registry), model_name)
        raise ConfigError(
            f"{model_name} needs its data: call {model_name}.setup_anndata(data, ...) and then "
            f"{model_name}(data)."
        )

    @staticmethod
    def of(source: Source, model_name: str) -> "DataBinding":
        """The binding of data that was set up for this class of model."""
        is_manager = isinstance(source, AnnDataManager)
        manager = source if is_manager else recall(source, model_name)
        return DataBinding(manager.schema, model_name, source, manager)

    @property
    def registry(self) -> dict[str, Any]:
        """scvi-tools' registry of the data the model was set up with."""
        if self.manager is not None:
            return self.manager.registry
        return self.schema.registry(self.model_name)

    def manager_for(self, source: Source = None) -> AnnDataManager:
        """The manager of some data: the model's own where None, else transferred to its schema.

        A model without data keeps the first that it is given.
        """
        if source is None or self._is_own(source):
            if self.manager is None:
                raise ConfigError(
                    f"this {self.model_name} model has no data: it was loaded without. Give the "
                    "cells as adata=…: an AnnData, or the path or URL of a store."
                )
            return self.manager
        if isinstance(source, AnnDataManager):
            source = source.adata if source.adata is not None else source.store
        if is_anndata(source):
            # Its obs may have changed since the last time, so it is looked at anew.
            return self._kept(self._transfer(source), source)
        key = _key_of(source)
        if key not in self._transferred:
            self._transferred[key] = self._transfer(source)
            while len(self._transferred) > _KEPT:
                self._transferred.popitem(last=False)
        self._transferred.move_to_end(key)
        return self._kept(self._transferred[key], source)

    def deregister(self, source: Source = None) -> None:
        """Forget how some data was set up and transferred; all but the model's own where None."""
        if source is None:
            self._transferred.clear()
        elif not is_anndata(source):
            self._transferred.pop(_key_of(source), None)
        forget(self.model_name, source, keep=self.manager)

    def attach(self, source: Source) -> None:
        """Make some data, transferred to the schema, the model's own."""
        manager = self._transfer(source)
        self.manager, self._source = manager, source

    def open(self, source: Source, check_counts: bool) -> OpenSource:
        """The cells of some data, ready to be read."""
        manager = self.manager_for(source)
        return OpenSource(manager.store, manager.schema, check_counts, manager.coded_obs())

    def _transfer(self, source: Source) -> AnnDataManager:
        return transfer(self.schema, source, self.model_name, self.prepare)

    def _kept(self, manager: AnnDataManager, source: Source) -> AnnDataManager:
        if self.manager is None:
            self.manager, self._source = manager, source
        return manager

    def _is_own(self, source: Source) -> bool:
        own = self.manager
        if own is None:
            return False
        if source is own or source is own.store or source is own.adata or source is self._source:
            return True
        both_named = _is_named(source) and _is_named(self._source)
        return both_named and _key_of(source) == _key_of(self._source)


def _is_named(source: Source) -> bool:
    return isinstance(source, str | os.PathLike | list | tuple)


def _key_of(source: Source) -> Hashable:
    if isinstance(source, list | tuple):
        return tuple(_key_of(part) for part in source)
    if isinstance(source, str | os.PathLike):
        return normalise_url(source)
    if isinstance(source, Store):
        return source.locator
    raise ConfigError(
        f"expected cells as an AnnData, a path, a URL or a store; got {type(source).__name__}."
    )
