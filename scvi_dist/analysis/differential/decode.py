"""From cells to draws of their expression: each cell is encoded once, decoded as often as asked.

Axis suffixes: ``n`` cells, ``r`` draws, ``k`` latent, ``g`` genes, ``f`` features: genes, then
proteins.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from scvi_dist.analysis.noise import cell_noise
from scvi_dist.analysis.passes.cell_pass import CellPass, Partial, Rule
from scvi_dist.analysis.protein_expression import JointOptions, proteins_of
from scvi_dist.analysis.streaming import CellGroup, StoreCells, collect, evaluating
from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.dataloaders.rows import splitmix64
from scvi_dist.kernels.choice import works_on
from scvi_dist.kernels.logits import Logits
from scvi_dist.kernels.problem import Head
from scvi_dist.module.base import BaseModule, Tensors
from scvi_dist.module.totalvae import TOTALVAE
from scvi_dist.module.vae import VAE

Posteriors: TypeAlias = Mapping[str, np.ndarray]
"""``loc`` and ``scale`` ``[n, k]`` of the latent posterior, and what a decoder sees of obs."""

DECODED_TOGETHER = 512
"""Draws of one forward pass: their scales stay in the processor's cache."""
_FIELDS = (
    REGISTRY_KEYS.BATCH_KEY,
    REGISTRY_KEYS.LABELS_KEY,
    REGISTRY_KEYS.CONT_COVS_KEY,
    REGISTRY_KEYS.CAT_COVS_KEY,
    REGISTRY_KEYS.SIZE_FACTOR_KEY,
)
_STRIDE = np.uint64(0xD1342543DE82EF95)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeOptions:
    """Which features are compared, and on which scale proteins are."""

    genes: bool = True
    proteins: bool = False
    protein_prior_count: float = 0.1
    """Added to the expression of proteins."""
    scale_protein: bool = False
    sample_protein_mixing: bool = False
    include_protein_background: bool = False

    @property
    def joint(self) -> JointOptions:
        """The same as options of :mod:`scvi_dist.analysis.protein_expression`."""
        return JointOptions(
            scale_protein=self.scale_protein,
            sample_protein_mixing=self.sample_protein_mixing,
            include_protein_background=self.include_protein_background,
        )


def posteriors(module: BaseModule, group: CellGroup) -> dict[str, Tensor]:
    """The latent posterior of each cell, with what a decoder sees of obs."""
    qz, _ = module.posterior(**module._get_inference_input(group.tensors))  # type: ignore[operator]
    known = {"loc": qz.loc, "scale": qz.scale.expand_as(qz.loc)}
    for key in _FIELDS:
        value = group.tensors.get(key)
        if value is not None:
            known[key] = value
    return known


class PosteriorPass(CellPass):
    """The latent posterior of every cell, in the caller's order."""

    rules: ClassVar[Mapping[str, Rule]] = dict.fromkeys(("loc", "scale", *_FIELDS), "concat")

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"pass": "posteriors"}

    def compute(self, module: BaseModule | None, cells: StoreCells, payload: Any) -> Partial:
        assert module is not None
        return collect(module, cells, lambda group: posteriors(module, group))


