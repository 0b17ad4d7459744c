"""SCANVI: labels of some cells, transferred to the others."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, Unpack, cast

from scvi_dist.data.schema import Schema
from scvi_dist.data.setup import SetupArgs
from scvi_dist.dataloaders.labelled_cells import LabelledConfig
from scvi_dist.errors import ConfigError
from scvi_dist.model.binding import DataBinding, Source, column_names, set_up
from scvi_dist.model.count_modules import new_scanvae
from scvi_dist.model.file_format import SavedModel
from scvi_dist.model.label_model import LabelModel
from scvi_dist.model.label_setup import labelled_model, legacy_classifier
from scvi_dist.model.scvi import SCVI
from scvi_dist.model.train_arguments import training_plan_config
from scvi_dist.model.train_call import TrainCall, TrainOptions
from scvi_dist.train.configs import heuristic_max_epochs
from scvi_dist.train.semi_supervised_config import (
    SemiSupervisedAdversarialPlanConfig,
    SemiSupervisedPlanConfig,
)


class SCANVI(LabelModel):
    """Single-cell annotation using variational inference.

    Parameters
    ----------
    adata
        What was given to :meth:`setup_anndata`: an AnnData, a path or URL of a store, a list of
        them, a store; or an AnnDataManager.
    registry
        scvi-tools' registry, for a model without data.
    n_hidden, n_latent, n_layers, dropout_rate, dispersion, gene_likelihood, use_observed_lib_size
        As for :class:`~scvi_dist.model.SCVI`. With ``dispersion="gene-label"``, which scvi-tools
        1.4.2 cannot build, cells without a label have a dispersion of their own.
    linear_classifier
        Whether the classifier has no hidden layer.
    datamodule
        Not taken: the model reads its store itself.
    n_labels
        Classes; by default the labels without the unlabeled category.
    **model_kwargs
        Further arguments of :class:`~scvi_dist.module.SCANVAE`.

    Source
    ------
    Xu et al. 2021, "Probabilistic harmonization and annotation of single-cell transcriptomics
    data with deep generative models".

    Examples
    --------
    >>> SCVI.setup_anndata("atlas.zarr", batch_key="batch")
    >>> scvi = SCVI("atlas.zarr")
    >>> scvi.train(num_workers=2)
    >>> scanvi = SCANVI.from_scvi_model(scvi, "Unknown", labels_key="cell_type")
    >>> scanvi.train(num_workers=2)
    >>> scanvi.predict()
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
        gene_likelihood: Literal["zinb", "nb", "poisson"] = "zinb",
        use_observed_lib_size: bool = True,
        linear_classifier: bool = False,
        datamodule: Any = None,
        *,
        n_labels: int | None = None,
        **model_kwargs: Any,
    ) -> None:
        if datamodule is not None:
            raise ConfigError("SCANVI takes the store of the cells, not a datamodule.")
        binding = DataBinding.given(adata, type(self).__name__, registry)
        arguments = {
            "n_hidden": n_hidden,
            "n_latent": n_latent,
            "n_layers": n_layers,
            "dropout_rate": dropout_rate,
            "dispersion": dispersion,
            "gene_likelihood": gene_likelihood,
            "use_observed_lib_size": use_observed_lib_size,
            "linear_classifier": linear_classifier,
        }
        self._build(binding, arguments, model_kwargs, n_labels)

    def _build(
        self,
        binding: DataBinding,
        arguments: Mapping[str, Any],
        kwargs: Mapping[str, Any],
        n_labels: int | None,
    ) -> None:
        unlabeled = binding.schema.setup.unlabeled_category
        if unlabeled is None:
            raise ConfigError(
                f"{type(self).__name__} needs the unlabeled_category that its data was set up with;"
                " this registry has none."
            )
        unseen = ("use_observed_lib_size", "linear_classifier")
        shown = ", ".join(f"{k}: {v}" for k, v in arguments.items() if k not in unseen)
        n_classes = binding.schema.n_labels - 1 if n_labels is None else n_labels
        super().__init__(
            binding,
            new_scanvae(binding, {**arguments, **kwargs}, n_classes),
            {
                "kwargs": {"model_kwargs": dict(kwargs)},
                "non_kwargs": {**arguments, "datamodule": None},
            },
            f"ScanVI Model with the following params: \nunlabeled_category: {unlabeled}, {shown}",
        )
        self.n_labels = n_classes
        self.was_pretrained = False
        """Whether it began with the weights of an SCVI model; then fewer epochs are the default."""
        self.unsupervised_history_ = self.semisupervised_history_ = None

    @classmethod
    def _of_schema(cls, schema: Schema, arguments: Mapping[str, Any]) -> Self:
        return cls(registry=schema.registry(cls.__name__), **arguments)

    @classmethod
    def _from_file(
        cls, schema: Schema, arguments: Mapping[str, Any], saved: SavedModel, where: str
    ) -> Self:
        version = saved.attributes["registry_"].get("scvi_version")
        completed = legacy_classifier(arguments, version)
        prior = saved.state_dict.get("y_prior")
        if prior is not None and prior.dim() == 2 and prior.shape[1] == schema.n_labels:
            # Where a level of the labels' column is unused, scvi-tools counts the unlabeled
            # category as a class.
            completed["n_labels"] = schema.n_labels
        return super()._from_file(schema, completed, saved, where)

    def _to_file(self) -> SavedModel:
        saved = super()._to_file()
        own = ("unlabeled_category_", "unsupervised_history_", "semisupervised_history_")
        attributes = {**saved.attributes, **{name: getattr(self, name) for name in own}}
        return SavedModel(
            state_dict=saved.state_dict, var_names=saved.var_names, attributes=attributes
        )

    @classmethod
    def setup_anndata(
        cls,
        adata: Source,
        labels_key: str,
        unlabeled_category: str,
        layer: str | None = None,
        batch_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        use_minified: bool = True,
    ) -> None:
        """Say which counts and which columns of obs a model is to use. The data is not changed.

        Parameters
        ----------
        adata
            An AnnData, a path or URL of an h5ad file or a Zarr store, a list of them, or a store.
        labels_key
            Column of the labels.
        unlabeled_category
            The label of cells whose label is not known; the column need not have it.
        layer
            Layer of the counts; X where None, ``"raw"`` for raw.X.
        batch_key
            Column of the batches.
        size_factor_key
            Column of the size factors, used instead of library sizes.
        categorical_covariate_keys, continuous_covariate_keys
            Columns of further covariates.
        use_minified
            Of data that was minified; of no effect for other data.

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
            unlabeled_category=unlabeled_category,
        )
        set_up(adata, setup, cls.__name__)

    @classmethod
    def from_scvi_model(
        cls,
        scvi_model: SCVI,
        unlabeled_category: str,
        labels_key: str | None = None,
        adata: Source = None,
        registry: Mapping[str, Any] | None = None,
        **scanvi_kwargs: Any,
    ) -> Self:
        """A model that begins with the weights of a trained SCVI model.

        Parameters
        ----------
        scvi_model
            A trained model, wherever it was trained.
        unlabeled_category
            The label of cells whose label is not known.
        labels_key
            Column of the labels; that of the SCVI model where None. Where both name one, this one
            counts, which scvi-tools passes over.
        adata
            Cells to work on, in the SCVI model's schema; its own where None, none where False.
            Categories keep the codes that the weights belong to.
        registry
            Of data with labels, for a model without cells.
        **scanvi_kwargs
            Further arguments of :class:`SCANVI`. Those that the SCVI model was given are its own,
            with a warning.

        Raises
        ------
        NotTrained
            The SCVI model is not trained.
        ConfigError
            No labels are known.
        """
        scvi_model._check_if_trained()
        labels = (labels_key, unlabeled_category)
        model = labelled_model(cls, scvi_model, labels, adata, registry, scanvi_kwargs)
        model.was_pretrained = True
        return model

    @property
    def _checks_counts(self) -> bool:
        return self.module.gene_likelihood != "normal"

    def train(  # type: ignore[misc]
        self,
        max_epochs: int | None = None,
        n_samples_per_label: int | None = None,
        check_val_every_n_epoch: int | None = None,
        train_size: float = 0.9,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int = 128,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        adversarial_classifier: bool | None = None,
        datasplitter_kwargs: Mapping[str, Any] | None = None,
        plan_config: Any = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        datamodule: Any = None,
        trainer_config: Any = None,
        **options: Unpack[TrainOptions],
    ) -> None:
        """Train the model.

        Each step learns from a minibatch of all cells and one of labelled cells, which are gone
        through again and again, in a new order each time, until the epoch of all cells is over.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; by default scvi-tools' rule: 400 up to 20,000 cells,
            then fewer, and of that a third, from 2 to 10, for a model that began as an SCVI model.
        n_samples_per_label
            Cells of each label that an epoch learns from, drawn anew each epoch; all where None.
        check_val_every_n_epoch
            Epochs between validations.
        train_size, validation_size, shuffle_set_split
            The split, of cells with and without a label alike; the same seed and sizes take the
            cells that scvi-tools takes.
        batch_size
            Cells of a minibatch of either kind, over all workers.
        accelerator, devices
            As in scvi-tools. Several devices are as many workers.
        adversarial_classifier
            Whether the latent space also learns to hide the batch; see
            :class:`~scvi_dist.train.SemiSupervisedAdversarialPlanConfig`.
        datasplitter_kwargs, plan_config, plan_kwargs, trainer_config
            As in scvi-tools; an unknown name is an error.
        datamodule
            Not taken: the model reads its store itself.
        **options
            Workers, folder, record, and what scvi-tools' Trainer takes:
            :class:`~scvi_dist.model.train_call.TrainOptions`.
        """
        given = cast(TrainOptions, dict(options))
        if check_val_every_n_epoch is not None:
            given["check_val_every_n_epoch"] = check_val_every_n_epoch
        if max_epochs is None and self.was_pretrained and given.get("max_steps") is None:
            usual = heuristic_max_epochs(self._binding.manager_for().store.n_obs)
            max_epochs = min(10, max(2, round(usual / 3)))
        call = TrainCall(
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            train_size=train_size,
            validation_size=validation_size,
            shuffle_set_split=shuffle_set_split,
            batch_size=batch_size,
            datasplitter_kwargs=datasplitter_kwargs,
            trainer_config=trainer_config,
            datamodule=datamodule,
            labelled=LabelledConfig(n_samples_per_label=n_samples_per_label),
            options=given,
        )
        self._train(call, _plan_of(plan_config, plan_kwargs, adversarial_classifier))


def _plan_of(
    config: Any, kwargs: Mapping[str, Any] | None, adversary: bool | None
) -> SemiSupervisedPlanConfig:
    if adversary is None and not isinstance(config, SemiSupervisedAdversarialPlanConfig):
        return training_plan_config(config, kwargs, SemiSupervisedPlanConfig)
    defaults = {"adversarial_classifier": bool(adversary)}
    return training_plan_config(config, kwargs, SemiSupervisedAdversarialPlanConfig, defaults)
