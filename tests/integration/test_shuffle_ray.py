"""A shuffle by Ray tasks is the shuffle by threads, also where a worker dies."""

import os
from pathlib import Path
from typing import Any

import pytest

from scvi_dist.data import open_store
from scvi_dist.data.writing import anndata_writer, writer
from scvi_dist.data.writing.shuffle_store import shuffle_store
from scvi_dist.data.writing.task_pool import run_tasks
from scvi_dist.errors import StoreError
from scvi_dist.testing import small_atlas, write_atlas

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]


def files(folder: Path) -> dict[str, bytes]:
    found = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


def test_ray_and_threads_write_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anndata_writer, "_SHARD_ENTRIES", 256)
    monkeypatch.setattr(writer, "_MIN_CHUNK_ENTRIES", 64)
    path = write_atlas(small_atlas(n=300, g=40), tmp_path / "a.h5ad")
    for engine in ("threads", "ray"):
        with open_store(path) as store:
            shuffle_store(
                store, tmp_path / f"{engine}.zarr", engine=engine, workers=2, memory_bytes=120_000
            )
    assert files(tmp_path / "ray.zarr") == files(tmp_path / "threads.zarr")


def _dies_once(marker: Path) -> Any:
    def work(task: int) -> int:
        if task == 3 and not marker.exists():
            marker.touch()
            os._exit(1)
        return task * task

    return work


def test_a_task_whose_worker_died_is_done_again(tmp_path: Path) -> None:
    done: dict[int, int] = {}
    run_tasks(_dies_once(tmp_path / "died"), range(6), done.__setitem__, engine="ray", workers=2)
    assert done == {task: task * task for task in range(6)}
    assert (tmp_path / "died").exists()


def test_what_a_task_raises_comes_as_it_was() -> None:
    def refuse(task: int) -> int:
        raise StoreError(f"task {task} cannot be read")

    for engine in ("threads", "ray"):
        with pytest.raises(StoreError, match="task 0 cannot be read"):
            run_tasks(refuse, [0], lambda *_: None, engine=engine, workers=2)
