"""Models that go on from a reference on other data."""

import os
from collections.abc import Mapping
from typing import Any, Self

from scvi_dist.data.open import is_anndata
from scvi_dist.errors import ConfigError
from scvi_dist.model.base import BaseModel
from scvi_dist.model.binding import Source
from scvi_dist.model.device import resolve_device
from scvi_dist.model.minifiable_model import MinifiableModel
from scvi_dist.model.query import query_model
from scvi_dist.model.query_data import (
    prepared,
    prepared_mudata,
    reference_features,
    reference_genes,
)
from scvi_dist.module.surgery import FreezeOptions


class QueryModel(MinifiableModel):
    """A model that can be mapped to other data (scvi-tools' ``ArchesMixin``)."""

    @classmethod
    def load_query_data(
        cls,
        adata: Source = None,
        reference_model: "Self | str | os.PathLike[str] | None" = None,
        registry: Mapping[str, Any] | None = None,
        inplace_subset_query_vars: bool = False,
        accelerator: str = "auto",
        device: int | str = "auto",
        unfrozen: bool = False,
        freeze_dropout: bool = False,
        freeze_expression: bool = True,
        freeze_decoder_first_layer: bool = True,
        freeze_batchnorm_encoder: bool = True,
        freeze_batchnorm_decoder: bool = False,
        freeze_classifier: bool = True,
        transfer_batch: bool = True,
        datamodule: Any = None,
    ) -> Self:
        """A model of other data that goes on from a trained one (scArches).

        Its new batches get weights of their own, which :meth:`train` fits; the reference's are
        frozen as the arguments say. Train it with ``plan_kwargs={"weight_decay": 0.0}``, or weight
        decay moves the frozen weights a little.

        Parameters
        ----------
        adata
            The query: an AnnData, a path or URL, a list of them, or a store. It needs the
            reference's columns of obs and its genes, in any order; no setup. Labels may be
            missing where cells can be unlabeled.
        reference_model
            A model of this class, or the folder that it was saved to.
        registry
            scvi-tools' registry of the query, for a model without data.
        inplace_subset_query_vars
            Take other genes off the AnnData itself; they are not read in any case.
        accelerator, device
            Where the weights go.
        unfrozen, freeze_dropout, freeze_expression, freeze_decoder_first_layer, ...
            See :class:`~scvi_dist.module.surgery.FreezeOptions`.
        transfer_batch
            Whether the query may have batches that the reference does not have.
        datamodule
            Not taken: the model reads its store itself.

        Raises
        ------
        SchemaMismatch
            Genes are missing: see :meth:`prepare_query_anndata`.

        Source
        ------
        Lotfollahi et al. 2022, "Mapping single-cell data to reference atlases by transfer
        learning".
        """
        if reference_model is None:
            raise ConfigError("Please provide a reference model as string or loaded model.")
        if datamodule is not None:
            raise ConfigError("load_query_data takes the store of the query, not a datamodule.")
        there = resolve_device(accelerator, device)
        if inplace_subset_query_vars and is_anndata(adata):
            adata._inplace_subset_var(reference_genes(reference_model))
        options = FreezeOptions(
            unfrozen=unfrozen,
            freeze_dropout=freeze_dropout,
            freeze_expression=freeze_expression,
            freeze_decoder_first_layer=freeze_decoder_first_layer,
            freeze_batchnorm_encoder=freeze_batchnorm_encoder,
            freeze_batchnorm_decoder=freeze_batchnorm_decoder,
            freeze_classifier=freeze_classifier,
        )
        model = query_model(cls, adata, reference_model, registry, options, transfer_batch)
        model.to_device(there)
        return model

    @staticmethod
    def prepare_query_anndata(
        adata: Source,
        reference_model: "BaseModel | str | os.PathLike[str]",
        return_reference_var_names: bool = False,
        inplace: bool = True,
    ) -> Any:
        """Other data with a reference's genes, in its order; missing ones are zeros.

        Parameters
        ----------
        adata
            An AnnData, a path or URL, a list of them, or a store.
        reference_model
            A model, or the folder that it was saved to.
        return_reference_var_names
            Only return the reference's genes.
        inplace
            Change the AnnData and return None. What is in a store is never changed: it is always
            returned as a view, which every method takes.

        Returns
        -------
        An AnnData, a store, None, or a pandas Index.
        """
        genes = reference_genes(reference_model)
        return genes if return_reference_var_names else prepared(adata, genes, inplace)

    @staticmethod
    def prepare_query_mudata(
        mdata: Any,
        reference_model: "BaseModel | str | os.PathLike[str]",
        return_reference_var_names: bool = False,
        inplace: bool = True,
    ) -> Any:
        """The same for a MuData, modality by modality.

        Returns
        -------
        A MuData, None, or modality -> pandas Index.
        """
        if return_reference_var_names:
            return reference_features(reference_model)
        return prepared_mudata(mdata, reference_model, inplace)
