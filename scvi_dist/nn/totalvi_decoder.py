"""The network from a latent variable to the laws of a cell's genes and proteins.

Axis suffixes: ``n`` cells, ``g`` genes, ``p`` proteins, ``k`` latent, ``s`` samples; all results
may have ``s`` in front.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.kernels.choice import Kernel
from scvi_dist.nn.decoder import SCALE_ACTIVATIONS
from scvi_dist.nn.fc_layers import FCLayers
from scvi_dist.nn.noise import NoiseStream
from scvi_dist.nn.one_hot import one_hot
from scvi_dist.nn.precision import full_precision

EPS = 1e-8
"""Added to the standard deviation of the log background rate, which is above 0."""

BACKGROUND_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "softplus": F.softplus,
}


class DecodedUnits(NamedTuple):
    """What the genes' heads see, ``[n, h]`` with the covariates, and all that is known besides."""

    genes: Tensor
    """For the genes' scale."""
    dropout: Tensor
    """For the logits of extra zeros."""
    proteins: dict[str, Tensor]
    """As :meth:`DecoderTOTALVI.forward` gives it, but for ``scale``."""
    log_rate_back: Tensor


class DecoderTOTALVI(nn.Module):
    """Four stacks of fully connected layers, each with heads of its own.

    They give the genes' mean, the proteins' background, the factor by which a protein's foreground
    exceeds its background, and the odds of background (of an extra zero for genes).

    Parameters
    ----------
    n_input
        Width of the latent variable with its continuous covariates.
    n_output_genes, n_output_proteins
        Number of genes and of proteins.
    n_cat_list, n_layers, n_hidden, dropout_rate, use_batch_norm, use_layer_norm
        As for :class:`~scvi_dist.nn.FCLayers`.
    scale_activation
        Of the genes' mean: ``"softmax"`` (proportions of the cell) or ``"softplus"``.
    activation_function_bg
        Makes the spread of the log background positive: ``"softplus"``, or ``"exp"`` as in
        scvi-tools before 1.2.
    noise
        Where dropout masks and draws come from; its own where None.

    Raises
    ------
    ConfigError
        Where there is no such activation.

    Source
    ------
    Gayoso et al. 2021, "Joint probabilistic modeling of single-cell multi-omic data with
    totalVI", methods.
    """

    def __init__(
        self,
        n_input: int,
        n_output_genes: int,
        n_output_proteins: int,
        n_cat_list: Iterable[int] | None = None,
        n_layers: int = 1,
        n_hidden: int = 256,
        dropout_rate: float = 0.0,
        use_batch_norm: bool = True,
        use_layer_norm: bool = False,
        scale_activation: str = "softmax",
        activation_function_bg: str = "softplus",
        noise: NoiseStream | None = None,
    ) -> None:
        super().__init__()
        _known("scale activation", scale_activation, SCALE_ACTIVATIONS)
        _known("background activation", activation_function_bg, BACKGROUND_ACTIVATIONS)
        self.n_output_genes, self.n_output_proteins = n_output_genes, n_output_proteins
        self.noise = NoiseStream() if noise is None else noise
        self.activation_function_bg = BACKGROUND_ACTIVATIONS[activation_function_bg]
        n_cat_list = list(n_cat_list or ())

        def stack() -> FCLayers:
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

        def head(n_output: int, use_activation: bool = False) -> FCLayers:
            return FCLayers(
                n_in=n_hidden + n_input,
                n_out=n_output,
                n_cat_list=n_cat_list,
                dropout_rate=0,
                use_batch_norm=False,
                use_activation=use_activation,
            )

        # The order of scvi-tools: a seed then gives the same weights.
        self.px_decoder = stack()
        self.px_scale_decoder = head(n_output_genes)
        self.scale_activation = scale_activation
        self.px_scale_activation = SCALE_ACTIVATIONS[scale_activation]()
        self.py_back_decoder = stack()
        self.py_back_mean_log_alpha = head(n_output_proteins)
        self.py_back_mean_log_beta = head(n_output_proteins)
        self.py_fore_decoder = stack()
        self.py_fore_scale_decoder = head(n_output_proteins, use_activation=True)
        self.sigmoid_decoder = stack()
        self.px_dropout_decoder_gene = head(n_output_genes)
        self.py_background_decoder = head(n_output_proteins)

    def forward(
        self,
        z: Tensor,
        library_gene: Tensor,
        *cat_list: Tensor | None,
        zero_inflated: bool = True,
        use_mean: bool = False,
    ) -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
        """``(genes, proteins, log background rate)``.

        Parameters
        ----------
        z
            ``[n, n_input]`` or ``[s, n, n_input]``.
        library_gene
            Factor between scale and rate of the genes, ``[n, 1]`` or ``[s, n, 1]``.
        cat_list
            Codes ``[n, 1]`` of each categorical covariate.
        zero_inflated
            Whether the genes' dropout logits are computed; None otherwise.
        use_mean
            Whether the mean of the log background rate takes the place of a draw.

        Returns
        -------
        genes
            ``scale`` (proportions of the cell), ``rate`` (mean), ``dropout`` (logits of an extra
            zero), ``[n, g]`` each.
        proteins
            ``back_alpha`` and ``back_beta`` (mean and standard deviation of the log background
            rate), ``rate_back``, ``fore_scale`` (at least 1), ``rate_fore``, ``mixing`` (logits of
            background), ``scale`` (foreground rate times its probability, as a proportion of the
            cell), ``[n, p]`` each.
        log background rate
            ``[n, p]``.
        """
        seen = self.units(z, *cat_list, use_mean=use_mean)
        px_ = self.genes(seen, library_gene, zero_inflated)
        py_ = seen.proteins
        foreground = torch.sigmoid(-py_["mixing"]) * py_["rate_fore"]
        py_["scale"] = F.normalize(foreground, p=1, dim=-1)
        return px_, py_, seen.log_rate_back

    def units(
        self,
        z: Tensor,
        *cat_list: Tensor | None,
        use_mean: bool = False,
        kernel: Kernel | None = None,
    ) -> DecodedUnits:
        """All but the genes' two heads: these make most of the work, and see these units.

        Parameters
        ----------
        z, cat_list, use_mean
            As for :meth:`forward`.
        kernel
            As for :class:`~scvi_dist.nn.FCLayers`.
        """
        codes = self._indicators(z, cat_list)
        genes = _seen(self.px_decoder, z, codes, kernel)
        py_ = self._background(z, codes, kernel)
        log_rate_back = py_["back_alpha"]
        if not use_mean:
            law = Normal(py_["back_alpha"], py_["back_beta"], validate_args=False)
            log_rate_back = self.noise.rsample(law)
        py_["rate_back"] = torch.exp(log_rate_back)

        seen = _seen(self.py_fore_decoder, z, codes, kernel)
        py_["fore_scale"] = 1 + full_precision(self.py_fore_scale_decoder(seen, *codes))
        py_["rate_fore"] = py_["rate_back"] * py_["fore_scale"]

        dropout = _seen(self.sigmoid_decoder, z, codes, kernel)
        py_["mixing"] = full_precision(self.py_background_decoder(dropout, *codes))
        return DecodedUnits(
            genes=self.px_scale_decoder.with_covariates(genes, *codes),
            dropout=self.px_dropout_decoder_gene.with_covariates(dropout, *codes),
            proteins=py_,
            log_rate_back=log_rate_back,
        )

    def genes(
        self, units: DecodedUnits, library_gene: Tensor, zero_inflated: bool = True
    ) -> dict[str, Any]:
        """The genes' part of :meth:`forward`."""
        scale_head, dropout_head = self.gene_heads
        scale = self.px_scale_activation(full_precision(scale_head(units.genes)))
        logits = full_precision(dropout_head(units.dropout)) if zero_inflated else None
        return {"scale": scale, "rate": library_gene * scale, "dropout": logits}

    @property
    def gene_heads(self) -> tuple[nn.Linear, nn.Linear]:
        """The layers from units to the logits of the genes' scale and of their extra zeros."""
        return _head_of(self.px_scale_decoder), _head_of(self.px_dropout_decoder_gene)

    def _background(self, z: Tensor, codes: list[Any], kernel: Kernel | None) -> dict[str, Tensor]:
        seen = _seen(self.py_back_decoder, z, codes, kernel)
        spread = full_precision(self.py_back_mean_log_beta(seen, *codes))
        return {
            "back_alpha": full_precision(self.py_back_mean_log_alpha(seen, *codes)),
            "back_beta": self.activation_function_bg(spread) + EPS,
        }

    def _indicators(self, z: Tensor, cat_list: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """The codes as indicators, made once for the ten stacks and heads."""
        n_categories = self.px_decoder.n_cat_list
        return [
            one_hot(codes, n, z.dtype) if n and codes is not None else codes
            for codes, n in zip(cat_list, n_categories, strict=False)
        ]


def _seen(stack: FCLayers, z: Tensor, codes: list[Any], kernel: Kernel | None) -> Tensor:
    """What the heads of a stack see: its units, and ``z`` itself."""
    hidden = stack(z, *codes, kernel=kernel)
    return torch.cat([hidden, z.to(hidden.dtype)], dim=-1)


def _head_of(layers: FCLayers) -> nn.Linear:
    """The one layer, which takes units and covariates side by side."""
    linear = layers.fc_layers[0][0]
    assert isinstance(linear, nn.Linear)
    return linear


def _known(what: str, name: str, choices: Iterable[str]) -> None:
    if name not in choices:
        raise ConfigError(f"There is no {what} {name!r}; {did_you_mean(name, choices)}")
