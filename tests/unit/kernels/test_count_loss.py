"""Every kernel's losses and gradients beside float64 and scvi-tools' own float32 formula."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from count_cases import (
    DEVICE,
    DISPERSIONS,
    USABLE,
    Case,
    by_formula,
    distances,
    fused,
    leaves,
    problem_of,
    varied,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.kernels.choice import KERNELS, default_kernel, works_on
from scvi_dist.kernels.count_loss import Expected, count_loss

LAWS = ("nb", "zinb", "poisson")
each_kernel = pytest.mark.parametrize("kernel", USABLE)
CASES: dict[str, dict[str, Any]] = {
    "random": {},
    "tiny dispersion": {"log_theta": (math.log(1e-6), math.log(1e-5))},
    "large dispersion": {"log_theta": (math.log(1e5), math.log(1e6))},
    "any dispersion": {"log_theta": (math.log(1e-6), math.log(1e6))},
    "high counts": {"counts": (1.0, 2e6), "library": (1e6, 1e7)},
    "small cells": {"library": (1.0, 10.0), "density": 0.02},
    "large cells": {"library": (1e6, 1e7)},
    "sure of extra zeros": {"dropout": (99.0, 100.0)},
    "sure of none": {"dropout": (-100.0, -99.0)},
    "fractions": {"is_whole": False, "counts": (1e-3, 50.0)},
    "dense": {"density": 0.9},
    "odd size": {"n": 1, "g": 2, "h": 1, "density": 1.0},
}


def assert_as_exact(case: Case, kernel: str) -> None:
    """No further from float64 than scvi-tools' float32 formula, or 1e-5 of the largest value."""
    truth = by_formula(case, torch.float64, exact=True)
    theirs = distances(by_formula(case, torch.float32, exact=False), truth)
    for name, distance in distances(fused(case, kernel), truth).items():
        assert math.isfinite(distance), name
        allowed = max(1e-5, theirs[name] if math.isfinite(theirs[name]) else 1e-5)
        assert distance <= allowed, f"{name}: {distance:.1e} off, allowed are {allowed:.1e}"


@each_kernel
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_exact(law: str, name: str, kernel: str) -> None:
    assert_as_exact(Case(law=law, **CASES[name]), kernel)


@each_kernel
@pytest.mark.parametrize("scale", ["softmax", "softplus"])
@pytest.mark.parametrize("dispersion", DISPERSIONS)
@pytest.mark.parametrize("law", LAWS)
def test_every_combination_is_exact(law: str, dispersion: str, scale: str, kernel: str) -> None:
    assert_as_exact(Case(law=law, dispersion=dispersion, scale=scale, n_padding=3), kernel)


@each_kernel
@given(
    law=st.sampled_from(LAWS),
    dispersion=st.sampled_from(DISPERSIONS),
    n=st.integers(1, 70),
    g=st.integers(2, 1100),
    h=st.integers(1, 140),
    by_unit=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=15)
def test_any_shape_is_exact(kernel: str, **shape: Any) -> None:
    assert_as_exact(Case(**shape), kernel)


@each_kernel
@pytest.mark.parametrize("law", LAWS)
def test_thousands_of_genes_are_exact(law: str, kernel: str) -> None:
    assert_as_exact(Case(law=law, n=64, g=2_000, h=32, density=0.06), kernel)


@pytest.mark.slow
@each_kernel
@pytest.mark.parametrize("law", LAWS)
def test_all_genes_are_exact(law: str, kernel: str) -> None:
    assert_as_exact(Case(law=law, n=70, g=20_000, h=128, density=0.06), kernel)


