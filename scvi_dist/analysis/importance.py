"""Which draws of the latent space speak for a whole population of cells.

A draw weighs more if it makes the counts of many cells of the population likely.

Axis suffixes: ``n`` cells, ``g`` genes, ``k`` latent, ``s`` samples, ``a`` anchor cells.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from scvi_dist.analysis.elbo import marginal_ll
from scvi_dist.analysis.expression import ExpressionOptions, normalized_expression
from scvi_dist.analysis.latent import latent_representation
from scvi_dist.analysis.laws import with_mean
from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import CellGroup, StoreCells, collect
from scvi_dist.errors import ConfigError
from scvi_dist.module.vae import VAE

_TAG = 0x1A9


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportanceOptions:
    """How weights are estimated; scvi-tools' names and defaults."""

    max_cells: int = 1024
    """Cells of the population that a draw is judged by."""
    truncation: bool = False
    """Raise small weights to the mean weight, which steadies the estimate."""
    n_mc_samples: int = 500
    """Draws for the marginal likelihood of each of those cells."""
    n_mc_samples_per_pass: int = 250
    """Draws of these that are decoded at once."""

    def __post_init__(self) -> None:
        if min(self.max_cells, self.n_mc_samples, self.n_mc_samples_per_pass) < 1:
            raise ConfigError(
                "max_cells, n_mc_samples and n_mc_samples_per_pass must be at least 1, seen "
                f"{self.max_cells}, {self.n_mc_samples} and {self.n_mc_samples_per_pass}."
            )


@dataclass(frozen=True, slots=True)
class _Anchors:
    """The cells that draws are judged by."""

    x_ag: Tensor
    qz: Normal
    """Posterior ``[a, k]``."""
    log_px_a: Tensor
    """Marginal log-likelihood."""


def importance_sampled_expression(
    module: VAE,
    cells: StoreCells,
    options: ExpressionOptions,
    importance: ImportanceOptions,
    *,
    n_samples_overall: int,
) -> tuple[np.ndarray, Selection]:
    """Expression of draws that were chosen with replacement by their importance.

    Draws are weighed in one pass that keeps a number for each; only those chosen are decoded
    again.

    Returns
    -------
    float32 ``[n_samples_overall, g]``, and whose draws these are.
    """
    if len(options.transform_batch) > 1:
        raise ConfigError(
            "draws cannot be weighed while expression is averaged over batches: give one batch "
            "as transform_batch, or leave weights out."
        )
    n_samples = n_samples_overall // cells.n_cells + 1
    weights_ns = importance_weights(module, cells, importance, options, n_samples=n_samples)
    rng = np.random.default_rng([cells.config.seed, _TAG, 1])
    chosen = rng.choice(weights_ns.size, n_samples_overall, p=weights_ns.ravel())
    cell, sample = np.divmod(chosen, n_samples)
    distinct, which = np.unique(cell, return_inverse=True)
    those = StoreCells(cells.source, cells.selection.subset(distinct), cells.config)
    every = replace(options, n_samples=n_samples, return_mean=False)
    decoded = np.asarray(normalized_expression(module, those, every))
    decoded_sng = decoded[None] if n_samples == 1 else decoded
    return decoded_sng[sample, which], cells.selection.subset(cell)


def importance_weights(
    module: VAE,
    cells: StoreCells,
    importance: ImportanceOptions,
    options: ExpressionOptions,
    *,
    n_samples: int,
) -> np.ndarray:
    """Probability ``[n, s]`` of each draw of each cell; they sum to 1.

    With ``w(z)`` the mean over anchors of ``p(z) p(x_a | z) / (p(x_a) q(z | x_a'))``, the
    posterior in the denominator being that of all anchors together.

    Source
    ------
    Boyeau et al. 2023, "An empirical Bayes method for differential expression analysis of single
    cells with deep generative models".
    """
    if module.latent_distribution != "normal":
        raise ConfigError("importance weights need latent_distribution='normal'.")
    anchors = _anchors(module, cells, importance)
    batch = options.transform_batch[0]

    def log_weights(group: CellGroup) -> dict[str, Tensor]:
        inferred = module.inference(
            **module._get_inference_input(group.tensors), n_samples=n_samples
        )
        given = module._get_generative_input(group.tensors, inferred)
        law = module.generative(**given, transform_batch=batch)["px"]
        z = inferred["z"] if n_samples > 1 else inferred["z"][None]
        return {"w": _log_weights(z, law, anchors).movedim(0, 1)}

    log_w_ns = torch.from_numpy(collect(module, cells, log_weights)["w"]).double()
    if importance.truncation:
        mean = torch.logsumexp(log_w_ns.flatten(), 0) - np.log(log_w_ns.numel())
        log_w_ns = torch.clamp(log_w_ns, min=mean)
    return torch.softmax(log_w_ns.flatten(), 0).view_as(log_w_ns).numpy()


def _anchors(module: VAE, cells: StoreCells, importance: ImportanceOptions) -> _Anchors:
    rng = np.random.default_rng([cells.config.seed, _TAG])
    n = min(cells.n_cells, importance.max_cells)
    positions = np.sort(rng.choice(cells.n_cells, n, replace=False))
    selection = cells.selection.subset(positions)
    those = StoreCells(cells.source, selection, cells.config)
    posterior = latent_representation(module, those, return_dist=True)
    assert isinstance(posterior, tuple), "nothing was to be written"
    mean, variance = posterior
    log_px = marginal_ll(
        module,
        those,
        n_mc_samples=importance.n_mc_samples,
        n_mc_samples_per_pass=min(importance.n_mc_samples_per_pass, importance.n_mc_samples),
        return_mean=False,
    )
    counts = cells.source.store.read_rows_at(selection.rows(), cells.source.genes)
    device = module.device
    return _Anchors(
        torch.from_numpy(counts.to_dense()).to(device),
        Normal(*(torch.as_tensor(v).to(device) for v in (mean, np.sqrt(variance)))),
        torch.as_tensor(log_px).to(device),
    )


def _log_weights(z_snk: Tensor, law: Distribution, anchors: _Anchors) -> Tensor:
    """``[s, n]``: log weight of each draw, without the constant that makes them sum to 1."""
    log_pz = Normal(0.0, 1.0).log_prob(z_snk).sum(-1)
    log_qz = torch.logsumexp(anchors.qz.log_prob(z_snk.unsqueeze(-2)).sum(-1), dim=-1)
    scale = law.get_normalized("scale")
    of_anchors = []
    for x_g, log_px in zip(anchors.x_ag, anchors.log_px_a, strict=True):
        # Each anchor is looked at with its own library size.
        log_px_z = with_mean(law, scale * x_g.sum()).log_prob(x_g).sum(-1)
        of_anchors.append(log_px_z - log_px)
    log_ratio = torch.logsumexp(torch.stack(of_anchors), dim=0)
    return log_pz + log_ratio.view_as(log_pz) - log_qz
