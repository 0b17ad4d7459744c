"""Passes over a few cells, for tests of the engines that compute them, and some that misbehave."""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from scvi_dist.analysis.passes.cell_pass import CellPass, Partial, Parts, Rule
from scvi_dist.analysis.selection import Selection
from scvi_dist.analysis.streaming import StoreCells, StreamConfig, computed
from scvi_dist.data import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.model import SCVI
from scvi_dist.module import VAE
from scvi_dist.module.base import BaseModule

N_CELLS, N_GENES = 403, 11
PARTS = Parts(part_cells=16, block_genes=4)


@dataclass(frozen=True)
class Expression(CellPass):
    """Sums of expression over groups of cells, from draws of the posterior."""

    n_groups: int = 3
    rules: ClassVar[Mapping[str, Rule]] = {
        "sum_cg": "sum",
        "max_g": "max",
        "min_g": "min",
        "n_c": "sum",
        "first_n": "concat",
    }
    by_gene: ClassVar[frozenset[str]] = frozenset({"sum_cg", "max_g", "min_g"})

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"n_groups": self.n_groups}

    def payload(self, positions: np.ndarray) -> np.ndarray:
        return positions % self.n_groups

    def compute(self, module: BaseModule | None, cells: StoreCells, payload: Any) -> Partial:
        assert module is not None
        px_ng = np.empty((cells.n_cells, N_GENES))
        for group, values in computed(module, cells.groups(), lambda g: self._scale(module, g)):
            px_ng[group.positions] = values["px"].double().numpy()
        sum_cg = np.zeros((self.n_groups, N_GENES))
        np.add.at(sum_cg, payload, px_ng)
        return {
            "sum_cg": sum_cg,
            "max_g": px_ng.max(0),
            "min_g": px_ng.min(0),
            "n_c": np.bincount(payload, minlength=self.n_groups),
            "first_n": px_ng[:, 0].copy(),
        }

    @staticmethod
    def _scale(module: Any, group: Any) -> dict[str, torch.Tensor]:
        _, generated = module(group.tensors, compute_loss=False)
        return {"px": generated["px"].mean}

    def finish(self, merged: Partial, genes: slice) -> Partial:
        assert merged["sum_cg"].shape[-1] == genes.stop - genes.start
        return {**merged, "mean_cg": merged["sum_cg"] / np.maximum(merged["n_c"], 1)[:, None]}


@dataclass(frozen=True)
class KillsOnce(Expression):
    """Kills the process that computes the cell ``at``, the first time."""

    folder: str = ""
    at: int = 200

    def compute(self, module: BaseModule | None, cells: StoreCells, payload: Any) -> Partial:
        if self.at in cells.selection.rows() and not (seen := Path(self.folder, "seen")).exists():
            seen.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute(module, cells, payload)


class Deadly(CellPass):
    """Another pass, which kills the process that computes the middle of the cells, once."""

    rules: ClassVar[Mapping[str, Rule]] = {}

    def __init__(self, inner: CellPass, folder: str) -> None:
        self.inner, self.folder = inner, folder
        # Of this object alone: engines ask the pass, not its class.
        self.rules, self.by_gene = inner.rules, inner.by_gene  # type: ignore[misc]

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.inner.facts

    def n_genes(self, cells: StoreCells) -> int:
        return self.inner.n_genes(cells)

    def payload(self, positions: np.ndarray) -> Any:
        return self.inner.payload(positions)

    def compute(self, module: BaseModule | None, cells: StoreCells, payload: Any) -> Partial:
        seen = Path(self.folder, "seen")
        if cells.selection.rows().max() > N_CELLS // 2 and not seen.exists():
            seen.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.compute(module, cells, payload)

    def finish(self, merged: Partial, genes: slice) -> Partial:
        return self.inner.finish(merged, genes)


@dataclass(frozen=True)
class Greedy(Expression):
    """Has memory for so many cells at a time only."""

    fits: int = 10

    def compute(self, module: BaseModule | None, cells: StoreCells, payload: Any) -> Partial:
        if cells.n_cells > self.fits:
            raise MemoryError(f"{cells.n_cells} cells")
        return super().compute(module, cells, payload)


@dataclass(frozen=True)
class Stops(Expression):
    """Says of which rows it computes, and fails at the row ``at`` while there is no file."""

    folder: str = ""
    at: int = 330

    def compute(self, module: BaseModule | None, cells: StoreCells, payload: Any) -> Partial:
        rows = cells.selection.rows()
        if self.at in rows and not Path(self.folder, "go").exists():
            raise RuntimeError("no go")
        Path(self.folder, f"rows-{rows[0]}").touch()
        return super().compute(module, cells, payload)


@dataclass(frozen=True)
class Waits(Stops):
    """Waits at a row until there is a file."""

    def compute(self, module: BaseModule | None, cells: StoreCells, payload: Any) -> Partial:
        if self.at in cells.selection.rows():
            Path(self.folder, "waiting").touch()
            comes(Path(self.folder, "go").exists)
        return super().compute(module, cells, payload)


def comes(condition: Callable[[], object], limit_s: float = 90.0) -> bool:
    """Whether a condition comes true in time."""
    look = threading.Event()
    until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until:
            return False
        look.wait(0.05)
    return True


def write_cells(path: Path, n_cells: int = N_CELLS) -> Path:
    """A small atlas of two batches, as an h5ad file."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.7, 2.0, (n_cells, N_GENES))).astype(np.float32)
    obs = pd.DataFrame(
        {"batch": pd.Categorical(rng.choice(["b0", "b1"], n_cells))},
        index=[f"cell{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(N_GENES)])
    ad.AnnData(sp.csr_matrix(counts), obs=obs, var=var).write_h5ad(path)
    return path


def cells_of_store(path: Any, indices: Any = None, **config: Any) -> StoreCells:
    """Cells of a store, ready for a pass."""
    store = open_store(path)
    source = OpenSource(store, fit_schema(store, SetupArgs(batch_key="batch")))
    config = {"batch_size": 8, "seed": 3, **config}
    return StoreCells(source, Selection(store.n_obs, indices), StreamConfig(**config))


def model_of(path: Path) -> SCVI:
    """A model of those cells, which says that it is trained."""
    SCVI.setup_anndata(path, batch_key="batch")
    torch.manual_seed(1)
    model = SCVI(path, n_hidden=16, n_latent=4)
    model.is_trained = True
    return model


def small_module() -> VAE:
    """A module for those cells."""
    torch.manual_seed(1)
    return VAE(N_GENES, n_batch=2, n_hidden=16, n_latent=4).eval()


def same(first: Partial, second: Partial) -> None:
    """Equal to the last bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        np.testing.assert_array_equal(value, second[name], err_msg=name)


# Fixtures, which a test file has by giving them a name of its own.


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cells(tmp_path_factory.mktemp("cells") / "cells.h5ad")


@pytest.fixture(scope="module")
def cells(path: Path) -> StoreCells:
    return cells_of_store(path)


@pytest.fixture
def module() -> VAE:
    return small_module()
