"""In which order the parts of a pass merge: a tree that follows from the number of parts alone.

Sums of floats depend on their order. Every engine therefore merges along the same tree, whichever
part is ready first: four neighbours at a time from the left, until at most ``MAX_ROOTS`` nodes are
left, and these from the left into the result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from scvi_dist.errors import PlanError

T = TypeVar("T")

FAN_IN = 4
MAX_ROOTS = 64


@dataclass(frozen=True, slots=True)
class MergeTree:
    """The nodes over some parts. Level 0 are the parts, level ``height`` the roots."""

    n_parts: int

    def __post_init__(self) -> None:
        if self.n_parts < 1:
            raise PlanError(f"a pass has at least one part, seen {self.n_parts}.")

    @property
    def height(self) -> int:
        """Levels between parts and roots; at least 1, so that few results reach the driver."""
        height = 1
        while self.n_nodes(height) > MAX_ROOTS:
            height += 1
        return height

    @property
    def n_roots(self) -> int:
        """Nodes that the driver merges."""
        return self.n_nodes(self.height)

    def n_nodes(self, level: int) -> int:
        """Nodes of a level."""
        return -(-self.n_parts // FAN_IN**level)

    def children(self, level: int, index: int) -> range:
        """Nodes of the level below that merge into this one, in order."""
        return range(FAN_IN * index, min(FAN_IN * (index + 1), self.n_nodes(level - 1)))

    def parts(self, level: int, index: int) -> range:
        """Parts that are below a node, in order."""
        span = FAN_IN**level
        return range(span * index, min(span * (index + 1), self.n_parts))


class TreeFold(Generic[T]):
    """Merges results of nodes, which may come in any order, along the tree.

    Parameters
    ----------
    merge
        Merges the second, which is of later cells, into the first; may use the first's memory.
    total, n_done
        What an earlier run has merged: the first ``n_done`` roots.
    """

    def __init__(
        self,
        tree: MergeTree,
        merge: Callable[[T, T], T],
        total: T | None = None,
        n_done: int = 0,
    ) -> None:
        self.tree = tree
        self._merge = merge
        self._height = tree.height
        self._roots = _FromTheLeft(merge, total, n_done)
        self._open: dict[tuple[int, int], _FromTheLeft[T]] = {}

    @property
    def n_done(self) -> int:
        """Roots, from the first, that are part of the total."""
        return self._roots.n_done

    @property
    def is_complete(self) -> bool:
        return self.n_done == self.tree.n_roots

    @property
    def total(self) -> T | None:
        """The first ``n_done`` roots as one; None before the first."""
        return self._roots.total

    def add(self, level: int, index: int, value: T) -> None:
        """The result of a node, which belongs to the fold from now on."""
        if level == self._height:
            self._roots.add(index, value)
            return
        parent, child = divmod(index, FAN_IN)
        key = level + 1, parent
        fold = self._open.setdefault(key, _FromTheLeft(self._merge))
        fold.add(child, value)
        if fold.n_done == len(self.tree.children(*key)):
            del self._open[key]
            assert fold.total is not None
            self.add(*key, fold.total)


class _FromTheLeft(Generic[T]):
    """Merges items 0, 1, 2, … in this order; those that come early wait."""

    def __init__(self, merge: Callable[[T, T], T], total: T | None = None, n_done: int = 0) -> None:
        self._merge = merge
        self._waiting: dict[int, T] = {}
        self.total = total
        self.n_done = n_done

    def add(self, index: int, value: T) -> None:
        self._waiting[index] = value
        while self.n_done in self._waiting:
            value = self._waiting.pop(self.n_done)
            self.total = value if self.total is None else self._merge(self.total, value)
            self.n_done += 1
