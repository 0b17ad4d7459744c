"""Statistics of the counts of groups of cells, all groups in one pass.

Sums are kept in float64: those of counts are exact up to 2**53, whatever the order of the cells and
whoever adds them up, and what a group has not follows by subtraction.

Axis suffixes: ``n`` cells, ``s`` strata (groups that share no cell), ``g`` genes, ``p`` proteins.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np

from scvi_dist.analysis.passes.cell_pass import CellPass, Partial, Rule
from scvi_dist.analysis.streaming import Block, StoreCells
from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.kernels.code_cache import cached_njit
from scvi_dist.module.base import BaseModule

TARGET_SUM = 1e4
"""Counts that every cell is scaled to for normalised means, as in scvi-tools."""
RAW_RULES: dict[str, Rule] = dict.fromkeys(
    ("cells", "sum", "squares", "nonzeros", "normalised"), "sum"
)
"""``cells [s]``; of values, squares, non-zeros and normalised values ``[s, g]``."""
PROTEIN_RULES: dict[str, Rule] = dict.fromkeys(
    ("protein_sum", "protein_squares", "protein_nonzeros"), "sum"
)
"""``[s, p]``."""
RAW_BY_GENE = frozenset(RAW_RULES) - {"cells"}
_DIGESTED = 1 << 18
"""Cells whose strata are digested together: they are widened for it."""
_MOMENTS = ("sum", "squares", "nonzeros", "normalised")


class RawSums:
    """Sums of the counts of each stratum, to which blocks of cells are added.

    Parameters
    ----------
    n_strata
        Strata; cells with the code -1 are in none and are not counted.
    n_genes, n_proteins
        Width of the counts.
    """

    def __init__(self, n_strata: int, n_genes: int, n_proteins: int = 0) -> None:
        self._cells_s = np.zeros(n_strata)
        # The four sums of a gene lie together: an entry touches one line of the cache.
        self._moments_sgm = np.zeros((n_strata, n_genes, len(_MOMENTS)))
        self._proteins_msp = np.zeros((len(PROTEIN_RULES), n_strata, n_proteins))

    def add(self, block: Block, codes_n: np.ndarray) -> None:
        """Count a block in; ``codes_n`` has the stratum of each of its cells."""
        counted = codes_n >= 0
        self._cells_s += np.bincount(codes_n[counted], minlength=len(self._cells_s))
        counts = block.counts
        _add_rows(
            counts.indptr,
            counts.indices,
            counts.data,
            codes_n.astype(np.int64),
            TARGET_SUM,
            self._moments_sgm,
        )
        proteins = block.fields.get(REGISTRY_KEYS.PROTEIN_EXP_KEY)
        if proteins is not None and self._proteins_msp.size:
            y_np = proteins[counted].astype(np.float64)
            for sums_sp, values_np in zip(
                self._proteins_msp, (y_np, np.square(y_np), y_np > 0), strict=True
            ):
                np.add.at(sums_sp, codes_n[counted], values_np)

    def partial(self) -> dict[str, np.ndarray]:
        """What was counted, by the names of :data:`RAW_RULES` and :data:`PROTEIN_RULES`."""
        sums = {"cells": self._cells_s}
        for i, name in enumerate(_MOMENTS):
            sums[name] = np.ascontiguousarray(self._moments_sgm[:, :, i])
        return {**sums, **dict(zip(PROTEIN_RULES, self._proteins_msp, strict=True))}


class RawStatisticsPass(CellPass):
    """Sums of the counts of each stratum.

    Parameters
    ----------
    codes_n
        int: the stratum of each cell in the caller's order, -1 for none.
    n_strata
        Strata.
    """

    rules: ClassVar[Mapping[str, Rule]] = {**RAW_RULES, **PROTEIN_RULES}
    by_gene: ClassVar[frozenset[str]] = RAW_BY_GENE

    def __init__(self, codes_n: np.ndarray, n_strata: int) -> None:
        self._codes_n: np.ndarray | None = codes_n
        self._digest = digest_of(codes_n)
        self.n_strata = n_strata

    def __getstate__(self) -> dict[str, Any]:
        # Each part gets the codes of its own cells.
        return {**self.__dict__, "_codes_n": None}

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"pass": "raw statistics", "strata": self._digest, "target_sum": TARGET_SUM}

    def payload(self, positions: np.ndarray) -> np.ndarray:
        assert self._codes_n is not None, "codes do not travel with the pass"
        return self._codes_n[positions]

    def compute(self, module: BaseModule | None, cells: StoreCells, payload: Any) -> Partial:
        schema = cells.source.schema
        sums = RawSums(self.n_strata, schema.n_vars, schema.n_proteins)
        for _ in added(sums, cells.blocks(), payload):
            pass
        return sums.partial()


def digest_of(codes_n: np.ndarray) -> str:
    """32 hex digits of the strata of all cells."""
    digest = blake2b(digest_size=16)
    for start in range(0, len(codes_n), _DIGESTED):
        digest.update(codes_n[start : start + _DIGESTED].astype(np.int64).tobytes())
    return digest.hexdigest()


def added(sums: RawSums, blocks: Iterator[Block], codes_n: np.ndarray) -> Iterator[Block]:
    """The blocks, each counted in as it passes."""
    for block in blocks:
        sums.add(block, codes_n[block.positions])
        yield block


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupStatistics:
    """What is known of the counts of some groups of cells."""

    cells_s: np.ndarray
    """Cells, float64 ``[s]``."""
    mean_sg: np.ndarray
    """Mean count of each gene, float64 ``[s, g]``; NaN for a group without cells."""
    variance_sg: np.ndarray
    """Variance of the counts, divided by ``n - 1``; 0 for a single cell."""
    nonzeros_sg: np.ndarray
    """Part of the cells whose count is not 0."""
    normalised_mean_sg: np.ndarray
    """Mean of the counts scaled to 10,000 a cell; an empty cell counts with zeros."""
    protein_mean_sp: np.ndarray
    """Mean count of each protein, float64 ``[s, p]``; likewise below."""
    protein_variance_sp: np.ndarray
    protein_nonzeros_sp: np.ndarray

    @staticmethod
    def of(sums: Partial) -> "GroupStatistics":
        """From the sums of :class:`RawStatisticsPass`."""
        n_s1 = np.asarray(sums["cells"], dtype=np.float64)[:, None]
        mean_sg, variance_sg = mean_and_variance(sums["sum"], sums["squares"], n_s1)
        mean_sp, variance_sp = mean_and_variance(sums["protein_sum"], sums["protein_squares"], n_s1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return GroupStatistics(
                cells_s=n_s1[:, 0],
                mean_sg=mean_sg,
                variance_sg=variance_sg,
                nonzeros_sg=sums["nonzeros"] / n_s1,
                normalised_mean_sg=sums["normalised"] / n_s1,
                protein_mean_sp=mean_sp,
                protein_variance_sp=variance_sp,
                protein_nonzeros_sp=sums["protein_nonzeros"] / n_s1,
            )


def united(sums: Partial, members_us: np.ndarray) -> dict[str, np.ndarray]:
    """The sums of unions of strata; ``members_us`` (bool) says which strata each is made of."""
    return {name: members_us.astype(np.float64) @ value for name, value in sums.items()}


def mean_and_variance(
    sums: np.ndarray, squares: np.ndarray, n_s1: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of groups of ``n_s1`` cells, from sums of values and of their squares; the variance is
    divided by ``n - 1``. NaN for a group without cells, and a variance of 0 for a single cell."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums / n_s1
        variance = (squares - sums * mean) / np.maximum(n_s1 - 1, 1)
    return mean, np.where(n_s1 > 0, np.maximum(variance, 0), np.nan)


@cached_njit(nogil=True)
def _add_rows(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    codes_n: np.ndarray,
    target_sum: float,
    moments_sgm: np.ndarray,
) -> None:
    for row in range(len(indptr) - 1):
        stratum = codes_n[row]
        if stratum < 0:
            continue
        total = 0.0
        for entry in range(indptr[row], indptr[row + 1]):
            total += data[entry]
        factor = target_sum / total if total > 0 else 0.0
        for entry in range(indptr[row], indptr[row + 1]):
            value = np.float64(data[entry])
            if value != 0:
                gene = indices[entry]
                moments_sgm[stratum, gene, 0] += value
                moments_sgm[stratum, gene, 1] += value * value
                moments_sgm[stratum, gene, 2] += 1
                moments_sgm[stratum, gene, 3] += value * factor
