"""Genes and proteins together, with technical effects taken out.

Axis suffixes: ``n`` cells, ``g`` genes, ``p`` proteins, ``f`` features, ``s`` samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scvi_dist.analysis.expression import LATENT_LIBRARY, gene_names
from scvi_dist.analysis.output import Layout, Out, X, stored, write
from scvi_dist.analysis.parameters import LIBRARY
from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import CellGroup, Cells, Compute, StoreCells, collect
from scvi_dist.errors import ConfigError
from scvi_dist.module.totalvae import TOTALVAE

PROTEINS = "proteins"
"""Result, and key of an output's obsm, of what is of proteins."""
_DRAWN_CELLS = 0xD2B


@dataclass(frozen=True, kw_only=True, slots=True)
class JointOptions:
    """Which expression of genes and proteins."""

    transform_batch: tuple[int | None, ...] = (None,)
    """Codes of the batches that every cell is decoded as; the mean over them is returned.
    ``None`` is the cell's own batch."""
    genes: np.ndarray | None = None
    """int64: genes that are returned, all where None."""
    proteins: np.ndarray | None = None
    """int64: proteins that are returned, all where None."""
    library_size: float | Literal["latent"] = 1.0
    """What the genes' proportions are multiplied by; ``"latent"``: each cell's library size."""
    n_samples: int = 1
    """Draws of the latent variables for each cell."""
    return_mean: bool = True
    """The mean over draws instead of all of them."""
    scale_protein: bool = False
    """Make a cell's proteins sum to 1, those that are not returned included."""
    sample_protein_mixing: bool = False
    """Draw whether a protein is background, instead of weighing with the probability."""
    include_protein_background: bool = False
    """Add the background to the foreground."""

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

    def facts(self) -> dict[str, Any]:
        """JSON values that the result follows from."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        for name in ("genes", "proteins"):
            plain[name] = None if plain[name] is None else plain[name].tolist()
        return plain


def joint_expression(
    module: TOTALVAE, cells: Cells, options: JointOptions, *, out: Out = None
) -> tuple[np.ndarray, np.ndarray] | str:
    """Decoded expression of the genes and of the proteins of each cell.

    Of a protein it is the foreground rate times the probability of foreground; a draw of the
    mixture and the background rate may come in.

    Returns
    -------
    float32 ``[n, g]`` and ``[n, p]``, or ``[s, n, g]`` and ``[s, n, p]`` where every draw is kept;
    with ``out`` the URL of a store whose X and ``obsm["proteins"]`` hold them.

    Source
    ------
    Gayoso et al. 2021, "Joint probabilistic modeling of single-cell multi-omic data with
    totalVI"; ``ρ`` and ``(1 - π) αβ`` there.
    """
    compute = partial(_expression, module=module, options=options)
    if out is None:
        results = collect(module, cells, compute)
        genes, proteins = (samples_first(results[k], options) for k in (X, PROTEINS))
        return genes, proteins
    return _written(module, cells, compute, out, options, {"joint_expression": options.facts()})


def _written(
    module: TOTALVAE,
    cells: Cells,
    compute: Compute,
    out: Any,
    options: JointOptions,
    what: dict[str, Any],
) -> str:
    if options.keeps_samples:
        raise ConfigError("every draw of every cell does not go to a store: set return_mean.")
    there = stored(cells)
    width = len(protein_names(there, options.proteins))
    names = gene_names(there, options.genes)
    layout = Layout(obsm={PROTEINS: width}, x="dense", var_names=names)
    return write(module, there, compute, out, layout, what)


def foreground_probability(
    module: TOTALVAE, cells: Cells, options: JointOptions, *, out: Out = None
) -> np.ndarray | str:
    """Probability that a protein's count is not background, for each cell and protein.

    Returns
    -------
    float32 ``[n, p]``, or ``[s, n, p]`` where every draw is kept; with ``out`` the URL of a store
    whose ``obsm["proteins"]`` holds it.
    """

    def compute(group: CellGroup) -> dict[str, Tensor]:
        laws = generated(module, group.tensors, options.n_samples, options.transform_batch)
        values = [columns(torch.sigmoid(-law["py_"]["mixing"]), options.proteins) for law in laws]
        return {PROTEINS: cells_first(_mean(values), options)}

    if out is None:
        return samples_first(collect(module, cells, compute)[PROTEINS], options)
    if options.keeps_samples:
        raise ConfigError("every draw of every cell does not go to a store: set return_mean.")
    layout = Layout(obsm={PROTEINS: len(protein_names(stored(cells), options.proteins))})
    what = {"foreground_probability": options.facts()}
    return write(module, stored(cells), compute, out, layout, what)


def background_mean(module: TOTALVAE, cells: Cells) -> np.ndarray:
    """Background rate of each cell and protein, float32 ``[n, p]``: one draw for each."""

    def compute(group: CellGroup) -> dict[str, Tensor]:
        (law,) = generated(module, group.tensors, 1, (None,))
        return {PROTEINS: law["py_"]["rate_back"]}

    return collect(module, cells, compute)[PROTEINS]


def library_sizes(
    module: TOTALVAE, cells: Cells, *, give_mean: bool = True, out: Out = None
) -> np.ndarray | str:
    """Library size of the genes of each cell, float32 ``[n, 1]``; or the URL of ``out``.

    Where it is inferred, the mean of its posterior or a draw; else the observed one.
    """

    def compute(group: CellGroup) -> dict[str, Tensor]:
        inferred = module.inference(**module._get_inference_input(group.tensors))
        ql = inferred["ql"]
        if give_mean and ql is not None:
            return {LIBRARY: torch.exp(ql.loc + 0.5 * ql.scale.square())}
        return {LIBRARY: inferred["library_gene"]}

    if out is not None:
        what = {"library_size_of_genes": give_mean}
        return write(module, stored(cells), compute, out, Layout(obsm={LIBRARY: 1}), what)
    return collect(module, cells, compute)[LIBRARY]


def drawn_cells(cells: StoreCells, n: int) -> StoreCells:
    """So many of the cells, drawn with replacement; repeats have noise of their own."""
    if n < 1:
        raise ConfigError(f"n_samples_overall must be at least 1, seen {n}.")
    rng = np.random.default_rng([cells.config.seed, _DRAWN_CELLS])
    drawn = rng.integers(cells.n_cells, size=n)
    selection = Selection(cells.selection.n_obs, cells.selection.at(drawn))
    return StoreCells(cells.source, selection, cells.config)


def protein_names(cells: StoreCells, proteins: np.ndarray | None) -> np.ndarray:
    """Names of the proteins that are returned, object array of str."""
    names = np.array(cells.source.schema.protein_names, dtype=object)
    return names if proteins is None else names[proteins]


def generated(
    module: TOTALVAE, tensors: Any, n_samples: int, transform_batch: Sequence[int | None]
) -> list[dict[str, Any]]:
    """What the module generates, as of each of the batches, from the same draws of ``z``."""
    inferred = module.inference(**module._get_inference_input(tensors), n_samples=n_samples)
    given = module._get_generative_input(tensors, inferred)
    return [module.generative(**given, transform_batch=b) for b in transform_batch]


def _expression(group: CellGroup, module: TOTALVAE, options: JointOptions) -> dict[str, Tensor]:
    laws = generated(module, group.tensors, options.n_samples, options.transform_batch)
    is_latent = options.library_size == LATENT_LIBRARY
    key = "rate" if is_latent else "scale"
    genes = _mean([columns(law["px_"][key], options.genes) for law in laws])
    if not is_latent:
        genes = genes * float(options.library_size)
    values = [proteins_of(law["py_"], module, options) for law in laws]
    proteins = _mean([columns(value, options.proteins) for value in values])
    return {X: cells_first(genes, options), PROTEINS: cells_first(proteins, options)}


def proteins_of(py_: dict[str, Tensor], module: TOTALVAE, options: JointOptions) -> Tensor:
    """What :func:`joint_expression` gives of proteins, ``[n, p]``, from the decoded values."""
    background = torch.sigmoid(py_["mixing"])
    if options.sample_protein_mixing:
        background = drawn_background(background, module)
    value = py_["rate_fore"] * (1 - background)
    if options.include_protein_background:
        value = value + py_["rate_back"] * background
    return F.normalize(value, p=1, dim=-1) if options.scale_protein else value


def drawn_background(probability: Tensor, module: TOTALVAE) -> Tensor:
    """1 with this probability, else 0; drawn from the cells' own noise."""
    # The distribution function of a normal variable, at that variable, is uniform.
    uniform = torch.special.ndtr(module.noise.normal_like(probability))
    return (uniform < probability).to(probability.dtype)


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean(0)


def columns(values: Tensor, wanted: np.ndarray | None) -> Tensor:
    """Some of the features ``[..., f]``."""
    return values if wanted is None else values[..., torch.from_numpy(wanted).to(values.device)]


def cells_first(values: Tensor, options: JointOptions) -> Tensor:
    """``[s, n, f]`` as ``[n, f]`` or, where every draw is kept, ``[n, s, f]``."""
    if options.n_samples == 1:
        return values
    return values.mean(0) if options.return_mean else values.movedim(1, 0)


def samples_first(values: np.ndarray, options: JointOptions) -> np.ndarray:
    """``[n, s, f]`` as ``[s, n, f]`` where every draw is kept."""
    return np.moveaxis(values, 1, 0) if options.keeps_samples else values
