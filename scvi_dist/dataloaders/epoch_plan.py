"""What a loader needs of a plan, whatever it draws its cells from."""

from collections.abc import Iterator
from typing import Any, Protocol

from scvi_dist.dataloaders.read_task import ReadTask


class EpochPlan(Protocol):
    """An epoch of minibatches, as tasks for each rank; pure and picklable.

    See :class:`~scvi_dist.dataloaders.read_plan.ReadPlan`.
    """

    @property
    def n_cells(self) -> int:
        """Cells of an epoch."""

    @property
    def n_steps(self) -> int:
        """Global minibatches of an epoch, and steps of every rank."""

    def position_of(self, step: int) -> int:
        """Cells of the epoch before a global minibatch; ``step`` may be ``n_steps``."""

    def step_of(self, position: int) -> int:
        """The global minibatch that starts at a position."""

    def windows(self, position: int = 0) -> Iterator[tuple[int, int]]:
        """Arguments ``window, first`` of :meth:`task` from a position on, in order."""

    def task(self, epoch: int, rank: int, world: int, window: int, first: int = 0) -> ReadTask:
        """A rank's share of a window, from the window's minibatch ``first`` on."""

    def tasks(self, epoch: int, rank: int, world: int, position: int = 0) -> Iterator[ReadTask]:
        """A rank's tasks of an epoch from a position (in global cells) on, in order."""

    def cells_per_task(self, world: int) -> int:
        """Most cells that a rank's task holds."""

    def memory_bytes(self, bytes_per_cell: float, world: int, scratch_bytes: int = 0) -> int:
        """Most bytes of cells and plan that a rank's reader holds at once."""

    def facts(self) -> dict[str, Any]:
        """What a position in this plan's order depends on; JSON values."""
