"""TOTALVI: one latent space of genes and surface proteins, with protein background taken out."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, Unpack, cast

import numpy as np

from scvi_dist.data.multimodal.mudata_setup import mudata_setup
from scvi_dist.data.open import open_store
from scvi_dist.data.schema import Schema
from scvi_dist.data.setup import SetupArgs
from scvi_dist.model.binding import DataBinding, Source, column_names, set_up
from scvi_dist.model.count_modules import new_totalvae
from scvi_dist.model.file_format import SavedModel
from scvi_dist.model.protein_files import legacy_background, remasked, with_efficiency
from scvi_dist.model.protein_model import ProteinModel
from scvi_dist.model.train_arguments import training_plan_config
from scvi_dist.model.train_call import TrainCall, TrainOptions
from scvi_dist.train.adversarial_config import AdversarialPlanConfig

MANY_PROTEINS = 10
"""With more proteins than this the background's prior is taken from the data by default."""


class TOTALVI(ProteinModel):
    """Total variational inference: genes and surface proteins of the same cells (CITE-seq).

    Proteins that no cell of a batch (or of a panel) has a count of are taken for not measured
    there, and are imputed.

    Parameters
    ----------
    adata
        What was given to :meth:`setup_mudata` or :meth:`setup_anndata`: an object in memory, a
        path or URL of a store, a list of them, a store; or an AnnDataManager.
    n_latent
        Dimensions of the latent space.
    gene_dispersion, protein_dispersion
        What has a dispersion of its own.
    gene_likelihood
        Law of the counts of genes.
    latent_distribution
        ``"normal"``, or ``"ln"`` for a logistic normal latent space.
    empirical_protein_background_prior
        Whether the prior of the background begins where a mixture of two normal laws, fitted to
        some cells of each panel, has its lower one; by default with more than ten proteins.
    override_missing_proteins
        Take a protein without counts in a batch for measured all the same.
    registry
        scvi-tools' registry, for a model without data.
    **model_kwargs
        Further arguments of :class:`~scvi_dist.module.TOTALVAE`.

    Source
    ------
    Gayoso et al. 2021, "Joint probabilistic modeling of single-cell multi-omic data with totalVI".

    Examples
    --------
    >>> TOTALVI.setup_anndata("cite.h5ad", "protein_expression", batch_key="batch")
    >>> model = TOTALVI("cite.h5ad")
    >>> model.train(num_workers=2)
    >>> genes, proteins = model.get_normalized_expression(n_samples=25)
    """

    def __init__(
        self,
        adata: Source = None,
        n_latent: int = 20,
        gene_dispersion: Literal["gene", "gene-batch", "gene-label"] = "gene",
        protein_dispersion: Literal["protein", "protein-batch", "protein-label"] = "protein",
        gene_likelihood: Literal["zinb", "nb"] = "nb",
        latent_distribution: Literal["normal", "ln"] = "normal",
        empirical_protein_background_prior: bool | None = None,
        override_missing_proteins: bool = False,
        *,
        registry: Mapping[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> None:
        binding = DataBinding.given(adata, type(self).__name__, registry)
        schema = binding.schema
        lacks_proteins = schema.protein_batch_mask is not None and not override_missing_proteins
        if lacks_proteins and binding.manager is not None:
            warnings.warn(
                "Some proteins have all 0 counts in some batches. They are taken for not measured "
                "there, and imputed; where they were measured and are absent, give "
                "override_missing_proteins=True.",
                UserWarning,
                stacklevel=2,
            )
        network = {
            "n_latent": n_latent,
            "gene_dispersion": gene_dispersion,
            "protein_dispersion": protein_dispersion,
            "gene_likelihood": gene_likelihood,
            "latent_distribution": latent_distribution,
        }
        looks_at_cells = empirical_protein_background_prior
        if looks_at_cells is None:
            looks_at_cells = schema.n_proteins > MANY_PROTEINS
        own = {
            "empirical_protein_background_prior": empirical_protein_background_prior,
            "override_missing_proteins": override_missing_proteins,
        }
        shown = ", ".join(f"{name}: {value}" for name, value in network.items())
        super().__init__(
            binding,
            new_totalvae(
                binding,
                {**network, **model_kwargs},
                masks_proteins=lacks_proteins,
                looks_at_cells=bool(looks_at_cells),
            ),
            {
                "kwargs": {"model_kwargs": dict(model_kwargs)},
                "non_kwargs": {**network, **own},
            },
            f"TotalVI Model with the following params: \n{shown}",
        )
        self._use_adversarial_classifier = lacks_proteins
        self.modalities = _layers_of(schema)

    @classmethod
    def _of_schema(cls, schema: Schema, arguments: Mapping[str, Any]) -> Self:
        return cls(registry=schema.registry(cls.__name__), **arguments)

    @classmethod
    def _from_file(
        cls, schema: Schema, arguments: Mapping[str, Any], saved: SavedModel, where: str
    ) -> Self:
        version = saved.attributes["registry_"].get("scvi_version")
        completed = legacy_background(arguments, version)
        return super()._from_file(schema, completed, with_efficiency(schema, saved), where)

    def _attach(self, cells: Source) -> None:
        super()._attach(cells)
        mask = self._binding.manager_for().schema.protein_batch_mask
        masks_proteins = not self.init_params_["non_kwargs"]["override_missing_proteins"]
        if masks_proteins and mask != self.schema.protein_batch_mask:
            # Other cells may have been measured with other proteins.
            self.module = remasked(self.module, mask).eval()
            self._use_adversarial_classifier = mask is not None

    @classmethod
    def setup_anndata(
        cls,
        adata: Source,
        protein_expression_obsm_key: str,
        protein_names_uns_key: str | None = None,
        batch_key: str | None = None,
        panel_key: str | None = None,
        layer: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        *,
        protein_names: Sequence[str] | None = None,
    ) -> None:
        """Say which counts and which columns of obs a model is to use. The data is not changed.

        Parameters
        ----------
        adata
            An AnnData, a path or URL of a store (also of a MuData, whose modalities are keys of
            obsm), a list of them, or a store.
        protein_expression_obsm_key
            Key of obsm that holds the counts of proteins.
        protein_names_uns_key
            Key of uns that holds the names of the proteins.
        batch_key
            Column of the batches.
        panel_key
            Column of the panels of proteins, where those are not the batches.
        layer
            Layer of the counts of genes; X where None, ``"raw"`` for raw.X.
        size_factor_key
            Column of the size factors, used instead of library sizes.
        categorical_covariate_keys, continuous_covariate_keys
            Columns of further covariates.
        protein_names
            The names themselves.

        Raises
        ------
        FieldNotFound
            A column, a layer or a key is not there; names the nearest one.
        """
        names = column_names(protein_names)
        if protein_names_uns_key is not None:
            names = _names_in_uns(adata, layer, protein_names_uns_key)
        setup = SetupArgs(
            layer=layer,
            batch_key=batch_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=column_names(categorical_covariate_keys),
            continuous_covariate_keys=column_names(continuous_covariate_keys),
            protein_key=protein_expression_obsm_key,
            protein_names=names,
            protein_names_uns_key=protein_names_uns_key,
            panel_key=panel_key,
        )
        set_up(adata, setup, cls.__name__)

    @classmethod
    def setup_mudata(
        cls,
        mdata: Source,
        rna_layer: str | None = None,
        protein_layer: str | None = None,
        batch_key: str | None = None,
        panel_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        modalities: Mapping[str, str] | None = None,
    ) -> None:
        """Say which modalities, layers and columns of a MuData a model is to use.

        Parameters
        ----------
        mdata
            A MuData, or a path or URL of one on disk.
        rna_layer, protein_layer
            Layers of the counts; X where None.
        batch_key, panel_key, size_factor_key, categorical_covariate_keys, ...
            As for :meth:`setup_anndata`, in the obs of the modality that is named for them, or of
            the MuData itself.
        modalities
            Argument of this method -> name of the modality that it looks into; ``rna_layer`` and
            ``protein_layer`` need one.

        Raises
        ------
        ConfigError
            A modality has to be named.
        """
        arguments = {
            "rna_layer": rna_layer,
            "protein_layer": protein_layer,
            "batch_key": batch_key,
            "panel_key": panel_key,
            "size_factor_key": size_factor_key,
            "categorical_covariate_keys": column_names(categorical_covariate_keys),
            "continuous_covariate_keys": column_names(continuous_covariate_keys),
        }
        set_up(mdata, mudata_setup(arguments, modalities), cls.__name__)

    def train(  # type: ignore[misc]
        self,
        max_epochs: int | None = None,
        lr: float = 4e-3,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int = 256,
        early_stopping: bool = True,
        check_val_every_n_epoch: int | None = None,
        reduce_lr_on_plateau: bool = True,
        n_steps_kl_warmup: int | None = None,
        n_epochs_kl_warmup: int | None = None,
        adversarial_classifier: bool | None = None,
        datasplitter_kwargs: Mapping[str, Any] | None = None,
        plan_kwargs: Mapping[str, Any] | None = None,
        external_indexing: Sequence[Any] | None = None,
        **options: Unpack[TrainOptions],
    ) -> None:
        """Train the model.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; by default scvi-tools' rule: 400 up to 20,000 cells,
            then fewer.
        lr
            Learning rate.
        accelerator, devices, train_size, validation_size, shuffle_set_split
            As for :meth:`SCVI.train <scvi_dist.model.SCVI.train>`.
        batch_size
            Cells of a minibatch, over all workers.
        early_stopping
            Stop when ``elbo_validation`` gets no better.
        check_val_every_n_epoch
            Epochs between validations; every one where ``reduce_lr_on_plateau`` looks at them.
        reduce_lr_on_plateau
            Reduce the learning rate when ``elbo_validation`` gets no better.
        n_steps_kl_warmup
            Steps until the KL divergence has its full weight; by default three quarters of the
            number of cells.
        n_epochs_kl_warmup
            The same in epochs, which wins.
        adversarial_classifier
            Whether a classifier makes the latent space hide the batches; by default where proteins
            are missing from some of them.
        datasplitter_kwargs, plan_kwargs, external_indexing
            As in scvi-tools; an unknown name is an error. What is an argument here wins over
            ``plan_kwargs``.
        **options
            Workers, folder, record, and what scvi-tools' Trainer takes:
            :class:`~scvi_dist.model.train_call.TrainOptions`.
        """
        given = cast(TrainOptions, dict(options))
        every = 1 if reduce_lr_on_plateau else check_val_every_n_epoch
        if every is not None:
            given["check_val_every_n_epoch"] = every
        splitting = dict(datasplitter_kwargs or {})
        if external_indexing is not None:
            splitting["external_indexing"] = external_indexing
        call = TrainCall(
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            train_size=train_size,
            validation_size=validation_size,
            shuffle_set_split=shuffle_set_split,
            batch_size=batch_size,
            early_stopping=early_stopping,
            datasplitter_kwargs=splitting,
            options=given,
        )
        if n_steps_kl_warmup is None:
            n_steps_kl_warmup = int(0.75 * self._binding.manager_for().store.n_obs)
        if adversarial_classifier is None:
            adversarial_classifier = self._use_adversarial_classifier
        named = {
            "lr": lr,
            "reduce_lr_on_plateau": reduce_lr_on_plateau,
            "n_steps_kl_warmup": n_steps_kl_warmup,
            "n_epochs_kl_warmup": n_epochs_kl_warmup,
            "adversarial_classifier": adversarial_classifier,
        }
        merged = {**(plan_kwargs or {}), **named}
        self._train(call, training_plan_config(None, merged, AdversarialPlanConfig))


def _layers_of(schema: Schema) -> dict[str, str] | None:
    within = dict(schema.setup.modalities or ())
    return {name: within[name] for name in ("rna_layer", "protein_layer")} if within else None


def _names_in_uns(adata: Source, layer: str | None, key: str) -> tuple[str, ...]:
    """Names of proteins that uns holds; of a collection, that of its first part."""
    found = open_store(adata, layer=layer).read_uns(key)
    return tuple(str(name) for name in np.asarray(found).ravel())
