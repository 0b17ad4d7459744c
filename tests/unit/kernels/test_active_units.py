"""ActiveProducts that leave out zeros are the products."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.kernels.active_units import ActiveProducts
from scvi_dist.kernels.workspace import Workspace

TOLERANCE = {"float32": 1e-5, "float64": 1e-13}


def units(rng: np.random.Generator, n: int, h: int, real: str) -> np.ndarray:
    return np.maximum(rng.normal(size=(n, h)), 0).astype(real)


@given(
    n=st.integers(1, 150),
    h=st.integers(1, 150),
    g=st.integers(1, 210),
    seed=st.integers(0, 99),
    real=st.sampled_from(sorted(TOLERANCE)),
)
@settings(max_examples=40)
def test_logits_and_gradients_are_products(n: int, h: int, g: int, seed: int, real: str) -> None:
    rng = np.random.default_rng(seed)
    hidden_nh, weight_hg = units(rng, n, h, real), rng.normal(size=(h, g)).astype(real)
    bias_g, slope_ng = (rng.normal(size=size).astype(real) for size in (g, (n, g)))
    products = ActiveProducts(Workspace(), "0", hidden_nh)
    first_row, first_unit, first_gene = n // 3, h // 4, g // 2
    rows, seen = (first_row, n), (first_unit, h)
    part = hidden_nh[first_row:, first_unit:].astype(np.float64)
    out_rg = np.full((n - first_row, g), np.nan, real)
    products.logits(rows, seen, weight_hg[first_unit:], bias_g, out_rg)
    limit = TOLERANCE[real] * (1 + h + n)
    assert np.abs(out_rg - (part @ weight_hg[first_unit:] + bias_g)).max() < limit
    gradient_hg = np.full((h - first_unit, g), np.nan, real)
    for is_new in (True, False):
        products.add_weights(rows, seen, slope_ng[first_row:], (first_gene, g), gradient_hg, is_new)
    truth = 2 * part.T @ slope_ng[first_row:, first_gene:]
    assert np.abs(gradient_hg[:, first_gene:] - truth).max() < limit
    assert np.isnan(gradient_hg[:, :first_gene]).all()
    slope_rh = np.full((n - first_row, h), np.nan, real)
    for is_new in (True, False):
        weights = weight_hg[first_unit:], slope_ng[first_row:]
        products.slopes(rows, seen, *weights, slope_rh, is_new)
    truth = np.zeros((n - first_row, h))
    truth[:, first_unit:] = 2 * (slope_ng[first_row:] @ weight_hg[first_unit:].T) * (part != 0)
    assert np.abs(slope_rh - truth).max() < TOLERANCE[real] * (1 + g)
    assert not slope_rh[hidden_nh[first_row:] == 0].any()


def test_products_are_the_same_every_time_and_wherever_rows_begin() -> None:
    rng = np.random.default_rng(0)
    hidden_nh, weight_hg = units(rng, 70, 130, "float32"), rng.normal(size=(130, 331))
    weight_hg, bias_g = weight_hg.astype(np.float32), np.zeros(331, np.float32)
    products = ActiveProducts(Workspace(), "0", hidden_nh)

    def logits(first: int, stop: int) -> np.ndarray:
        room = np.full((stop - first) * 331 + 1, np.nan, np.float32)
        out_rg = room[first % 2 : first % 2 + room.size - 1].reshape(-1, 331)
        products.logits((first, stop), (0, 130), weight_hg, bias_g, out_rg)
        return out_rg

    whole = logits(0, 70)
    assert np.array_equal(whole, logits(0, 70))
    assert np.array_equal(whole[33:50], logits(33, 50))


@pytest.mark.parametrize("real", TOLERANCE)
def test_nan_is_no_zero(real: str) -> None:
    hidden_nh = np.zeros((2, 3), real)
    hidden_nh[1, 2] = np.nan
    out = np.empty((2, 5), real)
    products = ActiveProducts(Workspace(), "0", hidden_nh)
    products.logits((0, 2), (0, 3), np.ones((3, 5), real), np.zeros(5, real), out)
    assert (out[0] == 0).all()
    assert np.isnan(out[1]).all()
