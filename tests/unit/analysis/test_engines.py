"""Passes in this process: engines agree, keep what is done, and say what is wrong."""

import threading
from pathlib import Path
from typing import Any, ClassVar

import cell_passes as cp
import numpy as np
import pytest
import torch

from scvi_dist.analysis.passes.cell_pass import Parts, run_here
from scvi_dist.analysis.passes.engines import EngineConfig, resolve_executor
from scvi_dist.analysis.passes.thread_engine import ThreadEngine
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.errors import (
    BudgetExceeded,
    CheckpointError,
    ConfigError,
    EngineError,
)
from scvi_dist.module import VAE

PARTS = cp.PARTS
path, cells, module = cp.path, cp.cells, cp.module


INDICES = {"all": None, "repeats": [5, 5, 300, 2, *range(100, 150)], "one": [7]}


@pytest.mark.parametrize("dask", [None, "sync", "threads:3"])
@pytest.mark.parametrize("indices", INDICES)
def test_engines_agree_to_the_last_bit(path: Path, module: VAE, dask: Any, indices: str) -> None:
    cells = cp.cells_of_store(path, INDICES[indices])
    with resolve_executor(dask) as executor:
        found = executor(cp.Expression(), module, cells, PARTS)
    cp.same(found, run_here(cp.Expression(), module, cells, PARTS))


def test_results_are_those_of_all_cells_at_once(cells: StoreCells, module: VAE) -> None:
    whole = run_here(cp.Expression(), module, cells, Parts(part_cells=1000, block_genes=1000))
    found = run_here(cp.Expression(), module, cells, PARTS)
    assert found["first_n"].shape == (cp.N_CELLS,)
    np.testing.assert_array_equal(found["n_c"], [135, 134, 134])
    for name in ("sum_cg", "mean_cg", "max_g", "min_g", "first_n"):
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-6)


