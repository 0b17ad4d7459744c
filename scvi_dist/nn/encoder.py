"""The network from data to the posterior of a latent variable."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.kernels.choice import Posterior
from scvi_dist.kernels.sparse_linear import SparseColumns
from scvi_dist.nn.fc_layers import FCLayers
from scvi_dist.nn.noise import NO_SAMPLES, NoiseStream
from scvi_dist.nn.precision import full_precision
from scvi_dist.nn.watched import is_watched


def _identity(x: Tensor) -> Tensor:
    return x


def _softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, dim=-1)


# Functions at the top of a module, so that an encoder can be pickled.
Z_TRANSFORMATIONS: dict[str, Callable[[Tensor], Tensor]] = {"normal": _identity, "ln": _softmax}


class PosteriorNormal(Normal):
    """A normal law that knows how far it is from the standard one.

    Attributes
    ----------
    divergence_n
        Sum of the Kullback-Leibler divergences of each cell.
    """

    def __init__(self, loc: Tensor, scale: Tensor, divergence_n: Tensor) -> None:
        super().__init__(loc, scale, validate_args=False)
        self.divergence_n = divergence_n


def drawn(
    posterior: Posterior,
    hidden: Tensor,
    heads: tuple[nn.Linear, nn.Linear],
    noise: NoiseStream,
    eps: float,
) -> tuple[PosteriorNormal, Tensor]:
    """The law of a latent variable given hidden units ``[n, h]``, and a draw.

    Parameters
    ----------
    heads
        Of the mean and of the logarithm of the variance less ``eps``.
    """
    like = hidden.new_empty(len(hidden), heads[0].out_features)
    loc, scale, draw, divergence = posterior(hidden, *heads, noise.normal_like(like), eps)
    return PosteriorNormal(loc, scale, divergence), draw


class Encoder(nn.Module):
    """Fully connected layers with a mean and a variance head.

    Parameters
    ----------
    n_input, n_output
        Width of the data and of the latent variable.
    n_cat_list, n_layers, n_hidden, dropout_rate
        As for :class:`~scvi_dist.nn.FCLayers`.
    distribution
        ``"normal"``, or ``"ln"``: logistic normal, the softmax of a normal variable.
    var_eps
        Smallest variance.
    var_activation
        Makes the variance head positive; :func:`torch.exp` where None.
    return_dist
        Whether :meth:`forward` returns ``(law, draw)`` or ``(mean, variance, draw)``.
    use_batch_norm, use_layer_norm, use_activation, bias, inject_covariates, activation_fn
        As for :class:`~scvi_dist.nn.FCLayers`.
    noise
        Where dropout masks and draws come from; its own where None.
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
        dropout_rate: float = 0.1,
        distribution: str = "normal",
        var_eps: float = 1e-4,
        var_activation: Callable[[Tensor], Tensor] | None = None,
        return_dist: bool = False,
        use_batch_norm: bool = True,
        use_layer_norm: bool = False,
        use_activation: bool = True,
        bias: bool = True,
        inject_covariates: bool = True,
        activation_fn: Callable[[], nn.Module] = nn.ReLU,
        noise: NoiseStream | None = None,
        pool_samples: bool = False,
    ) -> None:
        super().__init__()
        if distribution not in Z_TRANSFORMATIONS:
            raise ConfigError(
                f"There is no latent distribution {distribution!r}; "
                f"{did_you_mean(distribution, Z_TRANSFORMATIONS)}"
            )
        self.distribution = distribution
        self.var_eps = var_eps
        self.return_dist = return_dist
        self.noise = NoiseStream() if noise is None else noise
        self.encoder = FCLayers(
            n_in=n_input,
            n_out=n_hidden,
            n_cat_list=n_cat_list,
            n_layers=n_layers,
            n_hidden=n_hidden,
            dropout_rate=dropout_rate,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
            use_activation=use_activation,
            bias=bias,
            inject_covariates=inject_covariates,
            activation_fn=activation_fn,
            noise=self.noise,
            pool_samples=pool_samples,
        )
        self.mean_encoder = nn.Linear(n_hidden, n_output)
        self.var_encoder = nn.Linear(n_hidden, n_output)
        self.z_transformation = Z_TRANSFORMATIONS[distribution]
        self.var_activation = torch.exp if var_activation is None else var_activation

    def posterior(self, x: Tensor | SparseColumns, *cat_list: Tensor | None) -> Normal:
        """The law ``[n, n_output]`` of the latent variable before its transformation."""
        mean, raw = (full_precision(units) for units in self._heads(self.encoder(x, *cat_list)))
        variance = self.var_activation(raw) + self.var_eps
        return Normal(mean, variance.sqrt(), validate_args=False)

    def _heads(self, hidden: Tensor) -> Iterable[Tensor]:
        """What the mean head and the variance head give."""
        heads = self.mean_encoder, self.var_encoder
        are_plain = not is_watched(heads) and all(type(head) is nn.Linear for head in heads)
        if torch.is_grad_enabled() or not are_plain:
            return [head(hidden) for head in heads]
        # So narrow a product takes as long for both as for one.
        weight = torch.cat([head.weight for head in heads])
        bias = torch.cat([head.bias for head in heads])
        return nn.functional.linear(hidden, weight, bias).chunk(2, dim=-1)

    def draw(self, law: Normal, sample_shape: torch.Size = NO_SAMPLES) -> Tensor:
        """A reparameterised draw ``[*sample_shape, n, n_output]`` of the latent variable."""
        return self.z_transformation(self.noise.rsample(law, sample_shape))

    def forward(
        self, x: Tensor | SparseColumns, *cat_list: Tensor | None
    ) -> tuple[Normal, Tensor] | tuple[Tensor, Tensor, Tensor]:
        """The posterior of each cell and one draw from it.

        Parameters
        ----------
        x
            ``[n, n_input]``, dense or sparse.
        cat_list
            Codes ``[n, 1]`` of each categorical covariate.
        """
        law: Normal
        whole = x.products.posterior if isinstance(x, SparseColumns) else None
        heads = self.mean_encoder, self.var_encoder
        if whole is not None and self.var_activation is torch.exp and not is_watched(heads):
            hidden = self.encoder(x, *cat_list)
            law, draw = drawn(whole, hidden, heads, self.noise, self.var_eps)
            latent = self.z_transformation(draw)
        else:
            law = self.posterior(x, *cat_list)
            latent = self.draw(law)
        return (law, latent) if self.return_dist else (law.mean, law.variance, latent)
