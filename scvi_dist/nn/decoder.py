"""The networks from a latent variable to the parameters of a likelihood."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.nn.fc_layers import FCLayers
from scvi_dist.nn.precision import full_precision

SCALE_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "softmax": lambda: nn.Softmax(dim=-1),
    "softplus": nn.Softplus,
}


class DecoderSCVI(nn.Module):
    """Fully connected layers with the heads of a zero-inflated negative binomial law.

    Parameters
    ----------
    n_input, n_output
        Width of the latent variable and number of genes.
    n_cat_list, n_layers, n_hidden, inject_covariates, use_batch_norm, use_layer_norm
        As for :class:`~scvi_dist.nn.FCLayers`; there is no dropout.
    scale_activation
        ``"softmax"`` (proportions of the cell) or ``"softplus"``.
    use_activation, bias, activation_fn
        As for :class:`~scvi_dist.nn.FCLayers`.
    """

    def __init__(
        self,
        n_input: int,
        n_output: int,
        n_cat_list: Iterable[int] | None = None,
        n_layers: int = 1,
        n_hidden: int = 128,
        inject_covariates: bool = True,
        use_batch_norm: bool = False,
        use_layer_norm: bool = False,
        scale_activation: str = "softmax",
        use_activation: bool = True,
        bias: bool = True,
        activation_fn: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        if scale_activation not in SCALE_ACTIVATIONS:
            raise ConfigError(
                f"There is no scale activation {scale_activation!r}; "
                f"{did_you_mean(scale_activation, SCALE_ACTIVATIONS)}"
            )
        self.scale_activation = scale_activation
        self.px_decoder = FCLayers(
            n_in=n_input,
            n_out=n_hidden,
            n_cat_list=n_cat_list,
            n_layers=n_layers,
            n_hidden=n_hidden,
            dropout_rate=0,
            inject_covariates=inject_covariates,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
            use_activation=use_activation,
            bias=bias,
            activation_fn=activation_fn,
        )
        self.px_scale_decoder = nn.Sequential(
            nn.Linear(n_hidden, n_output), SCALE_ACTIVATIONS[scale_activation]()
        )
        self.px_r_decoder = nn.Linear(n_hidden, n_output)
        self.px_dropout_decoder = nn.Linear(n_hidden, n_output)

    def forward(
        self,
        dispersion: str,
        z: Tensor,
        library: Tensor,
        *cat_list: Tensor | None,
        zero_inflated: bool = True,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """``(scale, log dispersion, rate, dropout logits)``, each ``[n, g]`` or ``[s, n, g]``.

        Parameters
        ----------
        dispersion
            The log dispersion is computed for ``"gene-cell"`` and None otherwise.
        z
            ``[n, n_input]`` or ``[s, n, n_input]``.
        library
            Logarithm of the factor between scale and rate, ``[n, 1]`` or ``[s, n, 1]``.
        cat_list
            Codes ``[n, 1]`` of each categorical covariate.
        zero_inflated
            Whether the dropout logits are computed; None otherwise.
        """
        hidden = self.px_decoder(z, *cat_list)
        to_logits, activation = self.px_scale_decoder
        px_scale = activation(full_precision(to_logits(hidden)))
        px_rate = torch.exp(library) * px_scale
        px_r = full_precision(self.px_r_decoder(hidden)) if dispersion == "gene-cell" else None
        px_dropout = full_precision(self.px_dropout_decoder(hidden)) if zero_inflated else None
        return px_scale, px_r, px_rate, px_dropout

    @property
    def gene_heads(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        """The layers from hidden units to the genes: scales, dispersions, extra zeros."""
        return self.px_scale_decoder[0], self.px_r_decoder, self.px_dropout_decoder

    def scale(self, z: Tensor, *cat_list: Tensor | None) -> Tensor:
        """The scale that :meth:`forward` gives, without the other heads."""
        to_logits, activation = self.px_scale_decoder
        return activation(full_precision(to_logits(self.px_decoder(z, *cat_list))))


class Decoder(nn.Module):
    """Fully connected layers with a mean and a variance head.

    Parameters
    ----------
    n_input, n_output
        Width of the latent variable and of what it is decoded to.
    n_cat_list, n_layers, n_hidden
        As for :class:`~scvi_dist.nn.FCLayers`; there is no dropout.
    use_batch_norm, use_layer_norm, use_activation, bias, inject_covariates, activation_fn,
    pool_samples
        As for :class:`~scvi_dist.nn.FCLayers`.
    """

    def __init__(
        self,
        n_input: int,
        n_output: int,
        n_cat_list: Iterable[int] | None = None,
        n_layers: int = 1,
        n_hidden: int = 128,
        use_batch_norm: bool = True,
        use_layer_norm: bool = False,
        use_activation: bool = True,
        bias: bool = True,
        inject_covariates: bool = True,
        activation_fn: Callable[[], nn.Module] = nn.ReLU,
        pool_samples: bool = False,
    ) -> None:
        super().__init__()
        self.decoder = FCLayers(
            n_in=n_input,
            n_out=n_hidden,
            n_cat_list=n_cat_list,
            n_layers=n_layers,
            n_hidden=n_hidden,
            dropout_rate=0,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
            use_activation=use_activation,
            bias=bias,
            inject_covariates=inject_covariates,
            activation_fn=activation_fn,
            pool_samples=pool_samples,
        )
        self.mean_decoder = nn.Linear(n_hidden, n_output)
        self.var_decoder = nn.Linear(n_hidden, n_output)

    def forward(self, x: Tensor, *cat_list: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance, each ``[n, n_output]``, of a normal law."""
        hidden = self.decoder(x, *cat_list)
        variance = torch.exp(full_precision(self.var_decoder(hidden)))
        return full_precision(self.mean_decoder(hidden)), variance
