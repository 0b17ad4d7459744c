"""What a pass has merged so far, on disk, so that a rerun goes on from there."""

import os
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from scvi_dist.analysis.output import fingerprint
from scvi_dist.analysis.passes.cell_pass import CellPass, Partial, PassPlan
from scvi_dist.analysis.passes.engines import EngineConfig
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.errors import CheckpointError
from scvi_dist.module.base import BaseModule

VERSION = 1
_N_DONE = "__n_done__"


@dataclass
class PartialSums:
    """One file with the result of the first nodes of the merge tree, replaced as more are done.

    The file's name follows from everything that the result follows from, so that a folder can
    hold those of several passes and none is taken for another.
    """

    path: Path
    every_s: float
    """Shortest time between two writes, in seconds."""
    clock: Callable[[], float] = time.monotonic
    _written_s: float | None = None
    _n_written: int = 0

    @classmethod
    def of(
        cls,
        folder: str | os.PathLike[str],
        every_s: float,
        cell_pass: CellPass,
        module: BaseModule | None,
        cells: StoreCells,
        plan: PassPlan,
    ) -> "PartialSums":
        """The file of a pass over cells.

        Raises
        ------
        CheckpointError
            The folder cannot be made.
        """
        what = {
            "format": VERSION,
            "pass": type(cell_pass).__name__,
            "facts": dict(cell_pass.facts),
            "parts": plan.parts,
            "payloads": _payloads(cell_pass, plan),
        }
        name = fingerprint(module, cells, what)
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"partial sums cannot be kept in {folder}: {error.strerror}."
            ) from error
        return cls(Path(folder) / f"{type(cell_pass).__name__}-{name}.npz", every_s)

    def read(self) -> tuple[dict[str, np.ndarray] | None, int]:
        """What an earlier run merged, and of how many nodes; ``(None, 0)`` if there was none.

        Raises
        ------
        CheckpointError
            The file is damaged.
        """
        if not self.path.exists():
            return None, 0
        try:
            with open(self.path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            self._n_written = int(arrays.pop(_N_DONE))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise CheckpointError(
                f"{self.path} cannot be read ({error}). Delete it; the pass then starts anew."
            ) from error
        return arrays, self._n_written

    def write(self, total: Callable[[], Partial | None], n_done: int, last: bool = False) -> None:
        """Keep the result of the first ``n_done`` nodes, if it is time to.

        Parameters
        ----------
        total
            Gives the result, if it is to be written.
        last
            Write in any case what was not written yet.
        """
        now_s = self.clock()
        if self._written_s is None:
            self._written_s = now_s
        is_time = last or now_s - self._written_s >= self.every_s
        if n_done == self._n_written or not is_time:
            return
        arrays = total()
        assert arrays is not None
        self._replace(arrays, n_done)
        self._n_written, self._written_s = n_done, self.clock()

    def _replace(self, arrays: Mapping[str, Any], n_done: int) -> None:
        unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with open(unfinished, "wb") as file:
                np.savez(file, allow_pickle=False, **{_N_DONE: np.int64(n_done)}, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, self.path)
        except OSError as error:
            raise CheckpointError(
                f"partial sums cannot be written to {self.path}: {error.strerror}."
            ) from error
        finally:
            unfinished.unlink(missing_ok=True)


def kept(
    config: EngineConfig,
    cell_pass: CellPass,
    module: BaseModule | None,
    cells: StoreCells,
    plan: PassPlan,
) -> tuple[PartialSums | None, Partial | None, int]:
    """Where an engine keeps what is merged, what an earlier run has merged, and of how many."""
    if config.checkpoint_dir is None:
        return None, None, 0
    every_s = config.checkpoint_every_s
    sums = PartialSums.of(config.checkpoint_dir, every_s, cell_pass, module, cells, plan)
    return sums, *sums.read()


def _payloads(cell_pass: CellPass, plan: PassPlan) -> str:
    """32 hex digits of what the pass gives each part besides its cells."""
    state = blake2b(digest_size=16)
    for start, stop in plan.parts:
        state.update(pickle.dumps(cell_pass.payload(np.arange(start, stop, dtype=np.int64))))
    return state.hexdigest()
