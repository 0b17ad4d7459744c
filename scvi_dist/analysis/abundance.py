"""Differential abundance: how likely each sample is to have cells where a cell lies.

A sample is the mixture, in equal parts, of its cells' posteriors; each cell's place is the mean of
its posterior.

Axis suffixes: ``n`` cells, ``k`` latent, ``c`` components, ``m`` samples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from scvi_dist.analysis.output import Layout, Place, X, write
from scvi_dist.analysis.passes.cell_pass import CellPass, Partial, Rule
from scvi_dist.analysis.streaming import CellGroup, StoreCells, computed, place
from scvi_dist.errors import ConfigError
from scvi_dist.module.base import BaseModule

LOC, SCALE = "loc", "scale"
LOG_PROBS = "log_probs"
_POINTS_AT_ONCE = 256
"""Cells whose running sums stay in the cache while all components pass by."""
_DRAWN = 0xDA


class PosteriorPass(CellPass):
    """Mean and standard deviation of each cell's posterior: ``loc`` and ``scale``, ``[n, k]``."""

    rules: ClassVar[Mapping[str, Rule]] = {LOC: "concat", SCALE: "concat"}

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"posteriors": [LOC, SCALE]}

    def compute(self, module: BaseModule | None, cells: StoreCells, payload: Any) -> Partial:
        assert module is not None, "posteriors are a module's"
        posterior = partial(_posterior, module=module)
        return place(computed(module, cells.groups(), posterior), 0, cells.n_cells)


def _posterior(group: CellGroup, module: Any) -> dict[str, Tensor]:
    qz, _ = module.posterior(**module._get_inference_input(group.tensors))
    return {LOC: qz.loc, SCALE: qz.scale}


@dataclass(frozen=True, slots=True)
class Mixtures:
    """Components of several mixtures, one mixture after the other."""

    loc_ck: np.ndarray
    scale_ck: np.ndarray
    bounds: tuple[int, ...]
    """Mixture ``m`` has the components ``bounds[m] … bounds[m + 1] - 1``."""
    dof: float | None = None
    """Degrees of freedom of Student's t; normal components where None."""

    def __post_init__(self) -> None:
        if self.dof is not None and not self.dof > 0:
            raise ConfigError(f"dof must be positive or None, seen {self.dof}.")

    @property
    def n_mixtures(self) -> int:
        return len(self.bounds) - 1

    def log_density(self, points_nk: np.ndarray) -> np.ndarray:
        """Of each point under each mixture, float64 ``[n, m]``."""
        from scvi_dist.analysis.mixture_kernels import mixture_log_density

        points_nk = np.ascontiguousarray(points_nk, dtype=np.float64)
        dof = math.inf if self.dof is None else float(self.dof)
        out_mn = np.empty((self.n_mixtures, len(points_nk)))
        for m, (start, stop) in enumerate(pairwise(self.bounds)):
            scale_ck = self.scale_ck[start:stop].astype(np.float64)
            loc_kc = np.ascontiguousarray(self.loc_ck[start:stop].T, dtype=np.float64)
            inverse_kc = np.ascontiguousarray(1 / scale_ck.T)
            constant_c = self._constant(scale_ck)
            for a in range(0, len(points_nk), _POINTS_AT_ONCE):
                b = min(a + _POINTS_AT_ONCE, len(points_nk))
                there = points_nk[a:b], loc_kc, inverse_kc, constant_c, dof
                mixture_log_density(*there, out_mn[m, a:b])
            out_mn[m] -= math.log(stop - start)
        return out_mn.T

    def _constant(self, scale_ck: np.ndarray) -> np.ndarray:
        """Log-density of each component at its location."""
        n_latent, v = scale_ck.shape[1], self.dof
        each = -0.5 * math.log(2 * math.pi)
        if v is not None:
            each = math.lgamma((v + 1) / 2) - math.lgamma(v / 2) - 0.5 * math.log(v * math.pi)
        return n_latent * each - np.log(scale_ck).sum(1)

    def digest(self) -> str:
        """32 hex digits of all components."""
        state = blake2b(repr((self.bounds, self.dof)).encode(), digest_size=16)
        for array in (self.loc_ck, self.scale_ck):
            state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()


