"""What a model tells of its data, under the names of scvi-tools."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_dist.data.manager import AnnDataManager, AttrDict, remember
from scvi_dist.data.schema import Schema
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.errors import ConfigError, FieldNotFound, did_you_mean
from scvi_dist.model.binding import DataBinding, Source

if TYPE_CHECKING:
    from anndata import AnnData


class DataAccess:
    """The data of a model, its schema, and other data in that schema."""

    def __init__(self, binding: DataBinding) -> None:
        self._binding = binding

    @property
    def adata(self) -> "AnnData | None":
        """The AnnData that the model was set up with; None where its cells are in a store."""
        return None if self._binding.manager is None else self._binding.manager.adata

    @adata.setter
    def adata(self, adata: Source) -> None:
        if adata is None:
            raise ConfigError("adata cannot be None.")
        self._binding.attach(adata)

    @property
    def adata_manager(self) -> AnnDataManager | None:
        """The schema bound to the model's data; None for a model without data."""
        return self._binding.manager

    @property
    def source(self) -> OpenSource:
        """The model's cells, ready to be read; training has looked at every count already."""
        return self._binding.open(None, check_counts=False)

    @property
    def schema(self) -> Schema:
        """Genes, categories and columns that the model was set up with."""
        return self._binding.schema

    @property
    def registry(self) -> dict[str, Any]:
        """What scvi-tools remembers of the data a model was set up with."""
        return self._binding.registry

    registry_ = registry

    @property
    def _plain_registry(self) -> dict[str, Any]:
        """The registry without the data's UUID, for which the data would have to be looked at."""
        return self.schema.registry(self._binding.model_name)

    @property
    def summary_stats(self) -> AttrDict:
        """``n_vars``, ``n_cells``, ``n_batch``, ``n_labels``, …"""
        fields = self._plain_registry["field_registries"].values()
        return AttrDict({k: v for field in fields for k, v in field["summary_stats"].items()})

    def get_anndata_manager(self, adata: Source, required: bool = False) -> AnnDataManager:
        """The manager of some data in this model's schema, which it is transferred to."""
        return self._binding.manager_for(adata)

    def transfer_fields(self, adata: Source, extend_categories: bool = False) -> AnnDataManager:
        """The manager of some data, set up as the model's own."""
        return self._binding.manager_for().transfer_fields(adata, extend_categories)

    def get_from_registry(self, adata: Source, registry_key: str) -> Any:
        """The data of one field of some cells, whole and in memory."""
        return self._binding.manager_for(adata).get_from_registry(registry_key)

    def data_registry(self, registry_key: str) -> Any:
        """The data of one field of the model's cells, whole and in memory."""
        return self._binding.manager_for().get_from_registry(registry_key)

    def get_state_registry(self, registry_key: str) -> AttrDict:
        """What is remembered of one field: categories, columns, names."""
        fields = self._plain_registry["field_registries"]
        if registry_key not in fields:
            raise FieldNotFound(
                f"the registry has no field {registry_key!r}; {did_you_mean(registry_key, fields)}"
            )
        return AttrDict(fields[registry_key]["state_registry"])

    def get_setup_arg(self, setup_arg: str) -> Any:
        """What ``setup_anndata`` was given under a name."""
        arguments = self._plain_registry["setup_args"]
        if setup_arg not in arguments:
            raise FieldNotFound(
                f"there is no setup argument {setup_arg!r}; {did_you_mean(setup_arg, arguments)}"
            )
        return arguments[setup_arg]

    def update_setup_method_args(self, setup_method_args: Mapping[str, Any]) -> None:
        """Change the setup arguments that the registry tells of; nothing is set up anew."""
        self._binding.manager_for().update_setup_method_args(setup_method_args)

    @classmethod
    def register_manager(cls, adata_manager: AnnDataManager) -> None:
        """Keep in mind that a manager's data is set up for this class of model."""
        adata = adata_manager.adata
        remember(adata_manager.store if adata is None else adata, adata_manager)

    def deregister_manager(self, adata: Source = None) -> None:
        """Forget how some data was set up; all but the model's own where None."""
        self._binding.deregister(adata)

    def get_var_names(
        self, legacy_mudata_format: bool = False
    ) -> np.ndarray | dict[str, np.ndarray]:
        """Genes, object array of str; of a MuData the features of each modality that is used.

        ``legacy_mudata_format`` joins the features of all modalities.
        """
        genes = np.array(self.schema.var_names, dtype=object)
        if self.schema.setup.modalities is None:
            return genes
        within = dict(self.schema.setup.modalities)
        proteins = np.array(self.schema.protein_names, dtype=object)
        if legacy_mudata_format:
            return np.concatenate([genes, proteins])
        return {within["rna_layer"]: genes, within["protein_layer"]: proteins}

    def view_anndata_setup(self, adata: Source = None, hide_state_registries: bool = False) -> None:
        """Print how the model's data, or other data in its schema, is set up."""
        self._binding.manager_for(adata).view_registry(hide_state_registries)

    def view_registry(self, hide_state_registries: bool = False) -> None:
        """Print how the model's data is set up."""
        self.view_anndata_setup(hide_state_registries=hide_state_registries)

    def view_setup_method_args(self) -> None:
        """Print the method that the model's data was set up with, and what it was given."""
        self._binding.manager_for().view_setup_method_args()
