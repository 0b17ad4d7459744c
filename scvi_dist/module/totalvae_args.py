"""The arguments of a TOTALVAE, checked, and what follows from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.nn.encoder import Z_TRANSFORMATIONS

CHOICES: dict[str, tuple[str, ...]] = {
    "gene_dispersion": ("gene", "gene-batch", "gene-label"),
    "protein_dispersion": ("protein", "protein-batch", "protein-label"),
    "gene_likelihood": ("nb", "zinb"),
    "latent_distribution": tuple(Z_TRANSFORMATIONS),
    "use_batch_norm": ("encoder", "decoder", "none", "both"),
    "use_layer_norm": ("encoder", "decoder", "none", "both"),
}

ProteinBatchMask = (
    Mapping[str, Sequence[bool] | np.ndarray] | Mapping[int, Sequence[bool] | np.ndarray]
)
"""Code of a panel -> for each protein whether it was measured there."""


# Arrays have no single truth value: two sets of arguments are not compared.
@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TOTALVAEArgs:
    """The arguments of :class:`~scvi_dist.module.TOTALVAE`, which has their defaults.

    Raises
    ------
    ConfigError
        Where a choice is not offered, or arguments contradict each other.
    """

    n_input_genes: int
    """Genes."""
    n_input_proteins: int
    """Proteins."""
    n_batch: int
    """Batches; fewer than two are not corrected for."""
    n_labels: int
    """Labels; used by the dispersions of labels alone."""
    n_hidden: int
    """Units of each hidden layer."""
    n_latent: int
    """Dimensions of the latent space."""
    n_layers_encoder: int
    """Hidden layers before ``z``."""
    n_layers_decoder: int
    """Hidden layers of each stack of the decoder."""
    n_continuous_cov: int
    """Continuous covariates."""
    n_cats_per_cov: Sequence[int] | None
    """Number of categories of each further categorical covariate."""
    dropout_rate_decoder: float
    """Probability of dropping a unit of the decoder."""
    dropout_rate_encoder: float
    """Probability of dropping a unit of the encoder."""
    gene_dispersion: str
    """What has a dispersion of its own: a gene, also per batch or per label."""
    protein_dispersion: str
    """The same for proteins."""
    log_variational: bool
    """Whether the encoder sees ``log(1 + x)`` of the cell's proportions, or these as they are."""
    gene_likelihood: str
    """Law of a gene's count given its mean."""
    latent_distribution: str
    """``"normal"``, or ``"ln"``: the softmax of a normal variable."""
    protein_batch_mask: ProteinBatchMask | None
    """Which proteins were measured in a panel; all of them where None or where a panel has no
    entry."""
    encode_covariates: bool
    """Whether the encoder sees the covariates."""
    protein_background_prior_mean: np.ndarray | None
    """``[p, n_panel]``, or ``[p, 1]`` for all panels: where the prior mean of the log background
    rate starts; 3 where None."""
    protein_background_prior_scale: np.ndarray | None
    """The same of its standard deviation; 1 where None."""
    use_size_factor_key: bool
    """Whether a given size factor scales the genes' means, instead of the library size."""
    use_observed_lib_size: bool
    """Whether the cell's sum of counts scales them; a latent library size where False."""
    extra_payload_autotune: bool
    """Whether the loss carries ``z``, batch and labels as extra metrics."""
    library_log_means: np.ndarray | None
    """``[1, n_batch]``: mean of the log library sizes of each batch, for a latent one."""
    library_log_vars: np.ndarray | None
    """``[1, n_batch]``: their variance."""
    n_panel: int | None
    """Panels of proteins; one for each batch where None."""
    panel_key: str
    """Registry key of a cell's panel."""
    use_batch_norm: str
    """Where batch norm is used."""
    use_layer_norm: str
    """Where layer norm is used, after batch norm."""
    extra_encoder_kwargs: dict[str, Any] | None
    """Further arguments of :class:`~scvi_dist.nn.EncoderTOTALVI`."""
    extra_decoder_kwargs: dict[str, Any] | None
    """Further arguments of :class:`~scvi_dist.nn.DecoderTOTALVI`."""

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(
                    f"{name} is one of {', '.join(choices)}; it was {value!r}: "
                    f"{did_you_mean(value, choices)}"
                )
        for name in ("gene_dispersion", "protein_dispersion"):
            group = getattr(self, name).partition("-")[2]
            count = {"batch": "n_batch", "label": "n_labels"}.get(group)
            if count is not None and getattr(self, count) < 1:
                raise ConfigError(f"{name} {getattr(self, name)!r} needs {count} of at least 1.")
        if not self.observes_library:
            self._check_library()
        self._check_prior()
        self._check_mask()

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

    def _check_prior(self) -> None:
        mean, scale = self.protein_background_prior_mean, self.protein_background_prior_scale
        if mean is None and scale is None:
            return
        valid = [(self.n_input_proteins, 1), (self.n_input_proteins, self.panels)]
        shapes = [None if value is None else np.shape(value) for value in (mean, scale)]
        if shapes[0] not in valid or shapes[0] != shapes[1]:
            raise ConfigError(
                "protein_background_prior_mean and protein_background_prior_scale both have the "
                f"shape {valid[0]} or {valid[1]}, proteins by panels; they were {shapes[0]} and "
                f"{shapes[1]}."
            )
        if not (np.asarray(scale) > 0).all():
            raise ConfigError("protein_background_prior_scale must be above 0 everywhere.")

    def _check_mask(self) -> None:
        for panel, measured in (self.protein_batch_mask or {}).items():
            if not 0 <= int(panel) < max(self.panels, 1):
                raise ConfigError(
                    f"protein_batch_mask has an entry for panel {panel}, but there are "
                    f"{self.panels} panels, counted from 0."
                )
            if len(measured) != self.n_input_proteins:
                raise ConfigError(
                    f"protein_batch_mask of panel {panel} has {len(measured)} entries for "
                    f"{self.n_input_proteins} proteins."
                )

    @property
    def observes_library(self) -> bool:
        """Whether no library size has to be inferred."""
        return self.use_size_factor_key or self.use_observed_lib_size

    @property
    def panels(self) -> int:
        """Number of panels."""
        return self.n_batch if self.n_panel is None else self.n_panel

    def dispersion_shape(self, what: str) -> tuple[int, ...]:
        """Shape of the free log dispersions of ``"gene"`` or ``"protein"``."""
        dispersion = self.gene_dispersion if what == "gene" else self.protein_dispersion
        n = self.n_input_genes if what == "gene" else self.n_input_proteins
        group = dispersion.partition("-")[2]
        return (n, {"batch": self.n_batch, "label": self.n_labels}[group]) if group else (n,)

    @property
    def mask_rows(self) -> np.ndarray | None:
        """bool ``[n_panel, p]``: which proteins were measured; None where all of them were."""
        shape = (max(self.panels, 1), self.n_input_proteins)
        rows = np.ones(shape, dtype=bool)
        for panel, measured in (self.protein_batch_mask or {}).items():
            rows[int(panel)] = np.asarray(measured, dtype=bool)
        return None if rows.all() else rows

    @property
    def cat_list(self) -> list[int]:
        """Number of categories of each covariate that enters as indicators."""
        return [self.n_batch, *(self.n_cats_per_cov or ())]

    @property
    def encoder_args(self) -> dict[str, Any]:
        """Arguments of the encoder."""
        n_covariates = self.n_continuous_cov if self.encode_covariates else 0
        return {
            "n_input": self.n_input_genes + self.n_input_proteins + n_covariates,
            "n_output": self.n_latent,
            "n_cat_list": self.cat_list if self.encode_covariates else None,
            "n_layers": self.n_layers_encoder,
            "n_hidden": self.n_hidden,
            "dropout_rate": self.dropout_rate_encoder,
            "distribution": self.latent_distribution,
            "use_batch_norm": self.use_batch_norm in ("encoder", "both"),
            "use_layer_norm": self.use_layer_norm in ("encoder", "both"),
            **(self.extra_encoder_kwargs or {}),
        }

    @property
    def decoder_args(self) -> dict[str, Any]:
        """Arguments of the decoder."""
        return {
            "n_input": self.n_latent + self.n_continuous_cov,
            "n_output_genes": self.n_input_genes,
            "n_output_proteins": self.n_input_proteins,
            "n_cat_list": self.cat_list,
            "n_layers": self.n_layers_decoder,
            "n_hidden": self.n_hidden,
            "dropout_rate": self.dropout_rate_decoder,
            "use_batch_norm": self.use_batch_norm in ("decoder", "both"),
            "use_layer_norm": self.use_layer_norm in ("decoder", "both"),
            "scale_activation": "softplus" if self.use_size_factor_key else "softmax",
            **(self.extra_decoder_kwargs or {}),
        }

    def as_dict(self) -> dict[str, Any]:
        """The arguments by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}
