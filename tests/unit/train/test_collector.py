import pytest

from scvi_dist.errors import (
    BadCounts,
    CheckpointError,
    ScviDistError,
    StoreError,
    StoreNotFound,
    TrainingFailed,
    WaitTimeout,
)
from scvi_dist.train.collector import Collector, Orders, WorkerFailure
from scvi_dist.train.progress import TrainProgress

PERMANENT = [BadCounts("x"), TrainingFailed("nan"), CheckpointError("x"), StoreNotFound("x")]
PERMANENT += [ValueError("x"), KeyError("x"), TypeError("x")]
PASSING = [StoreError("no answer"), WaitTimeout("slow"), OSError("disk"), RuntimeError("x")]
LOST = [RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:123"), ValueError("NCCL error")]


def failure(error: BaseException, rank: int = 0) -> WorkerFailure:
    try:
        raise error
    except BaseException as raised:
        return WorkerFailure.of(raised, rank)


@pytest.mark.parametrize("error", PERMANENT, ids=repr)
def test_what_would_come_again_is_not_tried_again(error: Exception) -> None:
    collector = Collector()
    assert not collector.is_hopeless()
    collector.fail(failure(error))
    assert collector.is_hopeless()


@pytest.mark.parametrize("error", PASSING + LOST, ids=repr)
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    collector = Collector()
    collector.fail(failure(error))
    assert not collector.is_hopeless()


def test_the_culprit_comes_before_those_who_lost_it() -> None:
    collector = Collector()
    assert collector.culprit() is None
    for rank, error in enumerate([LOST[0], PASSING[3], LOST[0], PERMANENT[0]]):
        collector.fail(failure(error, rank))
    assert collector.culprit().rank == 3
    collector._failures.pop()
    assert collector.culprit().rank == 1


def test_our_errors_arrive_as_they_were_with_the_ranks_traceback() -> None:
    error = failure(BadCounts("row 7"), 1).error()
    assert type(error) is BadCounts
    assert str(error) == "row 7"
    assert "Traceback of rank 1" in error.__notes__[0]
    assert "raise error" in error.__notes__[0]


def test_other_errors_arrive_in_words() -> None:
    class Local(Exception):
        """Cannot be pickled."""

    for raised in (ZeroDivisionError("by zero"), Local("by zero")):
        error = failure(raised, 3).error()
        assert isinstance(error, ScviDistError)
        assert f"Rank 3 failed: {type(raised).__name__}: by zero" in str(error)


def test_news_are_told_once_and_carry_the_request_to_stop() -> None:
    collector = Collector()
    report = TrainProgress(0, 1, 2, None, 4, 2)
    assert collector.tell([report, report]) == Orders()
    assert collector.news() == [report, report]
    assert collector.news() == []
    collector.ask_stop()
    collector.ask_save()
    assert collector.tell([]) == Orders(stop=True, n_saves=1)


def test_time_is_lost_from_the_first_end_until_there_is_news_again() -> None:
    now = [10.0]
    collector = Collector(lambda: now[0])
    assert collector.begin() is None
    collector.lost()
    now[0] = 15.0
    collector.fail(failure(LOST[0]))
    now[0] = 30.0
    collector.tell([TrainProgress(0, 1, 2, None, 4, 2)])
    assert collector.begin() == 20.0, "news of those that have ended changes nothing"
    assert collector.begin() == 20.0, "the second attempt goes on for the same end"
    collector.tell([TrainProgress(0, 1, 2, None, 4, 2)])
    assert collector.begin() is None


def test_a_rank_that_lost_another_says_that_it_waited() -> None:
    told = str(failure(LOST[0], 2).error())
    assert told.startswith("Rank 2 waited for another rank")
    assert "Connection closed by peer" in told
