"""A warm-up that a run is too short for is warned of, with the weight that it gets to."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_dist.errors import WarmUpWarning
from scvi_dist.train.configs import TrainingPlanConfig
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitJob
from scvi_dist.train.warm_up import (
    first_third,
    last_kl_weight,
    run_length,
    warn_of_unfinished_warm_up,
)

MakeJob = Callable[..., FitJob]


@pytest.mark.parametrize(
    ("plan", "limits", "message"),
    [
        ({}, {"max_epochs": 3}, r"takes 400 epochs.*after 3:.*n_epochs_kl_warmup=1"),
        ({}, {"max_epochs": None, "max_steps": 7}, r"takes 400 epochs.*after 2:"),
        (
            {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 100},
            {"max_epochs": 6},
            r"takes 100 steps.*after 30:.*n_steps_kl_warmup=10",
        ),
    ],
)
def test_the_weight_told_is_the_one_of_the_last_step(
    make_job: MakeJob, plan: dict[str, Any], limits: dict[str, Any], message: str
) -> None:
    job = make_job(plan=plan, log_every_n_steps=1, **limits)
    with pytest.warns(WarmUpWarning, match=message) as caught:
        warn_of_unfinished_warm_up(job)
    _, weight = fit(job).history["kl_weight"][-1]
    assert f"has a weight of {weight:.3g} instead of 1," in str(caught[0].message)


@pytest.mark.parametrize(
    "plan",
    [
        {"n_epochs_kl_warmup": 3},
        {"n_epochs_kl_warmup": None},
        {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 15},
        {"min_kl_weight": 1.0},
    ],
    ids=str,
)
def test_runs_that_are_long_enough_are_not(make_job: MakeJob, plan: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unfinished_warm_up(make_job(plan=plan, max_epochs=3))
        warn_of_unfinished_warm_up(make_job(max_epochs=0))


@given(
    st.one_of(st.none(), st.integers(1, 30)), st.one_of(st.none(), st.integers(1, 200)),
    st.integers(1, 9),
)  # fmt: skip
def test_a_warm_up_over_the_first_third_is_finished(
    max_epochs: int | None, max_steps: int | None, steps_per_epoch: int
) -> None:
    if max_epochs is None and max_steps is None:
        max_epochs = 1
    n_epochs, n_steps = run_length(max_epochs, max_steps, steps_per_epoch)
    assert n_steps <= n_epochs * steps_per_epoch < n_steps + steps_per_epoch
    by_step = TrainingPlanConfig(n_epochs_kl_warmup=None, n_steps_kl_warmup=first_third(n_steps))
    by_epoch = TrainingPlanConfig(n_epochs_kl_warmup=first_third(n_epochs))
    if n_steps > 1:
        assert last_kl_weight(by_step, n_epochs, n_steps) == 1
    if n_epochs > 1:
        assert last_kl_weight(by_epoch, n_epochs, n_steps) == 1
