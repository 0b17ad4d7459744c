"""The formulas of differential expression obey their laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scvi_dist.analysis.differential.draws import drawn_rows, draws_of, repeated, shares
from scvi_dist.analysis.differential.options import DifferentialOptions
from scvi_dist.analysis.differential.pairs import (
    Draws,
    PairedDraws,
    compared_draws,
    described_changes,
)
from scvi_dist.analysis.differential.statistics import called, found_delta, found_pseudocount
from scvi_dist.errors import ConfigError

PROBABILITIES = arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1))


@given(PROBABILITIES, st.floats(0.01, 0.5))
def test_calls_are_the_likeliest_genes_and_keep_the_rate(
    probability_g: np.ndarray, target: float
) -> None:
    chosen_g = called(probability_g, target)
    if chosen_g.any():
        assert (1 - probability_g[chosen_g]).mean() <= target + 1e-12
    if chosen_g.any() and not chosen_g.all():
        assert probability_g[chosen_g].min() >= probability_g[~chosen_g].max()
    if not chosen_g.all():
        one_more = np.sort(probability_g)[::-1][: chosen_g.sum() + 1]
        assert (1 - one_more).mean() > target


@given(PROBABILITIES)
def test_a_larger_target_calls_no_gene_less(probability_g: np.ndarray) -> None:
    strict, loose = called(probability_g, 0.05), called(probability_g, 0.2)
    assert loose[strict].all()


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(2, 70), st.integers(1, 40)),
        elements=st.floats(-4, 4, width=32),
    )
)
def test_descriptions_are_numpys(x_qg: np.ndarray) -> None:
    assert_described(x_qg)


def assert_described(x_qg: np.ndarray) -> None:
    seen = np.stack([*described_changes(x_qg, ()).values()])
    exact = x_qg.astype(np.float64)
    expected = [exact.mean(0), np.median(exact, 0), exact.std(0), exact.min(0), exact.max(0)]
    np.testing.assert_allclose(seen, expected, atol=1e-7)


@pytest.mark.parametrize("n_pairs", [49, 1_000, 5_001])
def test_medians_are_exact_however_values_are_distributed(n_pairs: int) -> None:
    """Far from the mean, of two clusters, many of them equal: few are sorted or all."""
    rng = np.random.default_rng(n_pairs)
    far = rng.normal(size=n_pairs)
    far[: n_pairs // 10] = -1e6
    apart = np.where(rng.random(n_pairs) < 0.5, 0.0, 8.0) + rng.normal(0, 0.01, n_pairs)
    columns = [
        far,
        apart,
        np.sort(apart),
        np.repeat(apart[:7], n_pairs)[:n_pairs],
        np.full(n_pairs, 0.25),
        np.round(rng.normal(size=n_pairs), 1),
        rng.gamma(0.05, 1.0, n_pairs),
        np.exp2(rng.normal(0, 20, n_pairs)),
        *rng.normal(size=(12, n_pairs)),
    ]
    x_qg = np.stack(columns, axis=1).astype(np.float32)
    seen = described_changes(x_qg, ())["lfc_median"]
    np.testing.assert_array_equal(seen, np.median(x_qg.astype(np.float64), axis=0))


def test_a_change_that_is_no_number_has_no_median_and_harms_no_other_feature() -> None:
    x_qg = np.random.default_rng(0).normal(size=(900, 20)).astype(np.float32)
    x_qg[17, 3] = np.nan
    seen = described_changes(x_qg, ())["lfc_median"]
    np.testing.assert_array_equal(seen, np.median(x_qg.astype(np.float64), axis=0))


@pytest.mark.parametrize("share", [0.01, 0.4, 0.6])
@pytest.mark.parametrize("sign", [-1, 1])
def test_medians_are_exact_beside_infinite_changes(share: float, sign: int) -> None:
    """As without a pseudocount, of a gene that one side does not express."""
    x_qg = np.random.default_rng(0).normal(size=(2_001, 3)).astype(np.float32)
    x_qg[1 : 1 + int(2_001 * share), 1] = sign * np.inf
    x_qg[7:9, 2] = -np.inf, np.inf
    described = described_changes(x_qg, ())
    np.testing.assert_array_equal(described["lfc_median"], np.median(x_qg, axis=0))


def test_intervals_have_their_mass_and_none_is_shorter() -> None:
    x_qg = np.random.default_rng(0).gamma(1.0, 1.0, (900, 18)).astype(np.float32)
    described = described_changes(x_qg, (0.5, 0.8))
    low_g, high_g = list(described.values())[-2:]
    inside = (x_qg >= low_g) & (x_qg <= high_g)
    assert (inside.sum(0) == 721).all()
    in_order = np.sort(x_qg, axis=0)
    np.testing.assert_allclose(high_g - low_g, (in_order[720:] - in_order[:-720]).min(0))


@given(st.integers(2, 90), st.integers(1, 35), st.integers(1, 60), st.integers(2, 150))
def test_pairs_are_counted_and_described_as_numpy_does(
    n_first: int, n_features: int, n_second: int, n_pairs: int
) -> None:
    rng = np.random.default_rng(n_first)
    x, y = (
        np.exp2(rng.normal(-8, 1, (n, n_features))).astype(np.float32) for n in (n_first, n_second)
    )
    i1_q, i2_q = rng.integers(n_first, size=n_pairs), rng.integers(n_second, size=n_pairs)
    draws = PairedDraws(
        first=Draws.of(x),
        second=Draws.of(y),
        i1_q=i1_q.astype(np.uint64),
        i2_q=i2_q.astype(np.uint64),
        rows2_r=np.unique(i2_q).astype(np.uint64),
    )
    u, v = (a.astype(np.float64) for a in (x[i1_q], y[i2_q]))
    change = np.log2(u + 1e-4) - np.log2(v + 1e-4)
    lfc = np.log2(u + 1e-7) - np.log2(v + 1e-7)
    options = DifferentialOptions(mode="change", pseudocounts=1e-4, test_mode="two")
    seen = compared_draws(draws, options)
    close = np.abs(np.abs(change) - 0.25) < 1e-5
    beyond = (np.abs(change) >= 0.25).mean(0)
    assert (np.abs(seen["proba_de"] - beyond) <= close.mean(0) + 1e-12).all()
    np.testing.assert_allclose(seen["scale1"], x.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(seen["lfc_mean"], lfc.mean(0), atol=1e-6)
    np.testing.assert_allclose(seen["lfc_median"], np.median(lfc, 0), atol=1e-6)
    np.testing.assert_allclose(seen["lfc_std"], lfc.std(0), atol=1e-6)
    np.testing.assert_allclose(seen["lfc_max"], lfc.max(0), atol=1e-6)
    more = compared_draws(draws, DifferentialOptions(mode="vanilla"))["proba_m1"]
    np.testing.assert_allclose(more, (u > v).mean(0))


def test_pairs_are_symmetric() -> None:
    rng = np.random.default_rng(0)
    x, y = (np.exp2(rng.normal(-8, 1, (101, 5))).astype(np.float32) for _ in range(2))
    options = DifferentialOptions(mode="change", pseudocounts=1e-6)
    one = compared_draws(PairedDraws.aligned(x, y), options)
    other = compared_draws(PairedDraws.aligned(y, x), options)
    np.testing.assert_allclose(one["lfc_mean"], -other["lfc_mean"], atol=1e-6)
    np.testing.assert_allclose(one["lfc_min"], -other["lfc_max"], atol=1e-6)
    np.testing.assert_array_equal(one["scale1"], other["scale2"])
    np.testing.assert_allclose(one["proba_de"], other["proba_de"], atol=1e-12)
    vanilla = DifferentialOptions(mode="vanilla")
    more = compared_draws(PairedDraws.aligned(x, y), vanilla)["proba_m1"]
    less = compared_draws(PairedDraws.aligned(y, x), vanilla)["proba_m1"]
    np.testing.assert_allclose(more + less, 1.0)


def test_functions_of_the_user_are_called_with_what_they_need() -> None:
    x = np.exp2(np.random.default_rng(0).normal(-8, 1, (50, 6))).astype(np.float32)
    draws = PairedDraws.aligned(x, x[::-1].copy())
    plain = compared_draws(draws, DifferentialOptions(mode="change", pseudocounts=1e-6))
    same = DifferentialOptions(
        mode="change",
        pseudocounts=1e-6,
        change_fn=lambda x, y, c: np.log2(x + c) - np.log2(y + c),
        m1_domain_fn=lambda d: (d >= 0.25, d < -0.25),
    )
    for name, value in compared_draws(draws, same).items():
        np.testing.assert_allclose(value, plain[name], atol=2e-6, err_msg=name)
    for wrong in ({"change_fn": lambda x, y: x}, {"m1_domain_fn": lambda a, b: a}):
        options = DifferentialOptions(mode="change", pseudocounts=1e-6, **wrong)
        with pytest.raises(ConfigError, match="is called with"):
            compared_draws(draws, options)


def test_a_pseudocount_comes_from_genes_that_are_not_expressed() -> None:
    largest1, largest2 = np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
    nobody, first = np.zeros(3, dtype=bool), np.array([True, False, False])
    assert found_pseudocount(largest1, largest2, nobody, nobody) == pytest.approx(1e-10)
    assert found_pseudocount(largest1, largest2, first, nobody) == pytest.approx(1 / 3)
    assert found_pseudocount(largest1, largest2, first, first) == pytest.approx(4 / 3)


def test_a_delta_lies_between_genes_that_change_and_genes_that_do_not() -> None:
    rng = np.random.default_rng(0)
    centres = np.repeat([-2.0, 0.0, 2.0], [30, 300, 30])
    assert found_delta(rng.normal(centres, 0.1), 0) == pytest.approx(1.2, abs=0.05)
    assert found_delta(rng.normal(0, 0.01, 100), 0) == 0.1
    with pytest.raises(ConfigError, match="3 genes"):
        found_delta(np.array([0.1, 0.2]), 0)


@given(st.integers(1, 20_000), st.integers(2, 6_000))
def test_as_many_draws_as_make_the_variance_no_larger(n_cells: int, n: int) -> None:
    """Of means, for any variance between cells and within: their parts are compared one by one."""
    draws = draws_of(n_cells, n)
    assert 1 <= draws <= n
    decoded = (n // n_cells + 1) * n_cells
    within_there = 1 / n + 1 / decoded
    assert 1 / draws <= within_there * (1 + 1e-12)
    left_over = draws % n_cells if draws >= n_cells else draws
    between = left_over * (1 - left_over / n_cells) / draws**2
    assert between <= 1 / n + 1e-12


@given(st.lists(st.integers(1, 1_000), min_size=1, max_size=8), st.integers(1, 500))
def test_shares_are_expected_ones_but_for_less_than_a_draw(cells: list[int], n: int) -> None:
    rng = np.random.default_rng(0)
    cells_s = np.array(cells)
    found_s = shares(cells_s, n, rng)
    assert found_s.sum() == n
    assert (np.abs(found_s - n * cells_s / cells_s.sum()) < 1 + 1e-6).all()


@given(st.integers(1, 30), st.integers(1, 100), st.integers(1, 100))
def test_every_beginning_of_a_list_of_draws_is_balanced(n_rows: int, n: int, upto: int) -> None:
    rng = np.random.default_rng(0)
    rows = drawn_rows(np.arange(n_rows), n, rng)
    times = np.bincount(rows[: min(upto, n)], minlength=n_rows)
    assert len(rows) == n
    assert times.max() - times.min() <= 1
    times = np.bincount(repeated(n_rows, n, rng), minlength=n_rows)
    assert times.max() - times.min() <= 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "chnage"}, "mode"),
        ({"estimator": "all"}, "estimator"),
        ({"test_mode": "one"}, "test_mode"),
        ({"delta": -1.0}, "delta"),
        ({"pseudocounts": 0.0}, "pseudocounts"),
        ({"n_samples_overall": 0}, "n_samples_overall"),
        ({"cred_interval_lvls": (1.5,)}, "cred_interval_lvls"),
        ({"batchid1": (0,)}, "batch_correction=True"),
        ({"estimator": "full", "change_fn": max}, "estimator='sample'"),
        ({"estimator": "full", "m1_domain_fn": max}, "estimator='sample'"),
        ({"estimator": "full", "use_permutation": True}, "estimator='sample'"),
    ],
)
def test_options_that_mean_nothing_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DifferentialOptions(**wrong)


def test_drawn_rows_hold_no_others() -> None:
    rows = np.arange(1_000)
    drawn = drawn_rows(rows, 10, np.random.default_rng(0))
    assert drawn.base is None
    assert len(np.unique(drawn)) == 10
