"""Checkpoints: directories that are either complete or not there.

``run_dir/checkpoints/step-000000123/`` holds ``state.pt``, small files beside it, and
``manifest.json`` with the size and SHA-256 of each. The manifest is renamed into place last, after
everything it names is on disk: a directory without it, or with a file that differs from it, is the
trace of a crash and is passed over. One process writes into a run directory at a time.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from scvi_dist.errors import CheckpointError

FORMAT = 1
STATE = "state.pt"
MANIFEST = "manifest.json"
_PREFIX = "step-"
_TEMPORARY = ".writing-"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far training has come. Says the same whatever the number of ranks."""

    epoch: int = 0
    """Epochs that are finished, validation included."""
    position: int = 0
    """Cells of this epoch's global order that have been trained on."""
    global_step: int = 0
    """Optimizer steps since the start of the run."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    cursor: Cursor
    facts: dict[str, Any]
    """What the state depends on; JSON values."""
    metrics: dict[str, float]
    """Means of the epoch that ended here; empty inside an epoch."""
    files: dict[str, dict[str, Any]]
    """Name -> ``size`` in bytes and ``sha256``."""

    def load(self) -> dict[str, Any]:
        """The state, on the CPU. Only tensors and plain containers are ever read."""
        try:
            return torch.load(self.path / STATE, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"The state of checkpoint {self.path} cannot be read: {error}. "
                "Delete that directory to resume from the one before it."
            ) from error

    def verify_facts(self, expected: Mapping[str, Any]) -> None:
        """Raise where the run that wrote this is another than the one that resumes.

        Raises
        ------
        CheckpointError
            Names each fact that differs, with both values.
        """
        wanted = json.loads(json.dumps(dict(expected)))
        differing = [
            f"{name}: the checkpoint has {self.facts.get(name)!r}, this run has {value!r}"
            for name, value in wanted.items()
            if self.facts.get(name) != value
        ]
        if differing:
            raise CheckpointError(
                f"Cannot resume from {self.path}: it was written by another run. "
                + "; ".join(differing)
                + ". Start with the same values, or train anew in another run_dir."
            )


def checkpoints_dir(run_dir: str | Path) -> Path:
    """Where the checkpoints of a run are."""
    return Path(run_dir) / "checkpoints"


def write_checkpoint(
    run_dir: str | Path,
    state: Mapping[str, Any],
    cursor: Cursor,
    facts: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
    documents: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Write a checkpoint; when this returns it is complete and on disk.

    Parameters
    ----------
    state
        Tensors and plain containers.
    documents
        Name -> text of small files to keep beside the state.

    Raises
    ------
    CheckpointError
        When the disk is full or the directory cannot be written.
    """
    folder = checkpoints_dir(run_dir)
    final = folder / f"{_PREFIX}{cursor.global_step:09d}"
    temporary = folder / f"{_TEMPORARY}{cursor.global_step}-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_traces(folder)
        temporary.mkdir()
        files = {STATE: _write_state(temporary / STATE, state)}
        for name, text in (documents or {}).items():
            files[name] = _write_bytes(temporary / name, text.encode())
        _remove_checkpoint(final)
        os.rename(temporary, final)
        manifest = {
            "format": FORMAT,
            "cursor": asdict(cursor),
            "facts": dict(facts),
            "metrics": dict(metrics or {}),
            "files": files,
        }
        _write_bytes(final / f"{MANIFEST}.tmp", json.dumps(manifest, indent=1).encode())
        # What the manifest names must be on disk before the manifest is.
        _sync_directory(folder)
        os.replace(final / f"{MANIFEST}.tmp", final / MANIFEST)
        _sync_directory(final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"No checkpoint of step {cursor.global_step} could be written to {folder}: {error}. "
            "Earlier checkpoints are untouched; make room or choose another run_dir, then resume."
        ) from error
    return _read_manifest(final)


def latest_checkpoint(run_dir: str | Path) -> Checkpoint | None:
    """The newest checkpoint whose files are what its manifest says, or ``None``.

    Incomplete directories are passed over silently, damaged ones with a log line.
    """
    for path in _step_directories(run_dir, newest_first=True):
        if not (path / MANIFEST).exists():
            continue
        try:
            checkpoint = _read_manifest(path)
            _verify_files(checkpoint)
        except CheckpointError as error:
            log.warning("%s Looking at the checkpoint before it.", error)
            continue
        return checkpoint
    return None


