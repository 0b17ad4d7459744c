"""CPU times of trainings that take turns in one process, and what a step takes at its peak."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Training = Callable[[], object]


def median_cpu_s(
    trainings: Mapping[str, Callable[[], Training]], repeats: int
) -> dict[str, list[float]]:
    """Name -> CPU seconds of each repeat; one more round before them warms everything up.

    Parameters
    ----------
    trainings
        Name -> what makes a new model and gives the call that trains it, which alone is timed.
    """
    times: dict[str, list[float]] = {name: [] for name in trainings}
    for _ in range(repeats + 1):
        for name, make in trainings.items():
            train = make()
            start = time.process_time()
            train()
            times[name].append(time.process_time() - start)
    return {name: values[1:] for name, values in times.items()}


def report(times: Mapping[str, list[float]], peer: str, n_steps: int) -> None:
    """Print medians for each training step, and their ratios to the peer's."""
    reference = statistics.median(times[peer])
    for name, values in times.items():
        median = statistics.median(values)
        spread = f"{min(values) / n_steps * 1e3:.1f} to {max(values) / n_steps * 1e3:.1f}"
        print(
            f"{name:12s} {median / n_steps * 1e3:8.1f} ms CPU a step ({spread})"
            f"   {reference / median:5.1f} x {peer}"
        )


def peak_mb() -> float:
    """The most memory that this process has held since :func:`forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def forget_peak() -> None:
    """Start anew from the memory that is held now."""
    Path("/proc/self/clear_refs").write_text("5")
