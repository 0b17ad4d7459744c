"""Adam steps as torch's does, whatever is changed between two steps and whoever looks on."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from scvi_dist.train import adam
from scvi_dist.train.adam import Adam

Change = Callable[[torch.optim.Adam], "torch.optim.Adam | None"]
"""What is done to an optimizer between two steps; gives another one that goes on in its place."""
SHAPES = ((4, 3), (5,), (2, 6), (7, 2))


def parameters(optimizer: torch.optim.Adam) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def new(kind: type[torch.optim.Adam]) -> torch.optim.Adam:
    """An optimizer of two groups; a parameter has its columns side by side."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator) for shape in SHAPES]
    values[0] = values[0].t().contiguous().t()
    first, second = values[:3], values[3:]
    groups = [
        {"params": [nn.Parameter(x) for x in first]},
        {"params": [nn.Parameter(x) for x in second], "lr": 0.3, "weight_decay": 0.0},
    ]
    return kind(groups, lr=0.1, eps=0.01, weight_decay=0.01, fused=kind is Adam or None)


def give_gradients(optimizer: torch.optim.Adam, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in parameters(optimizer):
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))


def move_storage(optimizer: torch.optim.Adam) -> None:
    for p in parameters(optimizer)[:2]:
        p.data = p.data.clone()


def turn_parameter(optimizer: torch.optim.Adam) -> None:
    p = parameters(optimizer)[0]
    p.data = p.data.contiguous()
    p.grad = torch.empty_like(p).copy_(p.grad)


def put_averages(optimizer: torch.optim.Adam) -> None:
    state = optimizer.state[parameters(optimizer)[1]]
    state["exp_avg"], state["exp_avg_sq"] = torch.zeros(5), torch.ones(5)
    optimizer.state[parameters(optimizer)[2]]["step"] = torch.tensor(1.0)


def forget_a_state(optimizer: torch.optim.Adam) -> None:
    del optimizer.state[parameters(optimizer)[1]]


def load(optimizer: torch.optim.Adam) -> None:
    optimizer.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))


def replace_states(optimizer: torch.optim.Adam) -> None:
    for p, state in list(optimizer.state.items()):
        optimizer.state[p] = {name: value.clone() for name, value in state.items()}


def lose_a_gradient(optimizer: torch.optim.Adam) -> None:
    parameters(optimizer)[1].grad = None


def lose_the_gradients_of_a_group(optimizer: torch.optim.Adam) -> None:
    parameters(optimizer)[3].grad = None


def lose_all_gradients(optimizer: torch.optim.Adam) -> None:
    optimizer.zero_grad()


def turn_a_gradient(optimizer: torch.optim.Adam) -> None:
    p = parameters(optimizer)[2]
    p.grad = p.grad.t().contiguous().t()


def spread_a_gradient(optimizer: torch.optim.Adam) -> None:
    p = parameters(optimizer)[1]
    p.grad = torch.stack([p.grad, -p.grad], dim=1)[:, 0]


def add_a_group(optimizer: torch.optim.Adam) -> None:
    p = nn.Parameter(torch.linspace(-1, 1, 6))
    p.grad = torch.linspace(1, 2, 6)
    optimizer.add_param_group({"params": [p], "lr": 0.5})


def move_to_the_other_group(optimizer: torch.optim.Adam) -> None:
    first, second = (group["params"] for group in optimizer.param_groups)
    second.insert(0, first.pop())


def change_rates(optimizer: torch.optim.Adam) -> None:
    optimizer.param_groups[0].update(lr=0.7, betas=(0.5, 0.6), eps=0.1)


def want_another_law(optimizer: torch.optim.Adam) -> None:
    optimizer.param_groups[1]["maximize"] = True


def want_the_largest_squares(optimizer: torch.optim.Adam) -> None:
    for group in optimizer.param_groups:
        group["amsgrad"] = True
    for p, state in optimizer.state.items():
        state["max_exp_avg_sq"] = torch.full_like(p, 0.5)