@each_kernel
@pytest.mark.parametrize("scale", ["softmax", "softplus"])
@pytest.mark.parametrize("dispersion", DISPERSIONS)
@pytest.mark.parametrize("law", LAWS)
def test_gradients_are_those_of_the_losses(
    law: str, dispersion: str, scale: str, kernel: str
) -> None:
    case = Case(law=law, dispersion=dispersion, scale=scale, n=4, g=6, h=3, density=0.5)
    case = varied(case, library=(5.0, 20.0))
    p = leaves(case, torch.float64)
    problem, evaluate = problem_of(case, p), KERNELS[kernel]().count_loss

    def losses(*tensors: torch.Tensor) -> torch.Tensor:
        given = dict(zip(p, tensors, strict=True))
        return count_loss(problem_of(case, given), evaluate, Expected(4, 0.25))

    # Of any weighted sum of the losses, not only of the one that is expected.
    assert torch.autograd.gradcheck(losses, tuple(p.values()), rtol=1e-5, atol=1e-6)
    assert problem.counts.data.dtype == torch.float32


@each_kernel
def test_padding_has_no_part_in_a_gradient(kernel: str) -> None:
    with_padding = Case(law="zinb", n=12, n_padding=5)
    p = leaves(with_padding, torch.float32)
    evaluate = KERNELS[kernel]().count_loss
    loss_n = count_loss(problem_of(with_padding, p), evaluate, Expected(7, 1 / 7))
    (loss_n[:7].sum() / 7).backward()
    assert torch.isfinite(loss_n).all()
    assert not p["hidden"].grad[7:].any()
    assert not p["log_size"].grad[7:].any()
    assert p["hidden"].grad[1:7].any()


@pytest.mark.skipif(DEVICE.type != "cpu", reason="a GPU that refuses is lost for the process")
@each_kernel
@pytest.mark.parametrize("code", [-7, 99])
def test_unknown_kinds_of_cells_are_refused(code: int, kernel: str) -> None:
    """Not read from beside the table."""
    case = Case(law="nb", dispersion="group")
    problem = problem_of(case, leaves(case, torch.float32))
    unknown = replace(problem, group_n=torch.full((case.n,), code, device=DEVICE))
    with pytest.raises(IndexError):
        count_loss(unknown, KERNELS[kernel]().count_loss, Expected(case.n, 1.0))


@each_kernel
def test_other_objectives_have_their_own_gradients(kernel: str) -> None:
    case = Case(law="zinb")
    p, q = leaves(case, torch.float64), leaves(case, torch.float64)
    evaluate = KERNELS[kernel]().count_loss
    weights = torch.linspace(0.5, 2.0, case.n, dtype=torch.float64, device=DEVICE)
    loss_n = count_loss(problem_of(case, p), evaluate, Expected(case.n, 1 / case.n))
    (loss_n * weights).sum().backward(retain_graph=True)
    first = {name: value.grad.clone() for name, value in p.items()}
    again = count_loss(problem_of(case, q), evaluate, Expected(case.n, 7.0))
    again.mul(weights).sum().backward()
    for name in p:
        torch.testing.assert_close(first[name], q[name].grad)
    # A graph that is kept gives the gradient a second time.
    loss_n.mul(weights).sum().backward()
    for name in p:
        torch.testing.assert_close(p[name].grad, 2 * first[name])


@each_kernel
def test_what_is_not_trained_has_no_gradient(kernel: str) -> None:
    p = leaves(Case(law="zinb"), torch.float32)
    for name in ("scale.weight", "log_theta", "dropout.bias"):
        p[name].requires_grad_(False)
    evaluate = KERNELS[kernel]().count_loss
    loss_n = count_loss(problem_of(Case(law="zinb"), p), evaluate, Expected(17, 1 / 17))
    loss_n.mean().backward()
    expected = fused(Case(law="zinb"), kernel)
    for name, value in p.items():
        assert (value.grad is None) != value.requires_grad
        if value.grad is not None:
            torch.testing.assert_close(value.grad.cpu(), expected[name])


@each_kernel
@pytest.mark.parametrize("law", LAWS)
def test_losses_without_gradients_are_the_same(law: str, kernel: str) -> None:
    case = Case(law=law, dispersion="cell")
    p = leaves(case, torch.float32)
    evaluate = KERNELS[kernel]().count_loss
    with torch.no_grad():
        alone = count_loss(problem_of(case, p), evaluate, Expected(case.n, 1 / case.n))
    assert not alone.requires_grad
    torch.testing.assert_close(alone.cpu(), fused(case, kernel)["loss"], rtol=1e-6, atol=0)


