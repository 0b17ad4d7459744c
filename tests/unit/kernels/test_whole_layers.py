"""Layers and posteriors computed as a whole are what torch computes part by part."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scvi_dist.kernels import threads
from scvi_dist.kernels.choice import KERNELS
from scvi_dist.kernels.layer_product import FEW_INPUTS
from scvi_dist.kernels.loss_sums import loss_sums
from scvi_dist.kernels.posterior import posterior
from scvi_dist.kernels.small_products import multiply_few, multiply_few_slopes
from scvi_dist.nn.encoder import Encoder
from scvi_dist.nn.fc_layers import FCLayers
from scvi_dist.nn.noise import NoiseStream
from scvi_dist.train import adam
from scvi_dist.train.adam import Adam

N_CELLS = 33


def results(layers: FCLayers, x_nk: Tensor, codes: Tensor, whole: bool) -> list[Tensor]:
    """Output, gradients and buffers of a training step."""
    x = x_nk.to(next(layers.parameters()).dtype).requires_grad_()
    out = layers(x, codes, kernel=KERNELS["numba"]() if whole else None)
    (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum().backward()
    gradients = [p.grad for p in (x, *layers.parameters()) if p.grad is not None]
    return [out.detach(), *gradients, *layers.buffers()]


@pytest.mark.parametrize("dropout_rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n_cat", [1, 3])
@pytest.mark.parametrize("n_in", [7, FEW_INPUTS + 9])
def test_layers_are_as_exact_as_torch(dropout_rate: float, n_cat: int, n_in: int) -> None:
    torch.manual_seed(0)
    noise = NoiseStream()
    layers = FCLayers(n_in, 20, [n_cat], n_layers=2, dropout_rate=dropout_rate, noise=noise)
    x, codes = torch.randn(N_CELLS, n_in) * 3 + 5, torch.randint(0, n_cat, (N_CELLS, 1))
    found = []
    for double, whole in ((True, False), (False, False), (False, True)):
        own = copy.deepcopy(layers)
        own = own.double() if double else own
        for stream in {id(m.noise): m.noise for m in own.modules() if hasattr(m, "noise")}.values():
            stream.at(3, 4, 0, N_CELLS, N_CELLS)
        found.append(results(own, x.clone(), codes, whole))
    for truth, theirs, ours in zip(*found, strict=True):
        allowed = max(2e-6 * float(truth.abs().max()), float((theirs - truth).abs().max()), 1e-6)
        assert float((ours - truth).abs().max()) <= allowed


def test_a_posterior_is_what_its_law_says() -> None:
    torch.manual_seed(0)
    heads = [nn.Linear(6, 4).double() for _ in range(2)]
    hidden = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(5, 4, dtype=torch.float64)

    def whole(hidden: Tensor) -> tuple[Tensor, ...]:
        return posterior(hidden, *heads, noise, 1e-4)

    assert torch.autograd.gradcheck(whole, (hidden,))
    loc, scale, draw, divergence = whole(hidden)
    encoder = Encoder(3, 4, n_hidden=6).double()
    encoder.mean_encoder, encoder.var_encoder, encoder.encoder = *heads, nn.Identity()
    law = encoder.posterior(hidden)
    torch.testing.assert_close((loc, scale), (law.loc, law.scale))
    torch.testing.assert_close(draw, law.loc + law.scale * noise)
    standard = torch.distributions.Normal(torch.zeros_like(loc), torch.ones_like(loc))
    truth = torch.distributions.kl_divergence(law, standard).sum(-1)
    torch.testing.assert_close(divergence, truth)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_adam_moves_as_torch_does_and_goes_on_after_loading(
    n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adam, "LEAST_OF_PART", 1)
    monkeypatch.setattr(threads, "n_threads", lambda: n_threads)
    torch.manual_seed(0)
    start = [torch.randn(4, 3).t().contiguous().t(), torch.randn(5), torch.randn(2, 6)]
    kinds = {"ours": Adam, "torch": torch.optim.Adam}
    options = {"lr": 0.1, "eps": 0.01, "weight_decay": 1e-2}
    found = {}
    for name, kind in kinds.items():
        params = [nn.Parameter(p.clone()) for p in start]
        optimizer = kind(params, **options, fused=name == "ours" or None)
        generator = torch.Generator().manual_seed(1)
        for step in range(6):
            for p in params:
                p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))
            if step == 3:
                state = optimizer.state_dict()
                # As from a file that has matrices row by row.
                for value in state["state"].values():
                    value["exp_avg"] = value["exp_avg"].contiguous()
                optimizer = kind(params, **options, fused=name == "ours" or None)
                optimizer.load_state_dict(state)
            optimizer.step()
            if step == 4:
                # Moved, as a module is that changes its layout or its device and back.
                params[1].data = params[1].data.clone()
                state = optimizer.state[params[1]]
                state["exp_avg"] = state["exp_avg"].clone()
        found[name] = [p.detach() for p in params]
    torch.testing.assert_close(found["ours"], found["torch"], rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 9),
    k=st.integers(1, 40),
    h=st.integers(1, 300),
    c=st.integers(0, 40),
    real=st.sampled_from([np.float32, np.float64]),
)
def test_small_products_and_their_derivatives(n: int, k: int, h: int, c: int, real: Any) -> None:
    rng = np.random.default_rng(n * k * h)
    x, weight, slope = (rng.normal(size=shape).astype(real) for shape in ((n, k), (h, k), (n, h)))
    units, by_weight, by_x = (
        np.empty((n, h), real),
        np.empty((h, k), real),
        np.empty((n, min(c, k)), real),
    )
    multiply_few(x, weight, units)
    multiply_few_slopes(slope, x, weight, by_weight, by_x)
    truth = [np.float64(x) @ np.float64(weight.T), np.float64(slope.T) @ np.float64(x)]
    truth.append((np.float64(slope) @ np.float64(weight))[:, : min(c, k)])
    eps = np.finfo(real).eps
    for seen, expected in zip((units, by_weight, by_x), truth, strict=True):
        np.testing.assert_allclose(seen, expected, rtol=0, atol=8 * eps * (k + h + n))


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_sums_of_a_loss(n: int) -> None:
    first, second = torch.rand(n) * 1e4, torch.rand(n)
    mean, total, *each, nothing = loss_sums(first, second, 0.25).double()
    sums = [float(x.double().sum()) for x in (first, second)]
    assert [float(x) for x in each] == pytest.approx(sums, rel=1e-6)
    assert float(total) == pytest.approx(sums[0] + 0.25 * sums[1], rel=1e-6)
    assert float(mean) == pytest.approx(float(total) / max(n, 1), rel=1e-6)
    assert float(nothing) == 0.0
