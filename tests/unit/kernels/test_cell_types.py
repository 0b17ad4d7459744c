"""CellAssign's compiled loss is the plain formula, to float64's last digits."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from torch import Tensor

from scvi_dist.batch import SparseCounts
from scvi_dist.distributions import log_nb_positive
from scvi_dist.kernels.cell_types import TypeParameters, TypeTerms, expected_loss, supports
from scvi_dist.module.cellassign_terms import KERNELS

NAMES = ("log_base_ng", "shift_gc", "a_b", "log_proportion_c")
CENTRES = torch.linspace(0, 60, 10)


def parameters(
    n: int, g: int, c: int, seed: int = 0, dtype: torch.dtype = torch.float64, share: float = 0.4
) -> TypeParameters:
    """Random ones; ``share`` of the pairs of a gene and a type are markers."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rho_gc = (torch.rand(g, c, generator=generator) < share).to(dtype)
    return TypeParameters(
        log_base_ng=normal(n, g).to(dtype).requires_grad_(),
        shift_gc=(normal(g, c).abs().to(dtype) * rho_gc).requires_grad_(),
        rho_gc=rho_gc,
        a_b=(normal(10) / 2).exp().to(dtype).requires_grad_(),
        means_b=CENTRES,
        log_proportion_c=normal(c).log_softmax(0).to(dtype).requires_grad_(),
    )


def counts(n: int, g: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.poisson(rng.gamma(0.5, 8.0, (n, g))).astype(np.float32))


def as_float64(p: TypeParameters) -> TypeParameters:
    leaves = {name: getattr(p, name).detach().double().requires_grad_() for name in NAMES}
    return TypeParameters(rho_gc=p.rho_gc, means_b=p.means_b, **leaves)


def plain(x_ng: Tensor, p: TypeParameters, n_real: int) -> TypeTerms:
    """By the law of every count under every type, in float64, and autograd alone."""
    means_b = p.means_b.double()
    mu_ngc = (p.log_base_ng[:, :, None] + p.shift_gc).exp()
    place_ngcb = (mu_ngc[..., None] - means_b) / (means_b[1] - means_b[0])
    phi_ngc = (p.a_b * (-0.5 * place_ngcb**2).exp()).sum(-1) + 1e-10
    log_joint_nc = log_nb_positive(x_ng.double()[:, :, None], mu_ngc, phi_ngc).sum(1)
    log_joint_nc = log_joint_nc + p.log_proportion_c
    real_nc = log_joint_nc[:n_real]
    return TypeTerms(log_joint_nc.detach(), -(real_nc.softmax(1) * real_nc).sum())


def results(terms: TypeTerms, p: TypeParameters) -> dict[str, Tensor]:
    """Values and gradients; of shifts at markers only."""
    found = torch.autograd.grad(terms.expected * 0.7, [getattr(p, name) for name in NAMES])
    grads = dict(zip(NAMES, found, strict=True))
    grads["shift_gc"] = grads["shift_gc"] * (p.rho_gc != 0)
    return {"joint": terms.log_joint_nc, "expected": terms.expected.detach(), **grads}


def assert_near(seen: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    """To ``rtol`` of the largest value of each."""
    for name, value in expected.items():
        assert seen[name].shape == value.shape, name
        if value.numel():
            largest = float(value.abs().max())
            torch.testing.assert_close(
                seen[name].double(), value, rtol=0, atol=rtol * largest + 1e-300, msg=name
            )


def sparse(x_ng: Tensor) -> SparseCounts:
    csr = csr_matrix(x_ng.numpy())
    indptr, indices, data = map(
        torch.from_numpy, (csr.indptr.astype(np.int64), csr.indices, csr.data)
    )
    return SparseCounts(indptr, indices, data, x_ng.shape[1])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("n_real", [150, 131, 0])
def test_values_and_gradients_are_the_plain_ones(kernel: str, n_real: int) -> None:
    """Over more than one block of cells, with cells that carry no loss."""
    p, x_ng = parameters(150, 17, 4), counts(150, 17)
    expected = results(plain(x_ng, p, n_real), p)
    assert_near(results(KERNELS[kernel](x_ng, p, n_real), p), expected, 1e-11)
    assert_near(results(KERNELS[kernel](sparse(x_ng), p, n_real), p), expected, 1e-11)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(0, 9),
    g=st.integers(1, 40),
    c=st.integers(1, 6),
    n_padding=st.integers(0, 9),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 100),
)
def test_every_shape(n: int, g: int, c: int, n_padding: int, share: float, seed: int) -> None:
    """Also no cells, no markers, and nothing but markers."""
    p, x_ng = parameters(n, g, c, seed, share=share), counts(n, g, seed)
    n_real = max(n - n_padding, 0)
    expected = results(plain(x_ng, p, n_real), p)
    assert_near(results(expected_loss(x_ng, p, n_real), p), expected, 1e-10)


