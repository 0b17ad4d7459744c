"""The data of a model: what it was set up with, and other data brought into its schema."""

import os
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from scvi_dist.data.filesystem import normalise_url
from scvi_dist.data.manager import AnnDataManager, recall, remember
from scvi_dist.data.open import is_anndata, open_store
from scvi_dist.data.schema import Schema, SetupArgs, fit_schema, transfer_schema
from scvi_dist.data.store import Store
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.errors import ConfigError

Source = Any
"""An AnnData, a path or URL, a list of them, a Store, or an AnnDataManager."""

_KEPT = 4
_MINIFIED = "_scvi_adata_minify_type"


def set_up(source: Source, setup: SetupArgs, model_name: str) -> AnnDataManager:
    """Fit a schema to data and remember it, so that a model can be made from the data alone."""
    store = open_store(source, layer=setup.layer)
    adata = _with_counts(source)
    manager = AnnDataManager(store, fit_schema(store, setup), model_name, adata)
    remember(source, manager)
    return manager


def transfer(schema: Schema, source: Source, model_name: str) -> AnnDataManager:
    """Other data in a schema: genes put in its order by name, the same codes.

    Raises
    ------
    SchemaMismatch
        Genes are missing, or a category is unknown.
    """
    adata = _with_counts(source)
    store = open_store(source, layer=schema.setup.layer)
    transferred, genes = transfer_schema(schema, store)
    if genes is not None:
        store = open_store(store, genes=list(schema.var_names))
    return AnnDataManager(store, transferred, model_name, adata)


def _with_counts(source: Source) -> Any:
    """The source if it is an AnnData, which must have its counts."""
    if not is_anndata(source):
        return None
    if _MINIFIED in source.uns:
        raise ConfigError(
            "this AnnData was minified by scvi-tools: its counts were taken out, and every cell "
            "would look empty. Give the AnnData that has them."
        )
    return source


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
    """

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
            return self._kept(transfer(self.schema, source, self.model_name), source)
        key = _key_of(source)
        if key not in self._transferred:
            self._transferred[key] = transfer(self.schema, source, self.model_name)
            while len(self._transferred) > _KEPT:
                self._transferred.popitem(last=False)
        self._transferred.move_to_end(key)
        return self._kept(self._transferred[key], source)

    def attach(self, source: Source) -> None:
        """Make some data, transferred to the schema, the model's own."""
        manager = transfer(self.schema, source, self.model_name)
        self.manager, self._source = manager, source

    def open(self, source: Source, check_counts: bool) -> OpenSource:
        """The cells of some data, ready to be read."""
        manager = self.manager_for(source)
        return OpenSource(manager.store, manager.schema, check_counts, manager.coded_obs())

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