class AbundancePass(CellPass):
    """Log-density ``log_probs [n, m]`` (float32) of each cell's place under each mixture.

    Nothing is read of the cells: their places come with each part. Workers get all components, 8
    bytes a component and latent dimension.

    Parameters
    ----------
    mixtures
        One for each sample.
    points_nk
        The places of the cells.
    """

    rules: ClassVar[Mapping[str, Rule]] = {LOG_PROBS: "concat"}

    def __init__(self, mixtures: Mixtures, points_nk: np.ndarray) -> None:
        self.mixtures = mixtures
        self._points_nk: np.ndarray | None = points_nk
        self._digest = blake2b(np.ascontiguousarray(points_nk).tobytes(), digest_size=16)
        self._facts = {"abundance": [mixtures.digest(), self._digest.hexdigest()]}

    def __getstate__(self) -> dict[str, Any]:
        return {"mixtures": self.mixtures, "_points_nk": None, "_facts": self._facts}

    @property
    def facts(self) -> Mapping[str, Any]:
        return self._facts

    def payload(self, positions: np.ndarray) -> np.ndarray:
        """The places of these cells, ``[n, k]``."""
        assert self._points_nk is not None, "payloads are made where the pass was"
        return self._points_nk[positions]

    def compute(self, module: BaseModule | None, cells: StoreCells, payload: Any) -> Partial:
        return {LOG_PROBS: self.mixtures.log_density(payload).astype(np.float32)}


@dataclass(frozen=True, slots=True)
class Samples:
    """Which cells are of which sample."""

    names: tuple[Any, ...]
    """In the order in which they first occur."""
    positions: tuple[np.ndarray, ...]
    """int64: the cells of each, ascending."""

    @classmethod
    def of(cls, labels: Sequence[Any] | np.ndarray) -> "Samples":
        """Samples by the label of each cell; cells without a label are in none."""
        import pandas as pd

        codes, names = pd.factorize(np.asarray(labels, dtype=object))
        order = np.argsort(codes, kind="stable")
        ends = np.searchsorted(codes[order], np.arange(len(names) + 1))
        positions = tuple(order[a:b] for a, b in pairwise(ends))
        if not positions:
            raise ConfigError("no cell has a sample: all labels are missing.")
        return cls(tuple(names), positions)

    def limited(self, most: int | None, seed: int) -> "Samples":
        """At most so many cells of each sample, drawn at random without replacement."""
        if most is None:
            return self
        if most < 1:
            raise ConfigError(f"num_cells_posterior must be at least 1 or None, seen {most}.")
        kept = []
        for number, positions in enumerate(self.positions):
            rng = np.random.default_rng([seed, _DRAWN, number])
            few = len(positions) > most
            drawn = rng.choice(positions, most, replace=False) if few else positions
            kept.append(np.sort(drawn))
        return Samples(self.names, tuple(kept))

    @property
    def bounds(self) -> tuple[int, ...]:
        """Where each sample's cells begin when all are put one after the other."""
        return (0, *np.cumsum([len(p) for p in self.positions]).tolist())

    @property
    def components(self) -> np.ndarray:
        """int64: the cells of all samples, one sample after the other."""
        return np.concatenate(self.positions)


def write_abundance(
    module: BaseModule, cells: StoreCells, mixtures: Mixtures, samples: Samples, out: Place
) -> str:
    """Write the log-density of each cell's place under each mixture to a store; its URL.

    X holds them, with the samples in place of genes.
    """

    def compute(group: CellGroup) -> dict[str, Tensor]:
        points_nk = _posterior(group, module)[LOC].cpu().numpy()
        return {X: torch.from_numpy(mixtures.log_density(points_nk).astype(np.float32))}

    names = np.array([str(name) for name in samples.names], dtype=object)
    what = {"abundance": mixtures.digest(), "samples": names.tolist()}
    return write(module, cells, compute, out, Layout(obsm={}, x="dense", var_names=names), what)
