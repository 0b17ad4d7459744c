"""What a run has measured so far."""

from collections.abc import Mapping
from typing import Any

Points = list[tuple[int, float]]


class History:
    """Metric name -> points ``(index, value)``; the index is an epoch or an optimizer step."""

    def __init__(self) -> None:
        self.points: dict[str, Points] = {}

    def add(self, metrics: Mapping[str, float], index: int) -> None:
        """One more point for each metric."""
        for name, value in metrics.items():
            self.points.setdefault(name, []).append((index, float(value)))

    def state_dict(self) -> dict[str, Any]:
        """Plain lists."""
        return {k: [[i, v] for i, v in points] for k, points in self.points.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.points = {k: [(int(i), float(v)) for i, v in points] for k, points in state.items()}