@each_kernel
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("where", ["hidden", "scale.bias", "log_theta", "log_size"])
def test_nan_is_seen_in_the_loss(law: str, where: str, kernel: str) -> None:
    case = Case(law=law)
    p = leaves(case, torch.float32)
    if where not in p:
        return
    with torch.no_grad():
        p[where][-1] = math.nan
    evaluate = KERNELS[kernel]().count_loss
    loss_n = count_loss(problem_of(case, p), evaluate, Expected(case.n, 1 / case.n))
    assert torch.isnan(loss_n[-1])


def test_results_hardly_depend_on_the_threads_and_not_at_all_on_chance() -> None:
    case = Case(law="zinb", dispersion="group", n=150, g=400)
    alone = fused(case, "numba")
    torch.set_num_threads(2)
    try:
        two, again = fused(case, "numba"), fused(case, "numba")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    for name in alone:
        assert torch.equal(two[name], again[name])
        torch.testing.assert_close(two[name], alone[name], rtol=1e-5, atol=1e-7)


def test_blocks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from scvi_dist.kernels import count_loss_numba, count_loss_torch

    case = Case(law="zinb", dispersion="group", n=150, g=300, dtype=torch.float64)
    whole = {kernel: fused(case, kernel) for kernel in ("numba", "torch")}
    monkeypatch.setattr(count_loss_numba, "LEAST_ROWS", 7)
    monkeypatch.setattr(count_loss_numba, "MOST_ROWS", 7)
    monkeypatch.setattr(count_loss_torch, "BLOCK_ENTRIES", 7 * 300)
    for kernel, expected in whole.items():
        for name, value in fused(case, kernel).items():
            torch.testing.assert_close(value, expected[name])


def test_the_choice_follows_the_device() -> None:
    assert default_kernel(torch.device("cpu")) == "numba"
    gpu = torch.device("cuda")
    assert default_kernel(gpu) == ("triton" if works_on("triton", gpu) else "torch")
    assert not works_on("numba", gpu)
    assert default_kernel(torch.device("meta")) == "torch"


def test_kernels_give_the_same_answers() -> None:
    for law in LAWS:
        case = varied(Case(n=40, g=200, dispersion="group"), law=law)
        apart = distances(fused(case, "numba"), fused(case, "torch"))
        assert max(apart.values()) < 1e-5, apart


@each_kernel
@pytest.mark.parametrize("by_unit", [True, False])
@pytest.mark.parametrize("law", LAWS)
def test_derivatives_by_units_that_were_cut_may_be_left_out(
    law: str, by_unit: bool, kernel: str
) -> None:
    case = Case(law=law, dispersion="cell", n=70, g=300, h=140, by_unit=by_unit)
    expected, found = Expected(70, 0.5), {}
    for are_cut in (False, True):
        p = leaves(case, torch.float32)
        problem = replace(problem_of(case, p), zeros_are_cut=are_cut)
        count_loss(problem, KERNELS[kernel]().count_loss, expected).sum().backward()
        found[are_cut] = {name: value.grad for name, value in p.items()}
    is_active = leaves(case, torch.float32)["hidden"] != 0
    for name, value in found[False].items():
        seen = found[True][name]
        if name == "hidden":
            assert torch.isfinite(seen).all()
            value, seen = value * is_active, seen * is_active
        torch.testing.assert_close(seen, value, rtol=1e-4, atol=float(value.abs().max()) * 1e-5)


@pytest.mark.parametrize("law", ["nb", "zinb"])
@pytest.mark.parametrize("count", [1e16, 1e20, 1e30, 3e38])
def test_counts_that_no_number_can_hold_have_no_finite_loss(law: str, count: float) -> None:
    """Training says which rows these are in, where it would learn from rounding errors."""
    case = Case(law=law, n=3, g=6, h=3, density=1.0)
    problem = problem_of(case, leaves(case, torch.float32)).detached()
    entry = int(problem.counts.indptr[1])
    problem.counts.data[entry] = count
    found = KERNELS["numba"]().count_loss(problem, torch.ones(3), frozenset())
    assert torch.isfinite(found.loss_n).tolist() == [True, False, True]
