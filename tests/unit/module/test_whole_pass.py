"""The loss without a graph is the loss with one, and so are its derivatives."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scvi_dist.batch import CellBatch
from scvi_dist.module import VAE
from scvi_dist.module.base import LossOutput
from scvi_dist.module.surgery import FreezeOptions, freeze
from scvi_dist.module.whole_pass import WholeLoss, can_be_whole
from scvi_dist.nn import Encoder
from tests.unit.module.vae_cases import COVARIATES, EMBEDDING, LIBRARY, N, build, cells

TAKEN: dict[str, dict[str, Any]] = {
    "zinb": {},
    "nb, per batch": {"gene_likelihood": "nb", "dispersion": "gene-batch"},
    "zinb, per label": {"dispersion": "gene-label", "n_layers": 3},
    "per cell": {"dispersion": "gene-cell", "gene_likelihood": "nb", "n_layers": 2},
    "poisson, raw counts": {"gene_likelihood": "poisson", "log_variational": False},
    "covariates": {**COVARIATES, "n_layers": 2},
    "covariates in the first layer alone": {
        **COVARIATES,
        "n_layers": 2,
        "deeply_inject_covariates": False,
    },
    "size factor, no dropout": {"use_size_factor_key": True, "dropout_rate": 0.0},
    "one batch": {"n_batch": 1},
}
LEFT: dict[str, dict[str, Any]] = {
    "embedding": EMBEDDING,
    "latent library": LIBRARY,
    "ln": {"latent_distribution": "ln"},
    "normal law": {"gene_likelihood": "normal"},
    "layer norm": {"use_layer_norm": "both", "use_batch_norm": "none"},
    "payload": {"extra_payload_autotune": True},
}


def trained(module: VAE, batch: CellBatch, whole: bool) -> tuple[LossOutput, list[Tensor | None]]:
    """What a training step has of the module, its noise bound; gradients of twice the loss."""
    module.noise.at(3, 0, batch.start, batch.start + batch.n_cells, batch.n_global)
    if whole:
        output = module.objective(batch, kl_weight=0.3)
    else:
        output = module(batch, loss_kwargs={"kl_weight": 0.3})[2]
    (2 * output.loss).backward()
    return output, [p.grad for p in module.parameters()]


def assert_same_step(module: VAE, batch: CellBatch) -> None:
    other = copy.deepcopy(module)
    expected, their_slopes = trained(module, batch, whole=False)
    seen, our_slopes = trained(other, batch, whole=True)
    torch.testing.assert_close(seen.loss, expected.loss)
    for term in ("reconstruction_loss", "kl_local"):
        torch.testing.assert_close(getattr(seen, term), getattr(expected, term))
    assert seen.n_obs_minibatch == expected.n_obs_minibatch
    for (name, _), ours, theirs in zip(
        module.named_parameters(), our_slopes, their_slopes, strict=True
    ):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert ours.stride() == theirs.stride(), name
            scale = float(theirs.abs().max())
            assert float((ours - theirs).abs().max()) <= 1e-5 * scale + 1e-9, name
    for name, buffer in other.named_buffers():
        torch.testing.assert_close(buffer, module.get_buffer(name))
    # As much noise was drawn: what comes after it in this step is the same.
    like = batch.x.data.new_empty(batch.n_cells, 2)
    torch.testing.assert_close(other.noise.normal_like(like), module.noise.normal_like(like))


@pytest.mark.parametrize("n_padding", [0, 3])
@pytest.mark.parametrize("args", TAKEN.values(), ids=TAKEN)
def test_the_loss_and_its_derivatives_are_those_of_the_graph(
    args: dict[str, Any], n_padding: int
) -> None:
    module, batch = build(**args), cells(n_padding=n_padding, **args)
    module.noise.at(3, 0, 0, batch.n_cells, batch.n_global)
    assert can_be_whole(module, VAE)
    assert WholeLoss(module).takes(batch)
    assert_same_step(module, batch)


@pytest.mark.parametrize("args", LEFT.values(), ids=LEFT)
def test_what_it_cannot_compute_goes_the_usual_way(args: dict[str, Any]) -> None:
    module, batch = build(**args), cells(**args)
    module.noise.at(3, 0, 0, batch.n_cells, batch.n_global)
    assert not can_be_whole(module, VAE)
    assert_same_step(module, batch)


def test_what_is_frozen_for_new_batches_stays_frozen() -> None:
    """Columns of known batches too, of layers that covariates are injected into."""
    module = build(n_layers=2, encode_covariates=True)
    freeze(module, FreezeOptions())
    assert_same_step(module, cells())


def test_the_first_layer_of_known_genes_is_not_trained() -> None:
    module = build(encode_covariates=True)
    freeze(module, FreezeOptions(freeze_decoder_first_layer=False))
    batch = cells()
    module.noise.at(3, 0, 0, batch.n_cells, batch.n_global)
    assert can_be_whole(module, VAE)
    assert WholeLoss(module).takes(batch)
    assert_same_step(module, batch)


def test_a_batch_of_padding_alone_moves_nothing() -> None:
    module, batch = build(), replace(cells(), n_padding=N)
    output, slopes = trained(module, batch, whole=True)
    assert float(output.loss.detach()) == 0.0
    assert all(not bool(slope.any()) for slope in slopes if slope is not None)


class _Own(VAE):
    def loss(self, *args: Any, **kwargs: Any) -> LossOutput:
        output = super().loss(*args, **kwargs)
        output.loss = output.loss * 3
        return output


def test_a_loss_of_somebodys_own_is_asked() -> None:
    torch.manual_seed(0)
    module = _Own(n_input=9, n_batch=3, n_labels=2, n_hidden=16, n_latent=4)
    assert_same_step(module, cells())


class _OwnObjective(VAE):
    def objective(self, *args: Any, **kwargs: Any) -> LossOutput:
        output = super().objective(*args, **kwargs)
        output.loss = output.loss * 3
        return output


def test_an_objective_of_somebodys_own_is_asked_in_steps_too() -> None:
    torch.manual_seed(0)
    module, batch = (
        _OwnObjective(n_input=9, n_batch=3, n_labels=2, n_hidden=16, n_latent=4),
        cells(),
    )
    losses = []
    for objective in (module.objective, module.steps_objective(with_graph=False)):
        module.noise.at(3, 0, 0, batch.n_cells, batch.n_global)
        losses.append(objective(batch).loss)
    module.noise.at(3, 0, 0, batch.n_cells, batch.n_global)
    plain = VAE.objective(module, batch).loss
    torch.testing.assert_close(losses, [3 * plain, 3 * plain])


class _Halved(Encoder):
    def forward(self, *args: Any) -> Any:
        law, latent = super().forward(*args)
        return law, latent / 2


def test_parts_of_somebodys_own_are_asked() -> None:
    module, batch = build(), cells()
    module.z_encoder.__class__ = _Halved
    module.noise.at(3, 0, 0, batch.n_cells, batch.n_global)
    assert not can_be_whole(module, VAE)
    assert_same_step(module, batch)


@pytest.mark.parametrize(
    "where",
    ["z_encoder", "z_encoder.var_encoder", "z_encoder.encoder.fc_layers.Layer 0.1"],
)
def test_who_looks_at_a_part_sees_it_computed(where: str) -> None:
    module, batch, seen = build(), cells(), []
    module.get_submodule(where).register_forward_hook(lambda *_: seen.append(1))
    trained(module, batch, whole=True)
    assert seen == [1]
    module.zero_grad()
    assert_same_step(module, batch)


@pytest.mark.parametrize("where", ["z_encoder.encoder.fc_layers.0.0", "z_encoder.mean_encoder"])
def test_weights_that_are_computed_have_derivatives(where: str) -> None:
    module = build()
    path = where.replace("fc_layers.0.0", "fc_layers.Layer 0.0")
    nn.utils.parametrizations.weight_norm(module.get_submodule(path))
    assert_same_step(module, cells())


def test_without_derivatives_or_in_evaluation_the_terms_are_the_same() -> None:
    module, batch = build().eval(), cells()
    module.noise.at(3, 0, 0, batch.n_cells, batch.n_global)
    expected = module(batch, loss_kwargs={"kl_weight": 0.3})[2].loss
    module.noise.at(3, 0, 0, batch.n_cells, batch.n_global)
    torch.testing.assert_close(module.objective(batch, kl_weight=0.3).loss, expected)
    with torch.no_grad():
        module.train().noise.at(3, 0, 0, batch.n_cells, batch.n_global)
        assert not module.objective(batch).loss.requires_grad


def test_derivatives_are_given_away_once() -> None:
    module, batch = build(), cells()
    module.noise.at(3, 0, 0, batch.n_cells, batch.n_global)
    loss = module.objective(batch).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="given away"):
        loss.backward()


def test_without_a_graph_the_output_has_the_derivatives() -> None:
    module, batch = build(dispersion="gene-batch", n_layers=2), cells()
    expected, slopes = trained(copy.deepcopy(module), batch, whole=True)
    objective = module.steps_objective(with_graph=False)
    for _ in range(2):
        # The second minibatch finds what the first one has left.
        other = copy.deepcopy(module.state_dict())
        module.noise.at(3, 0, batch.start, batch.start + batch.n_cells, batch.n_global)
        seen = objective(batch, kl_weight=0.3)
        assert not seen.loss.requires_grad
        torch.testing.assert_close(seen.loss, expected.loss.detach())
        for parameter, slope in zip(module.parameters(), slopes, strict=True):
            assert (parameter in seen.gradients) == (slope is not None)
            if slope is not None:
                torch.testing.assert_close(2 * seen.gradients[parameter], slope)
        module.load_state_dict(other)


def test_what_a_prepared_loss_cannot_compute_goes_the_usual_way() -> None:
    module, batch = build(), cells()
    objective = module.steps_objective(with_graph=False)
    module.noise.at(3, 0, 0, batch.n_cells, batch.n_global)
    dense = replace(batch, x=batch.dense_x())
    assert objective(dense).loss.requires_grad
    module.eval()
    assert objective(batch).gradients is None
