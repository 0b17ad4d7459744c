"""Expression with technical effects taken out: what the decoder says of each cell's genes.

Axis suffixes: ``n`` cells, ``g`` genes, ``k`` latent, ``s`` samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from scvi_dist.analysis.output import Layout, Out, X, stored, write
from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import CellGroup, Cells, StoreCells, collect
from scvi_dist.errors import ConfigError
from scvi_dist.module.base import BaseModule
from scvi_dist.module.vae import VAE

LATENT_LIBRARY: Literal["latent"] = "latent"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpressionOptions:
    """Which expression."""

    transform_batch: tuple[int | None, ...] = (None,)
    """Codes of the batches that every cell is decoded as; the mean over them is returned.
    ``None`` is the cell's own batch."""
    genes: np.ndarray | None = None
    """int64: columns that are returned, all where None."""
    library_size: float | Literal["latent"] = 1.0
    """What the proportions are multiplied by; ``"latent"``: the library size of each cell."""
    n_samples: int = 1
    """Draws of the latent variables for each cell."""
    return_mean: bool = True
    """The mean over draws instead of all of them."""

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise ConfigError(f"n_samples must be at least 1, seen {self.n_samples}.")
        if not self.transform_batch:
            raise ConfigError("transform_batch names no batch; give None for each cell's own.")
        if isinstance(self.library_size, str) and self.library_size != LATENT_LIBRARY:
            raise ConfigError(
                f"library_size must be a number or {LATENT_LIBRARY!r}, seen {self.library_size!r}."
            )

    @property
    def keeps_samples(self) -> bool:
        """Whether every draw is returned."""
        return self.n_samples > 1 and not self.return_mean


def normalized_expression(
    module: BaseModule,
    cells: Cells,
    options: ExpressionOptions,
    *,
    out: Out = None,
) -> np.ndarray | str:
    """Decoded expression of each cell.

    Returns
    -------
    float32 ``[n, g]``, or ``[s, n, g]`` where every draw is kept; with ``out`` the URL of a
    store whose X holds it.

    Source
    ------
    Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics"; ``ρ`` there.
    """
    compute = partial(_expression, module=module, options=options)
    if out is not None:
        if options.keeps_samples:
            raise ConfigError("every draw of every cell does not go to a store: set return_mean.")
        layout = Layout(obsm={}, x="dense", var_names=gene_names(stored(cells), options.genes))
        return write(module, stored(cells), compute, out, layout, _facts(options))
    expression = collect(module, cells, compute)[X]
    return np.moveaxis(expression, 1, 0) if options.keeps_samples else expression


def sampled_expression(
    module: BaseModule,
    cells: StoreCells,
    options: ExpressionOptions,
    *,
    n_samples_overall: int,
) -> tuple[np.ndarray, Selection]:
    """Expression of cells drawn with replacement, each with a draw of its own.

    Only the cells that are drawn are read and decoded, however many there are to draw from.

    Returns
    -------
    float32 ``[n_samples_overall, g]``, and which cells these are.
    """
    if n_samples_overall < 1:
        raise ConfigError(f"n_samples_overall must be at least 1, seen {n_samples_overall}.")
    if options.n_samples != 1:
        raise ConfigError(
            f"give n_samples or n_samples_overall, not both; seen {options.n_samples} and "
            f"{n_samples_overall}."
        )
    rng = np.random.default_rng([cells.config.seed, 0xD2A])
    drawn = rng.integers(cells.n_cells, size=n_samples_overall)
    selection = Selection(cells.selection.n_obs, cells.selection.at(drawn))
    those = StoreCells(cells.source, selection, cells.config)
    compute = partial(_expression, module=module, options=options)
    return collect(module, those, compute)[X], selection


def gene_names(cells: StoreCells, genes: np.ndarray | None) -> np.ndarray:
    """Names of the genes that are returned, object array of str."""
    names = np.array(cells.source.schema.var_names, dtype=object)
    return names if genes is None else names[genes]


def decoded(
    module: BaseModule, tensors: Any, n_samples: int, transform_batch: Sequence[int | None]
) -> list[Distribution]:
    """The law of the counts, decoded as each of the batches from the same latent draws."""
    inferred = module.inference(**module._get_inference_input(tensors), n_samples=n_samples)
    given = module._get_generative_input(tensors, inferred)
    return [module.generative(**given, transform_batch=b)["px"] for b in transform_batch]


def _expression(
    group: CellGroup, module: BaseModule, options: ExpressionOptions
) -> dict[str, Tensor]:
    key = "mu" if options.library_size == LATENT_LIBRARY else "scale"
    parts = _decoded_genes(module, group.tensors, options, key)
    expression = sum(parts) if len(parts) == 1 else sum(parts) / len(parts)
    if options.library_size != LATENT_LIBRARY:
        expression = expression * float(options.library_size)
    if options.n_samples > 1:
        # Cells come first in every result.
        expression = expression.mean(0) if options.return_mean else expression.movedim(1, 0)
    return {X: expression}


def _decoded_genes(
    module: BaseModule, tensors: Any, options: ExpressionOptions, key: str
) -> list[Tensor]:
    """Expression of the genes that are asked for, decoded as each of the batches."""
    if options.genes is None or not isinstance(module, VAE):
        laws = decoded(module, tensors, options.n_samples, options.transform_batch)
        return [_columns(law.get_normalized(key), options.genes) for law in laws]
    inferred = module.inference(**module._get_inference_input(tensors), n_samples=options.n_samples)
    given = module._get_generative_input(tensors, inferred)
    genes_k = torch.from_numpy(options.genes).to(module.device)
    pairs = [module.scales_of(genes_k, **given, transform_batch=b) for b in options.transform_batch]
    return [rate if key == "mu" else scale for scale, rate in pairs]


def _columns(x: Tensor, genes: np.ndarray | None) -> Tensor:
    return x if genes is None else x[..., torch.from_numpy(genes).to(x.device)]


def _facts(options: ExpressionOptions) -> dict[str, Any]:
    genes = None if options.genes is None else options.genes.tolist()
    plain = replace(options, genes=None)
    return {
        "normalized_expression": genes,
        "transform_batch": plain.transform_batch,
        "library_size": plain.library_size,
        "n_samples": plain.n_samples,
    }
