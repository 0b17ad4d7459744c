"""Threads of compiled loops, and how many torch has beside them."""

import threading
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from scvi_dist.kernels import threads


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(usual)


def test_loops_have_the_threads_that_torch_had() -> None:
    with threads.for_loops():
        assert (torch.get_num_threads(), threads.n_threads()) == (1, 2)
        with threads.for_loops():
            assert (torch.get_num_threads(), threads.n_threads()) == (1, 2)
        assert (torch.get_num_threads(), threads.n_threads()) == (1, 2)
    assert (torch.get_num_threads(), threads.n_threads()) == (2, 2)
    with threads.for_loops(wanted=False):
        assert (torch.get_num_threads(), threads.n_threads()) == (2, 2)


def test_torch_has_its_threads_back_after_an_error() -> None:
    with pytest.raises(KeyError), threads.for_loops():
        raise KeyError
    assert (torch.get_num_threads(), threads.n_threads()) == (2, 2)


@pytest.mark.parametrize("within", [False, True])
def test_tasks_run_side_by_side_on_one_core_each(within: bool) -> None:
    both_run, seen = threading.Barrier(2, timeout=60), {}

    def task(name: str) -> None:
        both_run.wait()
        seen[name] = torch.get_num_threads()

    with threads.for_loops(within):
        threads.run([partial(task, name) for name in "ab"])
    assert seen == {"a": 1, "b": 1}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("work", "n_parts"), [(0, 1), (9, 1), (19, 1), (20, 2), (10**9, 2)])
def test_parts_are_worth_a_thread(work: int, n_parts: int) -> None:
    assert threads.n_parts(work, least=10) == n_parts


def test_an_error_of_any_task_is_raised() -> None:
    def fail() -> None:
        raise ArithmeticError

    for tasks in ([fail, int], [int, fail]):
        with pytest.raises(ArithmeticError):
            threads.run(tasks)
        assert torch.get_num_threads() == 2
    # The thread that failed goes on with other tasks.
    test_tasks_run_side_by_side_on_one_core_each(within=False)


def test_an_error_is_raised_when_all_tasks_have_ended() -> None:
    may_end, ends = threading.Event(), []

    def fail() -> None:
        may_end.set()
        raise ArithmeticError

    def last() -> None:
        assert may_end.wait(60)
        ends.append(1)

    with pytest.raises(ArithmeticError):
        threads.run([fail, last])
    assert ends == [1]


@pytest.mark.parametrize("is_inference", [False, True])
def test_all_threads_compute_as_the_caller_does(is_inference: bool) -> None:
    seen = []

    def look() -> None:
        seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

    with torch.inference_mode(is_inference):
        threads.run([look, look])
    assert seen == [(False, is_inference)] * 2
    assert torch.is_grad_enabled()
