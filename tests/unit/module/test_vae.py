"""What a VAE must do, whatever it is built of."""

import copy
import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from scvi_dist.batch import REGISTRY_KEYS, CellBatch
from scvi_dist.errors import FieldNotFound
from scvi_dist.module import VAE
from tests.unit.module.vae_cases import COVARIATES, EMBEDDING, LIBRARY, SIZES, G, N, build, cells

VARIANTS: dict[str, dict[str, Any]] = {
    "zinb": {},
    "nb, per batch": {"gene_likelihood": "nb", "dispersion": "gene-batch"},
    "poisson": {"gene_likelihood": "poisson"},
    "poisson, per cell": {"gene_likelihood": "poisson", "dispersion": "gene-cell"},
    "normal, per label": {"gene_likelihood": "normal", "dispersion": "gene-label"},
    "per cell, latent library": {"dispersion": "gene-cell", **LIBRARY},
    "ln, size factor": {"latent_distribution": "ln", "use_size_factor_key": True},
    "covariates": {**COVARIATES, "n_layers": 2},
    "embedding": {**COVARIATES, **EMBEDDING},
}
each_variant = pytest.mark.parametrize("args", VARIANTS.values(), ids=VARIANTS)


def bound_loss(module: VAE, batch: CellBatch, **loss_kwargs: Any) -> Any:
    """The loss with the noise bound to the batch's cells."""
    module.noise.at(3, 0, batch.start, batch.start + batch.n_cells, batch.n_global)
    loss = module(batch, loss_kwargs=loss_kwargs)[2]
    module.noise.unbind()
    return loss


