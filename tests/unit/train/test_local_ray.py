"""A slow machine gets another chance; anything else that goes wrong is told at once."""

import pytest
import ray

from scvi_dist.errors import TrainingFailed
from scvi_dist.train.local_ray import ATTEMPTS, start_local_ray

SLOW = Exception("The current node timed out during startup. Overloaded.")


class Starts:
    """``ray.init`` that fails as told, one error an attempt, and then works."""

    def __init__(self, errors: list[Exception]) -> None:
        self.errors = errors
        self.n_calls = self.n_ended = 0

    def init(self, **_: object) -> None:
        self.n_calls += 1
        if self.errors:
            raise self.errors.pop(0)

    def shutdown(self) -> None:
        self.n_ended += 1


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Starts:
    fake = Starts(list(request.param))
    monkeypatch.setattr(ray, "init", fake.init)
    monkeypatch.setattr(ray, "shutdown", fake.shutdown)
    return fake


@pytest.mark.parametrize("starts", [[SLOW] * n for n in range(ATTEMPTS)], indirect=True)
def test_a_slow_start_is_tried_again_after_what_it_left_is_gone(starts: Starts) -> None:
    n_failures = len(starts.errors)
    start_local_ray(2)
    assert (starts.n_calls, starts.n_ended) == (n_failures + 1, n_failures)


@pytest.mark.parametrize("starts", [[SLOW] * ATTEMPTS], indirect=True)
def test_a_machine_that_stays_too_slow_is_told_what_to_do(starts: Starts) -> None:
    with pytest.raises(TrainingFailed, match=r"too busy.*num_workers=None"):
        start_local_ray(2)
    assert starts.n_calls == ATTEMPTS


@pytest.mark.parametrize("starts", [[ValueError("no such option")]], indirect=True)
def test_another_error_is_not_repeated(starts: Starts) -> None:
    with pytest.raises(ValueError, match="no such option"):
        start_local_ray(2)
    assert starts.n_calls == 1
