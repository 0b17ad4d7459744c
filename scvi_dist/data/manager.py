"""AnnDataManager: a schema bound to a store; answers what scvi-tools' manager answers.

Nothing is written into the user's data: what scvi-tools would put into ``adata.obs`` and
``adata.obsm`` is computed when asked for, and which data was set up is remembered here.
"""

import os
import weakref
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import pandas as pd

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.data.coded_obs import CodedObs
from scvi_dist.data.filesystem import normalise_url
from scvi_dist.data.minified import MinifiedReader
from scvi_dist.data.registry import SCVI_TOOLS_VERSION, registry_of
from scvi_dist.data.schema import Schema, transfer_schema
from scvi_dist.data.schema_pass import protein_reader
from scvi_dist.data.setup import SetupArgs
from scvi_dist.data.store import Store, StoreLocator
from scvi_dist.errors import ConfigError, FieldNotFound, did_you_mean

if TYPE_CHECKING:
    from anndata import AnnData


class AttrDict(dict[str, Any]):
    """A dict whose entries are attributes too, for reading."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"no entry {name!r}; {did_you_mean(name, self)}")


class AnnDataManager:
    """A schema bound to a store.

    Parameters
    ----------
    store
        The data; its genes are the schema's, in the schema's order.
    schema
        What the model was set up with.
    model_name
        Class of the model, as in scvi-tools' registry.
    adata
        The AnnData that the store reads, if it is one.
    """

    def __init__(
        self,
        store: Store,
        schema: Schema,
        model_name: str = "SCVI",
        adata: "AnnData | None" = None,
    ) -> None:
        self.store = store
        self.schema = schema
        self.model_name = model_name
        self._adata = adata
        self._registry = registry_of(schema, model_name, SCVI_TOOLS_VERSION)
        self._coded_obs: CodedObs | None = None

    @property
    def adata(self) -> "AnnData | None":
        """The AnnData in memory, or None where the data is in a store."""
        return self._adata

    @property
    def adata_uuid(self) -> str:
        """A UUID that the same data always has."""
        return str(UUID(hex=self.store.digest()))

    @property
    def registry(self) -> dict[str, Any]:
        """scvi-tools' registry of this data."""
        return {**self._registry, "_scvi_uuid": self.adata_uuid}

    @property
    def data_registry(self) -> AttrDict:
        """Registry key -> where scvi-tools would find it in an AnnData that it has set up."""
        fields = self._registry["field_registries"]
        located = {key: field["data_registry"] for key, field in fields.items()}
        return AttrDict({key: AttrDict(place) for key, place in located.items() if place})

    @property
    def summary_stats(self) -> AttrDict:
        """``n_vars``, ``n_cells``, ``n_batch``, ``n_labels``, ...: what sizes a model."""
        stats = AttrDict()
        for field in self._registry["field_registries"].values():
            stats.update(field["summary_stats"])
        return stats

    def get_state_registry(self, registry_key: str) -> AttrDict:
        """What is remembered of one field: categories, columns, names."""
        fields = self._registry["field_registries"]
        if registry_key not in fields:
            raise FieldNotFound(
                f"the registry has no field {registry_key!r}; {did_you_mean(registry_key, fields)}"
            )
        return AttrDict(fields[registry_key]["state_registry"])

    def get_from_registry(self, registry_key: str) -> Any:
        """The data of one field, whole and in memory.

        Returns
        -------
        object
            The counts as the AnnData has them (CSR where the data is in a store); codes as
            ``[n, 1]`` integers; a DataFrame for joint covariates; numbers as float32 ``[n, 1]``;
            counts of proteins as the AnnData has them, else a float32 DataFrame.
        """
        located = self.data_registry
        if registry_key not in located:
            raise FieldNotFound(
                f"no data is registered under {registry_key!r}; "
                f"{did_you_mean(registry_key, located)}"
            )
        if registry_key == REGISTRY_KEYS.X_KEY:
            return self._counts()
        minified = self.schema.minified
        if minified is not None and registry_key == REGISTRY_KEYS.MINIFY_TYPE_KEY:
            return minified.kind
        if minified is not None and registry_key in minified.registries():
            rows = np.arange(self.store.n_obs)
            return MinifiedReader(self.store, minified).read_at(rows)[registry_key]
        if registry_key == REGISTRY_KEYS.PROTEIN_EXP_KEY:
            return self._proteins()
        values_nk = self.coded_obs().take(np.arange(self.store.n_obs))[registry_key]
        if located[registry_key]["attr_name"] != "obsm":
            return values_nk
        state = self.get_state_registry(registry_key)
        columns = state["field_keys"] if "field_keys" in state else state["columns"]
        return pd.DataFrame(values_nk, index=self.store.obs_names(), columns=list(columns))

    def _counts(self) -> Any:
        setup, in_memory = self.schema.setup, self.adata
        # A view (genes put in order, cells left out) is not what the AnnData has.
        if in_memory is None or self.store.locator.kind != "memory":
            return self.store.read_rows([(0, self.store.n_obs)]).to_scipy()
        if setup.rna_modality is not None:
            in_memory = in_memory.mod[setup.rna_modality]  # type: ignore[attr-defined]
        return _matrix_of(in_memory, setup.layer)

    def _proteins(self) -> Any:
        setup, in_memory = self.schema.setup, self.adata
        assert setup.protein_key is not None, "the registry has proteins"
        if in_memory is None or self.store.locator.kind != "memory":
            reader = protein_reader(self.store, setup, self.schema.protein_names)
            values_np = reader.read([(0, self.store.n_obs)])
            names = list(self.schema.protein_names)
            return pd.DataFrame(values_np, index=self.store.obs_names(), columns=names)
        if setup.modalities is None:
            return in_memory.obsm[setup.protein_key]
        modality, _, layer = setup.protein_key.partition(":")
        return _matrix_of(in_memory.mod[modality], layer or None)  # type: ignore[attr-defined]

    def coded_obs(self) -> CodedObs:
        """The codes of all cells; built on the first call."""
        if self._coded_obs is None:
            self._coded_obs = CodedObs(self.schema, self.store)
        return self._coded_obs

    def transfer_fields(
        self, adata_target: Any, extend_categories: bool = False
    ) -> "AnnDataManager":
        """The same setup for other data, whose cells get the codes that these cells have.

        Genes are put in this schema's order by name.

        Raises
        ------
        SchemaMismatch
            Genes are missing, or categories are unknown and ``extend_categories`` is False.
        """
        store = opened_for(self.schema.setup, adata_target)
        schema, genes = transfer_schema(self.schema, store, extend_categories)
        if genes is not None:
            from scvi_dist.data.open import open_store

            store = open_store(store, genes=schema.var_names)
        return AnnDataManager(store, schema, self.model_name, _as_adata(adata_target))

    def update_setup_method_args(self, setup_method_args: Mapping[str, Any]) -> None:
        """Change the setup arguments that the registry tells of; nothing is set up anew."""
        self._registry["setup_args"].update(setup_method_args)

    def view_setup_method_args(self) -> None:
        """Print the method that the data was set up with, and what it was given."""
        from rich.pretty import pprint

        names = ("model_name", "setup_method_name", "setup_args")
        pprint({name: self._registry[name] for name in names})

    def view_registry(self, hide_state_registries: bool = False) -> None:
        """Print the registry as tables."""
        from rich.console import Console
        from rich.table import Table

        def show(title: str, rows: Mapping[Any, Any]) -> None:
            table = Table("key", "value")
            for key, value in rows.items():
                table.add_row(str(key), str(value))
            console.print(f"\n{title}", table)

        console = Console()
        console.print(
            f"Set up for {self.model_name} with registry of scvi-tools "
            f"{self._registry['scvi_version']}: {self.store.locator.redacted_url}"
        )
        show("Setup arguments", self._registry["setup_args"])
        show("Summary statistics", self.summary_stats)
        show("Data registry", self.data_registry)
        if hide_state_registries:
            return
        if self.schema.n_proteins:
            show("proteins", dict(enumerate(self.schema.protein_names)))
        for field in self.schema.setup.obs_fields:
            names = field.columns or (field.registry_key,)
            for column, codes in zip(names, self.schema.categories_of(field), strict=False):
                show(f"{field.registry_key}: codes of {column}", dict(enumerate(codes)))


