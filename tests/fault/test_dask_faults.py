"""Dask workers and schedulers that die, cells that do not fit, blocks that are damaged."""

import copy
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cell_passes as cp
import cloudpickle
import dask.config
import h5py
import pandas as pd
import pytest
from distributed import Client, LocalCluster

from scvi_dist.analysis.passes.cell_pass import Parts, run_here
from scvi_dist.analysis.passes.engines import EngineConfig, resolve_executor
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.errors import BudgetExceeded, ConfigError, EngineError, StoreCorrupt
from scvi_dist.module import VAE

pytestmark = [
    pytest.mark.fault,
    pytest.mark.slow,
    pytest.mark.integration,
    # Of a cluster that is closed while it is busy.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

PARTS = cp.PARTS
path, cells, module = cp.path, cp.cells, cp.module
LIMITS: dict[str, Any] = {"connect_limit_s": 30, "worker_limit_s": 60, "part_limit_s": 120}


@pytest.fixture(scope="module", autouse=True)
def _by_value() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(cp)
    yield
    cloudpickle.unregister_pickle_by_value(cp)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two workers in processes of their own, which nannies start anew when they die."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def on(client: Any, cell_pass: Any, module: VAE, cells: StoreCells, **config: Any) -> Any:
    parts = config.pop("parts", PARTS)
    with resolve_executor(client, EngineConfig(**{**LIMITS, **config})) as executor:
        return executor(cell_pass, module, cells, parts)


def test_workers_give_what_this_process_gives(
    client: Client, cells: StoreCells, module: VAE
) -> None:
    for sizes in (PARTS, Parts(part_cells=4, block_genes=4), Parts(part_cells=200)):
        want = run_here(cp.Expression(), module, cells, sizes)
        cp.same(on(client, cp.Expression(), module, cells, parts=sizes), want)


def test_a_client_a_cluster_and_an_address_are_the_same(
    client: Client, cells: StoreCells, module: VAE, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    want = run_here(cp.Expression(), module, cells, PARTS)
    address = client.scheduler.address
    # What dask-scheduler --scheduler-file writes; a client's own writer fails on what ran before.
    (tmp_path / "scheduler.json").write_text(json.dumps({"type": "Scheduler", "address": address}))
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", address)
    for given in (client.cluster, address, "env", f"file:{tmp_path / 'scheduler.json'}"):
        cp.same(on(given, cp.Expression(), module, cells), want)
    assert client.status == "running"


def test_a_cluster_of_our_own_gives_the_same_and_leaves_settings_alone(
    cells: StoreCells, module: VAE
) -> None:
    before = copy.deepcopy(dask.config.config)
    found = on("local:2", cp.Expression(), module, cells)
    cp.same(found, run_here(cp.Expression(), module, cells, PARTS))
    assert dask.config.config == before


def test_progress_ends_at_all_cells(client: Client, path: Path, module: VAE) -> None:
    told: list[tuple[int, int]] = []
    cells = cp.cells_of_store(path, on_progress=lambda *done: told.append(done))
    on(client, cp.Expression(), module, cells)
    assert told[-1] == (cp.N_CELLS, cp.N_CELLS)
    assert len(told) > 10


def test_a_worker_killed_in_the_middle_changes_nothing(
    client: Client, cells: StoreCells, module: VAE, tmp_path: Path
) -> None:
    cell_pass = cp.KillsOnce(folder=str(tmp_path))
    found = on(client, cell_pass, module, cells)
    assert (tmp_path / "seen").exists()
    cp.same(found, run_here(cp.Expression(), module, cells, PARTS))


def test_a_part_that_does_not_fit_is_split(client: Client, cells: StoreCells, module: VAE) -> None:
    sizes = Parts(part_cells=200, block_genes=4)
    found = on(client, cp.Greedy(fits=128), module, cells, parts=sizes)
    want = run_here(cp.Expression(), module, cells, sizes)
    for name, value in want.items():
        assert found[name] == pytest.approx(value, rel=1e-6)


def test_cells_that_never_fit_are_named(client: Client, cells: StoreCells, module: VAE) -> None:
    # Of two parts that do not fit, whichever is known first is told of.
    rows = r"rows (0 to 199|200 to 399) of .*cells\.h5ad.*do not fit"
    with pytest.raises(BudgetExceeded, match=rows):
        on(client, cp.Greedy(fits=3), module, cells, parts=Parts(part_cells=200))


def test_a_damaged_block_names_store_and_rows(client: Client, module: VAE, tmp_path: Path) -> None:
    damaged = cp.write_cells(tmp_path / "damaged.h5ad")
    with h5py.File(damaged, "r+") as file:
        start, stop = file["X/indptr"][200:202]
        file["X/indices"][start:stop] = 10_000
    with pytest.raises(StoreCorrupt, match=r"damaged\.h5ad.*(rows|row) .*2\d\d"):
        on(client, cp.Expression(), module, cp.cells_of_store(damaged))


def test_cells_in_memory_are_refused(client: Client, path: Path, module: VAE) -> None:
    import anndata

    cells = cp.cells_of_store(anndata.read_h5ad(path))
    with pytest.raises(ConfigError, match=r"dask='threads'.*write_h5ad"):
        on(client, cp.Expression(), module, cells)


def test_what_failed_goes_on_elsewhere(
    client: Client, cells: StoreCells, module: VAE, tmp_path: Path
) -> None:
    stops = cp.Stops(folder=str(tmp_path), at=400)
    keeps = {"checkpoint_dir": tmp_path / "sums", "checkpoint_every_s": 0}
    with pytest.raises(RuntimeError, match="no go"):
        on(client, stops, module, cells, **keeps)
    (tmp_path / "go").touch()
    for mark in tmp_path.glob("rows-*"):
        mark.unlink()
    want = run_here(cp.Expression(), module, cells, PARTS)
    cp.same(on("threads:2", stops, module, cells, **keeps), want)
    again = {int(mark.name[5:]) for mark in tmp_path.glob("rows-*")}
    assert {384, 400} <= again
    assert 0 not in again


def test_a_dead_scheduler_is_told_and_a_rerun_goes_on(
    client: Client, cells: StoreCells, module: VAE, tmp_path: Path
) -> None:
    keeps = {"checkpoint_dir": tmp_path / "sums", "checkpoint_every_s": 0}
    waits = cp.Waits(folder=str(tmp_path), at=400)
    with _cluster(tmp_path / "scheduler.json") as scheduler:
        killer = threading.Thread(target=_kill_once_kept, args=(scheduler, tmp_path))
        killer.start()
        with pytest.raises(EngineError, match=r"Dask scheduler at tcp.*lost.*goes on from"):
            on(f"file:{tmp_path / 'scheduler.json'}", waits, module, cells, **keeps)
        killer.join(timeout=60)
    assert list((tmp_path / "sums").glob("*.npz"))
    (tmp_path / "go").touch()
    for mark in tmp_path.glob("rows-*"):
        mark.unlink()
    found = on(client, waits, module, cells, **keeps)
    cp.same(found, run_here(cp.Expression(), module, cells, PARTS))
    again = {int(mark.name[5:]) for mark in tmp_path.glob("rows-*")}
    assert 400 in again
    assert 0 not in again


@contextmanager
def _cluster(file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A scheduler and a worker as a user starts them; the scheduler's process."""
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    worker = ["--nthreads", "1", "--no-nanny", "--death-timeout", "60"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments, *common],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for arguments in (
            ["scheduler", "--host", "127.0.0.1", "--port", "0"],
            ["worker", *worker],
        )
    ]
    try:
        assert cp.comes(file.exists)
        yield processes[0]
    finally:
        for process in processes:
            process.kill()
            process.wait(timeout=30)


def _kill_once_kept(scheduler: subprocess.Popen[bytes], folder: Path) -> None:
    cp.comes(lambda: list((folder / "sums").glob("*.npz")))
    cp.comes((folder / "waiting").exists)
    scheduler.kill()


def test_differential_expression_survives_the_death_of_a_worker(
    client: Client, path: Path, module: VAE, tmp_path: Path
) -> None:
    model = cp.model_of(path)
    for estimator in ("full", "sample"):
        how = {"groupby": "batch", "estimator": estimator, "mode": "change", "seed": 3}
        want = model.differential_expression(dask=_cut(run_here), **how)
        (tmp_path / estimator).mkdir()
        with resolve_executor(client, EngineConfig(**LIMITS)) as executor:
            kills = _killing(_cut(executor), str(tmp_path / estimator))
            found = model.differential_expression(dask=kills, **how)
        assert (tmp_path / estimator / "seen").exists()
        pd.testing.assert_frame_equal(found, want, check_exact=True)


def _cut(executor: Any) -> Any:
    """The executor, with many small parts."""
    return lambda cell_pass, module, cells, parts=None: executor(cell_pass, module, cells, PARTS)


def _killing(executor: Any, folder: str) -> Any:
    """The executor, of whose workers one dies in the middle of a pass."""

    def run(cell_pass: Any, module: Any, cells: Any, parts: Any = None) -> Any:
        return executor(cp.Deadly(cell_pass, folder), module, cells, parts)

    return run
