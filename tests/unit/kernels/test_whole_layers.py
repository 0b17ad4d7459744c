"""Layers and posteriors computed as a whole are what torch computes part by part."""

import copy

import pytest
import torch
from torch import Tensor, nn

from scvi_dist.kernels import threads
from scvi_dist.kernels.choice import KERNELS
from scvi_dist.kernels.posterior import posterior
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
def test_layers_are_as_exact_as_torch(dropout_rate: float, n_cat: int) -> None:
    torch.manual_seed(0)
    noise = NoiseStream()
    layers = FCLayers(7, 20, [n_cat], n_layers=2, dropout_rate=dropout_rate, noise=noise)
    x, codes = torch.randn(N_CELLS, 7) * 3 + 5, torch.randint(0, n_cat, (N_CELLS, 1))
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
