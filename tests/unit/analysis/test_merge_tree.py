"""Laws of the order in which parts merge."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_dist.analysis.passes.merge_tree import FAN_IN, MAX_ROOTS, MergeTree, TreeFold
from scvi_dist.errors import PlanError


def in_brackets(tree: MergeTree, order: list[int]) -> str:
    fold: TreeFold[str] = TreeFold(tree, lambda a, b: f"({a}+{b})")
    for part in order:
        fold.add(0, part, str(part))
    assert fold.is_complete
    assert fold.total is not None
    return fold.total


def test_five_parts_merge_four_at_a_time_and_then_the_roots() -> None:
    assert in_brackets(MergeTree(5), [0, 1, 2, 3, 4]) == "((((0+1)+2)+3)+4)"
    assert in_brackets(MergeTree(9), list(range(9))) == "(((((0+1)+2)+3)+(((4+5)+6)+7))+8)"


@given(st.integers(1, 400), st.randoms(use_true_random=False))
def test_brackets_do_not_depend_on_which_part_is_ready_first(n: int, rng: random.Random) -> None:
    order = list(range(n))
    rng.shuffle(order)
    assert in_brackets(MergeTree(n), order) == in_brackets(MergeTree(n), list(range(n)))


@given(st.integers(1, 20_000))
def test_every_part_is_below_one_root_and_roots_are_few(n: int) -> None:
    tree = MergeTree(n)
    assert tree.n_roots <= MAX_ROOTS
    below = [tree.parts(tree.height, root) for root in range(tree.n_roots)]
    assert [part for parts in below for part in parts] == list(range(n))
    for level in range(1, tree.height + 1):
        children = [c for k in range(tree.n_nodes(level)) for c in tree.children(level, k)]
        assert children == list(range(tree.n_nodes(level - 1)))
        assert all(len(tree.children(level, k)) <= FAN_IN for k in range(tree.n_nodes(level)))


@given(st.integers(1, 300), st.integers(0, 70))
def test_a_fold_that_goes_on_from_some_roots_ends_like_one_that_did_all(n: int, done: int) -> None:
    tree = MergeTree(n)
    done = min(done, tree.n_roots)
    values = np.random.default_rng(n).normal(size=n)

    def add(fold: TreeFold[float], roots: range) -> TreeFold[float]:
        for root in roots:
            for part in tree.parts(tree.height, root):
                fold.add(0, part, values[part])
        return fold

    whole = add(TreeFold(tree, lambda a, b: a + b), range(tree.n_roots))
    half = add(TreeFold(tree, lambda a, b: a + b), range(done))
    assert half.n_done == done
    rest = TreeFold(tree, lambda a, b: a + b, half.total, half.n_done)
    assert add(rest, range(done, tree.n_roots)).total == whole.total


def test_results_of_roots_and_of_parts_are_the_same_fold() -> None:
    tree = MergeTree(10)
    fold: TreeFold[str] = TreeFold(tree, lambda a, b: f"({a}+{b})")
    fold.add(1, 1, "(((4+5)+6)+7)")
    fold.add(1, 2, "(8+9)")
    assert fold.n_done == 0
    fold.add(1, 0, "(((0+1)+2)+3)")
    assert fold.total == in_brackets(tree, list(range(10)))


def test_nothing_is_no_tree() -> None:
    with pytest.raises(PlanError, match="at least one part"):
        MergeTree(0)
