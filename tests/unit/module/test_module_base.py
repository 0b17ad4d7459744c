"""The terms of a loss, and where a minibatch is computed."""

import numpy as np
import pytest
import torch

from scvi_dist.batch import CellBatch
from scvi_dist.errors import ConfigError
from scvi_dist.module import LossOutput
from scvi_dist.module.base import n_real_cells, to_device


def test_terms_become_dictionaries_and_are_summed() -> None:
    rec, kl_a, kl_b = torch.rand(5), torch.rand(5), torch.rand(5)
    loss = LossOutput(
        loss={"a": torch.tensor(1.0), "b": torch.tensor(2.0)},
        reconstruction_loss=rec,
        kl_local={"a": kl_a, "b": kl_b},
        kl_global=torch.tensor(7.0),
        extra_metrics={"m": torch.tensor(0.0)},
    )
    assert loss.loss == 3
    assert loss.n_obs_minibatch == 5
    assert list(loss.reconstruction_loss) == ["reconstruction_loss"]
    assert list(loss.kl_global) == ["kl_global"]
    torch.testing.assert_close(loss.reconstruction_loss_sum, rec.sum())
    torch.testing.assert_close(loss.kl_local_sum, (kl_a + kl_b).sum())
    assert loss.kl_global_sum == 7
    assert list(loss.extra_metrics_keys) == ["m"]


def test_absent_terms_are_zero() -> None:
    loss = LossOutput(torch.tensor(2.0), n_obs_minibatch=3)
    sums = (loss.reconstruction_loss_sum, loss.kl_local_sum, loss.kl_global_sum)
    assert [float(value) for value in sums] == [0.0, 0.0, 0.0]
    assert loss.n_obs_minibatch == 3
    assert loss.extra_metrics == {}


def test_a_classification_loss_comes_with_its_labels() -> None:
    loss = torch.tensor(2.0)
    given = {"classification_loss": loss, "logits": torch.rand(3, 2)}
    with pytest.raises(ConfigError, match="true_labels"):
        LossOutput(loss, n_obs_minibatch=3, **given)
    whole = LossOutput(loss, n_obs_minibatch=3, true_labels=torch.zeros(3), **given)
    assert whole.classification_loss is loss


def test_a_loss_without_cells_is_refused() -> None:
    with pytest.raises(ConfigError, match="reconstruction_loss or n_obs_minibatch"):
        LossOutput(torch.tensor(2.0))


def test_a_batch_that_is_where_it_should_be_is_not_copied() -> None:
    batch = CellBatch(torch.zeros(4, 2), {"batch": torch.zeros(4, 1)}, np.arange(4))
    assert to_device(batch, torch.device("cpu")) is batch
    moved = to_device(batch, torch.device("meta"))
    assert moved["X"].device.type == moved["batch"].device.type == "meta"
    plain = to_device({"X": torch.zeros(4, 2)}, torch.device("meta"))
    assert plain["X"].device.type == "meta"


def test_padding_does_not_count() -> None:
    batch = CellBatch(torch.zeros(4, 2), {}, np.arange(4), n_padding=3)
    assert n_real_cells(batch) == 1
    assert n_real_cells({"X": torch.zeros(4, 2)}) == 4
