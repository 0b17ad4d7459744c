"""From cells to draws of their expression: each cell is encoded once, decoded as often as asked.

Axis suffixes: ``n`` cells, ``r`` draws, ``k`` latent, ``g`` genes, ``f`` features: genes, then
proteins.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from scvi_dist.analysis.noise import cell_noise
from scvi_dist.analysis.passes.cell_pass import CellPass, Partial, Rule
from scvi_dist.analysis.protein_expression import JointOptions, proteins_of
from scvi_dist.analysis.streaming import CellGroup, StoreCells, collect, evaluating
from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.dataloaders.rows import splitmix64
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


def scales(
    module: BaseModule, cells: Posteriors, keys_r: np.ndarray, batch: int | None, how: DecodeOptions
) -> Iterator[np.ndarray]:
    """Expression of one draw of each cell, float32 ``[r, f]``, in pieces of some draws.

    Parameters
    ----------
    cells
        Whose draws these are, ``[r, ...]``.
    keys_r
        What the noise of each draw follows from.
    batch
        Code of the batch that all are decoded as; their own where None.
    """
    with evaluating(module), cell_noise(module) as noise:
        for start in range(0, len(keys_r), DECODED_TOGETHER):
            part = slice(start, start + DECODED_TOGETHER)
            noise.bind(keys_r[part])
            there = {
                key: torch.from_numpy(value[part]).to(module.device) for key, value in cells.items()
            }
            with torch.inference_mode():
                values = decode(module, there, batch, how).cpu().numpy()
            yield values


def decode(
    module: BaseModule, cells: Mapping[str, Tensor], batch: int | None, how: DecodeOptions
) -> Tensor:
    """One draw of the expression of each cell, ``[n, f]``, from noise that is bound already."""
    loc = cells["loc"]
    drawn = loc + cells["scale"] * module.noise.normal_like(loc)  # type: ignore[attr-defined]
    if isinstance(module, TOTALVAE):
        return _decode_both(module, cells, drawn, batch, how)
    assert isinstance(module, VAE)
    codes = cells[REGISTRY_KEYS.BATCH_KEY]
    return module.decode_scale(
        module.z_encoder.z_transformation(drawn),
        codes if batch is None else torch.full_like(codes, batch),
        cells.get(REGISTRY_KEYS.CONT_COVS_KEY),
        cells.get(REGISTRY_KEYS.CAT_COVS_KEY),
    )


def _decode_both(
    module: TOTALVAE,
    cells: Tensors,
    drawn: Tensor,
    batch: int | None,
    how: DecodeOptions,
) -> Tensor:
    z = module.encoder.z_transformation(drawn)
    # Proportions and rates of proteins do not depend on the library size of the genes.
    given = module._get_generative_input(cells, {"z": z, "library_gene": torch.ones_like(z[:, :1])})
    law = module.generative(**given, transform_batch=batch)
    parts = []
    if how.genes:
        parts.append(law["px_"]["scale"])
    if how.proteins:
        parts.append(proteins_of(law["py_"], module, how.joint) + how.protein_prior_count)
    return torch.cat(parts, dim=-1)
