import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from scvi_dist.errors import CheckpointError
from scvi_dist.train.checkpoint import (
    MANIFEST,
    STATE,
    Cursor,
    checkpoints_dir,
    latest_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    write_checkpoint,
)


class Killed(BaseException):
    """Stands for the process ending at this instruction."""


def state_of(step: int) -> dict:
    return {"module": {"weight": torch.full((3, 4), float(step))}, "history": {"a": [[0, 1.5]]}}


def write(run_dir: Path, step: int, **metrics: float):
    cursor = Cursor(epoch=step // 10, position=step % 10, global_step=step)
    return write_checkpoint(run_dir, state_of(step), cursor, {"seed": 0}, metrics, {"a.json": "{}"})


def die_at(monkeypatch: pytest.MonkeyPatch, index: int) -> list[str]:
    """Let the process die just before, or half-way through, the ``index``-th durable operation."""
    made: list[str] = []

    def wrapped(name: str):
        real = getattr(os, name)

        def call(*args, **kwargs):
            if len(made) == index:
                raise Killed(name)
            made.append(name)
            return real(*args, **kwargs)

        return call

    for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(os, name, wrapped(name))
    return made


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    written = write(tmp_path, 13, elbo_validation=2.5)
    read = latest_checkpoint(tmp_path)
    assert read == written
    assert read.cursor == Cursor(1, 3, 13)
    assert read.metrics == {"elbo_validation": 2.5}
    assert (read.path / "a.json").read_text() == "{}"
    torch.testing.assert_close(read.load(), state_of(13), rtol=0, atol=0)


def test_no_checkpoint_in_a_fresh_folder(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize("again", [False, True], ids=["next step", "same step"])
def test_death_at_any_moment_leaves_a_complete_checkpoint(tmp_path: Path, again: bool) -> None:
    """Kill the writer at each of its file-system operations in turn, until it survives."""
    index, survived = 0, False
    while not survived:
        run_dir = tmp_path / str(index)
        write(run_dir, 1)
        write(run_dir, 2)
        with pytest.MonkeyPatch.context() as patch:
            made = die_at(patch, index)
            try:
                write(run_dir, 2 if again else 3)
                survived = True
            except Killed:
                pass
        found = latest_checkpoint(run_dir)
        assert found is not None
        step = found.cursor.global_step
        assert step in ((1, 2) if again else (2, 3))
        assert step == (2 if again else 3) or not survived
        torch.testing.assert_close(found.load(), state_of(step), rtol=0, atol=0)
        # The next writer finishes, whatever it finds, and clears it away.
        assert write(run_dir, 4) == latest_checkpoint(run_dir)
        names = {p.name for p in checkpoints_dir(run_dir).iterdir()}
        assert names == {c.path.name for c in list_checkpoints(run_dir)}
        index += 1
    assert made.count("fsync") >= 5
    assert index > 8


@pytest.mark.parametrize("harm", ["truncate", "flip", "delete", "manifest", "no manifest"])
def test_damaged_checkpoints_are_passed_over(
    tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 1)
    newest = write(tmp_path, 2).path
    data = (newest / STATE).read_bytes()
    match harm:
        case "truncate":
            (newest / STATE).write_bytes(data[:-1])
        case "flip":
            (newest / STATE).write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
        case "delete":
            (newest / "a.json").unlink()
        case "manifest":
            (newest / MANIFEST).write_text((newest / MANIFEST).read_text()[:-5])
        case "no manifest":
            (newest / MANIFEST).unlink()
    with caplog.at_level(logging.WARNING):
        found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.cursor.global_step == 1
    assert ("step-000000002" in caplog.text) == (harm != "no manifest")


def test_a_state_never_runs_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    checkpoint = write(tmp_path, 1)
    torch.save({"module": Evil()}, checkpoint.path / STATE)
    assert b"mkdir" in pickle.dumps(Evil())
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load()
    assert not (tmp_path / "ran").exists()


def test_facts_that_differ_are_named_with_both_values(tmp_path: Path) -> None:
    facts = {"seed": 0, "batch_size": 128, "sizes": (1, 2)}
    checkpoint = write_checkpoint(tmp_path, {}, Cursor(), facts)
    checkpoint.verify_facts(facts)
    with pytest.raises(CheckpointError) as error:
        checkpoint.verify_facts({"seed": 0, "batch_size": 256, "sizes": (1, 3)})
    message = str(error.value)
    assert "batch_size: the checkpoint has 128, this run has 256" in message
    assert "sizes" in message
    assert "seed:" not in message


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 3)])
def test_the_newest_and_the_best_stay(tmp_path: Path, mode: str, best: int) -> None:
    values = {1: 5.0, 2: 1.0, 3: 9.0, 4: 4.0, 5: 4.0}
    for step, value in values.items():
        write(tmp_path, step, elbo_validation=value)
    write(tmp_path, 6)
    prune_checkpoints(tmp_path, keep=2, monitor="elbo_validation", mode=mode)
    assert [c.cursor.global_step for c in list_checkpoints(tmp_path)] == [best, 5, 6]


def test_a_full_disk_is_one_clear_error_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"step 2 .*No space left.*Earlier checkpoints"):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert [p.name for p in checkpoints_dir(tmp_path).iterdir()] == ["step-000000001"]


def test_another_format_is_refused_by_number(tmp_path: Path) -> None:
    manifest = write(tmp_path, 1).path / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    assert latest_checkpoint(tmp_path) is None
    shutil.rmtree(checkpoints_dir(tmp_path))
    assert latest_checkpoint(tmp_path) is None
