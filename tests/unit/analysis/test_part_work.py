"""What workers do of a pass, done here: with their functions, and as graphs without a cluster."""

import pickle
import threading
from pathlib import Path
from typing import Any

import cell_passes as cp
import dask
import numpy as np
import pandas as pd
import pytest
from dask.delayed import delayed

from scvi_dist.analysis.passes.cell_pass import (
    CellPass,
    Partial,
    Parts,
    PassPlan,
    finished,
    merge,
    merge_into,
    part_of,
    run_here,
)
from scvi_dist.analysis.passes.part_cuts import PartCuts
from scvi_dist.analysis.passes.part_work import (
    Job,
    PartCells,
    PartOutOfMemory,
    as_it_is,
    compute_parts,
    finish_block,
)
from scvi_dist.analysis.passes.pass_graph import PassGraph, fold_pieces, packed_blocks
from scvi_dist.analysis.predictive_pass import PredictivePass, PredictiveStatistics
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.errors import PlanError, StoreChanged
from scvi_dist.module import VAE
from scvi_dist.module.base import BaseModule

PARTS = cp.PARTS
path, cells, module = cp.path, cp.cells, cp.module


def by_graph(
    cell_pass: CellPass,
    module: BaseModule | None,
    cells: StoreCells,
    parts: Parts | None = None,
    *,
    fuses: bool = False,
    cut: tuple[int, ...] = (),
) -> dict[str, np.ndarray]:
    """A pass as graphs that Dask runs in this thread, roots in descending order."""
    plan = PassPlan.of(cell_pass, cells, PARTS)
    cuts = PartCuts(cells, plan)
    for part in cut:
        cuts._cuts[part] = [(a, a + 1) for a in range(*plan.parts[part])]
    graph = PassGraph(cell_pass, cells, plan, cuts, fuses)
    job = Job.of(cell_pass, module, cells, plan).packed()
    fold = fold_pieces(cell_pass, plan, None, 0)
    for root in reversed(range(plan.tree.n_roots)):
        pieces, leaves = graph.root(root, delayed(as_it_is)(job))
        done = dask.compute(*pieces, *(leaf.done for leaf in leaves), scheduler="sync")
        n_cells = sum(leaf.n_cells for leaf in leaves)
        assert n_cells == plan.cells_before(root + 1) - plan.cells_before(root)
        fold.add(plan.tree.height, root, list(done[: len(pieces)]))
    assert fold.total is not None
    blocks: list[Partial] = [
        finish_block(job, number, packed) for number, packed in enumerate(packed_blocks(fold.total))
    ]
    return finished(cell_pass, blocks)


@pytest.mark.parametrize("fuses", [False, True])
def test_graphs_are_the_pass_done_here(cells: StoreCells, module: VAE, fuses: bool) -> None:
    want = run_here(cp.Expression(), module, cells, PARTS)
    cp.same(by_graph(cp.Expression(), module, cells, fuses=fuses), want)


def test_parts_in_pieces_are_the_same_but_for_rounding(cells: StoreCells, module: VAE) -> None:
    found = by_graph(cp.Expression(), module, cells, cut=(0, 7, 25))
    for name, value in run_here(cp.Expression(), module, cells, PARTS).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


@pytest.mark.parametrize("estimator", ["sample", "full"])
def test_differential_expression_by_graphs_is_that_done_here(path: Path, estimator: str) -> None:
    model = cp.model_of(path)

    def here(cell_pass: Any, module: Any, cells: Any, parts: Any = None) -> Any:
        return run_here(cell_pass, module, cells, PARTS)

    how: dict[str, Any] = {"groupby": "batch", "mode": "change", "estimator": estimator, "seed": 1}
    want = model.differential_expression(dask=here, **how)
    found = model.differential_expression(dask=by_graph, **how)
    pd.testing.assert_frame_equal(found, want, check_exact=True)


