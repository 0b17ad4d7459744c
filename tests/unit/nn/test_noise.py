"""Noise bound to cells depends on the cells alone; unbound it is torch's own."""

import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal

from scvi_dist.errors import PlanError
from scvi_dist.nn import Dropout, NoiseStream

seeds = st.integers(0, 2**40)


def shares(n_global: int, world: int) -> list[tuple[int, int]]:
    """The non-empty shares of a minibatch, as the read plan cuts it."""
    cuts = [rank * n_global // world for rank in range(world + 1)]
    return [(a, b) for a, b in pairwise(cuts) if a < b]


def draws(noise: NoiseStream, n: int, width: int) -> list[Tensor]:
    """One draw of each kind, in a fixed order, each with the cells at axis -2."""
    law = Normal(torch.zeros(n, width), torch.full((n, width), 0.5))
    return [
        noise.normal_like(torch.empty(n, width)),
        noise.rsample(law),
        noise.bernoulli_keep((n, width), 0.3),
        noise.rsample(law, torch.Size((3,))),
        Dropout(0.4, noise)(torch.ones(n, width)),
        noise.normal_like(torch.empty(2, n, width, dtype=torch.float64)),
    ]


def bound_draws(
    seed: int, step: int, start: int, stop: int, n_global: int, width: int = 3
) -> list[Tensor]:
    noise = NoiseStream()
    noise.at(seed, step, start, stop, n_global)
    return draws(noise, stop - start, width)


@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    step=st.integers(0, 2**31),
    n_global=st.integers(1, 37),
    world=st.integers(1, 16),
    width=st.integers(1, 7),
)
def test_the_noise_of_the_ranks_side_by_side_is_that_of_one_rank(
    seed: int, step: int, n_global: int, world: int, width: int
) -> None:
    whole = bound_draws(seed, step, 0, n_global, n_global, width)
    parts = [bound_draws(seed, step, a, b, n_global, width) for a, b in shares(n_global, world)]
    for i, alone in enumerate(whole):
        assert torch.equal(torch.cat([part[i] for part in parts], dim=-2), alone)


def test_noise_changes_with_seed_step_and_draw_and_nothing_else() -> None:
    first = bound_draws(1, 2, 0, 50, 50)[0]
    assert torch.equal(bound_draws(1, 2, 0, 50, 50)[0], first)
    assert not torch.equal(bound_draws(2, 2, 0, 50, 50)[0], first)
    assert not torch.equal(bound_draws(1, 3, 0, 50, 50)[0], first)
    noise = NoiseStream()
    noise.at(1, 2, 0, 50, 50)
    like = torch.empty(50, 3)
    assert torch.equal(noise.normal_like(like), first)
    assert not torch.equal(noise.normal_like(like), first)
    noise.at(1, 2, 0, 50, 50)
    assert torch.equal(noise.normal_like(like), first)


def test_bound_noise_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    bound_draws(1, 2, 0, 50, 50)
    after = torch.rand(5)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(5))


def test_bound_noise_has_the_laws_it_should() -> None:
    noise = NoiseStream()
    n, width = 2_000, 20
    noise.at(0, 0, 0, n, n)
    normal = noise.normal_like(torch.empty(n, width))
    keep = noise.bernoulli_keep((n, width), 0.25)
    assert abs(normal.mean().item()) < 5 / (n * width) ** 0.5
    assert normal.var().item() == pytest.approx(1, abs=0.05)
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    assert keep.mean().item() == pytest.approx(0.75, abs=0.02)
    dropped = Dropout(0.25, noise)(torch.ones(n, width))
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)


def test_a_padding_cell_behind_the_last_one_takes_the_noise_of_an_early_one() -> None:
    padded = bound_draws(5, 0, 2, 4, 3)
    whole = bound_draws(5, 0, 0, 3, 3)
    for with_padding, alone in zip(padded, whole, strict=True):
        assert torch.equal(with_padding, alone[..., [2, 0], :])


def test_unbound_noise_is_what_torch_would_have_drawn() -> None:
    x = torch.randn(40, 7)
    law = Normal(torch.randn(40, 3), torch.rand(40, 3) + 0.1)
    noise, dropout = NoiseStream(), nn.Dropout(0.3)
    torch.manual_seed(3)
    expected = [dropout(x), law.rsample(), torch.randn_like(x), law.sample((4,)), dropout(x)]
    torch.manual_seed(3)
    ours = Dropout(0.3, noise)
    seen = [ours(x), noise.rsample(law), noise.normal_like(x), noise.rsample(law, (4,)), ours(x)]
    for a, b in zip(seen, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    torch.manual_seed(3)
    keep = noise.bernoulli_keep(x.shape, 0.3)
    assert torch.equal(keep != 0, expected[0] != 0)


def test_unbinding_returns_to_the_global_generator() -> None:
    noise = NoiseStream()
    noise.at(0, 0, 0, 4, 4)
    assert noise.is_bound
    noise.unbind()
    assert not noise.is_bound
    torch.manual_seed(0)
    seen = noise.normal_like(torch.empty(6, 2))
    torch.manual_seed(0)
    assert torch.equal(seen, torch.randn(6, 2))


def test_dropout_is_off_in_eval_mode_and_total_at_one() -> None:
    noise = NoiseStream()
    noise.at(0, 0, 0, 4, 4)
    x = torch.randn(4, 3)
    assert torch.equal(Dropout(0.9, noise).eval()(x), x)
    assert torch.equal(Dropout(1.0, noise)(x), torch.zeros_like(x))
    assert torch.equal(Dropout(0.0, noise)(x), x)


def test_a_reparameterised_draw_carries_gradients() -> None:
    loc = torch.zeros(4, 2, requires_grad=True)
    scale = torch.ones(4, 2, requires_grad=True)
    noise = NoiseStream()
    noise.at(0, 0, 0, 4, 4)
    draw = noise.rsample(Normal(loc, scale))
    draw.sum().backward()
    assert torch.equal(loc.grad, torch.ones(4, 2))
    torch.testing.assert_close(scale.grad, draw.detach())


def test_noise_for_other_cells_than_the_bound_ones_is_refused() -> None:
    noise = NoiseStream()
    noise.at(0, 7, 3, 8, 20)
    for shape in ((4, 2), (5,)):
        with pytest.raises(PlanError, match="minibatch 7, which is 5 cells"):
            noise.bernoulli_keep(shape, 0.5)


@pytest.mark.parametrize(
    "binding",
    [(-1, 0, 0, 1, 1), (0, -1, 0, 1, 1), (0, 0, 1, 1, 2), (0, 0, -1, 1, 2), (0, 0, 0, 1, 0)],
)
def test_a_binding_to_no_cells_is_refused(binding: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(PlanError, match="start < stop"):
        NoiseStream().at(*binding)


def test_a_stream_stays_shared_through_a_pickle() -> None:
    noise = NoiseStream()
    layers = nn.Sequential(Dropout(0.5, noise), Dropout(0.5, noise))
    copied = pickle.loads(pickle.dumps(layers))
    assert copied[0].noise is copied[1].noise
    assert copied[0].noise is not noise
