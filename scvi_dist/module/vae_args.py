"""The arguments of a VAE, checked, and what follows from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from torch import Tensor

from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.module.likelihoods import LIKELIHOODS
from scvi_dist.nn.encoder import Z_TRANSFORMATIONS

CHOICES: dict[str, tuple[str, ...]] = {
    "dispersion": ("gene", "gene-batch", "gene-label", "gene-cell"),
    "gene_likelihood": tuple(LIKELIHOODS),
    "latent_distribution": tuple(Z_TRANSFORMATIONS),
    "batch_representation": ("one-hot", "embedding"),
    "use_batch_norm": ("encoder", "decoder", "none", "both"),
    "use_layer_norm": ("encoder", "decoder", "none", "both"),
}


# Arrays have no single truth value: two sets of arguments are not compared.
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VAEArgs:
    """The arguments of :class:`~scvi_dist.module.VAE`, which has their defaults.

    Raises
    ------
    ConfigError
        Where a choice is not offered, or arguments contradict each other.
    """

    n_input: int
    """Genes."""
    n_batch: int
    """Batches; fewer than two are not corrected for."""
    n_labels: int
    """Labels; used by the ``"gene-label"`` dispersion alone."""
    n_hidden: int
    """Units of each hidden layer."""
    n_latent: int
    """Dimensions of the latent space."""
    n_layers: int
    """Hidden layers of the encoder and of the decoder."""
    n_continuous_cov: int
    """Continuous covariates."""
    n_cats_per_cov: Sequence[int] | None
    """Number of categories of each further categorical covariate."""
    dropout_rate: float
    """Probability of dropping a unit of the encoders; the decoder has no dropout."""
    dispersion: str
    """What has a dispersion of its own: a gene, also per batch, per label, or per cell."""
    log_variational: bool
    """Whether the encoders see ``log(1 + x)``."""
    gene_likelihood: str
    """Law of a count given its mean."""
    latent_distribution: str
    """``"normal"``, or ``"ln"``: the softmax of a normal variable."""
    encode_covariates: bool
    """Whether the encoders see the covariates."""
    deeply_inject_covariates: bool
    """Whether covariates enter every layer or only the first."""
    batch_representation: str
    """Batches as indicators or as learned vectors."""
    use_batch_norm: str
    """Where batch norm is used."""
    use_layer_norm: str
    """Where layer norm is used, after batch norm."""
    use_size_factor_key: bool
    """Whether a given size factor scales the mean; it takes the place of the library size."""
    use_observed_lib_size: bool
    """Whether the cell's sum of counts scales the mean; a latent library size where False."""
    extra_payload_autotune: bool
    """Whether the loss carries ``z``, batch and labels as extra metrics."""
    library_log_means: np.ndarray | None
    """``[1, n_batch]``: mean of the log library sizes of each batch, for a latent one."""
    library_log_vars: np.ndarray | None
    """``[1, n_batch]``: their variance."""
    var_activation: Callable[[Tensor], Tensor] | None
    """Makes the posterior variance positive; :func:`torch.exp` where None."""
    extra_encoder_kwargs: dict[str, Any] | None
    """Further arguments of :class:`~scvi_dist.nn.Encoder`."""
    extra_decoder_kwargs: dict[str, Any] | None
    """Further arguments of :class:`~scvi_dist.nn.DecoderSCVI`."""
    batch_embedding_kwargs: dict[str, Any] | None
    """Further arguments of :class:`~scvi_dist.nn.Embedding`, such as ``embedding_dim``."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(
                    f"{name} is one of {', '.join(choices)}; it was {value!r}: "
                    f"{did_you_mean(value, choices)}"
                )
        for dispersion, count in (("gene-batch", "n_batch"), ("gene-label", "n_labels")):
            if self.dispersion == dispersion and getattr(self, count) < 1:
                raise ConfigError(f"dispersion {dispersion!r} needs {count} of at least 1.")
        if not self.observes_library:
            self._check_library()

    def _check_library(self) -> None:
        expected = (1, max(self.n_batch, 1))
        for name in ("library_log_means", "library_log_vars"):
            value = getattr(self, name)
            if value is None or np.shape(value) != expected:
                seen = "missing" if value is None else f"of shape {np.shape(value)}"
                raise ConfigError(
                    f"A latent library size (use_observed_lib_size=False) needs {name} of shape "
                    f"{expected}; it was {seen}."
                )

    @property
    def observes_library(self) -> bool:
        """Whether no library size has to be inferred."""
        return self.use_size_factor_key or self.use_observed_lib_size

    @property
    def has_dispersion(self) -> bool:
        """Whether the likelihood has a dispersion."""
        return self.gene_likelihood != "poisson"

    @property
    def has_groups(self) -> bool:
        """Whether dispersions are those of the batch or the label of a cell."""
        return self.has_dispersion and self.dispersion in ("gene-batch", "gene-label")

    @property
    def px_r_shape(self) -> tuple[int, ...] | None:
        """Shape of the free log dispersions; None where the decoder gives them."""
        widths = {"gene": (), "gene-batch": (self.n_batch,), "gene-label": (self.n_labels,)}
        if self.dispersion not in widths:
            return None
        return (self.n_input, *widths[self.dispersion])

    @property
    def uses_embedding(self) -> bool:
        return self.batch_representation == "embedding"

    @property
    def embedding_args(self) -> dict[str, Any]:
        """Arguments of the batch embedding besides the number of batches."""
        return {"embedding_dim": 5, **(self.batch_embedding_kwargs or {})}

    @property
    def continuous_width(self) -> int:
        """Columns that are appended to a network's input: covariates and batch embedding."""
        embedded = self.embedding_args["embedding_dim"] if self.uses_embedding else 0
        return self.n_continuous_cov + embedded

    @property
    def cat_list(self) -> list[int]:
        """Number of categories of each covariate that enters as indicators."""
        further = list(self.n_cats_per_cov or ())
        return further if self.uses_embedding else [self.n_batch, *further]

    @property
    def encoder_args(self) -> dict[str, Any]:
        """What the encoders of ``z`` and of the library size have in common."""
        width = self.continuous_width if self.encode_covariates else 0
        return {
            "n_input": self.n_input + width,
            "n_cat_list": self.cat_list if self.encode_covariates else None,
            "n_hidden": self.n_hidden,
            "dropout_rate": self.dropout_rate,
            "inject_covariates": self.deeply_inject_covariates,
            "use_batch_norm": self.use_batch_norm in ("encoder", "both"),
            "use_layer_norm": self.use_layer_norm in ("encoder", "both"),
            "var_activation": self.var_activation,
            "return_dist": True,
        }

    @property
    def decoder_args(self) -> dict[str, Any]:
        """Arguments of the decoder."""
        return {
            "n_input": self.n_latent + self.continuous_width,
            "n_output": self.n_input,
            "n_cat_list": self.cat_list,
            "n_layers": self.n_layers,
            "n_hidden": self.n_hidden,
            "inject_covariates": self.deeply_inject_covariates,
            "use_batch_norm": self.use_batch_norm in ("decoder", "both"),
            "use_layer_norm": self.use_layer_norm in ("decoder", "both"),
            "scale_activation": "softplus" if self.use_size_factor_key else "softmax",
        }

    def as_dict(self) -> dict[str, Any]:
        """The arguments by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}
