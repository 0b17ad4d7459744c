"""CellAssign: the type of each cell, from a table of marker genes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from scvi_dist.analysis.cell_types import type_probabilities
from scvi_dist.analysis.output import Out
from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import StoreCells, StreamConfig
from scvi_dist.data.manager import AnnDataManager
from scvi_dist.data.schema import Schema
from scvi_dist.data.setup import SetupArgs
from scvi_dist.errors import ConfigError
from scvi_dist.model.base import BaseModel
from scvi_dist.model.binding import Source, column_names, set_up
from scvi_dist.model.file_format import SavedModel
from scvi_dist.model.marker_data import (
    LibraryReference,
    as_bound,
    bind_markers,
    marker_binding,
    marker_table,
)
from scvi_dist.model.train_arguments import training_plan_config
from scvi_dist.model.train_call import TrainCall
from scvi_dist.module.cellassign import N_BASIS, CellAssignModule
from scvi_dist.train.configs import TrainingPlanConfig

WEIGHT_DECAY = 1e-10
BATCH_SIZE = 1024
_REFERENCE = "size_factors_"


class CellAssign(BaseModel):
    """Assignment of cells to known types, by marker genes.

    Of the data only the genes of the marker table are read. One pass over all cells gives the
    largest and the smallest count and, where no column of size factors was named, the size factors:
    a cell's sum of counts over **all** genes of the store, divided by the mean of these sums over
    its cells. (The R package takes scran's size factors; a column of them can be named.) Other
    data that :meth:`predict` is given is divided by the same mean, and should have all genes too.

    scvi-tools wants data with no other genes than those of the table, and size factors in ``obs``;
    both work here as well.

    Parameters
    ----------
    adata
        What was given to :meth:`setup_anndata`.
    cell_type_markers
        Genes (rows) by cell types (columns): 1 where a gene is a marker of a type, else 0. Genes
        that are not in the data are left out, with a warning.
    registry
        scvi-tools' registry, for a model without data.
    **model_kwargs
        ``random_b_g_0``: start with random expression of the genes (the default, as in
        scvi-tools) or with their standardised mean counts; ``b_g_0``: start with these.

    Source
    ------
    Zhang et al. 2019, "Probabilistic cell-type assignment of single-cell RNA-seq for tumor
    microenvironment profiling".

    Examples
    --------
    >>> CellAssign.setup_anndata("atlas.zarr", batch_key="batch")
    >>> model = CellAssign("atlas.zarr", markers)
    >>> model.train(num_workers=2)
    >>> model.predict().idxmax(axis=1)
    """

    module: CellAssignModule

    def __init__(
        self,
        adata: Source = None,
        cell_type_markers: pd.DataFrame | None = None,
        registry: Mapping[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> None:
        name = type(self).__name__
        if cell_type_markers is None:
            raise ConfigError(f"{name} needs cell_type_markers, the table of marker genes.")
        table = marker_table(cell_type_markers)
        self._reference: LibraryReference | None = None
        if adata is not None:
            data = bind_markers(adata, name, table.index.tolist())
            binding, self._reference = data.binding, data.reference
            basis_means = data.statistics.basis_means(N_BASIS)
            b_g_0 = torch.from_numpy(data.statistics.standardised_means())
        elif registry is not None:
            # Both come with the weights.
            binding = marker_binding(Schema.from_registry(registry), name, None)
            basis_means, b_g_0 = np.arange(N_BASIS, dtype=np.float64), None
        else:
            raise ConfigError(
                f"{name} needs its data: call {name}.setup_anndata(data, ...) and then "
                f"{name}(data, markers)."
            )
        schema = binding.schema
        self.cell_type_markers = table.loc[list(schema.var_names)]
        self.n_genes = schema.n_vars
        module = CellAssignModule(
            n_genes=schema.n_vars,
            rho=torch.as_tensor(self.cell_type_markers.to_numpy(np.float32)),
            basis_means=basis_means,
            n_batch=schema.n_batch,
            n_cats_per_cov=schema.n_cats_per_cov,
            n_continuous_cov=schema.n_continuous_cov,
            **{"b_g_0": b_g_0, **model_kwargs},
        )
        super().__init__(
            binding,
            module,
            {
                "kwargs": {"model_kwargs": dict(model_kwargs)},
                "non_kwargs": {"cell_type_markers": self.cell_type_markers},
            },
            f"CellAssign Model with params: \nn_genes: {self.n_genes}, n_labels: {module.n_labels}",
        )

    @classmethod
    def _of_schema(cls, schema: Schema, arguments: Mapping[str, Any]) -> "CellAssign":
        return cls(registry=schema.registry(cls.__name__), **arguments)

    def _to_file(self) -> SavedModel:
        saved = super()._to_file()
        reference = None if self._reference is None else asdict(self._reference)
        return replace(saved, attributes={**saved.attributes, _REFERENCE: reference})

    def _cells_to_save(self) -> AnnDataManager:
        """With the marker genes alone, as scvi-tools' model needs them."""
        return as_bound(self._binding.manager_for())

    def _restore(self, attributes: Mapping[str, Any]) -> None:
        super()._restore(attributes)
        self._reference = LibraryReference.from_attribute(attributes.get(_REFERENCE))
        name = type(self).__name__
        self._binding = marker_binding(self.schema, name, self._reference)

    @classmethod
    def setup_anndata(
        cls,
        adata: Source,
        size_factor_key: str | None = None,
        batch_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        layer: str | None = None,
    ) -> None:
        """Say which counts and which columns of obs a model is to use. The data is not changed.

        Parameters
        ----------
        adata
            An AnnData, a path or URL of a store, a list of them, or a store.
        size_factor_key
            Column of the size factors, all positive; computed where None, as
            :class:`CellAssign` says.
        batch_key
            Column of the batches.
        categorical_covariate_keys, continuous_covariate_keys
            Columns of further covariates of the log mean.
        layer
            Layer of the counts; X where None, ``"raw"`` for raw.X.

        Raises
        ------
        FieldNotFound
            A column or layer is not there; names the nearest one.
        """
        setup = SetupArgs(
            layer=layer,
            batch_key=batch_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=column_names(categorical_covariate_keys),
            continuous_covariate_keys=column_names(continuous_covariate_keys),
        )
        set_up(adata, setup, cls.__name__)

    def train(
        self,
        max_epochs: int | None = 400,
        lr: float = 3e-3,
        accelerator: str = "auto",
        devices: int | Sequence[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int = BATCH_SIZE,
        datasplitter_kwargs: Mapping[str, Any] | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        early_stopping: bool = True,
        early_stopping_patience: int = 15,
        early_stopping_warmup_epochs: int = 0,
        early_stopping_min_delta: float = 0.0,
        **options: Any,
    ) -> None:
        """Train the model.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; scvi-tools' rule for other models where None.
        lr
            Learning rate; with the weight decay (1e-10) it wins over ``plan_kwargs``, as in
            scvi-tools.
        accelerator, devices, train_size, validation_size, shuffle_set_split
            As for :meth:`SCVI.train <scvi_dist.model.SCVI.train>`.
        batch_size
            Cells of a minibatch, over all workers.
        datasplitter_kwargs, plan_kwargs
            As in scvi-tools; an unknown name is an error.
        early_stopping
            Stop when ``elbo_validation`` gets no better. Needs validation cells.
        early_stopping_patience, early_stopping_warmup_epochs, early_stopping_min_delta
            See :class:`~scvi_dist.train.configs.EarlyStoppingConfig`.
        **options
            Workers, folder, record, and what scvi-tools' Trainer takes:
            :class:`~scvi_dist.model.train_call.TrainOptions`.
        """
        stopping = {
            "early_stopping_patience": early_stopping_patience,
            "early_stopping_warmup_epochs": early_stopping_warmup_epochs,
            "early_stopping_min_delta": early_stopping_min_delta,
        }
        if early_stopping:
            options["check_val_every_n_epoch"] = 1
        call = TrainCall(
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            train_size=train_size,
            validation_size=validation_size,
            shuffle_set_split=shuffle_set_split,
            batch_size=batch_size,
            early_stopping=early_stopping,
            datasplitter_kwargs=datasplitter_kwargs,
            options={**stopping, **options},  # type: ignore[typeddict-item]
        )
        plan: TrainingPlanConfig = training_plan_config(None, plan_kwargs)
        self._train(call, replace(plan, lr=lr, weight_decay=WEIGHT_DECAY))

    def predict(
        self,
        adata: Source = None,
        indices: Sequence[int] | np.ndarray | None = None,
        batch_size: int | None = None,
        *,
        out: Out = None,
    ) -> "pd.DataFrame | str":
        """Probability of each type for each cell.

        Parameters
        ----------
        adata
            The cells: an AnnData, a path or URL, a list of them, or a store; the model's own
            where None.
        indices
            Rows in any order, repeats allowed, or a mask; results come in this order.
        batch_size
            Cells of a forward pass; no result depends on it.
        out
            Path or URL of a Zarr store that the probabilities are written to, shard by shard,
            as ``obsm["X_cell_type_probabilities"]``, with the types in
            ``uns["X_cell_type_probabilities_columns"]`` and the most probable one of each cell as
            ``obs["prediction"]``.

        Returns
        -------
        Cells (by name) x types (as in the marker table); with ``out`` the store's URL.

        Raises
        ------
        NotTrained
            Before :meth:`train`.
        """
        self._check_if_trained()
        source = self._binding.open(adata, self._checks_counts)
        config = StreamConfig(batch_size=batch_size or BATCH_SIZE)
        cells = StoreCells(source, Selection(source.store.n_obs, indices), config)
        types = [str(name) for name in self.cell_type_markers.columns]
        values = type_probabilities(self.module, cells, types, out=out)
        if isinstance(values, str):
            return values
        names = pd.Index(cells.obs_names(), dtype=object)
        return pd.DataFrame(values, index=names, columns=self.cell_type_markers.columns)
