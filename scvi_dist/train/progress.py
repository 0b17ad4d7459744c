"""What a run tells about itself while it goes on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """One report; picklable, so that it reaches a driver on another machine."""

    epoch: int
    """Epochs that are finished."""
    max_epochs: int | None
    step: int
    """Optimizer steps that are done, over all epochs."""
    max_steps: int | None
    steps_per_epoch: int
    epoch_step: int
    """Steps of this epoch that are done."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Newest values: of the last steps, or of the epoch that has just ended."""
    cells_per_s: float = 0.0
    """Cells trained on a second, over all ranks, since this process began."""
    wait_fraction: float = 0.0
    """Share of that time in which rank 0 waited for data."""
    memory_bytes: int = 0
    """Resident size of rank 0's process."""
    gpu_bytes: int = 0
    """What rank 0 has held of its GPU's memory, at most."""
    epoch_ended: bool = False
    workers: int = 1
    """Ranks that train."""
    recovery_s: float | None = None
    """In the first report after workers were lost or gained: seconds without training."""

    @property
    def fraction(self) -> float:
        """Part of the run that is done, 0 … 1; early stopping may end it before."""
        parts = [0.0]
        if self.max_steps:
            parts.append(self.step / self.max_steps)
        if self.max_epochs:
            done = self.epoch + self.epoch_step / max(self.steps_per_epoch, 1)
            parts.append(done / self.max_epochs)
        return min(1.0, max(parts))


OnProgress = Callable[[TrainProgress], None]