def gradients(module: VAE, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {k: p.grad.clone() for k, p in module.named_parameters() if p.grad is not None}


@each_variant
def test_what_trains_is_what_the_loss_reaches(args: dict[str, Any]) -> None:
    """A parameter has a gradient exactly if it says that it wants one: DDP needs that."""
    module = build(**args)
    module(cells(**args))[2].loss.backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@each_variant
def test_the_loss_is_the_mean_of_its_terms(args: dict[str, Any]) -> None:
    module = build(**args)
    loss = bound_loss(module, cells(**args), kl_weight=0.25)
    rec = loss.reconstruction_loss["reconstruction_loss"]
    kl_z, kl_l = loss.kl_local["kl_divergence_z"], loss.kl_local["kl_divergence_l"]
    torch.testing.assert_close(loss.loss, (rec + 0.25 * kl_z + kl_l).mean())
    assert rec.shape == kl_z.shape == kl_l.shape == (N,)
    assert bool(kl_l.any()) == ("library_log_means" in args)
    assert loss.n_obs_minibatch == N


@each_variant
def test_a_mapping_of_tensors_is_as_good_as_a_batch(args: dict[str, Any]) -> None:
    module, batch = build(**args).eval(), cells(**args)
    expected = bound_loss(module, batch).loss
    module.noise.at(3, 0, 0, N, N)
    # A mapping has dense counts, which take the way without kernels.
    torch.testing.assert_close(module({key: batch[key] for key in batch})[2].loss, expected)


@each_variant
def test_it_is_rebuilt_from_its_arguments_and_from_a_pickle(args: dict[str, Any]) -> None:
    module, batch = build(**args).eval(), cells(**args)
    expected = bound_loss(module, batch).loss
    rebuilt = VAE(**pickle.loads(pickle.dumps(module.init_args))).eval()
    rebuilt.load_state_dict(module.state_dict())
    for again in (rebuilt, pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert torch.equal(bound_loss(again, batch).loss, expected)
        assert again.z_encoder.noise is again.noise


@each_variant
def test_cells_that_fill_a_batch_up_carry_no_loss(args: dict[str, Any]) -> None:
    """Eval mode: in training they would enter the statistics of plain batch norm."""
    module = build(**args).eval()
    without, padded = cells(**args), cells(n_padding=3, **args)
    expected, seen = bound_loss(module, without), bound_loss(module, padded)
    torch.testing.assert_close(seen.loss, expected.loss)
    assert seen.n_obs_minibatch == N
    torch.testing.assert_close(seen.reconstruction_loss_sum, expected.reconstruction_loss_sum)
    torch.testing.assert_close(seen.kl_local_sum, expected.kl_local_sum)
    wanted = gradients(module, expected.loss)
    for name, gradient in gradients(module, seen.loss).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6)
    assert module.sample(padded).shape == (N, G)
    assert module.marginal_ll(padded, 2).shape == (N,)


@each_variant
def test_a_batch_of_padding_alone_has_a_loss_of_zero(args: dict[str, Any]) -> None:
    module = build(**args).eval()
    batch = replace(cells(n=1, **args), n_padding=1)
    loss = bound_loss(module, batch)
    assert loss.loss.item() == 0
    assert loss.n_obs_minibatch == 0
    assert not any(gradient.any() for gradient in gradients(module, loss.loss).values())


@each_variant
def test_an_empty_cell_trains(args: dict[str, Any]) -> None:
    """Its library size is minus infinity, its rates are zero, and so is its harm."""
    module, batch = build(**args), cells(**args)
    tensors = {key: batch[key].clone() for key in batch}
    tensors[REGISTRY_KEYS.X_KEY][3] = 0
    loss = module(tensors)[2].loss
    assert torch.isfinite(loss)
    for name, gradient in gradients(module, loss).items():
        assert torch.isfinite(gradient).all(), name


@each_variant
def test_the_mean_is_decoded_without_a_draw(args: dict[str, Any]) -> None:
    module, batch = build(**args).eval(), cells(**args)
    before = torch.random.get_rng_state()
    px = module.decode_mean(batch)
    assert torch.equal(torch.random.get_rng_state(), before)
    inputs = module._get_inference_input(batch)
    inferred = module.inference(**inputs, use_mean=True)
    qz, _ = module.posterior(**inputs)
    assert torch.equal(inferred["z"], module.z_encoder.z_transformation(qz.loc))
    expected = module.generative(**module._get_generative_input(batch, inferred))["px"]
    assert torch.equal(px.mean, expected.mean)


@each_variant
def test_another_batch_is_decoded_from_the_same_latent_space(args: dict[str, Any]) -> None:
    module, batch = build(**args).eval(), cells(**args)
    moved = replace(
        batch,
        fields={**batch.fields, REGISTRY_KEYS.BATCH_KEY: torch.full((N, 1), 2)},
    )
    inferred = module.inference(**module._get_inference_input(batch), use_mean=True)
    expected = module.generative(**module._get_generative_input(moved, inferred))["px"]
    px = module.decode_mean(batch, transform_batch=2)
    assert torch.equal(px.mean, expected.mean)
    assert not torch.equal(px.mean, module.decode_mean(batch).mean)


@each_variant
def test_draws_have_the_samples_last_and_are_a_likelihoods(args: dict[str, Any]) -> None:
    module, batch = build(**args).eval(), cells(**args)
    torch.manual_seed(0)
    assert module.sample(batch).shape == (N, G)
    drawn = module.sample(batch, n_samples=600)
    assert drawn.shape == (N, G, 600)
    _, generated = module(batch, inference_kwargs={"n_samples": 600}, compute_loss=False)
    law = generated["px"]
    expected = law.mean.mean(0)
    error = (law.variance.mean(0) + law.mean.var(0)).div(600).sqrt()
    assert ((drawn.mean(-1) - expected).abs() <= 7 * error + 1e-3).all()


@each_variant
def test_several_draws_are_the_single_ones_side_by_side(args: dict[str, Any]) -> None:
    module, batch = build(**args).eval(), cells(**args)
    inferred, generated = module(batch, inference_kwargs={"n_samples": 3}, compute_loss=False)
    assert inferred["z"].shape == (3, N, SIZES["n_latent"])
    assert inferred["library"].shape == (3, N, 1)
    for s in range(3):
        one = {"z": inferred["z"][s], "library": inferred["library"][s]}
        px = module.generative(**module._get_generative_input(batch, one))["px"]
        torch.testing.assert_close(generated["px"].mean[s], px.mean)


def grid_estimate(module: VAE, batch: CellBatch) -> Tensor:
    """``log p(x)`` of each cell with one latent dimension, by a sum over a grid of z and l."""
    z = torch.linspace(-7, 7, 401)
    step = 14 / 400
    inferred = module.inference(**module._get_inference_input(batch), use_mean=True)
    library = inferred["library"].expand(1, N, 1)
    if not module.use_observed_lib_size:
        library = torch.linspace(-2, 8, 201).view(-1, 1, 1).expand(-1, N, 1)
        step *= 10 / 200
    draw = z.repeat_interleave(len(library)).view(-1, 1, 1).expand(-1, N, 1)
    size = library.repeat(len(z), 1, 1)
    at_points = {"z": module.z_encoder.z_transformation(draw), "library": size}
    generated = module.generative(**module._get_generative_input(batch, at_points))
    log_joint = generated["px"].log_prob(batch["X"]).sum(-1)
    log_joint += generated["pz"].log_prob(draw).sum(-1)
    if generated["pl"] is not None:
        log_joint += generated["pl"].log_prob(size).sum(-1)
    return torch.logsumexp(log_joint, 0) + math.log(step)


@pytest.mark.parametrize(
    "args", [{}, {"latent_distribution": "ln"}, LIBRARY], ids=["normal", "ln", "latent library"]
)
def test_the_marginal_likelihood_is_the_integral_over_the_latent_space(
    args: dict[str, Any],
) -> None:
    module, batch = build(n_latent=1, **args).eval(), cells()
    with torch.inference_mode():
        # Proposals near the truth: an estimate from far ones would need far more draws.
        module.l_encoder.mean_encoder.bias.fill_(3.0)
        exact = grid_estimate(module, batch)
    torch.manual_seed(0)
    seen = module.marginal_ll(batch, 4_000, n_mc_samples_per_pass=900)
    torch.testing.assert_close(seen, exact, rtol=0, atol=0.15)
    mean = module.marginal_ll(batch, 4_000, True, 900)
    assert mean == pytest.approx(exact.mean().item(), abs=0.05)


def test_the_marginal_likelihood_is_above_the_bound() -> None:
    module, batch = build(**LIBRARY).eval(), cells(400)
    torch.manual_seed(0)
    with torch.inference_mode():
        bound = -module(batch)[2].loss.item()
    assert module.marginal_ll(batch, 300, True, 100) > bound


def test_two_ranks_compute_what_one_does() -> None:
    """Without batch norm, the shares of a global minibatch give its loss and its gradient."""
    module, whole = build(use_batch_norm="none"), cells()
    expected = bound_loss(module, whole)
    wanted = gradients(module, expected.loss)
    terms, sums = [], {}
    for start, stop in ((0, 5), (5, N)):
        part = {key: whole[key][start:stop] for key in whole}
        module.noise.at(3, 0, start, stop, N)
        loss = module(part)[2]
        terms.append(loss.reconstruction_loss["reconstruction_loss"])
        for name, gradient in gradients(module, loss.loss * (stop - start) / N).items():
            sums[name] = sums.get(name, 0) + gradient
    torch.testing.assert_close(
        torch.cat(terms), expected.reconstruction_loss["reconstruction_loss"]
    )
    for name, gradient in wanted.items():
        torch.testing.assert_close(sums[name], gradient, rtol=1e-4, atol=1e-5)


def test_mixed_precision_gives_nearly_the_same_loss() -> None:
    module, batch = build().eval(), cells()
    expected = bound_loss(module, batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = bound_loss(module, batch).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)


def test_the_payload_for_tuning_has_the_cells_that_count() -> None:
    loss = bound_loss(build(extra_payload_autotune=True), cells(n_padding=2))
    assert {key: len(value) for key, value in loss.extra_metrics.items()} == {
        "z": N,
        "batch": N,
        "labels": N,
    }


@pytest.mark.parametrize(
    ("args", "missing", "hint"),
    [
        ({"use_size_factor_key": True}, REGISTRY_KEYS.SIZE_FACTOR_KEY, "size_factor_key"),
        ({"dispersion": "gene-label"}, REGISTRY_KEYS.LABELS_KEY, "labels_key"),
    ],
)
def test_an_input_that_the_minibatch_lacks_is_named(args: dict, missing: str, hint: str) -> None:
    batch = cells()
    fields = {key: value for key, value in batch.fields.items() if key != missing}
    with pytest.raises(FieldNotFound, match=hint):
        build(**args)(replace(batch, fields=fields))
