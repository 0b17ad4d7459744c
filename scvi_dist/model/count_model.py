"""Models of counts with a latent space: the questions that they answer about cells.

Each method names the cells, and hands module, cells and options to a function of ``analysis``.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scvi_dist.analysis.elbo import elbo, marginal_ll, reconstruction_error
from scvi_dist.analysis.expression import (
    ExpressionOptions,
    gene_names,
    normalized_expression,
    sampled_expression,
)
from scvi_dist.analysis.latent import latent_representation
from scvi_dist.analysis.output import Output, as_output
from scvi_dist.analysis.parameters import latent_library_size, likelihood_parameters
from scvi_dist.analysis.predictive import PredictiveOptions, posterior_predictive_sample
from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import Cells, LoaderCells, StoreCells, StreamConfig
from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.model.base import BaseModel
from scvi_dist.model.binding import Source
from scvi_dist.model.genes import gene_columns

Indices = Sequence[int] | np.ndarray | None
Loader = Iterable[Mapping[str, Tensor]] | None
Out = str | os.PathLike[str] | Output | None
BatchNames = Any
"""A category of the batch column, a list of them, or None for each cell's own."""

BATCH_SIZE = 128


class CountModel(BaseModel):
    """A model whose module has a latent space and a law of counts.

    The methods share these arguments:

    ``adata``
        The cells: an AnnData, a path or URL, a list of them, or a store; the model's own where
        None. Genes are put in the model's order by name; unknown categories are an error.
    ``indices``
        Rows in any order, repeats allowed, or a mask; results come in this order.
    ``batch_size``
        Cells of a forward pass; no result depends on it.
    ``dataloader``
        Minibatches of your own instead of ``adata``: mappings of tensors by registry key.
    ``out``
        Path or URL of a Zarr store that the result is written to, shard by shard; a call that
        was interrupted goes on. The URL is returned instead of the result.
    ``seed``
        Of what is drawn at random. Where None it is taken from torch's global generator, and is
        0 for results that go to a store.
    """

    # Lower bounds and likelihoods

    def get_elbo(
        self,
        adata: Source = None,
        indices: Indices = None,
        batch_size: int | None = None,
        dataloader: Loader = None,
        return_mean: bool = True,
        *,
        seed: int | None = None,
    ) -> Tensor:
        """Evidence lower bound: 0-d mean over cells, or ``[n]``. Higher is better."""
        cells = self._cells_of(adata, indices, batch_size, dataloader, seed)
        return elbo(self.module, cells, return_mean=return_mean)

    def get_reconstruction_error(
        self,
        adata: Source = None,
        indices: Indices = None,
        batch_size: int | None = None,
        dataloader: Loader = None,
        return_mean: bool = True,
        *,
        seed: int | None = None,
    ) -> dict[str, Tensor]:
        """Minus the log-likelihood of the counts: 0-d mean, or ``[n]``. Lower is better."""
        cells = self._cells_of(adata, indices, batch_size, dataloader, seed)
        return reconstruction_error(self.module, cells, return_mean=return_mean)

    def get_marginal_ll(
        self,
        adata: Source = None,
        indices: Indices = None,
        n_mc_samples: int = 1_000,
        batch_size: int | None = None,
        return_mean: bool = True,
        dataloader: Loader = None,
        *,
        n_mc_samples_per_pass: int = 1,
        seed: int | None = None,
    ) -> float | Tensor:
        """Marginal log-likelihood by importance sampling: a float, or ``[n]``."""
        return marginal_ll(
            self.module,
            self._cells_of(adata, indices, batch_size, dataloader, seed),
            n_mc_samples=n_mc_samples,
            n_mc_samples_per_pass=n_mc_samples_per_pass,
            return_mean=return_mean,
        )

    # The latent space

    def get_latent_representation(
        self,
        adata: Source = None,
        indices: Indices = None,
        give_mean: bool = True,
        mc_samples: int = 5_000,
        batch_size: int | None = None,
        return_dist: bool = False,
        dataloader: Loader = None,
        *,
        out: Out = None,
        seed: int | None = None,
    ) -> Any:
        """Latent representation of each cell.

        Parameters
        ----------
        give_mean
            The posterior mean; otherwise one draw.
        mc_samples
            Draws by which the mean of a logistic normal space is estimated.
        return_dist
            The posterior's mean and variance instead.

        Returns
        -------
        float32 ``[n, n_latent]``, or a pair of them; with ``out`` the store's URL.
        """
        self._check_if_trained()
        return latent_representation(
            self.module,
            self._cells_of(adata, indices, batch_size, dataloader, seed, out),
            give_mean=give_mean,
            mc_samples=mc_samples,
            return_dist=return_dist,
            out=as_output(out),
        )

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
    ) -> np.ndarray | str:
        """Library size of each cell, float32 ``[n, 1]``.

        ``give_mean=False`` gives a draw, which is the observed size for models that infer none.
        """
        self._check_if_trained()
        cells = self._cells_of(adata, indices, batch_size, dataloader, seed, out)
        return latent_library_size(self.module, cells, give_mean=give_mean, out=as_output(out))

    # Expression

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
        *,
        out: Out = None,
        seed: int | None = None,
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
            How ``n_samples_overall`` draws: ``"uniform"``.
        return_mean
            The mean over ``n_samples``.
        return_numpy
            An array instead of a DataFrame.

        Returns
        -------
        DataFrame or float32 array ``[n, genes]``, or array ``[n_samples, n, genes]``.
        """
        _check_weights(weights)
        cells = self._cells_of(adata, indices, batch_size, dataloader, seed, out)
        options = ExpressionOptions(
            transform_batch=self._batch_codes(transform_batch),
            genes=gene_columns(self.schema.var_names, gene_list),
            library_size=library_size,
            n_samples=n_samples,
            return_mean=return_mean,
        )
        if n_samples_overall is None:
            values = normalized_expression(self.module, cells, options, out=as_output(out))
        else:
            store_cells = _in_store(cells, "n_samples_overall")
            values, selection = sampled_expression(
                self.module, store_cells, options, n_samples_overall=n_samples_overall
            )
            cells = StoreCells(store_cells.source, selection, store_cells.config)
        is_table = not (return_numpy or options.keeps_samples or isinstance(cells, LoaderCells))
        if isinstance(values, str) or not is_table:
            return values
        table_cells = _in_store(cells, "a DataFrame")
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
        silent: bool = True,
        dataloader: Loader = None,
        *,
        out: Out = None,
        seed: int | None = None,
    ) -> Any:
        """Counts drawn from the posterior predictive law of each cell.

        Returns
        -------
        ``sparse.GCXS [n, genes]``, or ``[n, genes, n_samples]`` for several draws; SciPy CSR or
        a dense array where the package ``sparse`` is not installed; with ``out`` the store's URL.
        """
        cells = self._cells_of(adata, indices, batch_size, dataloader, seed, out)
        options = PredictiveOptions(
            n_samples=n_samples,
            transform_batch=self._batch_codes(transform_batch),
            genes=gene_columns(self.schema.var_names, gene_list),
        )
        return posterior_predictive_sample(self.module, cells, options, out=as_output(out))

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
    ) -> dict[str, np.ndarray]:
        """Parameters of the law of each count.

        Returns
        -------
        ``"mean"``, and where the law has them ``"dropout"`` and ``"dispersions"``: float32
        ``[n, genes]``, or ``[n_samples, n, genes]`` without ``give_mean``.
        """
        return likelihood_parameters(
            self.module,
            self._cells_of(adata, indices, batch_size, dataloader, seed),
            n_samples=n_samples or 1,
            give_mean=bool(give_mean),
        )

    # Which cells

    def _cells_of(
        self,
        adata: Source,
        indices: Indices,
        batch_size: int | None,
        dataloader: Loader,
        seed: int | None,
        out: Out = None,
    ) -> Cells:
        if seed is None:
            seed = 0 if out is not None else int(torch.randint(2**31, ()).item())
        if dataloader is not None:
            if adata is not None or indices is not None:
                raise ConfigError("give either dataloader or adata and indices, not both.")
            return LoaderCells(dataloader, seed)
        source = self._binding.open(adata, self._checks_counts)
        config = StreamConfig(batch_size=batch_size or BATCH_SIZE, seed=seed)
        return StoreCells(source, Selection(source.store.n_obs, indices), config)

    def _batch_codes(self, names: BatchNames) -> tuple[int | None, ...]:
        """Codes of batches by category; None stays None."""
        is_one = isinstance(names, str) or not isinstance(names, Iterable)
        known = {name: i for i, name in enumerate(self.schema.categories[REGISTRY_KEYS.BATCH_KEY])}
        codes: list[int | None] = []
        for name in [names] if is_one else names:
            if name is not None and name not in known:
                raise ConfigError(
                    f"transform_batch: {name!r} is not a batch of "
                    f"{self.schema.setup.batch_key!r}; {did_you_mean(str(name), map(str, known))}"
                )
            codes.append(None if name is None else known[name])
        return tuple(codes)


def _check_weights(weights: str | None) -> None:
    if weights == "importance":
        raise ConfigError(
            "weights='importance' is not available: draws are uniform. Leave weights out."
        )
    if weights not in (None, "uniform"):
        raise ConfigError(f"weights is 'uniform' or None, seen {weights!r}.")


def _in_store(cells: Cells, what: str) -> StoreCells:
    if not isinstance(cells, StoreCells):
        raise ConfigError(f"{what} needs cells that are in a store, not a dataloader.")
    return cells
