"""Losses that wait to be added: how many do changes nothing, and no graph waits with them."""

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from scvi_dist.errors import TrainingFailed
from scvi_dist.train.callbacks import WatchLoss
from scvi_dist.train.configs import World
from scvi_dist.train.diagnosis import LossWindow
from scvi_dist.train.metrics import HELD_STEPS, EpochSums, alone


def plan() -> Any:
    cursor = SimpleNamespace(global_step=0, epoch=0)
    return SimpleNamespace(
        cursor=cursor, reduce=alone, recent=LossWindow(10), world=World(), where="a store"
    )


def end_step(watch: WatchLoss, seen: Any, loss: Tensor, n_global: int) -> None:
    seen.cursor.global_step += 1
    watch.on_train_batch_end(None, seen, {"loss": loss}, SimpleNamespace(n_global=n_global), 0)


def with_graph() -> tuple[Tensor, "weakref.ref[Tensor]"]:
    """A loss, and whether what it was computed from is still there."""
    inner = torch.ones(3, requires_grad=True).exp()
    return (inner * inner).sum(), weakref.ref(inner)


@pytest.mark.parametrize("n_steps", [1, HELD_STEPS, 2 * HELD_STEPS + 5])
def test_the_mean_loss_is_over_all_cells_since_the_last_look(n_steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    watch, seen = WatchLoss(World(), every=n_steps), plan()
    for _ in range(2):
        sizes = torch.randint(1, 200, (n_steps,), generator=generator)
        losses = torch.rand(n_steps, generator=generator)
        for loss, n in zip(losses, sizes.tolist(), strict=True):
            end_step(watch, seen, loss, n)
        truth = float((losses.double() * sizes).sum() / sizes.sum())
        assert watch.mean_loss == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("bad_step", [0, HELD_STEPS - 1, HELD_STEPS, HELD_STEPS + 3])
def test_a_loss_that_is_no_number_is_seen_at_the_next_look(bad_step: int) -> None:
    watch, seen = WatchLoss(World(), every=HELD_STEPS + 4), plan()
    for step in range(HELD_STEPS + 3):
        end_step(watch, seen, torch.tensor(float("nan") if step == bad_step else 1.0), 5)
    last = torch.tensor(float("nan") if bad_step == HELD_STEPS + 3 else 1.0)
    with pytest.raises(TrainingFailed):
        end_step(watch, seen, last, 5)


def test_no_graph_is_kept() -> None:
    watch, sums = WatchLoss(World(), every=100), EpochSums()
    first, there = with_graph()
    end_step(watch, plan(), first, 5)
    second, too = with_graph()
    sums.add({"loss": second}, {"kl_global": second}, 5)
    del first, second
    gc.collect()
    assert there() is None
    assert too() is None


@pytest.mark.parametrize("shares", [(1.0,), (0.25, 0.75), (0.0, 1.0)])
def test_means_of_many_minibatches_do_not_depend_on_the_shares(shares: tuple[float, ...]) -> None:
    n_steps, n_cells = HELD_STEPS + 7, 8
    losses = torch.rand(n_steps, generator=torch.Generator().manual_seed(0))
    ranks = [EpochSums() for _ in shares]
    for loss in losses:
        for rank, share in zip(ranks, shares, strict=True):
            n = int(n_cells * share)
            rank.add({"loss": loss * n}, {"kl_global": loss + 1}, n, share)
    vectors: list[Tensor] = []
    for rank in ranks:
        rank.reduced(lambda x: vectors.append(x) or x)
    means = ranks[0].reduced(lambda _: torch.stack(vectors).sum(0)).means()
    truth = losses.double().mean().item()
    assert means == pytest.approx({"loss": truth, "kl_global": truth + 1}, rel=1e-6)
