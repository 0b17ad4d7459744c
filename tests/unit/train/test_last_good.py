"""After a loss that is no number the model has the weights of the last step that was good."""

from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from scvi_dist.errors import TrainingFailed
from scvi_dist.train import last_good
from scvi_dist.train.last_good import KeepGoodWeights


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def fill(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


def plan(step: int) -> Any:
    return SimpleNamespace(cursor=SimpleNamespace(global_step=step))


def end_step(kept: KeepGoodWeights, step: int) -> None:
    kept.on_train_batch_end(None, plan(step), None, None, 0)


def fail(kept: KeepGoodWeights) -> str:
    """What is told when training fails."""
    failed = TrainingFailed("no number")
    kept.on_exception(None, plan(0), failed)
    return "".join(getattr(failed, "__notes__", []))


def weights(module: nn.Module) -> set[float]:
    return {x for p in module.parameters() for x in p.detach().flatten().tolist()}


@pytest.mark.parametrize("n_good", [0, 1, 2, 3, 4])
def test_weights_of_the_last_good_step_come_back(n_good: int) -> None:
    module, clock = model(), count(0, 10)
    kept = KeepGoodWeights(module, every=5, share=1.0, clock=lambda: next(clock))
    fill(module, 0.0)
    kept.on_train_start(None, plan(0))
    for k in range(1, n_good + 1):
        fill(module, float(k))
        end_step(kept, 5 * k)
        fill(module, -1.0)
        end_step(kept, 5 * k + 1)
    for broken in (float("nan"), float("inf"), float("nan")):
        fill(module, broken)
        end_step(kept, 500)
    assert fail(kept) == f"The model has the weights of step {5 * n_good}."
    assert weights(module) == {float(n_good)}


def test_a_copy_that_is_not_finished_leaves_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    module = model()
    kept = KeepGoodWeights(module, every=1, share=1e9)
    for step in (1, 2, 3):
        fill(module, float(step))
        end_step(kept, step)
    copied, n_left = last_good._copied, count()

    def break_off(value: torch.Tensor, place: torch.Tensor | None) -> torch.Tensor:
        if next(n_left) == 2:
            raise KeyboardInterrupt
        return copied(value, place)

    monkeypatch.setattr(last_good, "_copied", break_off)
    fill(module, 4.0)
    with pytest.raises(KeyboardInterrupt):
        end_step(kept, 4)
    assert fail(kept) == "The model has the weights of step 3."
    assert weights(module) == {3.0}


def test_copies_take_turns_in_the_same_memory() -> None:
    module, places = model(), []
    kept = KeepGoodWeights(module, every=1, share=1e9)
    for step in range(5):
        end_step(kept, step)
        places.append([value.data_ptr() for value in kept._weights.values()])
    assert places[0] == places[2] == places[4] != places[1]
    assert places[1] == places[3]


def test_weights_of_another_shape_are_kept_too() -> None:
    module = model()
    kept = KeepGoodWeights(module, every=1, share=1e9)
    for step, width in enumerate((3, 3, 5, 5)):
        module[0] = nn.Linear(width, 2)
        fill(module, float(step))
        end_step(kept, step)
    assert fail(kept) == "The model has the weights of step 3."
    assert weights(module) == {3.0}


def test_copies_take_no_more_of_the_time_than_their_share() -> None:
    now, module = [0.0], model()

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    kept = KeepGoodWeights(module, every=1, share=0.1, clock=clock)
    seen = []
    for step in range(1, 40):
        fill(module, float(step))
        end_step(kept, step)
        seen.append(kept._step)
    # A copy takes one second by this clock, and each look at it another one.
    assert sorted(set(seen)) == [1, 11, 21, 31]


def test_other_errors_leave_the_weights() -> None:
    module = model()
    kept = KeepGoodWeights(module, every=1)
    kept.on_train_start(None, plan(0))
    fill(module, 7.0)
    kept.on_exception(None, plan(1), ValueError("of the user's"))
    assert weights(module) == {7.0}