def test_gradients_are_those_of_finite_differences() -> None:
    p, x_ng = parameters(3, 5, 3), counts(3, 5)

    def loss(*leaves: Tensor) -> Tensor:
        given = TypeParameters(
            leaves[0], leaves[1] * p.rho_gc, p.rho_gc, leaves[2], p.means_b, leaves[3]
        )
        return expected_loss(x_ng, given, 2).expected

    assert torch.autograd.gradcheck(loss, [getattr(p, name) for name in NAMES])


EXTREMES: dict[str, Any] = {
    "tiny means": {"log_base": -45.0},
    "huge means": {"log_base": 18.0},
    "means that float32 cannot hold": {"log_base": 95.0},
    "tiny heights": {"a": 1e-6},
    "huge heights": {"a": 1e6},
    "enormous counts": {"x": 2e6},
    "small parts of a count": {"x": 1e-3},
    "counts between whole numbers": {"x": 7.3},
    "a type that cannot be": {"log_proportion": -400.0},
}


@pytest.mark.parametrize("case", EXTREMES.values(), ids=EXTREMES)
def test_extreme_values_are_finite_and_exact(case: dict[str, float]) -> None:
    p32, x_ng = parameters(40, 12, 3, dtype=torch.float32), counts(40, 12)
    with torch.no_grad():
        p32.log_base_ng[::3, ::2] += case.get("log_base", 0.0)
        p32.a_b[::2] *= case.get("a", 1.0)
        p32.log_proportion_c[0] += case.get("log_proportion", 0.0)
    x_ng[::4, ::5] = case.get("x", 1.0)
    x_ng[1] = 0.0  # an empty cell
    x_ng[:, 3] = 0.0  # a gene that was never seen
    p64 = as_float64(p32)
    expected = results(plain(x_ng, p64, 40), p64)
    assert all(value.isfinite().all() for value in expected.values())
    # The plain formula's own lgamma cancels at large arguments.
    assert_near(results(expected_loss(x_ng, p64, 40), p64), expected, 1e-8)
    assert_near(results(expected_loss(x_ng, p32, 40), p32), expected, 1e-6)


def test_what_is_not_finite_is_not_hidden() -> None:
    for name in NAMES:
        p, x_ng = parameters(4, 6, 3), counts(4, 6)
        with torch.no_grad():
            getattr(p, name).view(-1)[0] = torch.nan
            if name == "shift_gc":
                p.rho_gc[0, 0] = 1.0
        assert expected_loss(x_ng, p, 4).expected.isnan(), name
    x_ng[2, 1] = torch.nan
    assert expected_loss(x_ng, parameters(4, 6, 3), 4).expected.isnan()


def test_nothing_depends_on_the_number_of_threads() -> None:
    p, x_ng = parameters(300, 9, 3), counts(300, 9)
    n_threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(results(expected_loss(x_ng, p, 300), p))
    finally:
        torch.set_num_threads(n_threads)
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


def test_without_a_gradient_only_probabilities_are_made() -> None:
    p, x_ng = parameters(20, 7, 3), counts(20, 7)
    with torch.no_grad():
        bare = expected_loss(x_ng, p, 20)
    with_gradient = expected_loss(x_ng, p, 20)
    assert not bare.expected.requires_grad
    assert torch.equal(bare.log_joint_nc, with_gradient.log_joint_nc)
    torch.testing.assert_close(bare.expected, with_gradient.expected.detach())


def test_centres_that_are_not_equally_spaced_are_left_to_torch() -> None:
    assert supports(CENTRES)
    assert supports(torch.linspace(3, 70_000, 10))
    assert not supports(CENTRES**2)
    assert not supports(torch.zeros(10))
    assert not supports(torch.arange(9.0))