def _matrix_of(adata: "AnnData", layer: str | None) -> Any:
    """X, a layer or raw.X of an AnnData in memory."""
    if layer is None:
        return adata.X
    return adata.raw.X if layer == "raw" else adata.layers[layer]


@dataclass(frozen=True, slots=True)
class _Setup:
    """What is kept of a setup: enough to bind it again, and nothing that keeps data alive."""

    schema: Schema
    model_name: str
    manager: "weakref.ref[AnnDataManager]"
    source: "weakref.ref[Any] | None"
    """The object that was set up; None for a URL."""
    locator: StoreLocator
    """Opens the data again, with the filters it was set up with."""


_SETUPS: dict[tuple[Hashable, str], _Setup] = {}


def remember(source: Any, manager: AnnDataManager) -> None:
    """Keep in mind that ``source`` is set up, so that a model can be made from it alone.

    A second setup of the same source for the same class of model replaces the first. An object
    is not kept alive, and nothing is written into it.
    """
    key = (_key_of(source), manager.model_name)
    reference = None
    if not _is_url(source):

        def forget(_: Any) -> None:
            _SETUPS.pop(key, None)

        # The callback runs before the id can be given to another object.
        reference = weakref.ref(source, forget)
    _SETUPS[key] = _Setup(
        manager.schema, manager.model_name, weakref.ref(manager), reference, manager.store.locator
    )


