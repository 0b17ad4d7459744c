"""SCVI: a latent space of cells from counts, with batch effects taken out."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

import numpy as np

from scvi_dist.analysis.latent import batch_representation
from scvi_dist.data.schema import Schema
from scvi_dist.data.setup import SetupArgs
from scvi_dist.model.binding import DataBinding, Source, column_names, set_up
from scvi_dist.model.count_model import CountModel
from scvi_dist.model.count_modules import new_vae
from scvi_dist.model.latent_model import Indices
from scvi_dist.model.train_arguments import training_plan_config
from scvi_dist.model.train_call import TrainCall, TrainOptions


class SCVI(CountModel):
    """Single-cell variational inference.

    Parameters
    ----------
    adata
        What was given to :meth:`setup_anndata`: an AnnData, a path or URL of a store, a list of
        them, a store; or an AnnDataManager.
    registry
        scvi-tools' registry, for a model without data.
    n_hidden
        Units of a hidden layer.
    n_latent
        Dimensions of the latent space.
    n_layers
        Hidden layers of encoder and decoder.
    dropout_rate
        Dropout of the encoder.
    dispersion
        What has a dispersion of its own.
    gene_likelihood
        Law of the counts.
    use_observed_lib_size
        Scale by the observed library size; otherwise it is inferred.
    latent_distribution
        ``"normal"``, or ``"ln"`` for a logistic normal latent space.
    **kwargs
        Further arguments of :class:`~scvi_dist.module.VAE`.

    Source
    ------
    Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics".

    Examples
    --------
    >>> SCVI.setup_anndata("atlas.zarr", batch_key="batch")
    >>> model = SCVI("atlas.zarr")
    >>> model.train(num_workers=2)
    >>> model.get_latent_representation(out="latent.zarr")
    """

    def __init__(
        self,
        adata: Source = None,
        registry: Mapping[str, Any] | None = None,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Literal["gene", "gene-batch", "gene-label", "gene-cell"] = "gene",
        gene_likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb",
        use_observed_lib_size: bool = True,
        latent_distribution: Literal["normal", "ln"] = "normal",
        **kwargs: Any,
    ) -> None:
        binding = DataBinding.given(adata, type(self).__name__, registry)
        arguments = {
            "n_hidden": n_hidden,
            "n_latent": n_latent,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "dispersion": dispersion,
            "gene_likelihood": gene_likelihood,
            "use_observed_lib_size": use_observed_lib_size,
            "latent_distribution": latent_distribution,
        }
        self._build(binding, arguments, kwargs)

    def _build(
        self, binding: DataBinding, arguments: Mapping[str, Any], kwargs: Mapping[str, Any]
    ) -> None:
        shown = ", ".join(f"{k}: {v}" for k, v in arguments.items() if k != "use_observed_lib_size")
        super().__init__(
            binding,
            new_vae(binding, {**arguments, **kwargs}),
            {"kwargs": {"kwargs": dict(kwargs)}, "non_kwargs": dict(arguments)},
            f"{type(self).__name__} model with the following parameters: \n{shown}.",
        )

    @classmethod
    def _of_schema(cls, schema: Schema, arguments: Mapping[str, Any]) -> "SCVI":
        return cls(registry=schema.registry(cls.__name__), **arguments)

    @classmethod
    def setup_anndata(
        cls,
        adata: Source,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
    ) -> None:
        """Say which counts and which columns of obs a model is to use. The data is not changed.

        Parameters
        ----------
        adata
            An AnnData, a path or URL of an h5ad file or a Zarr store, a list of them, or a store.
        layer
            Layer of the counts; X where None, ``"raw"`` for raw.X.
        batch_key
            Column of the batches.
        labels_key
            Column of the labels.
        size_factor_key
            Column of the size factors, used instead of library sizes.
        categorical_covariate_keys, continuous_covariate_keys
            Columns of further covariates.

        Raises
        ------
        FieldNotFound
            A column or layer is not there; names the nearest one.
        """
        setup = SetupArgs(
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=column_names(categorical_covariate_keys),
            continuous_covariate_keys=column_names(continuous_covariate_keys),
        )
        set_up(adata, setup, cls.__name__)

    @property
    def _checks_counts(self) -> bool:
        return self.module.gene_likelihood != "normal"

    def get_batch_representation(
        self,
        adata: Source = None,
        indices: Indices = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """The learned vector of each cell's batch, float32 ``[n, dimensions]``.

        Only for models with ``batch_representation="embedding"``.
        """
        cells = self._cells_of(adata, indices, batch_size, None, None)
        return batch_representation(self.module, cells)

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        batch_size: int = 128,
        early_stopping: bool = False,
        datasplitter_kwargs: Mapping[str, Any] | None = None,
        plan_config: Any = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        datamodule: Any = None,
        trainer_config: Any = None,
        **options: Unpack[TrainOptions],
    ) -> None:
        """Train the model.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; by default scvi-tools' rule: 400 up to 20,000 cells,
            then fewer.
        accelerator, devices
            As in scvi-tools. Several devices are as many workers.
        train_size, validation_size, shuffle_set_split
            The split; the same seed and sizes take the cells that scvi-tools takes.
        load_sparse_tensor
            Counts are always sparse until they are on the device; accepted and not used.
        batch_size
            Cells of a minibatch, over all workers.
        early_stopping, datasplitter_kwargs, plan_config, plan_kwargs, trainer_config
            As in scvi-tools; an unknown name is an error.
        datamodule
            Not taken: the model reads its store itself.
        **options
            Workers, folder, record, and what scvi-tools' Trainer takes:
            :class:`~scvi_dist.model.train_call.TrainOptions`.
        """
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
            trainer_config=trainer_config,
            datamodule=datamodule,
            options=options,
        )
        self._train(call, training_plan_config(plan_config, plan_kwargs))
