"""A linear layer of which the last columns are trained."""

import copy
import pickle

import pytest
import torch
from torch import nn

from scvi_dist.nn.partly_frozen import PartlyFrozenLinear


@pytest.mark.parametrize("n_trained", [1, 3])
@pytest.mark.parametrize("shape", [(5,), (2, 5)])
def test_it_computes_the_same_and_trains_the_last_columns(
    n_trained: int, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(7, 4)
    x = torch.randn(*shape, 7)
    plain_x, frozen_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    plain = linear(plain_x)
    plain.square().sum().backward()
    expected = linear.weight.grad.clone()
    expected[:, :-n_trained] = 0
    linear.weight.grad = linear.bias.grad = None

    partly = PartlyFrozenLinear.of(linear, n_trained)
    y = partly(frozen_x)
    y.square().sum().backward()
    torch.testing.assert_close(y, plain)
    torch.testing.assert_close(partly.weight.grad, expected)
    # What comes before it is trained as with a free layer.
    torch.testing.assert_close(frozen_x.grad, plain_x.grad)
    assert partly.bias.grad is None
    assert partly.weight is linear.weight


def test_a_copy_and_a_pickle_stay_frozen() -> None:
    partly = PartlyFrozenLinear.of(nn.Linear(6, 2), 2)
    for again in (copy.deepcopy(partly), pickle.loads(pickle.dumps(partly))):
        again(torch.ones(3, 6)).sum().backward()
        assert again.weight.grad[:, :4].abs().max() == 0
        assert again.weight.grad[:, 4:].abs().min() > 0
        assert not again.bias.requires_grad


def test_a_layer_without_bias() -> None:
    partly = PartlyFrozenLinear.of(nn.Linear(6, 2, bias=False), 2)
    assert partly(torch.ones(3, 6)).shape == (3, 2)
