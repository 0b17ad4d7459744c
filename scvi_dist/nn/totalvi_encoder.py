"""The network from the counts of a cell's genes and proteins to its latent variables.

Axis suffixes: ``n`` cells, ``k`` latent.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.kernels.sparse_linear import SparseColumns
from scvi_dist.nn.encoder import Z_TRANSFORMATIONS, drawn
from scvi_dist.nn.fc_layers import FCLayers
from scvi_dist.nn.noise import NO_SAMPLES, NoiseStream
from scvi_dist.nn.precision import full_precision

VAR_EPS = 1e-4
"""Smallest variance of a posterior."""
MAX_LOG_LIBRARY = 15.0
"""Draws of a log library size are cut here, before they are exponentiated."""


class EncoderTOTALVI(nn.Module):
    """Two stacks of fully connected layers: one for ``z``, one for the library size of the genes.

    Parameters
    ----------
    n_input, n_output
        Width of the data and of ``z``.
    n_cat_list, n_hidden, dropout_rate, use_batch_norm, use_layer_norm
        As for :class:`~scvi_dist.nn.FCLayers`.
    n_layers
        Hidden layers before ``z``; the library size has one.
    distribution
        ``"normal"``, or ``"ln"``: logistic normal, the softmax of a normal variable.
    noise
        Where dropout masks and draws come from; its own where None.

    Raises
    ------
    ConfigError
        Where there is no such distribution.

    Source
    ------
    Gayoso et al. 2021, "Joint probabilistic modeling of single-cell multi-omic data with
    totalVI", methods.
    """

    def __init__(
        self,
        n_input: int,
        n_output: int,
        n_cat_list: Iterable[int] | None = None,
        n_layers: int = 2,
        n_hidden: int = 256,
        dropout_rate: float = 0.1,
        distribution: str = "ln",
        use_batch_norm: bool = True,
        use_layer_norm: bool = False,
        noise: NoiseStream | None = None,
    ) -> None:
        super().__init__()
        if distribution not in Z_TRANSFORMATIONS:
            raise ConfigError(
                f"There is no latent distribution {distribution!r}; "
                f"{did_you_mean(distribution, Z_TRANSFORMATIONS)}"
            )
        self.distribution = distribution
        self.noise = NoiseStream() if noise is None else noise
        self.z_transformation = Z_TRANSFORMATIONS[distribution]
        self._mask_shape = (n_hidden, dropout_rate)
        n_cat_list = None if n_cat_list is None else list(n_cat_list)

        def layers(n_layers: int) -> FCLayers:
            return FCLayers(
                n_in=n_input,
                n_out=n_hidden,
                n_cat_list=n_cat_list,
                n_layers=n_layers,
                n_hidden=n_hidden,
                dropout_rate=dropout_rate,
                use_batch_norm=use_batch_norm,
                use_layer_norm=use_layer_norm,
                noise=self.noise,
            )

        self.encoder = layers(n_layers)
        self.z_mean_encoder = nn.Linear(n_hidden, n_output)
        self.z_var_encoder = nn.Linear(n_hidden, n_output)
        self.l_gene_encoder = layers(1)
        self.l_gene_mean_encoder = nn.Linear(n_hidden, 1)
        self.l_gene_var_encoder = nn.Linear(n_hidden, 1)

    def posterior(self, data: Tensor | SparseColumns, *cat_list: Tensor | None) -> Normal:
        """The law ``[n, k]`` of ``z`` before its transformation."""
        return _law(self.encoder(data, *cat_list), self.z_mean_encoder, self.z_var_encoder)

    def drawn(
        self, data: Tensor | SparseColumns, *cat_list: Tensor | None
    ) -> tuple[Normal, Tensor]:
        """The law of :meth:`posterior` and a draw from it, before its transformation."""
        whole = data.products.posterior if isinstance(data, SparseColumns) else None
        if whole is None:
            law = self.posterior(data, *cat_list)
            return law, self.noise.rsample(law)
        hidden = self.encoder(data, *cat_list)
        heads = self.z_mean_encoder, self.z_var_encoder
        return drawn(whole, hidden, heads, self.noise, VAR_EPS)

    def library_posterior(self, data: Tensor | SparseColumns, *cat_list: Tensor | None) -> Normal:
        """The law ``[n, 1]`` of the log library size of the genes."""
        hidden = self.l_gene_encoder(data, *cat_list)
        return _law(hidden, self.l_gene_mean_encoder, self.l_gene_var_encoder)

    def l_transformation(self, log_library: Tensor) -> Tensor:
        """The library size of a draw; a log library size above 15 counts as 15."""
        return torch.exp(log_library.clamp(max=MAX_LOG_LIBRARY))

    def pass_over_library(self, like_n: Tensor, sample_shape: torch.Size = NO_SAMPLES) -> None:
        """Leave torch's generator where it would be, had the library size been inferred.

        scvi-tools infers it in any case, also where it is observed. With noise that is bound to
        cells there is nothing to keep in step with.

        Parameters
        ----------
        like_n
            Any values of the cells, ``[n, ...]``.
        sample_shape
            Draws of each cell.
        """
        if self.noise.is_bound:
            return
        n_hidden, dropout_rate = self._mask_shape
        if self.training and dropout_rate > 0 and not sample_shape:
            self.noise.bernoulli_keep((len(like_n), n_hidden), dropout_rate, like_n.device)
        self.noise.normal_like(like_n.new_empty(*sample_shape, len(like_n), 1))

    def forward(
        self, data: Tensor, *cat_list: Tensor | None
    ) -> tuple[Normal, Normal, dict[str, Tensor], dict[str, Tensor]]:
        """Both posteriors, and one draw of each.

        Parameters
        ----------
        data
            ``[n, n_input]``.
        cat_list
            Codes ``[n, 1]`` of each categorical covariate.

        Returns
        -------
        ``(qz, ql, latent, untransformed)``; the dictionaries hold the draws ``"z" [n, k]`` and
        ``"l" [n, 1]``, a library size in the first and its logarithm in the second.
        """
        qz = self.posterior(data, *cat_list)
        z = self.noise.rsample(qz)
        ql = self.library_posterior(data, *cat_list)
        log_library = self.noise.rsample(ql).clamp(max=MAX_LOG_LIBRARY)
        latent = {"z": self.z_transformation(z), "l": self.l_transformation(log_library)}
        return qz, ql, latent, {"z": z, "l": log_library}


def _law(hidden: Tensor, mean_head: nn.Linear, var_head: nn.Linear) -> Normal:
    variance = torch.exp(full_precision(var_head(hidden))) + VAR_EPS
    return Normal(full_precision(mean_head(hidden)), variance.sqrt(), validate_args=False)
