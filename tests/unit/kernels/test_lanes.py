"""Vectors of sixteen numbers are computed with as their numbers are."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scvi_dist.kernels.compiled import compiled
from scvi_dist.kernels.lanes import (
    LANES,
    any_of,
    choose,
    exp,
    fill,
    larger,
    load,
    log2,
    ones,
    prefetch,
    smaller,
    store,
    widened,
)

VECTORS = arrays(np.float32, LANES, elements=st.floats(-100, 100, width=32, allow_subnormal=False))


@compiled()
def arithmetic(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    x, y = load(a, 0), load(b, 0)
    results = (x + y, x - y, x * y, x / y, smaller(x, y), larger(x, y), 2.0 - x, x * np.float32(3))
    store(out, 0, results[0])
    store(out, 1 * LANES, results[1])
    store(out, 2 * LANES, results[2])
    store(out, 3 * LANES, results[3])
    store(out, 4 * LANES, results[4])
    store(out, 5 * LANES, results[5])
    store(out, 6 * LANES, results[6])
    store(out, 7 * LANES, results[7])


@given(VECTORS, VECTORS)
def test_each_lane_has_its_own_result(a: np.ndarray, b: np.ndarray) -> None:
    b[np.abs(b) < 1e-3] = 1
    out = np.empty((8, LANES), dtype=np.float32)
    arithmetic(a, b, out)
    three, two = np.float32(3), np.float32(2)
    expected = [a + b, a - b, a * b, a / b, np.minimum(a, b), np.maximum(a, b), two - a, a * three]
    np.testing.assert_array_equal(out, expected)


@compiled()
def tallies(x_ng: np.ndarray, than: float, sums_g: np.ndarray, counts_g: np.ndarray) -> int:
    total, count, rows = fill(0.0), fill(np.int32(0)), 0
    for n in range(len(x_ng)):
        prefetch(x_ng, (n + 100) * LANES)
        x = load(x_ng, n * LANES)
        is_more, is_less = x >= fill(np.float32(than)), x < fill(np.float32(-than))
        total += widened(choose(is_more | is_less, x, fill(np.float32(0))))
        count += ones(is_more)
        count -= ones(is_less)
        rows += any_of(is_more & (x > np.float32(than)))
    store(sums_g, 0, total)
    store(counts_g, 0, count)
    return rows


@given(arrays(np.float32, (5, LANES), elements=st.floats(-4, 4, width=32)), st.floats(0.5, 3))
def test_variables_of_a_loop_keep_sums_of_each_lane(x_ng: np.ndarray, than: float) -> None:
    sums_g, counts_g = np.empty(LANES), np.empty(LANES, dtype=np.int32)
    rows = tallies(x_ng, than, sums_g, counts_g)
    limit = np.float32(than)
    is_more, is_less = x_ng >= limit, x_ng < -limit
    kept = np.where(is_more | is_less, x_ng.astype(np.float64), 0)
    np.testing.assert_allclose(sums_g, kept.sum(0), atol=1e-12)
    np.testing.assert_array_equal(counts_g, is_more.sum(0) - is_less.sum(0))
    assert rows == (x_ng > limit).any(1).sum()


@compiled()
def logarithms(x: np.ndarray, out: np.ndarray) -> None:
    for i in range(0, len(x), LANES):
        store(out, i, log2(load(x, i)))


@compiled()
def exponentials(x: np.ndarray, out: np.ndarray) -> None:
    for i in range(0, len(x), LANES):
        store(out, i, exp(load(x, i)))


def test_logarithms_are_near_to_numpys() -> None:
    x = np.exp2(np.random.default_rng(0).uniform(-30, 30, 6_400)).astype(np.float32)
    out = np.empty_like(x)
    logarithms(x, out)
    np.testing.assert_allclose(out, np.log2(x.astype(np.float64)), atol=1e-6)


def test_exponentials_are_near_to_numpys() -> None:
    x = np.linspace(-87, 80, 6_400, dtype=np.float32)
    out = np.empty_like(x)
    exponentials(x, out)
    np.testing.assert_allclose(out, np.exp(x.astype(np.float64)), rtol=2.5e-7)
    x[:16] = [-88, -200, -np.inf, np.nan, 0, *[1] * 11]
    exponentials(x, out)
    assert (out[:3] == 0).all()
    assert np.isnan(out[3])
    assert out[4] == 1
