"""Models of counts: the expression and the counts that they expect of cells."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

import numpy as np
import pandas as pd

from scvi_dist.analysis.correlation import CorrelationOptions, feature_correlation
from scvi_dist.analysis.expression import (
    ExpressionOptions,
    gene_names,
    normalized_expression,
    sampled_expression,
)
from scvi_dist.analysis.importance import ImportanceOptions, importance_sampled_expression
from scvi_dist.analysis.output import Out
from scvi_dist.analysis.parameters import likelihood_parameters
from scvi_dist.analysis.predictive import PredictiveOptions, posterior_predictive_sample
from scvi_dist.analysis.streaming import Cells, LoaderCells, StoreCells
from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.model.abundance_model import AbundanceModel
from scvi_dist.model.batches import BatchNames, batch_codes
from scvi_dist.model.binding import Source
from scvi_dist.model.differential_model import GeneDifferentialModel
from scvi_dist.model.genes import gene_columns
from scvi_dist.model.latent_model import Indices, Loader
from scvi_dist.model.loader_arguments import LoaderArguments, check_loader_arguments


class CountModel(GeneDifferentialModel, AbundanceModel):
    """A model whose module has a latent space and a law of counts.

    See :class:`~scvi_dist.model.latent_model.LatentModel` for the arguments that all methods share.
    """

    def get_normalized_expression(
        self,
        adata: Source = None,
        indices: Indices = None,
        transform_batch: BatchNames = None,
        gene_list: Sequence[str] | None = None,
        library_size: float | Literal["latent"] = 1,
        n_samples: int = 1,
        n_samples_overall: int | None = None,
        weights: Literal["uniform", "importance"] | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        return_numpy: bool | None = None,
        silent: bool = True,
        dataloader: Loader = None,
        data_loader_kwargs: LoaderArguments = None,
        *,
        out: Out = None,
        seed: int | None = None,
        **importance_weighting_kwargs: Any,
    ) -> Any:
        """Decoded expression of each cell, with technical effects taken out.

        Parameters
        ----------
        transform_batch
            Decode all cells as of this batch; the mean over several.
        gene_list
            Genes to return, in the model's order.
        library_size
            What proportions are multiplied by; ``"latent"``: each cell's library size.
        n_samples
            Draws of the latent space for each cell.
        n_samples_overall
            Return so many draws, of cells drawn with replacement.
        weights
            How ``n_samples_overall`` draws: ``"uniform"``, or ``"importance"``: draws count more
            that make the counts of all these cells likely.
        return_mean
            The mean over ``n_samples``.
        return_numpy
            An array instead of a DataFrame.
        **importance_weighting_kwargs
            See :class:`~scvi_dist.analysis.importance.ImportanceOptions`.

        Returns
        -------
        DataFrame or float32 array ``[n, genes]``, or array ``[n_samples, n, genes]``.
        """
        check_loader_arguments(data_loader_kwargs)
        importance = _importance(weights, n_samples_overall, importance_weighting_kwargs)
        cells = self._cells_of(adata, indices, batch_size, dataloader, seed, out)
        options = ExpressionOptions(
            transform_batch=batch_codes(self.schema, transform_batch),
            genes=gene_columns(self.schema.var_names, gene_list),
            library_size=library_size,
            n_samples=n_samples,
            return_mean=return_mean,
        )
        if n_samples_overall is None:
            values = normalized_expression(self.module, cells, options, out=out)
        else:
            cells = in_store(cells, "n_samples_overall")
            if importance is None:
                values, selection = sampled_expression(
                    self.module, cells, options, n_samples_overall=n_samples_overall
                )
            else:
                values, selection = importance_sampled_expression(
                    self.module, cells, options, importance, n_samples_overall=n_samples_overall
                )
            cells = StoreCells(cells.source, selection, cells.config)
        is_table = not (return_numpy or options.keeps_samples or isinstance(cells, LoaderCells))
        if isinstance(values, str) or not is_table:
            return values
        table_cells = in_store(cells, "a DataFrame")
        columns = gene_names(table_cells, options.genes)
        return pd.DataFrame(values, columns=columns, index=table_cells.obs_names())

    def posterior_predictive_sample(
        self,
        adata: Source = None,
        indices: Indices = None,
        transform_batch: BatchNames = None,
        n_samples: int = 1,
        gene_list: Sequence[str] | None = None,
        batch_size: int | None = None,
        dataloader: Loader = None,
        silent: bool = True,
        *,
        out: Out = None,
        seed: int | None = None,
        **data_loader_kwargs: Any,
    ) -> Any:
        """Counts drawn from the posterior predictive law of each cell.

        Returns
        -------
        ``sparse.GCXS [n, genes]``, or ``[n, genes, n_samples]`` for several draws; SciPy CSR or
        a dense array where the package ``sparse`` is not installed; with ``out`` the store's URL.
        """
        check_loader_arguments(data_loader_kwargs)
        cells = self._cells_of(adata, indices, batch_size, dataloader, seed, out)
        options = PredictiveOptions(
            n_samples=n_samples,
            transform_batch=batch_codes(self.schema, transform_batch),
            genes=gene_columns(self.schema.var_names, gene_list),
        )
        return posterior_predictive_sample(self.module, cells, options, out=out)

    def get_likelihood_parameters(
        self,
        adata: Source = None,
        indices: Indices = None,
        n_samples: int | None = 1,
        give_mean: bool | None = False,
        batch_size: int | None = None,
        dataloader: Loader = None,
        *,
        seed: int | None = None,
        **data_loader_kwargs: Any,
    ) -> dict[str, np.ndarray]:
        """Parameters of the law of each count.

        Returns
        -------
        ``"mean"``, and where the law has them ``"dropout"`` and ``"dispersions"``: float32
        ``[n, genes]``, or ``[n_samples, n, genes]`` without ``give_mean``.
        """
        check_loader_arguments(data_loader_kwargs)
        return likelihood_parameters(
            self.module,
            self._cells_of(adata, indices, batch_size, dataloader, seed),
            n_samples=n_samples or 1,
            give_mean=bool(give_mean),
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
        silent: bool = True,
        *,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Correlation of genes over cells and draws of their denoised expression.

        Memory grows with the number of genes, squared, and not with that of cells: ranks are exact
        where all cells fit into the budget of
        :class:`~scvi_dist.analysis.correlation.CorrelationOptions`, else estimated from a sample.

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

        Returns
        -------
        DataFrame ``[genes, genes]``.
        """
        cells = self._cells_of(adata, indices, batch_size, None, seed)
        options = CorrelationOptions(
            kind=correlation_type, n_samples=n_samples, rna_size_factor=rna_size_factor
        )
        stored = in_store(cells, "get_feature_correlation_matrix")
        codes = batch_codes(self.schema, transform_batch)
        genes = gene_names(stored, None)
        values = feature_correlation(self.module, stored, options, codes)
        return pd.DataFrame(values, index=genes, columns=genes)


def _importance(
    weights: str | None, n_samples_overall: int | None, given: Mapping[str, Any]
) -> ImportanceOptions | None:
    """How draws are weighed; None if they are not."""
    names = [f.name for f in fields(ImportanceOptions)]
    for name in given:
        if name not in names:
            raise ConfigError(
                f"get_normalized_expression() takes no argument {name!r}; "
                f"{did_you_mean(name, names)}"
            )
    if weights not in (None, "uniform", "importance"):
        raise ConfigError(f"weights is 'uniform', 'importance' or None, seen {weights!r}.")
    if weights != "importance":
        return None
    if n_samples_overall is None:
        raise ConfigError(
            "weights='importance' says which draws are returned, so it needs n_samples_overall, "
            "their number."
        )
    return ImportanceOptions(**given)


def in_store(cells: Cells, what: str) -> StoreCells:
    """The cells, which must be in a store; ``what`` needs that."""
    if not isinstance(cells, StoreCells):
        raise ConfigError(f"{what} needs cells that are in a store, not a dataloader.")
    return cells