def list_checkpoints(run_dir: str | Path) -> list[Checkpoint]:
    """All checkpoints with a readable manifest, oldest first; files are not verified."""
    found = []
    for path in _step_directories(run_dir, newest_first=False):
        try:
            found.append(_read_manifest(path))
        except CheckpointError:
            continue
    return found


def prune_checkpoints(
    run_dir: str | Path, keep: int, monitor: str, mode: str, keep_best: int = 1
) -> None:
    """Delete all but the ``keep`` newest checkpoints and the ``keep_best`` best by ``monitor``."""
    present = list_checkpoints(run_dir)
    best = ranked_checkpoints(present, monitor, mode)[:keep_best]
    stays = {c.path for c in [*present[-keep:], *best]}
    for checkpoint in present:
        if checkpoint.path not in stays:
            _remove_checkpoint(checkpoint.path)


def best_checkpoint(
    checkpoints: Iterable[Checkpoint], monitor: str, mode: str = "min"
) -> Checkpoint | None:
    """The one with the lowest (``min``) or highest (``max``) metric; ``None`` if none has it."""
    return next(iter(ranked_checkpoints(checkpoints, monitor, mode)), None)


def ranked_checkpoints(
    checkpoints: Iterable[Checkpoint], monitor: str, mode: str = "min"
) -> list[Checkpoint]:
    """Those that have the metric, the best first; the older one first where they are equal."""
    sign = 1.0 if mode == "min" else -1.0
    rated = [c for c in checkpoints if monitor in c.metrics]
    return sorted(rated, key=lambda c: sign * c.metrics[monitor])


class _HashingFile(io.RawIOBase):
    """Passes on what is written and keeps its size and hash.

    It cannot seek, so a writer that goes back would fail instead of giving a wrong hash.
    """

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._hash = hashlib.sha256()
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._target.write(data)
        self._hash.update(data)
        self._size += len(memoryview(data).cast("B"))
        return len(data)

    def entry(self) -> dict[str, Any]:
        return {"size": self._size, "sha256": self._hash.hexdigest()}


def _write_state(path: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    with open(path, "xb") as file:
        hashing = _HashingFile(file)
        torch.save(dict(state), hashing)
        file.flush()
        os.fsync(file.fileno())
    return hashing.entry()


def _write_bytes(path: Path, data: bytes) -> dict[str, Any]:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _step_directories(run_dir: str | Path, newest_first: bool) -> list[Path]:
    folder = checkpoints_dir(run_dir)
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.name.startswith(_PREFIX) and p.is_dir()]
    return sorted(found, key=lambda p: p.name, reverse=newest_first)


def _read_manifest(path: Path) -> Checkpoint:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"Checkpoint {path} has format {manifest['format']}, this version reads {FORMAT}."
            )
        return Checkpoint(
            path=path,
            cursor=Cursor(**manifest["cursor"]),
            facts=manifest["facts"],
            metrics=manifest["metrics"],
            files=manifest["files"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"Checkpoint {path} has no readable manifest: {error!r}.") from error


def _verify_files(checkpoint: Checkpoint) -> None:
    for name, entry in checkpoint.files.items():
        path = checkpoint.path / name
        if not path.is_file():
            raise CheckpointError(f"Checkpoint {checkpoint.path} lacks {name}.")
        size = path.stat().st_size
        if size != entry["size"]:
            raise CheckpointError(
                f"Checkpoint {checkpoint.path} is damaged: {name} should have {entry['size']} "
                f"bytes and has {size}."
            )
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry["sha256"]:
            raise CheckpointError(f"Checkpoint {checkpoint.path} is damaged: {name} has changed.")


def _remove_checkpoint(path: Path) -> None:
    """Remove the manifest first, so that no half-deleted checkpoint counts as one."""
    if path.exists():
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)


def _remove_traces(folder: Path) -> None:
    """Remove what crashed writers have left."""
    for path in folder.iterdir():
        incomplete = path.name.startswith(_PREFIX) and not (path / MANIFEST).exists()
        if path.name.startswith(_TEMPORARY) or incomplete:
            shutil.rmtree(path, ignore_errors=True)
