"""The weight of the KL divergence over a whole run, seen from its start."""

import warnings
from inspect import signature
from math import ceil

from scvi_dist.errors import WarmUpWarning
from scvi_dist.train.configs import TrainingPlanConfig
from scvi_dist.train.fit_job import FitJob
from scvi_dist.train.training_plan import kl_weight_at


def run_length(
    max_epochs: int | None, max_steps: int | None, steps_per_epoch: int
) -> tuple[int, int]:
    """Epochs begun and steps made until a limit is reached; at least one is given."""
    limits = [] if max_epochs is None else [max_epochs * steps_per_epoch]
    limits += [] if max_steps is None else [max_steps]
    n_steps = min(limits)
    return ceil(n_steps / max(steps_per_epoch, 1)), n_steps


def last_kl_weight(config: TrainingPlanConfig, n_epochs: int, n_steps: int) -> float:
    """The weight in the last step of a run of so many epochs and steps."""
    return kl_weight_at(config, max(n_epochs - 1, 0), max(n_steps - 1, 0))


def first_third(n: int) -> int:
    """A warm-up over the first third of ``n`` epochs or steps; at least 1."""
    return max(1, n // 3)


def warn_of_unfinished_warm_up(job: FitJob) -> None:
    """Warn where a run ends before its warm-up does, with the weight that it gets to.

    Warns
    -----
    WarmUpWarning
        With what to set instead.
    """
    config = job.plan
    if "kl_weight" not in signature(job.module.loss).parameters:  # type: ignore[arg-type]
        return
    steps_per_epoch = ceil(job.split.train.n / job.train.batch_size)
    n_epochs, n_steps = run_length(job.max_epochs, job.train.max_steps, steps_per_epoch)
    if config.n_epochs_kl_warmup:
        name, given, there = "n_epochs_kl_warmup", config.n_epochs_kl_warmup, n_epochs
    elif config.n_steps_kl_warmup:
        name, given, there = "n_steps_kl_warmup", config.n_steps_kl_warmup, n_steps
    else:
        return
    if there == 0 or given <= there or config.min_kl_weight == config.max_kl_weight:
        return
    unit = "epochs" if name == "n_epochs_kl_warmup" else "steps"
    weight = last_kl_weight(config, n_epochs, n_steps)
    warnings.warn(
        f"the KL warm-up takes {given} {unit}, but training ends after {there}: in its last step "
        f"the KL divergence has a weight of {weight:.3g} instead of {config.max_kl_weight:g}, and "
        "the latent space is regularised that much less. For a warm-up over the first third set "
        f"{name}={first_third(there)} (in plan_kwargs, or under plan in a run file).",
        WarmUpWarning,
        stacklevel=2,
    )
