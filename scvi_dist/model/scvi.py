"""SCVI: a latent space of cells from counts, with batch effects taken out."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from scvi_dist.data.schema import Schema
from scvi_dist.data.setup import SetupArgs
from scvi_dist.dataloaders.loader_config import LoaderConfig
from scvi_dist.errors import ConfigError
from scvi_dist.model.binding import DataBinding, Source, set_up
from scvi_dist.model.count_model import CountModel
from scvi_dist.model.count_modules import new_vae
from scvi_dist.model.device import resolve_device
from scvi_dist.model.train_arguments import (
    as_mapping,
    lightning_accelerator,
    ray_config,
    run_folder,
    split_config,
    train_config,
    training_plan_config,
)
from scvi_dist.model.training import FitSettings, starts_record

if TYPE_CHECKING:
    from scvi_dist.tracking import Tracker, TrackingConfig
    from scvi_dist.train.progress import OnProgress


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
        name = type(self).__name__
        if adata is not None:
            binding = DataBinding.of(adata, name)
        elif registry is not None:
            binding = DataBinding(Schema.from_registry(registry), name)
        else:
            raise ConfigError(
                f"{name} needs its data: call {name}.setup_anndata(data, ...) and then "
                f"{name}(data)."
            )
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
            categorical_covariate_keys=_tuple(categorical_covariate_keys),
            continuous_covariate_keys=_tuple(continuous_covariate_keys),
        )
        set_up(adata, setup, cls.__name__)

    @property
    def _checks_counts(self) -> bool:
        return self.module.gene_likelihood != "normal"

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
        trainer_config: Any = None,
        *,
        num_workers: int | None = None,
        use_gpu: bool | None = None,
        address: str | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        tracking: "Tracker | TrackingConfig | str | None" = None,
        engine: str = "auto",
        budget_bytes: int = LoaderConfig().budget_bytes,
        seed: int = 0,
        resume: bool = False,
        on_progress: "OnProgress | None" = None,
        **trainer_kwargs: Any,
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
        early_stopping, datasplitter_kwargs, plan_kwargs, trainer_config, ...
            As in scvi-tools; an unknown name is an error.
        num_workers, use_gpu, address
            Train on so many Ray workers, with one GPU each, on the cluster at an address; in
            this process where neither number nor address is given.
        run_dir, resume
            Folder for checkpoints; whether to go on from the last one in it.
        tracking
            Record the run in MLflow: a tracker, a config, or ``"auto"`` or a URI.
        engine
            What reads the cells: ``"auto"``, ``"local"`` or ``"ray"``.
        budget_bytes
            What one worker may hold in cells, whatever the size of the store.
        seed
            Of split, order and noise.
        on_progress
            Called every few steps and after each epoch.
        """
        options = {**as_mapping(trainer_config, "trainer_config"), **trainer_kwargs}
        ray = ray_config(num_workers, use_gpu, address, accelerator, devices)
        needs_folder = ray is not None or starts_record(tracking)
        settings = FitSettings(
            train=train_config(
                options,
                early_stopping=early_stopping,
                max_epochs=max_epochs,
                accelerator=lightning_accelerator(accelerator, ray),
                batch_size=batch_size,
                seed=seed,
            ),
            plan=training_plan_config(plan_config, plan_kwargs),
            split=split_config(
                self._binding.manager_for().store.n_obs,
                datasplitter_kwargs,
                train_size=train_size,
                validation_size=validation_size,
                shuffle_set_split=shuffle_set_split,
                seed=seed,
            ),
            loader=LoaderConfig(engine=engine, budget_bytes=budget_bytes),
            ray=ray,
            run_dir=run_folder(run_dir, self.run_name if needs_folder else None),
            resume=resume,
        )
        self._train(settings, tracking, on_progress, options)
        # Workers may have had devices that this process has not.
        self.to_device(
            resolve_device(accelerator if ray is None or accelerator == "cpu" else "auto")
        )


def _tuple(keys: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if keys is None else tuple(keys)
