"""Models that compare populations of cells: differential expression, and statistics of counts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from scvi_dist.analysis.differential.decode import DecodeOptions
from scvi_dist.analysis.differential.groups import grouping_of
from scvi_dist.analysis.differential.options import DifferentialOptions
from scvi_dist.analysis.differential.run import differential_expression
from scvi_dist.analysis.group_statistics import group_statistics
from scvi_dist.analysis.importance import ImportanceOptions
from scvi_dist.analysis.passes.engines import resolve_executor
from scvi_dist.analysis.streaming import StoreCells, StreamConfig
from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.model.batches import batch_codes
from scvi_dist.model.binding import Source
from scvi_dist.model.latent_model import LatentModel

Rows = Sequence[int] | Sequence[bool] | np.ndarray | str | None
_BATCH_SIZE = 512
_BLOCK_BYTES = 96 << 20
"""Of the cells in use and those that are being read."""
_FURTHER = (
    "n_samples_overall",
    "use_permutation",
    "m_permutation",
    "change_fn",
    "m1_domain_fn",
    "pseudocounts",
    "threshold_counts",
    "test_mode",
    "cred_interval_lvls",
)
"""Arguments of scvi-tools' ``get_bayes_factors`` that are handed on."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """Which populations, and who computes."""

    adata: Source
    groupby: str | None
    group1: Any
    group2: Any
    idx1: Rows
    idx2: Rows
    batch_size: int | None
    dask: Any


class DifferentialModel(LatentModel):
    """A model that compares populations of cells.

    Its ``differential_expression`` has these arguments, which are those of scvi-tools but for the
    last three:

    ``adata``
        The cells: an AnnData, a path or URL, a list of them, or a store; the model's own where
        None.
    ``groupby``, ``group1``, ``group2``
        A column of obs, its groups that are compared (each that has cells where None) and the
        group that each is compared with (all other cells where None).
    ``idx1``, ``idx2``
        Instead: two populations as rows, masks or queries of obs; all other cells where ``idx2``
        is None.
    ``mode``
        ``"vanilla"``: how probable it is that the first population has more; ``"change"``: that
        the log fold change (LFC) is beyond ``delta``.
    ``delta``
        Found from the data where None.
    ``batch_size``
        Cells that are encoded together; no result depends on it.
    ``all_stats``
        Add statistics of the counts.
    ``batch_correction``, ``batchid1``, ``batchid2``
        Decode all cells as of each of these batches (of all where None), and compare within them.
    ``fdr_target``
        Expected share of false discoveries among the genes that are called.
    ``filter_outlier_cells``
        Leave out cells that lie apart from their population in the latent space.
    ``**kwargs``
        ``n_samples_overall``, ``use_permutation``, ``m_permutation``, ``change_fn``,
        ``m1_domain_fn``, ``pseudocounts``, ``threshold_counts``, ``test_mode`` and
        ``cred_interval_lvls``: see
        :class:`~scvi_dist.analysis.differential.options.DifferentialOptions`.
    ``estimator``
        ``"sample"``: cells are drawn, and only those are read and decoded; ``"full"``: every cell
        is decoded, through histograms, with the bound of the error in the table's ``attrs``.
    ``dask``
        Where passes over cells run: threads of this process where None, or what
        :func:`~scvi_dist.analysis.passes.engines.resolve_executor` takes: ``"local:4"``, the
        address of a Dask scheduler, a ``distributed.Client``, ``"ray"``, …
    ``seed``
        Of the draws. Where None it is taken from torch's global generator.
    """

    def get_group_statistics(
        self, adata: Source = None, groupby: str | None = None, *, dask: Any = None
    ) -> pd.DataFrame:
        """Statistics of the counts of each group of cells, in one pass over them.

        Returns
        -------
        See :func:`~scvi_dist.analysis.group_statistics.group_statistics`.
        """
        cells = self._stored_cells(adata, None, None)
        self._look_at_counts("get_group_statistics", cells)
        with resolve_executor(dask) as run:
            return group_statistics(cells, groupby, run=run)

    def _stored_cells(self, adata: Source, batch_size: int | None, seed: int | None) -> StoreCells:
        """All cells of a store."""
        source = self._binding.open(adata, self._checks_counts)
        if seed is None:
            seed = int(torch.randint(2**31, ()).item())
        config = StreamConfig(
            batch_size=batch_size or _BATCH_SIZE, budget_bytes=_BLOCK_BYTES, seed=seed
        )
        return StoreCells(source, config=config)

    def _compare(
        self,
        asked: _Asked,
        options: Mapping[str, Any],
        further: Mapping[str, Any],
        how: DecodeOptions,
        seed: int | None,
    ) -> pd.DataFrame:
        self._check_if_trained()
        cells = self._stored_cells(asked.adata, asked.batch_size, seed)
        batches = {name: self._batches(options[name], name) for name in ("batchid1", "batchid2")}
        grouping = grouping_of(
            cells.source.store,
            groupby=asked.groupby,
            group1=asked.group1,
            group2=asked.group2,
            idx1=asked.idx1,
            idx2=asked.idx2,
        )
        whole = DifferentialOptions(
            **{**options, **batches, **_further(further), "seed": cells.config.seed}
        )
        with resolve_executor(asked.dask) as run:
            return differential_expression(self.module, cells, grouping, whole, how, run)

    def _batches(self, names: Any, argument: str) -> tuple[int, ...] | None:
        if names is None:
            return None
        codes = batch_codes(self.schema, names, argument)
        return tuple(code for code in codes if code is not None)


