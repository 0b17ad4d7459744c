"""A Ray of its own, which tests may do harm to."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def frail_ray() -> Iterator[None]:
    """A Ray on this machine with three logical CPUs, gone after the tests of a file."""
    import ray

    from scvi_dist.train.local_ray import start_local_ray

    if ray.is_initialized():
        # That of other tests: only workers are killed here, which it survives.
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        # One process less to start with each group of workers.
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        start_local_ray(3, object_store_memory=200_000_000)
        yield
        ray.shutdown()
