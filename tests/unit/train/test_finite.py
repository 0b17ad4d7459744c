"""Which tensors have nothing but finite numbers."""

import pytest
import torch

from scvi_dist.train.diagnosis import all_finite

LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize("values", [[1.0, -2.0], [LARGEST, LARGEST], []])
def test_finite_numbers_are_finite_however_large(values: list[float]) -> None:
    assert all_finite([torch.tensor(values), torch.tensor(3)])


@pytest.mark.parametrize(
    "values", [[1.0, float("nan")], [float("inf"), 1.0], [float("inf"), -float("inf")]]
)
def test_one_number_that_is_not_is_seen(values: list[float]) -> None:
    assert not all_finite([torch.ones(2), torch.tensor(values)])
