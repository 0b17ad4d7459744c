"""Results that go to a store: shard by shard, and on from the last shard after a crash.

Axis suffixes: ``n`` cells, ``g`` genes.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import nn

from scvi_dist.analysis.streaming import Compute, StoreCells, computed, place
from scvi_dist.batch import CsrRows
from scvi_dist.data.writing.sharded_writer import ShardedWriter
from scvi_dist.errors import ConfigError

MAX_SHARD_ROWS = 65_536
_DIGESTED_CELLS = 1_024
"""Cells whose proteins are looked at to tell whether they are still the same."""
PREDICTION = "prediction"
"""Column of obs that holds the most probable class."""
X = "X"
"""The result that becomes X; all others become tables in obsm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """Where results go, and in what pieces."""

    url: str | os.PathLike[str]
    """Local path or fsspec URL of a Zarr store."""
    overwrite: bool = False
    """Replace the result of another computation. The same computation is always continued."""
    budget_bytes: int = 256 << 20
    """What the results in memory may take; a shard has so many rows."""


Place: TypeAlias = str | os.PathLike[str] | Output
"""A store for results: its URL, or an :class:`Output`."""
Out: TypeAlias = Place | None
"""Where results go; None returns them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What the output holds of each cell."""

    obsm: Mapping[str, int]
    """Name of a result -> its columns."""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Result that holds probabilities -> what each of its columns stands for. The most probable
    class of each cell becomes the column ``prediction`` of obs."""
    x: Literal["dense", "csr"] | None = None
    """Whether there is a result ``X``, and how it is stored."""
    var_names: np.ndarray | tuple[str, ...] = ()
    """Genes of X."""

    def shard_rows(self, budget_bytes: int) -> int:
        """Rows of a shard within a budget. It must not depend on anything that may change."""
        width = sum(self.obsm.values()) + (len(self.var_names) if self.x else 0)
        return max(1, min(MAX_SHARD_ROWS, budget_bytes // (4 * max(width, 1))))


def write(
    module: nn.Module,
    cells: StoreCells,
    compute: Compute,
    out: Place,
    layout: Layout,
    what: Mapping[str, Any],
) -> str:
    """Compute results of all cells and write them to a store.

    Parameters
    ----------
    out
        Where to; a URL means an output of the usual shards.
    what
        Names the computation and its arguments; JSON values. With the digests of the module, the
        data and the cells it decides whether an existing output is continued.

    Returns
    -------
    The URL of the output: an AnnData, in the caller's order of cells.
    """
    output = out if isinstance(out, Output) else Output(url=out)
    writer = ShardedWriter(
        output.url,
        n_obs=cells.n_cells,
        fingerprint=fingerprint(module, cells, what),
        obsm=layout.obsm,
        columns=layout.classes,
        x=layout.x,
        var_names=layout.var_names,
        shard_rows=layout.shard_rows(output.budget_bytes),
        overwrite=output.overwrite,
    )
    on_progress = cells.config.on_progress
    for start, stop in writer.pending():
        results = computed(module, cells.groups(start, stop), compute)
        if layout.x == "csr":
            writer.write(start, stop, x=_csr_rows(results, start))
        else:
            arrays = place(results, start, stop - start)
            x_ng = arrays.pop(X, None)
            writer.write(start, stop, obsm=arrays, x=x_ng)
        if on_progress is not None:
            on_progress(stop, cells.n_cells)
    obs = pd.DataFrame(index=pd.Index(cells.obs_names(), dtype=object))
    for name, classes in layout.classes.items():
        best_n = [writer.read(name, *shard).argmax(axis=1) for shard in writer.shards]
        obs[PREDICTION] = pd.Categorical.from_codes(np.concatenate(best_n), list(classes))
    writer.finish(obs)
    return writer.url


def _csr_rows(results: Any, start: int) -> CsrRows:
    from scipy.sparse import csr_matrix

    positions, parts = [], []
    for group, values in results:
        matrix = csr_matrix(values[X].numpy())
        indptr = matrix.indptr.astype(np.int64)
        parts.append(CsrRows(indptr, matrix.indices, matrix.data, matrix.shape[1]))
        positions.append(group.positions - start)
    return CsrRows.concatenate(parts).take(np.argsort(np.concatenate(positions)))


def stored(cells: Any) -> StoreCells:
    """The cells, if they are those of a store: only they can be read again after a crash."""
    if not isinstance(cells, StoreCells):
        raise ConfigError("results can go to a store (out=…) only for cells that are in a store.")
    return cells


def fingerprint(module: nn.Module | None, cells: StoreCells, what: Mapping[str, Any]) -> str:
    """32 hex digits of everything that the results follow from."""
    proteins = cells.source.proteins
    facts = {
        "version": 1,
        "what": dict(what),
        "module": None if module is None else module_digest(module),
        "store": cells.source.store.digest(),
        "cells": cells.selection.digest(),
        "schema": cells.source.schema.digest(),
        "seed": cells.config.seed,
        # A store's digest is that of its counts of genes.
        **({} if proteins is None else {"proteins": proteins.digest(_DIGESTED_CELLS)}),
    }
    return blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def module_digest(module: nn.Module) -> str:
    """32 hex digits of a module's class, parameters and buffers."""
    state = blake2b(type(module).__name__.encode(), digest_size=16)
    for name, value in module.state_dict().items():
        array = value.detach().cpu().contiguous()
        state.update(f"{name} {tuple(array.shape)} {array.dtype}".encode())
        state.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
