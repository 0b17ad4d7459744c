"""Compiled decoding and torch's give the same scales, whatever the numbers of genes and draws."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scvi_dist.analysis.differential.decode import Decoded
from scvi_dist.analysis.differential.pairs import Draws
from scvi_dist.kernels.logits import Logits
from scvi_dist.kernels.problem import Head


@given(st.integers(1, 40), st.integers(1, 90), st.integers(0, 5), st.booleans())
def test_tiles_hold_the_softmax_of_logits(n: int, n_features: int, start: int, large: bool) -> None:
    rng = np.random.default_rng(n)
    logits = rng.normal(size=(n, n_features)).astype(np.float32) * (60 if large else 1)
    draws = Draws.room(start + n + 2, n_features)
    draws.tiles_trg[:] = -1
    draws.put(start, Decoded(logits.copy(), are_logits=True))
    seen = draws.rows(np.arange(start + n + 2))
    expected = torch.softmax(torch.from_numpy(logits).double(), -1).numpy()
    inside = slice(start, start + n)
    np.testing.assert_allclose(seen[inside], expected, rtol=1e-5, atol=1e-37)
    assert (np.delete(seen, np.arange(start, start + n), axis=0) == -1).all()
    draws.put(start, Decoded(expected.astype(np.float32)))
    np.testing.assert_array_equal(draws.rows(np.arange(start, start + n)), expected.astype("f"))


def test_a_model_that_diverged_gives_no_numbers() -> None:
    logits = np.zeros((2, 20), dtype=np.float32)
    logits[0, 3] = np.nan
    draws = Draws.room(2, 20)
    draws.put(0, Decoded(logits, are_logits=True))
    seen = draws.rows(np.arange(2))
    assert np.isnan(seen[0]).all()
    np.testing.assert_allclose(seen[1], 0.05)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("by_unit", [True, False])
def test_logits_are_the_layers(n_threads: int, by_unit: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(70, 130)
    if by_unit:
        layer.weight.data = layer.weight.data.t().contiguous().t()
    logits = Logits(Head.of(layer))
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with torch.inference_mode():
            for n in (40, 1, 7):
                hidden = torch.relu(torch.randn(n, 70))
                np.testing.assert_allclose(logits.of(hidden), layer(hidden).numpy(), atol=1e-5)
    finally:
        torch.set_num_threads(before)
