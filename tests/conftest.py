"""What every test may use."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# One thread, here and in processes that tests start: sums of floats depend on how many take part,
# and runs that must end alike are compared to the last digits. Read when torch is first imported.
os.environ["OMP_NUM_THREADS"] = "1"

# Tests also use tiledbsoma itself, whose reads may crash; see scvi_dist/data/soma/context.py.
os.environ["TILEDB_SM_QUERY_SPARSE_GLOBAL_ORDER_PREPROCESS_TILE_MERGE"] = "0"

# A shell's background jobs ignore Ctrl-C, and so would all processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# Examples take as long as the machine lets them; where a change is judged they are always the same.
settings.register_profile("here", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("here")

pytest.register_assert_rewrite("scvi_dist.testing")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """With ``-n``: a file's tests stay together, and all that start clusters form one queue.

    Two clusters at a time would take turns on the cores and need longer than one after the other.
    """
    if config.getvalue("dist") != "load":
        return None
    # Folders are in the order of the alphabet: the queue of clusters is among the first to begin.
    config.option.loadscopereorder = False
    return _Queues(config, log)


class _Queues(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "clusters" if file.startswith(("tests/integration/", "tests/fault/")) else file


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets and reference fits."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SCVI_DIST_TEST_DATA", default))
    if not (folder / "README.md").exists():
        pytest.skip(f"no real data at {folder}; set SCVI_DIST_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray on this machine with four logical CPUs, whose node may read.

    The tests of a session share it, also those that kill its workers: it survives that.
    """
    import ray

    from scvi_dist.train.local_ray import start_local_ray

    if ray.is_initialized():
        pytest.fail("a Ray is running in this process already; tests start their own")
    with pytest.MonkeyPatch.context() as patch:
        # One process less to start with each group of workers; nobody takes this node back.
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        start_local_ray(
            4,
            object_store_memory=400_000_000,
            resources={"reader": 2},
            labels={"role": "reader"},
        )
        yield
        ray.shutdown()