class GeneDifferentialModel(DifferentialModel):
    """Differential expression of genes."""

    def differential_expression(
        self,
        adata: Source = None,
        groupby: str | None = None,
        group1: Any = None,
        group2: Any = None,
        idx1: Rows = None,
        idx2: Rows = None,
        mode: Literal["vanilla", "change"] = "vanilla",
        delta: float | None = 0.25,
        batch_size: int | None = None,
        all_stats: bool = True,
        batch_correction: bool = False,
        batchid1: Iterable[str] | None = None,
        batchid2: Iterable[str] | None = None,
        fdr_target: float = 0.05,
        silent: bool = False,
        weights: Literal["uniform", "importance"] | None = "uniform",
        filter_outlier_cells: bool = False,
        importance_weighting_kwargs: Mapping[str, Any] | None = None,
        *,
        estimator: Literal["sample", "full"] = "sample",
        dask: Any = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> pd.DataFrame:
        """Genes that differ between populations of cells.

        Parameters
        ----------
        weights, importance_weighting_kwargs
            ``"importance"``: draws count more that make the counts of a population likely; see
            :class:`~scvi_dist.analysis.importance.ImportanceOptions`.
        adata, groupby, ...
            See :class:`DifferentialModel`.

        Returns
        -------
        A row for each gene of each comparison, with scvi-tools' columns; the likeliest changes of
        a comparison come first.

        Source
        ------
        Lopez et al. 2018 (``"vanilla"``); Boyeau et al. 2019 (``"change"``).
        """
        if weights not in (None, "uniform", "importance"):
            raise ConfigError(f"weights is 'uniform', 'importance' or None, seen {weights!r}.")
        importance = None
        if weights == "importance":
            importance = ImportanceOptions(**_known(importance_weighting_kwargs))
        options = {
            "mode": mode,
            "estimator": estimator,
            "delta": delta,
            "all_stats": all_stats,
            "batch_correction": batch_correction,
            "batchid1": batchid1,
            "batchid2": batchid2,
            "fdr_target": fdr_target,
            "importance": importance,
            "filter_outlier_cells": filter_outlier_cells,
        }
        asked = _Asked(adata, groupby, group1, group2, idx1, idx2, batch_size, dask)
        return self._compare(asked, options, kwargs, DecodeOptions(), seed)


class JointDifferentialModel(DifferentialModel):
    """Differential expression of genes and proteins."""

    def differential_expression(
        self,
        adata: Source = None,
        groupby: str | None = None,
        group1: Any = None,
        group2: Any = None,
        idx1: Rows = None,
        idx2: Rows = None,
        mode: Literal["vanilla", "change"] = "change",
        delta: float | None = 0.25,
        batch_size: int | None = None,
        all_stats: bool = True,
        batch_correction: bool = False,
        batchid1: Iterable[str] | None = None,
        batchid2: Iterable[str] | None = None,
        fdr_target: float = 0.05,
        silent: bool = False,
        protein_prior_count: float = 0.1,
        scale_protein: bool = False,
        sample_protein_mixing: bool = False,
        include_protein_background: bool = False,
        use_field: Sequence[Literal["rna", "protein"]] | None = None,
        pseudocounts: float | None = 1e-5,
        *,
        estimator: Literal["sample", "full"] = "sample",
        dask: Any = None,
        seed: int | None = None,
        filter_outlier_cells: bool = False,
        **kwargs: Any,
    ) -> pd.DataFrame:
        """Genes and proteins that differ between populations of cells.

        Parameters
        ----------
        protein_prior_count
            Added to the expression of proteins.
        scale_protein
            Make a cell's proteins sum to 1.
        sample_protein_mixing
            Draw whether a protein is background, instead of weighing with the probability.
        include_protein_background
            Add the background to the foreground.
        use_field
            ``["rna"]`` or ``["protein"]`` for one of them alone.
        pseudocounts
            Added to the scales; found from features that are not expressed where None.
        adata, groupby, ...
            See :class:`DifferentialModel`.

        Returns
        -------
        A row for each feature of each comparison, with scvi-tools' columns; names of proteins end
        with ``_protein``.

        Source
        ------
        Gayoso et al. 2021, "Joint probabilistic modeling of single-cell multi-omic data with
        totalVI".
        """
        used = ["rna", "protein"] if use_field is None else list(use_field)
        if not used or not set(used) <= {"rna", "protein"}:
            raise ConfigError(f"use_field lists 'rna', 'protein' or both; seen {use_field!r}.")
        how = DecodeOptions(
            genes="rna" in used,
            proteins="protein" in used,
            protein_prior_count=protein_prior_count,
            scale_protein=scale_protein,
            sample_protein_mixing=sample_protein_mixing,
            include_protein_background=include_protein_background,
        )
        options = {
            "mode": mode,
            "estimator": estimator,
            "delta": delta,
            "all_stats": all_stats,
            "batch_correction": batch_correction,
            "batchid1": batchid1,
            "batchid2": batchid2,
            "fdr_target": fdr_target,
            "filter_outlier_cells": filter_outlier_cells,
            "pseudocounts": pseudocounts,
        }
        asked = _Asked(adata, groupby, group1, group2, idx1, idx2, batch_size, dask)
        return self._compare(asked, options, kwargs, how, seed)


def _further(given: Mapping[str, Any]) -> dict[str, Any]:
    for name in given:
        if name not in _FURTHER:
            raise ConfigError(
                f"differential_expression() takes no argument {name!r}; "
                f"{did_you_mean(name, _FURTHER)}"
            )
    taken = dict(given)
    if taken.get("change_fn") == "log-fold":
        taken["change_fn"] = None
    for name in ("change_fn", "m1_domain_fn"):
        if taken.get(name) is not None and not callable(taken[name]):
            raise ConfigError(f"{name} must be a function, seen {taken[name]!r}.")
    if "cred_interval_lvls" in taken:
        levels = taken["cred_interval_lvls"]
        taken["cred_interval_lvls"] = () if levels is None else tuple(float(v) for v in levels)
    return taken


def _known(given: Mapping[str, Any] | None) -> dict[str, Any]:
    names = [f.name for f in fields(ImportanceOptions)]
    for name in given or {}:
        if name not in names:
            raise ConfigError(
                f"importance_weighting_kwargs has no {name!r}; {did_you_mean(name, names)}"
            )
    return dict(given or {})
