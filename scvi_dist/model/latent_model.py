"""Models with a latent space: where cells lie in it, and how well it explains them.

Each method names the cells, and hands module, cells and options to a function of ``analysis``.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily

from scvi_dist.analysis.elbo import elbo, marginal_ll, reconstruction_error
from scvi_dist.analysis.latent import aggregated_posterior, latent_representation
from scvi_dist.analysis.output import Out
from scvi_dist.analysis.parameters import latent_library_size
from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import Cells, LoaderCells, StoreCells, StreamConfig
from scvi_dist.errors import ConfigError
from scvi_dist.global_settings import settings
from scvi_dist.model.binding import Source
from scvi_dist.model.loader_arguments import LoaderArguments, check_loader_arguments
from scvi_dist.model.query_model import QueryModel
from scvi_dist.module.vae import VAE

Indices = Sequence[int] | np.ndarray | None
Loader = Iterable[Mapping[str, Tensor]] | None


class LatentModel(QueryModel):
    """A model whose module has a latent space.

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
    ``data_loader_kwargs``
        scvi-tools' arguments about how torch reads; accepted and not used.
    ``out``
        Path or URL of a Zarr store that the result is written to, shard by shard; a call that
        was interrupted goes on. The URL is returned instead of the result.
    ``seed``
        Of what is drawn at random. Where None it is taken from torch's global generator, and is
        0 for results that go to a store.
    """

    module: VAE

    @property
    def summary_string(self) -> str:
        """What the model is, whether it is trained, and whether its data was minified."""
        is_minified = self.minified_data_type is not None
        return f"{super().summary_string}\nModel's adata is minified?: {is_minified}"

    # Lower bounds and likelihoods

    def get_elbo(
        self,
        adata: Source = None,
        indices: Indices = None,
        batch_size: int | None = None,
        dataloader: Loader = None,
        return_mean: bool = True,
        data_loader_kwargs: LoaderArguments = None,
        *,
        seed: int | None = None,
    ) -> Tensor:
        """Evidence lower bound: 0-d mean over cells, or ``[n]``. Higher is better."""
        check_loader_arguments(data_loader_kwargs)
        cells = self._cells_of(adata, indices, batch_size, dataloader, seed)
        self._look_at_counts("get_elbo", cells)
        return elbo(self.module, cells, return_mean=return_mean)

    def get_reconstruction_error(
        self,
        adata: Source = None,
        indices: Indices = None,
        batch_size: int | None = None,
        dataloader: Loader = None,
        return_mean: bool = True,
        data_loader_kwargs: LoaderArguments = None,
        *,
        seed: int | None = None,
    ) -> dict[str, Tensor]:
        """Minus the log-likelihood of the counts: 0-d mean, or ``[n]``. Lower is better."""
        check_loader_arguments(data_loader_kwargs)
        cells = self._cells_of(adata, indices, batch_size, dataloader, seed)
        self._look_at_counts("get_reconstruction_error", cells)
        return reconstruction_error(self.module, cells, return_mean=return_mean)

    def get_marginal_ll(
        self,
        adata: Source = None,
        indices: Indices = None,
        n_mc_samples: int = 1_000,
        batch_size: int | None = None,
        return_mean: bool = True,
        dataloader: Loader = None,
        data_loader_kwargs: LoaderArguments = None,
        *,
        n_mc_samples_per_pass: int = 1,
        seed: int | None = None,
    ) -> float | Tensor:
        """Marginal log-likelihood by importance sampling: a float, or ``[n]``."""
        check_loader_arguments(data_loader_kwargs)
        cells = self._cells_of(adata, indices, batch_size, dataloader, seed)
        self._look_at_counts("get_marginal_ll", cells)
        return marginal_ll(
            self.module,
            cells,
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
        **data_loader_kwargs: Any,
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
        check_loader_arguments(data_loader_kwargs)
        self._check_if_trained()
        return latent_representation(
            self.module,
            self._cells_of(adata, indices, batch_size, dataloader, seed, out),
            give_mean=give_mean,
            mc_samples=mc_samples,
            return_dist=return_dist,
            out=out,
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
        **data_loader_kwargs: Any,
    ) -> np.ndarray | str:
        """Library size of each cell, float32 ``[n, 1]``.

        ``give_mean=False`` gives a draw, which is the observed size for models that infer none.
        """
        check_loader_arguments(data_loader_kwargs)
        self._check_if_trained()
        cells = self._cells_of(adata, indices, batch_size, dataloader, seed, out)
        return latent_library_size(self.module, cells, give_mean=give_mean, out=out)

    def get_aggregated_posterior(
        self,
        adata: Source = None,
        indices: Indices = None,
        batch_size: int | None = None,
        dof: float | None = 3.0,
    ) -> MixtureSameFamily:
        """The mixture, in equal parts, of the posteriors of all these cells, on the model's device.

        Parameters
        ----------
        dof
            Components are Student's t with so many degrees of freedom; normal where None.

        Returns
        -------
        A law of ``[n_latent]``. Its components have the posterior's standard deviation as their
        scale; scvi-tools takes the variance for it.
        """
        self._check_if_trained()
        cells = self._cells_of(adata, indices, batch_size, None, None)
        return aggregated_posterior(self.module, cells, dof=dof)

    # Which cells

    def _look_at_counts(self, method: str, cells: Cells) -> None:
        if isinstance(cells, StoreCells):
            self._needs_counts(method, cells.source.schema.minified)

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
        config = StreamConfig(batch_size=batch_size or settings.batch_size, seed=seed)
        return StoreCells(source, Selection(source.store.n_obs, indices), config)
