"""Parts that did not fit in memory, cut into smaller ones."""

from scvi_dist.analysis.passes.cell_pass import PassPlan
from scvi_dist.analysis.streaming import StoreCells
from scvi_dist.errors import BudgetExceeded

MIN_CELLS = 128
"""Pieces of so many cells or fewer are not cut any more."""


class PartCuts:
    """In which pieces each part is computed.

    The own sum of a part that is cut runs in another order, which may show in its last digits.
    """

    def __init__(self, cells: StoreCells, plan: PassPlan) -> None:
        self._cells = cells
        self._plan = plan
        self._cuts: dict[int, list[tuple[int, int]]] = {}

    def of(self, part: int) -> list[tuple[int, int]]:
        """Positions ``(start, stop)`` of the cells of each piece, in order."""
        return self._cuts.get(part, [self._plan.parts[part]])

    def budget_bytes(self, part: int) -> int:
        """What the blocks in memory may take while the part is computed."""
        return max(1, self._cells.config.budget_bytes // len(self.of(part)))

    def split(self, part: int, reason: str) -> None:
        """Compute a part in pieces half as large from now on.

        Raises
        ------
        BudgetExceeded
            They are as small as can be.
        """
        pieces = self.of(part)
        if max(stop - start for start, stop in pieces) <= MIN_CELLS:
            start, stop = self._plan.parts[part]
            rows = self._cells.selection.rows(start, stop)
            raise BudgetExceeded(
                f"cells {start} to {stop - 1} (rows {rows.min()} to {rows.max()} of "
                f"{self._cells.source.where}) do not fit in memory, even {MIN_CELLS} at a time: "
                f"{reason.rstrip('.')}. Give each worker more memory, or fewer threads."
            )
        self._cuts[part] = [
            half
            for start, stop in pieces
            for half in ((start, (start + stop) // 2), ((start + stop) // 2, stop))
            if half[0] < half[1]
        ]