def recall(source: Any, model_name: str = "SCVI") -> AnnDataManager:
    """The manager of a source that was set up for this class of model.

    Raises
    ------
    ConfigError
        It was not set up.
    """
    setup = _SETUPS.get((_key_of(source), model_name))
    if setup is None:
        shown = repr(source) if _is_url(source) else f"this {type(source).__name__}"
        raise ConfigError(
            f"{shown} is not set up for {model_name}. Call {model_name}.setup_anndata(...) with "
            "it first (the very object, not a copy)."
        )
    manager = setup.manager()
    if manager is not None:
        return manager
    store = source if isinstance(source, Store) else setup.locator.open()
    manager = AnnDataManager(store, setup.schema, model_name, _as_adata(source))
    remember(source, manager)
    return manager


def forget(model_name: str, source: Any = None, keep: AnnDataManager | None = None) -> None:
    """Forget that a source is set up for a class of model; all sources but ``keep``'s if None."""
    if source is not None:
        _SETUPS.pop((_key_of(source), model_name), None)
        return
    for key, setup in list(_SETUPS.items()):
        if setup.model_name == model_name and (keep is None or setup.manager() is not keep):
            del _SETUPS[key]


def _is_url(source: Any) -> bool:
    return isinstance(source, str | os.PathLike | list | tuple)


def _key_of(source: Any) -> Hashable:
    if isinstance(source, list | tuple):
        return tuple(normalise_url(part) for part in source)
    return normalise_url(source) if _is_url(source) else id(source)


def _as_adata(source: Any) -> "AnnData | None":
    return None if _is_url(source) or isinstance(source, Store) else source


def opened_for(setup: SetupArgs, source: Any) -> Store:
    """The store of some data as a setup looks at it: at its layer, and its modality of genes."""
    from scvi_dist.data.open import open_store

    if isinstance(source, Store):
        return open_store(source, layer=setup.layer)
    return open_store(source, layer=setup.layer, modality=setup.rna_modality)