def test_torch_has_its_threads_back_and_the_module_its_noise(
    cells: StoreCells, module: VAE
) -> None:
    noise, threads = module.noise, torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with resolve_executor("threads:3") as executor:
            executor(cp.Expression(), module, cells, PARTS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert module.noise is noise


def test_progress_ends_at_all_cells(path: Path, module: VAE) -> None:
    for dask in (None, "sync"):
        told: list[tuple[int, int]] = []
        cells = cp.cells_of_store(path, on_progress=lambda *done, told=told: told.append(done))
        with resolve_executor(dask) as executor:
            executor(cp.Expression(), module, cells, PARTS)
        assert told[-1] == (cp.N_CELLS, cp.N_CELLS)
        assert [done for done, _ in told] == sorted(done for done, _ in told)


# What does not fit


@pytest.mark.parametrize("dask", ["sync", "threads:2"])
def test_a_part_that_does_not_fit_is_computed_in_pieces(path: Path, module: VAE, dask: str) -> None:
    cells = cp.cells_of_store(path)
    sizes = Parts(part_cells=400, block_genes=4)
    want = run_here(cp.Expression(), module, cells, sizes)
    with resolve_executor(dask) as executor:
        found = executor(cp.Greedy(fits=128), module, cells, sizes)
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


def test_cells_that_never_fit_are_named(cells: StoreCells, module: VAE) -> None:
    rows = r"rows 0 to 399 of .*cells.h5ad"
    with resolve_executor() as executor, pytest.raises(BudgetExceeded, match=rows):
        executor(cp.Greedy(fits=3), module, cells, Parts(part_cells=400))


# What is kept


@pytest.mark.parametrize("first", ["sync", "threads:2"])
@pytest.mark.parametrize("then", ["sync", "threads:2"])
def test_a_pass_that_stopped_goes_on(
    cells: StoreCells, module: VAE, tmp_path: Path, first: str, then: str
) -> None:
    stops = cp.Stops(folder=str(tmp_path), at=330)
    config = EngineConfig(checkpoint_dir=tmp_path / "sums", checkpoint_every_s=0)
    with resolve_executor(first, config) as executor, pytest.raises(RuntimeError, match="no go"):
        executor(stops, module, cells, PARTS)
    computed = list(tmp_path.glob("rows-*"))
    assert computed
    for mark in computed:
        mark.unlink()
    (tmp_path / "go").touch()
    with resolve_executor(then, config) as executor:
        found = executor(stops, module, cells, PARTS)
        cp.same(found, run_here(cp.Expression(), module, cells, PARTS))
        again = {int(mark.name[5:]) for mark in tmp_path.glob("rows-*")}
        # 16 cells a part, four parts a root: the root before the one that failed may still have
        # been in work.
        kept = 256 if 256 in again else 320
        assert again == set(range(kept, cp.N_CELLS, 16))
        for mark in tmp_path.glob("rows-*"):
            mark.unlink()
        cp.same(executor(stops, module, cells, PARTS), found)
        assert not list(tmp_path.glob("rows-*"))


def test_other_cells_weights_or_facts_share_nothing(
    path: Path, module: VAE, tmp_path: Path
) -> None:
    config = EngineConfig(checkpoint_dir=tmp_path, checkpoint_every_s=0)
    other = cp.small_module()
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    with resolve_executor("sync", config) as executor:
        executor(cp.Expression(), module, cp.cells_of_store(path), PARTS)
        executor(cp.Expression(2), module, cp.cells_of_store(path), PARTS)
        executor(cp.Expression(), other, cp.cells_of_store(path), PARTS)
        executor(cp.Expression(), module, cp.cells_of_store(path, range(30)), PARTS)
        executor(cp.Expression(), module, cp.cells_of_store(path, seed=4), PARTS)
        executor(cp.Expression(), module, cp.cells_of_store(path), Parts(part_cells=32))
        assert len(list(tmp_path.iterdir())) == 6
        executor(cp.Expression(), module, cp.cells_of_store(path), PARTS)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_damaged_file_of_sums_is_named(cells: StoreCells, module: VAE, tmp_path: Path) -> None:
    config = EngineConfig(checkpoint_dir=tmp_path)
    with resolve_executor("sync", config) as executor:
        executor(cp.Expression(), module, cells, PARTS)
        (kept,) = tmp_path.iterdir()
        kept.write_bytes(kept.read_bytes()[:500])
        with pytest.raises(CheckpointError, match=f"{kept.name}.*Delete it"):
            executor(cp.Expression(), module, cells, PARTS)


# What cannot be asked for

WRONG: dict[str, tuple[Any, str]] = {
    "a word": ("dsk", r"threads\[:N\]"),
    "a number": (3, "type int"),
    "no count": ("threads:many", "number of at least 1"),
    "no worker": ("local:0", "number of at least 1"),
    "sync with more": ("sync:2", "nothing behind it"),
    "no file": ("file:/nowhere/scheduler.json", "no such scheduler file"),
    "ray with more": ("ray:2", "nothing behind it"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_dask_cannot_be(wrong: str) -> None:
    given, message = WRONG[wrong]
    with pytest.raises(ConfigError, match=message), resolve_executor(given):
        pass


def test_a_word_lists_what_is_possible() -> None:
    with pytest.raises(ConfigError) as caught, resolve_executor("cluster"):
        pass
    for text in ("threads", "local", "tcp://", "file:", "env", "ray", "distributed.Client"):
        assert text in str(caught.value)


def test_env_needs_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="DASK_SCHEDULER_ADDRESS"), resolve_executor("env"):
        pass


def test_nobody_listening_is_told_in_time() -> None:
    config = EngineConfig(connect_limit_s=0.5)
    where = pytest.raises(EngineError, match=r"tcp://127\.0\.0\.1:9 .* 0\.5 s")
    with where, resolve_executor("tcp://127.0.0.1:9", config):
        pass


def test_limits_are_positive() -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        EngineConfig(part_limit_s=0)


def test_threads_are_fewer_where_results_are_large(cells: StoreCells, module: VAE) -> None:
    class Telling(cp.Expression):
        seen: ClassVar[set[int]] = set()

        def compute(self, module: Any, cells: StoreCells, payload: Any) -> Any:
            self.seen.add(threading.get_ident())
            return super().compute(module, cells, payload)

    want = run_here(cp.Expression(), module, cells, PARTS)
    for results_bytes, most in ((1, 1), (None, 3), (10**9, 4)):
        Telling.seen.clear()
        engine = ThreadEngine(3, EngineConfig(), results_bytes)
        cp.same(engine(Telling(), module, cells, PARTS), want)
        assert len(Telling.seen) <= most
        assert most == 1 or len(Telling.seen) > 1
