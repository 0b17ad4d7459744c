import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scvi_dist.batch import CellBatch
from scvi_dist.dataloaders.rows import all_members
from scvi_dist.module import LossOutput
from scvi_dist.train.configs import TrainingPlanConfig
from scvi_dist.train.fit import fit
from scvi_dist.train.fit_job import FitJob
from scvi_dist.train.training_plan import TrainingPlan, kl_weight_at

MakeJob = Callable[..., FitJob]
warmups = st.one_of(st.none(), st.integers(1, 50))


@given(warmups, warmups, st.integers(0, 60), st.integers(0, 60), st.floats(0, 1), st.floats(0, 1))
def test_the_kl_weight_rises_from_minimum_to_maximum(
    epochs: int | None, steps: int | None, epoch: int, step: int, low: float, rise: float
) -> None:
    config = TrainingPlanConfig(
        n_epochs_kl_warmup=epochs,
        n_steps_kl_warmup=steps,
        min_kl_weight=low,
        max_kl_weight=low + rise,
    )
    weight = kl_weight_at(config, epoch, step)
    length, done = (epochs, epoch) if epochs else (steps, step)
    expected = low + rise if not length or done >= length else rise * (done / length) + low
    assert math.isclose(weight, expected, rel_tol=1e-9, abs_tol=1e-12)
    assert kl_weight_at(config, epoch + 1, step + 1) >= weight - 1e-12


class Sums(nn.Module):
    """A module whose losses are plain numbers: the row of each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def loss(self, batch: CellBatch, kl_weight: float, n_obs: int, extra: float) -> LossOutput:
        rows = torch.from_numpy(batch.rows[: batch.n_real]).float() * self.scale
        assert n_obs == 126
        return LossOutput(
            loss=rows.mean() + kl_weight,
            reconstruction_loss=rows,
            kl_local=2 * rows,
            kl_global=torch.tensor(float(batch.step)),
            extra_metrics={"constant": torch.tensor(extra), "vector": rows},
        )

    def forward(self, batch: CellBatch, loss_kwargs: dict) -> tuple:
        return None, None, self.loss(batch, **loss_kwargs)


def test_metrics_are_means_over_cells_under_scvi_tools_names(make_job: MakeJob) -> None:
    plan = {
        "lr": 0.0,
        "weight_decay": 0.0,
        "n_epochs_kl_warmup": 2,
        "loss_kwargs": {"extra": 7.0},
    }
    job = make_job(plan=plan, job={"module": Sums()}, max_epochs=2, check_val_every_n_epoch=1)
    history = fit(job).history
    rows = {"train": all_members(job.split.train), "validation": all_members(job.split.validation)}
    assert sorted(np.concatenate(list(rows.values()))) == list(range(140))
    for mode, members in rows.items():
        steps = 5 if mode == "train" else 1
        kl_global = (steps - 1) / 2
        expected = {
            f"reconstruction_loss_{mode}": members.mean(),
            f"kl_local_{mode}": 2 * members.mean(),
            f"kl_global_{mode}": kl_global,
            f"elbo_{mode}": 3 * members.mean() + kl_global / len(members),
            f"constant_{mode}": 7.0,
        }
        for name, value in expected.items():
            assert [i for i, _ in history[name]] == [0, 1]
            assert [v for _, v in history[name]] == pytest.approx([value] * 2, rel=1e-6)
        losses = [members.mean(), members.mean() + 0.5]
        assert [v for _, v in history[f"{mode}_loss"]] == pytest.approx(losses, rel=1e-6)
    assert not any("vector" in name for name in history)
    assert history["kl_weight"] == [(9, 0.5)]


def test_steps_are_logged_where_scvi_tools_logs_them(make_job: MakeJob) -> None:
    plan = {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 100}
    history = fit(make_job(plan=plan, log_every_n_steps=4)).history
    assert history["kl_weight"] == [(3, 0.03), (7, 0.07), (11, 0.11)]


def test_padding_has_no_say() -> None:
    plan = TrainingPlan(Sums(), TrainingPlanConfig(loss_kwargs={"extra": 0.0}), n_train=126)

    def batch(rows: list[int], **facts: object) -> CellBatch:
        return CellBatch(x=torch.zeros(len(rows), 1), fields={}, rows=np.array(rows), **facts)

    plan.training_step(batch([3, 5], n_global=2), 0)
    before = plan.train_sums.means()
    lonely = batch([9], n_global=2, n_padding=1, loss_scale=0.0)
    with pytest.MonkeyPatch.context() as patch:
        nothing = LossOutput(torch.zeros((), requires_grad=True), torch.zeros(0), torch.zeros(0))
        nothing.extra_metrics = {"constant": torch.tensor(0.0)}
        patch.setattr(TrainingPlan, "_run", lambda *_: nothing)
        assert plan.training_step(lonely, 1).item() == 0.0
    assert plan.train_sums.means() == before


def test_a_custom_optimizer_gets_the_parameters_that_train(make_job: MakeJob) -> None:
    given: list[nn.Parameter] = []

    def create(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        given.extend(parameters)
        return torch.optim.SGD(given, lr=1e-3)

    job = make_job(plan={"optimizer": "Custom", "optimizer_creator": create}, max_steps=1)
    fit(job)
    assert {id(p) for p in given} == {id(p) for p in job.module.parameters() if p.requires_grad}


def test_a_module_without_a_kl_weight_has_none(make_job: MakeJob) -> None:
    class Plain(Sums):
        def loss(self, batch: CellBatch) -> LossOutput:
            return super().loss(batch, 0.0, 126, 0.0)

    assert "kl_weight" not in fit(make_job(job={"module": Plain()}, max_epochs=2)).history
