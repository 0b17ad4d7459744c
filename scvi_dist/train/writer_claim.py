"""Whose turn it is to write checkpoints: a process that was given up must not overwrite others'."""

import os
import uuid
from pathlib import Path

from scvi_dist.errors import CheckpointError

NAME = "writer"


class WriterClaim:
    """The claim of the process that started last on a run's checkpoints.

    When a driver dies or a network is cut, workers that nobody waits for may live on for a while
    beside those that took their place.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self._path = Path(run_dir) / NAME
        self._mine = uuid.uuid4().hex
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_name(f"{NAME}-{self._mine}")
            temporary.write_text(self._mine)
            os.replace(temporary, self._path)
        except OSError as error:
            raise CheckpointError(
                f"Checkpoints cannot be written to {self._path.parent}: {error}. Make room or "
                "choose another run_dir."
            ) from error

    def verify(self) -> None:
        """Raise if another process has claimed the checkpoints since.

        Raises
        ------
        CheckpointError
            Names the folder.
        """
        try:
            owner = self._path.read_text()
        except OSError as error:
            raise CheckpointError(
                f"The claim on {self._path.parent} cannot be read: {error}. Was the folder "
                "removed while the run went on?"
            ) from error
        if owner != self._mine:
            raise CheckpointError(
                f"Another process trains in {self._path.parent} now; this one stops "
                "without writing there."
            )
