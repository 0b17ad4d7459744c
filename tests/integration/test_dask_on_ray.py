"""Passes as Dask graphs on Ray's workers."""

from collections.abc import Iterator
from pathlib import Path

import anndata
import cell_passes as cp
import cloudpickle
import pytest

from scvi_dist.analysis.passes.cell_pass import Parts, run_here
from scvi_dist.analysis.passes.engines import EngineConfig, resolve_executor
from scvi_dist.errors import BudgetExceeded, ConfigError

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    # Dask's multiprocessing pool, which Ray gives out tasks from.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

PARTS = cp.PARTS
path = cp.path


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(cp)
    yield
    cloudpickle.unregister_pickle_by_value(cp)


def test_ray_gives_what_this_process_gives(path: Path) -> None:
    told: list[tuple[int, int]] = []
    cells = cp.cells_of_store(path, on_progress=lambda *done: told.append(done))
    module = cp.small_module()
    with resolve_executor("ray") as executor:
        found = executor(cp.Expression(), module, cells, PARTS)
    assert told[-1] == (cp.N_CELLS, cp.N_CELLS)
    cp.same(found, run_here(cp.Expression(), module, cells, PARTS))


def test_a_pass_that_stopped_goes_on_and_a_killed_worker_is_replaced(
    path: Path, tmp_path: Path
) -> None:
    cells, module = cp.cells_of_store(path), cp.small_module()
    config = EngineConfig(checkpoint_dir=tmp_path / "sums", checkpoint_every_s=0)
    kills = cp.KillsOnce(folder=str(tmp_path))
    with resolve_executor("ray", config) as executor:
        found = executor(kills, module, cells, PARTS)
    assert (tmp_path / "seen").exists()
    cp.same(found, run_here(cp.Expression(), module, cells, PARTS))
    with resolve_executor("sync", config) as executor:
        cp.same(executor(kills, module, cells, PARTS), found)


def test_parts_that_do_not_fit_are_split_and_then_named(path: Path) -> None:
    cells, module = cp.cells_of_store(path), cp.small_module()
    sizes = Parts(part_cells=200, block_genes=4)
    with resolve_executor("ray") as executor:
        found = executor(cp.Greedy(fits=128), module, cells, sizes)
        with pytest.raises(BudgetExceeded, match=r"rows (0 to 199|200 to 399)"):
            executor(cp.Greedy(fits=3), module, cells, sizes)
    for name, value in run_here(cp.Expression(), module, cells, sizes).items():
        assert found[name] == pytest.approx(value, rel=1e-6)


def test_cells_in_memory_are_refused(path: Path) -> None:
    cells = cp.cells_of_store(anndata.read_h5ad(path))
    with resolve_executor("ray") as executor, pytest.raises(ConfigError, match="dask='threads'"):
        executor(cp.Expression(), cp.small_module(), cells, PARTS)