def draw_keys(keys_n: np.ndarray, draw: int | np.ndarray) -> np.ndarray:
    """uint64: what the noise of a further draw of each cell follows from; of draw 0 the key."""
    later = splitmix64(keys_n + np.asarray(draw, dtype=np.uint64) * _STRIDE)
    return np.where(np.asarray(draw) == 0, keys_n, later)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a decoder gives for some draws."""

    value_rf: np.ndarray
    """float32; the next draws may be written over it."""
    are_logits: bool = False
    """Whether the scales are their softmax."""

    def scales(self) -> Tensor:
        """float32 ``[r, f]``."""
        value_rf = torch.from_numpy(self.value_rf)
        return torch.softmax(value_rf, dim=-1) if self.are_logits else value_rf


def scales(
    module: BaseModule, cells: Posteriors, keys_r: np.ndarray, batch: int | None, how: DecodeOptions
) -> Iterator[np.ndarray]:
    """Expression of one draw of each cell, float32 ``[r, f]``; arguments of :func:`decoded`."""
    for piece in decoded(module, cells, keys_r, batch, how):
        yield piece.scales().numpy()


def decoded(
    module: BaseModule, cells: Posteriors, keys_r: np.ndarray, batch: int | None, how: DecodeOptions
) -> Iterator[Decoded]:
    """One draw of each cell, in pieces of some draws.

    Parameters
    ----------
    cells
        Whose draws these are, ``[r, ...]``.
    keys_r
        What the noise of each draw follows from.
    batch
        Code of the batch that all are decoded as; their own where None.
    """
    decode = decoder_of(module, batch, how)
    with evaluating(module), cell_noise(module) as noise:
        for start in range(0, len(keys_r), DECODED_TOGETHER):
            part = slice(start, start + DECODED_TOGETHER)
            noise.bind(keys_r[part])
            there = {
                key: torch.from_numpy(value[part]).to(module.device) for key, value in cells.items()
            }
            with torch.inference_mode():
                piece = decode(there)
            yield piece


def decoder_of(
    module: BaseModule, batch: int | None, how: DecodeOptions
) -> Callable[[Tensors], Decoded]:
    """What decodes one draw of each cell, from noise that is bound by then."""
    if isinstance(module, TOTALVAE):
        joint = module
        return lambda cells: Decoded(_decode_both(joint, cells, batch, how).cpu().numpy())
    assert isinstance(module, VAE)
    genes, head = module, _compiled_head(module)
    if head is None:
        return lambda cells: Decoded(genes.decode_scale(*_seen(genes, cells, batch)).cpu().numpy())
    logits = Logits(head)
    return lambda cells: Decoded(
        logits.of(genes.decode_units(*_seen(genes, cells, batch))), are_logits=True
    )


def _compiled_head(module: VAE) -> Head | None:
    """The layer whose logits compiled loops compute; None where torch does."""
    layer = module.decoder.px_scale_decoder[0]
    is_plain = module.decoder.scale_activation == "softmax" and type(layer) is nn.Linear
    is_here = works_on("numba", module.device) and layer.weight.dtype == torch.float32
    return Head.of(layer) if is_plain and is_here else None


def _drawn(module: BaseModule, cells: Tensors) -> Tensor:
    """One draw of each cell's latent variable, before it is transformed."""
    loc = cells["loc"]
    return loc + cells["scale"] * module.noise.normal_like(loc)  # type: ignore[attr-defined]


def _seen(module: VAE, cells: Tensors, batch: int | None) -> tuple[Any, ...]:
    """What a decoder sees: a draw of the latent variable, and covariates."""
    codes = cells[REGISTRY_KEYS.BATCH_KEY]
    return (
        module.z_encoder.z_transformation(_drawn(module, cells)),
        codes if batch is None else torch.full_like(codes, batch),
        cells.get(REGISTRY_KEYS.CONT_COVS_KEY),
        cells.get(REGISTRY_KEYS.CAT_COVS_KEY),
    )


def _decode_both(
    module: TOTALVAE,
    cells: Tensors,
    batch: int | None,
    how: DecodeOptions,
) -> Tensor:
    z = module.encoder.z_transformation(_drawn(module, cells))
    # Proportions and rates of proteins do not depend on the library size of the genes.
    given = module._get_generative_input(cells, {"z": z, "library_gene": torch.ones_like(z[:, :1])})
    law = module.generative(**given, transform_batch=batch)
    parts = []
    if how.genes:
        parts.append(law["px_"]["scale"])
    if how.proteins:
        parts.append(proteins_of(law["py_"], module, how.joint) + how.protein_prior_count)
    return torch.cat(parts, dim=-1)