def test_a_worker_names_the_part_that_does_not_fit(cells: StoreCells, module: VAE) -> None:
    cell_pass = cp.Greedy(fits=1)
    plan = PassPlan.of(cell_pass, cells, PARTS)
    job = Job.of(cell_pass, module, cells, plan).packed()
    with pytest.raises(PartOutOfMemory) as caught:
        compute_parts(job, _packed(cell_pass, cells, plan.parts[2]), [2])
    assert caught.value.args[0] == 2
    assert "rows 32 to 47" in caught.value.args[1]


def test_a_worker_refuses_another_store_than_the_drivers(module: VAE, tmp_path: Path) -> None:
    cells = cp.cells_of_store(cp.write_cells(tmp_path / "cells.h5ad"))
    cell_pass = cp.Expression()
    plan = PassPlan.of(cell_pass, cells, PARTS)
    job = Job.of(cell_pass, module, cells, plan).packed()
    cells.source.store.close()
    (tmp_path / "cells.h5ad").unlink()
    cp.write_cells(tmp_path / "cells.h5ad", n_cells=90)
    with pytest.raises(StoreChanged, match="another store for a worker"):
        compute_parts(job, _packed(cell_pass, cells, plan.parts[0]), [0])


def test_threads_of_a_worker_share_a_job_and_no_module(cells: StoreCells, module: VAE) -> None:
    cell_pass = cp.Expression()
    plan = PassPlan.of(cell_pass, cells, PARTS)
    job = Job.of(cell_pass, module, cells, plan).packed()
    found: dict[int, Any] = {}

    def work(number: int) -> None:
        part = _packed(cell_pass, cells, plan.parts[number])
        found[number] = compute_parts(job, part, [number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for number in range(4):
        part = _packed(cell_pass, cells, plan.parts[number])
        cp.same(found[number][0], compute_parts(job, part, [number])[0])


def _packed(cell_pass: Any, cells: StoreCells, part: tuple[int, int]) -> bytes:
    return _pickled([PartCells.of(cell_pass, cells, *part, cells.config.budget_bytes)])


def _pickled(value: Any) -> bytes:
    return pickle.dumps(value)


def test_merging_into_memory_is_merging() -> None:
    rules: Any = {"a": "sum", "b": "max", "c": "concat", "d": "sum", "e": "min"}
    rng = np.random.default_rng(0)
    first = {"a": rng.normal(size=5), "b": rng.normal(size=3), "c": np.arange(2), "e": np.ones(2)}
    second = {"a": rng.normal(size=5), "b": rng.normal(size=3), "c": np.arange(3), "e": np.zeros(2)}
    first["d"], second["d"] = np.int32([1, 2]), np.int64([3, 2**40])
    want = merge(rules, first, second)
    first["b"].flags.writeable = False
    memory = first["a"]
    found = merge_into(rules, first, second)
    cp.same(found, want)
    assert found["a"] is memory


def test_a_pass_that_is_wrong_about_its_genes_is_told(cells: StoreCells, module: VAE) -> None:
    class Wrong(cp.Expression):
        def n_genes(self, cells: StoreCells) -> int:
            return 5

    with pytest.raises(PlanError, match="sum_cg has 11 genes, but n_genes"):
        run_here(Wrong(), module, cells, PARTS)


def test_a_predictive_pass_travels_with_where_its_counts_are(
    cells: StoreCells, module: VAE
) -> None:
    statistics = PredictiveStatistics(n_samples=2, moments=True)
    cell_pass = PredictivePass(statistics, cells.source)
    plan = PassPlan.of(cell_pass, cells, PARTS)
    job = Job.of(cell_pass, module, cells, plan).packed()
    found = compute_parts(job, _packed(cell_pass, cells, plan.parts[1]), [1])
    here = cell_pass.compute(module, part_of(cells, *plan.parts[1]), None)
    np.testing.assert_array_equal(found[0]["raw_sum"], here["raw_sum"][:, :4])
    np.testing.assert_array_equal(found[2]["model_sum"], here["model_sum"][:, 8:])
