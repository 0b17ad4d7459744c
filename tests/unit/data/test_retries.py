"""What is tried again, how often, and after how long."""

import errno
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_dist.data.remote.remote_config import RemoteConfig, split_options
from scvi_dist.data.remote.retries import Attempts, GaveUp, is_transient, persist
from scvi_dist.errors import ConfigError

QUICK = RemoteConfig(attempts=4, first_wait_s=0.0, longest_wait_s=0.0)


def with_status(status: int) -> Exception:
    error = RuntimeError("answer")
    error.status = status  # type: ignore[attr-defined]
    return error


def caused_by_boto(status: int) -> Exception:
    cause = RuntimeError("client error")
    cause.response = {"ResponseMetadata": {"HTTPStatusCode": status}}  # type: ignore[attr-defined]
    error = OSError(errno.EIO, "some code")
    error.__cause__ = cause
    return error


class ClientPayloadError(Exception):
    """Has the name of aiohttp's error."""


PASSING = [
    ConnectionResetError("reset"),
    TimeoutError(),
    OSError(errno.EBUSY, "Please reduce your request rate"),
    with_status(503),
    with_status(429),
    caused_by_boto(500),
    ClientPayloadError("not enough data"),
]
LASTING = [
    FileNotFoundError("x"),
    PermissionError("x"),
    ValueError("x"),
    OSError(errno.EINVAL, "x"),
    with_status(403),
    with_status(501),
    caused_by_boto(400),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_passes_is_tried_again(error: Exception) -> None:
    assert is_transient(error)
    answers: list[Any] = [error, error, "answer"]

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert persist(ask, QUICK) == "answer"


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_lasts_is_raised_at_once(error: Exception) -> None:
    assert not is_transient(error)
    calls = []

    def ask() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)) as raised:
        persist(ask, QUICK)
    assert raised.value is error
    assert len(calls) == 1


@given(st.integers(1, 9))
def test_the_number_of_attempts_is_kept_and_told(attempts: int) -> None:
    calls = []

    def ask() -> None:
        calls.append(1)
        raise with_status(503)

    config = RemoteConfig(attempts=attempts, first_wait_s=0.0, longest_wait_s=0.0)
    with pytest.raises(GaveUp, match=rf"status 503.*\({attempts} attempt") as raised:
        persist(ask, config)
    assert len(calls) == attempts
    assert raised.value.__cause__ is None


@given(first=st.floats(0, 10), longest=st.floats(0, 60), seed=st.integers(0, 99))
def test_waits_double_up_to_the_longest_with_jitter(
    first: float, longest: float, seed: int
) -> None:
    config = RemoteConfig(attempts=9, first_wait_s=first, longest_wait_s=longest)
    tries = Attempts(config, random.Random(seed))
    for k in range(8):
        whole = min(first * 2**k, longest)
        assert whole / 2 <= tries.wait_after(TimeoutError()) <= whole


def test_readers_that_were_turned_away_together_come_back_apart() -> None:
    waits = {Attempts(RemoteConfig()).wait_after(TimeoutError()) for _ in range(20)}
    assert len(waits) > 10


def test_own_options_are_taken_out_and_travel() -> None:
    config = RemoteConfig(attempts=2, cache_dir="/x")
    given = {"anon": True, **config.as_options()}
    assert split_options(given) == (config, {"anon": True})
    assert split_options(None) == (RemoteConfig(), {})
    assert RemoteConfig().as_options() == {}
    assert given["scvi_dist"] == {"attempts": 2, "cache_dir": "/x"}


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"atempts": 3}, "did you mean 'attempts'"),
        ({"attempts": 0}, "at least 1"),
        ({"timeout_s": 0}, "positive"),
        ({"longest_wait_s": -1}, "negative"),
        ({"cache_bytes": 10}, "two blocks"),
        ("fast", "must be a mapping"),
    ],
)
def test_wrong_options_are_refused(own: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        split_options({"scvi_dist": own})
