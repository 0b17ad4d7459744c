"""Models of genes and proteins: what they expect of both in each cell."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from scvi_dist.analysis.correlation import CorrelationOptions
from scvi_dist.analysis.expression import gene_names
from scvi_dist.analysis.output import Out
from scvi_dist.analysis.protein_counts import (
    JointPredictiveOptions,
    joint_correlation,
    joint_likelihood_parameters,
    joint_predictive_sample,
)
from scvi_dist.analysis.protein_expression import (
    JointOptions,
    background_mean,
    drawn_cells,
    foreground_probability,
    joint_expression,
    library_sizes,
    protein_names,
)
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.model.abundance_model import AbundanceModel
from scvi_dist.model.batches import BatchNames, batch_codes
from scvi_dist.model.binding import Source
from scvi_dist.model.count_model import in_store
from scvi_dist.model.differential_model import JointDifferentialModel
from scvi_dist.model.genes import gene_columns, protein_columns
from scvi_dist.model.latent_model import Indices, Loader
from scvi_dist.model.loader_arguments import check_loader_arguments
from scvi_dist.module.totalvae import TOTALVAE


class ProteinModel(JointDifferentialModel, AbundanceModel):
    """A model whose module has laws of the counts of genes and of proteins.

    See :class:`~scvi_dist.model.latent_model.LatentModel` for the arguments that all methods
    share.
    """

    module: TOTALVAE  # type: ignore[assignment]

    def get_latent_library_size(
        self,
        adata: Source = None,
        indices: Indices = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        dataloader: Loader = None,
        *,
        out: Out = None,
        seed: int | None = None,
        **data_loader_kwargs: Any,
    ) -> np.ndarray | str:
        """Library size of the genes of each cell, float32 ``[n, 1]``.

        The observed size for models that infer none, where scvi-tools gives the mean of a
        posterior that was never trained.
        """
        check_loader_arguments(data_loader_kwargs)
        self._check_if_trained()
        cells = self._cells_of(adata, indices, batch_size, dataloader, seed, out)
        return library_sizes(self.module, cells, give_mean=give_mean, out=out)

    def get_normalized_expression(
        self,
        adata: Source = None,
        indices: Indices = None,
        n_samples_overall: int | None = None,
        transform_batch: BatchNames = None,
        gene_list: Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1,
        n_samples: int = 1,
        sample_protein_mixing: bool = False,
        scale_protein: bool = False,
        include_protein_background: bool = False,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_numpy: bool | None = None,
        silent: bool = True,
        *,
        out: Out = None,
        seed: int | None = None,
    ) -> Any:
        """Decoded expression of the genes and the proteins of each cell.

        Parameters
        ----------
        n_samples_overall
            Return so many draws, of cells drawn with replacement.
        transform_batch
            Decode all cells as of this batch; the mean over several.
        gene_list, protein_list
            Genes and proteins to return, in the model's order.
        library_size
            What the genes' proportions are multiplied by; ``"latent"``: each cell's library size.
        n_samples
            Draws of the latent variables for each cell.
        sample_protein_mixing
            Draw whether a protein is background, instead of weighing with the probability.
        scale_protein
            Make a cell's proteins sum to 1.
        include_protein_background
            Add the background to the foreground.
        return_mean
            The mean over ``n_samples``.
        return_numpy
            Arrays instead of DataFrames.

        Returns
        -------
        A pair, of genes and of proteins: DataFrames or float32 arrays ``[n, features]``, or arrays
        ``[n_samples, n, features]``; with ``out`` the URL of a store that holds both.

        Notes
        -----
        Where a number is given as the library size and there are several batches, scvi-tools
        multiplies by it once for each batch.
        """
        cells = self._cells_of(adata, indices, batch_size, None, seed, out)
        if n_samples_overall is not None:
            cells = drawn_cells(in_store(cells, "n_samples_overall"), n_samples_overall)
        options = JointOptions(
            transform_batch=batch_codes(self.schema, transform_batch),
            genes=gene_columns(self.schema.var_names, gene_list),
            proteins=protein_columns(self.schema.protein_names, protein_list),
            library_size=library_size,
            n_samples=n_samples,
            return_mean=return_mean,
            scale_protein=scale_protein,
            sample_protein_mixing=sample_protein_mixing,
            include_protein_background=include_protein_background,
        )
        values = joint_expression(self.module, cells, options, out=out)
        if isinstance(values, str) or return_numpy or options.keeps_samples:
            return values
        there = in_store(cells, "a DataFrame")
        genes, proteins = values
        return (
            _table(genes, gene_names(there, options.genes), there),
            _table(proteins, protein_names(there, options.proteins), there),
        )

    def get_protein_foreground_probability(
        self,
        adata: Source = None,
        indices: Indices = None,
        transform_batch: BatchNames = None,
        protein_list: Sequence[str] | None = None,
        n_samples: int = 1,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_numpy: bool | None = None,
        silent: bool = True,
        *,
        out: Out = None,
        seed: int | None = None,
    ) -> Any:
        """Probability that a protein's count is not background, for each cell and protein.

        The arguments are those of :meth:`get_normalized_expression`.

        Returns
        -------
        DataFrame or float32 array ``[n, proteins]``, or array ``[n_samples, n, proteins]``; with
        ``out`` the URL of a store that holds it.
        """
        cells = self._cells_of(adata, indices, batch_size, None, seed, out)
        options = JointOptions(
            transform_batch=batch_codes(self.schema, transform_batch),
            proteins=protein_columns(self.schema.protein_names, protein_list),
            n_samples=n_samples,
            return_mean=return_mean,
        )
        values = foreground_probability(self.module, cells, options, out=out)
        if isinstance(values, str) or return_numpy or options.keeps_samples:
            return values
        there = in_store(cells, "a DataFrame")
        return _table(values, protein_names(there, options.proteins), there)

    def get_protein_background_mean(
        self,
        adata: Source = None,
        indices: Indices = None,
        batch_size: int | None = None,
        *,
        seed: int | None = None,
    ) -> np.ndarray:
        """Background rate of each cell and protein, float32 ``[n, proteins]``: one draw each."""
        return background_mean(self.module, self._cells_of(adata, indices, batch_size, None, seed))

    def posterior_predictive_sample(
        self,
        adata: Source = None,
        indices: Indices = None,
        n_samples: int = 1,
        batch_size: int | None = None,
        gene_list: Sequence[str] | None = None,
        protein_list: Sequence[str] | None = None,
        *,
        out: Out = None,
        seed: int | None = None,
    ) -> "dict[str, np.ndarray] | str":
        """Counts drawn from the posterior predictive law of each cell.

        Returns
        -------
        ``"rna"`` and ``"protein"`` (for a MuData the names of the modalities): float32
        ``[n, features]``, or ``[n, features, n_samples]`` for several draws; with ``out`` the URL
        of a store that holds both.
        """
        cells = self._cells_of(adata, indices, batch_size, None, seed, out)
        options = JointPredictiveOptions(
            n_samples=n_samples,
            genes=gene_columns(self.schema.var_names, gene_list),
            proteins=protein_columns(self.schema.protein_names, protein_list),
        )
        values = joint_predictive_sample(self.module, cells, options, out=out)
        if isinstance(values, str):
            return values
        modalities = dict(self.schema.setup.modalities or ())
        names = modalities.get("rna_layer", "rna"), modalities.get("protein_layer", "protein")
        return dict(zip(names, values, strict=True))

    def get_likelihood_parameters(
        self,
        adata: Source = None,
        indices: Indices = None,
        n_samples: int | None = 1,
        give_mean: bool | None = False,
        batch_size: int | None = None,
        *,
        seed: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Parameters of the laws of genes and proteins, which scvi-tools does not implement.

        Returns
        -------
        See :func:`~scvi_dist.analysis.protein_counts.joint_likelihood_parameters`.
        """
        cells = self._cells_of(adata, indices, batch_size, None, seed)
        return joint_likelihood_parameters(
            self.module, cells, n_samples=n_samples or 1, give_mean=bool(give_mean)
        )

    def get_feature_correlation_matrix(
        self,
        adata: Source = None,
        indices: Indices = None,
        n_samples: int = 10,
        batch_size: int = 64,
        rna_size_factor: float = 1000,
        transform_batch: BatchNames = None,
        correlation_type: Literal["spearman", "pearson"] = "spearman",
        log_transform: bool = False,
        silent: bool = True,
        *,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Correlation of genes and proteins over cells and draws of their denoised values.

        Parameters
        ----------
        n_samples
            Draws of each cell.
        rna_size_factor
            Library size that all cells are given.
        transform_batch
            Decode all cells as of this batch; the mean of the correlations over several.
        correlation_type
            Of ranks, or of values.
        log_transform
            Correlate logarithms.

        Returns
        -------
        DataFrame ``[genes + proteins, genes + proteins]``.
        """
        stored = in_store(
            self._cells_of(adata, indices, batch_size, None, seed),
            "get_feature_correlation_matrix",
        )
        options = CorrelationOptions(
            kind=correlation_type, n_samples=n_samples, rna_size_factor=rna_size_factor
        )
        codes = batch_codes(self.schema, transform_batch)
        values = joint_correlation(self.module, stored, options, codes, log_transform=log_transform)
        names = np.concatenate([gene_names(stored, None), protein_names(stored, None)])
        return pd.DataFrame(values, index=names, columns=names)


def _table(values: np.ndarray, columns: np.ndarray, cells: StoreCells) -> pd.DataFrame:
    return pd.DataFrame(values, columns=columns, index=cells.obs_names())