def copied(optimizer: torch.optim.Adam) -> torch.optim.Adam:
    return copy.deepcopy(optimizer)


def pickled(optimizer: torch.optim.Adam) -> torch.optim.Adam:
    gradients = [p.grad for p in parameters(optimizer)]
    again = pickle.loads(pickle.dumps(optimizer))
    for p, gradient in zip(parameters(again), gradients, strict=True):
        p.grad = gradient.clone(memory_format=torch.preserve_format)
    return again


CHANGES: list[Change] = [
    move_storage,
    turn_parameter,
    put_averages,
    forget_a_state,
    load,
    replace_states,
    lose_a_gradient,
    lose_the_gradients_of_a_group,
    lose_all_gradients,
    turn_a_gradient,
    spread_a_gradient,
    add_a_group,
    move_to_the_other_group,
    change_rates,
    want_another_law,
    want_the_largest_squares,
    copied,
    pickled,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_is_changed_between_two_steps_they_are_torchs(change: Change) -> None:
    found = []
    for kind in (Adam, torch.optim.Adam):
        optimizer = new(kind)
        for step in range(7):
            give_gradients(optimizer, step)
            if step in (3, 4):
                optimizer = change(optimizer) or optimizer
            optimizer.step()
        found.append([*parameters(optimizer), *(optimizer.state[p] for p in parameters(optimizer))])
    torch.testing.assert_close(*found, rtol=2e-6, atol=2e-6)


def test_steps_after_the_first_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    monkeypatch.setattr(adam, "_move", lambda group, table: moved.append(len(table.parameters)))
    optimizer = new(Adam)
    for step in range(3):
        give_gradients(optimizer, step)
        optimizer.step()
    lose_a_gradient(optimizer)
    optimizer.step()
    assert moved == [3, 1, 3, 1, 2, 1]


def test_who_kept_a_parameter_for_derivatives_notices_a_step() -> None:
    optimizer = new(Adam)
    give_gradients(optimizer, 0)
    optimizer.step()
    for step in range(3):
        give_gradients(optimizer, step)
        versions = [p._version for p in parameters(optimizer)]
        lose_a_gradient(optimizer)
        optimizer.step()
        grown = [p._version > v for p, v in zip(parameters(optimizer), versions, strict=True)]
        assert grown == [True, False, True, True]


def test_hooks_are_called_once_in_each_step() -> None:
    # Torch puts hooks around the method of a class when it makes the first of its kind.
    new(torch.optim.Adam)
    optimizer, calls = new(Adam), []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: calls.append(name)

    handles = [
        optimizer.register_step_pre_hook(note("before")),
        optimizer.register_step_post_hook(note("after")),
        register_optimizer_step_post_hook(note("after any")),
    ]
    for step in range(3):
        give_gradients(optimizer, step)
        optimizer.step()
        assert calls == ["before", "after", "after any"] * (step + 1)
    while handles:
        handles.pop().remove()
        optimizer.step()
    assert calls[9:] == ["before", "after", "before"]


def test_a_hook_may_change_what_a_step_is_called_with() -> None:
    optimizer = new(Adam)
    give_gradients(optimizer, 0)
    optimizer.register_step_pre_hook(lambda self, args, kwargs: ((self, lambda: 4), kwargs))
    assert optimizer.step() == 4


def test_a_closure_is_computed_with_derivatives() -> None:
    optimizer = new(Adam)

    def closure() -> Any:
        give_gradients(optimizer, 0)
        return torch.is_grad_enabled()

    with torch.no_grad():
        assert [optimizer.step(closure), optimizer.step(closure)] == [True, True]


def test_a_profiler_sees_the_steps() -> None:
    optimizer = new(Adam)
    give_gradients(optimizer, 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        optimizer.step()
        optimizer.step()
    times = {event.key: event.count for event in seen.key_averages()}
    assert times["Optimizer.step#Adam.step"] == 2
    assert not hasattr(Adam.step, "__wrapped__")
