"""What a TOTALVAE must do, whatever it is built of."""

import copy
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from totalvae_cases import (
    MEASURED,
    G,
    N,
    P,
    bound_loss,
    build,
    cells,
    each_variant,
    gradients,
    with_field,
)

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.errors import FieldNotFound
from scvi_dist.module import TOTALVAE


@each_variant
def test_what_trains_is_what_the_loss_reaches(args: dict[str, Any]) -> None:
    """A parameter has a gradient exactly if it says that it wants one: DDP needs that."""
    module = build(**args)
    module(cells(**args))[2].loss.backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@each_variant
def test_the_loss_is_the_weighted_mean_of_its_terms(args: dict[str, Any]) -> None:
    module = build(**args)
    loss = bound_loss(module, cells(**args), kl_weight=0.25, pro_recons_weight=0.5)
    rec, kl = loss.reconstruction_loss, loss.kl_local
    expected = rec["reconst_loss_gene"] + 0.125 * rec["reconst_loss_protein"]
    expected = expected + 0.25 * (kl["kl_div_z"] + kl["kl_div_back_pro"]) + kl["kl_div_l_gene"]
    torch.testing.assert_close(loss.loss, expected.mean())
    assert {len(term) for term in (*rec.values(), *kl.values())} == {N}
    assert bool(kl["kl_div_l_gene"].any()) == ("library_log_means" in args)


@each_variant
def test_it_is_rebuilt_from_its_arguments_and_from_a_pickle(args: dict[str, Any]) -> None:
    module, batch = build(**args).eval(), cells(**args)
    expected = bound_loss(module, batch).loss
    rebuilt = TOTALVAE(**pickle.loads(pickle.dumps(module.init_args))).eval()
    rebuilt.load_state_dict(module.state_dict())
    for again in (rebuilt, pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert torch.equal(bound_loss(again, batch).loss, expected)
        assert again.encoder.noise is again.decoder.noise is again.noise


@each_variant
def test_cells_that_fill_a_batch_up_carry_no_loss(args: dict[str, Any]) -> None:
    """Eval mode: in training they would enter the statistics of plain batch norm."""
    module = build(**args).eval()
    without, padded = cells(**args), cells(n_padding=3, **args)
    expected, seen = bound_loss(module, without), bound_loss(module, padded)
    torch.testing.assert_close(seen.loss, expected.loss)
    assert seen.n_obs_minibatch == N
    torch.testing.assert_close(seen.kl_local_sum, expected.kl_local_sum)
    wanted = gradients(module, expected.loss)
    for name, gradient in gradients(module, seen.loss).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-5)
    assert [drawn.shape for drawn in module.sample(padded)] == [(N, G), (N, P)]
    assert module.marginal_ll(padded, 2, return_mean=False).shape == (N,)


@each_variant
def test_a_batch_of_padding_alone_has_a_loss_of_zero(args: dict[str, Any]) -> None:
    module = build(**args).eval()
    loss = bound_loss(module, replace(cells(n=1, **args), n_padding=1))
    assert loss.loss.item() == loss.n_obs_minibatch == 0
    assert not any(gradient.any() for gradient in gradients(module, loss.loss).values())


@each_variant
def test_an_empty_cell_trains(args: dict[str, Any]) -> None:
    module, batch = build(**args), cells(**args)
    tensors = {key: batch[key].clone() for key in batch}
    for key in (REGISTRY_KEYS.X_KEY, REGISTRY_KEYS.PROTEIN_EXP_KEY):
        tensors[key][3] = 0
    loss = module(tensors)[2].loss
    assert torch.isfinite(loss)
    for name, gradient in gradients(module, loss).items():
        assert torch.isfinite(gradient).all(), name


@each_variant
def test_enormous_counts_train(args: dict[str, Any]) -> None:
    module, batch = build(**args), cells(**args)
    tensors = {key: batch[key].clone() for key in batch}
    for key in (REGISTRY_KEYS.X_KEY, REGISTRY_KEYS.PROTEIN_EXP_KEY):
        tensors[key][:5, 1] = 2e6
    with torch.no_grad():
        for log_theta in (module.px_r, module.py_r):
            log_theta.view(-1)[:2] = torch.tensor([-15.0, 15.0])
    loss = module(tensors)[2].loss
    assert torch.isfinite(loss)
    for name, gradient in gradients(module, loss).items():
        assert torch.isfinite(gradient).all(), name


def test_proteins_that_were_not_measured_have_no_likelihood() -> None:
    """Their counts reach the loss through the encoder alone."""
    module, batch = build(protein_batch_mask=MEASURED).eval(), cells()
    measured = module.measured(batch)
    assert measured is not None
    rows = torch.tensor([np.asarray(MEASURED[k]).tolist() for k in ("0", 1, "2")])
    assert torch.equal(measured, rows[batch["batch"].squeeze(1)])
    inferred, generated, _ = module(batch)
    loss = module.loss(batch, inferred, generated)
    other = torch.where(measured, batch["proteins"], batch["proteins"] + 17)
    changed = module.loss(with_field(batch, "proteins", other), inferred, generated)
    assert torch.equal(changed.loss, loss.loss)
    log_prob = generated["py"].log_prob(batch["proteins"])
    expected = -(log_prob * measured).sum(-1)
    torch.testing.assert_close(loss.reconstruction_loss["reconst_loss_protein"], expected)
    everything = with_field(batch, "proteins", batch["proteins"] + 17)
    assert not torch.equal(module.loss(everything, inferred, generated).loss, loss.loss)


def test_a_panel_without_an_entry_has_all_proteins() -> None:
    batch = cells()
    module = build(protein_batch_mask={"1": MEASURED[1]})
    measured = module.measured(batch)
    assert measured is not None
    assert measured[batch["batch"].squeeze(1) != 1].all()
    assert build(protein_batch_mask={"1": [True] * P}).measured(batch) is None


def test_background_priors_start_where_they_are_told() -> None:
    mean, scale = np.random.default_rng(0).uniform(0.1, 2, (2, P, 3))
    prior = {"protein_background_prior_mean": mean, "protein_background_prior_scale": scale}
    law = build(**prior).background_prior(torch.tensor([[2], [0]]))
    torch.testing.assert_close(law.loc, torch.from_numpy(mean.T[[2, 0]]).float())
    torch.testing.assert_close(law.scale, torch.from_numpy(scale.T[[2, 0]]).float())
    shared = {name: value[:, :1] for name, value in prior.items()}
    law = build(**shared).background_prior(torch.tensor([[2], [0]]))
    torch.testing.assert_close(law.loc, torch.from_numpy(mean[:, 0]).float())
    default = build().background_prior(torch.tensor([[2], [0]]))
    assert (default.loc == 3).all()
    assert (default.scale == 1).all()


def test_efficiencies_have_a_log_normal_prior() -> None:
    """The penalty, as the mean over cells, is that of scipy's densities."""
    from scipy.stats import lognorm

    module, batch = build(protein_batch_mask={str(b): [False] * P for b in range(3)}), cells()
    with torch.no_grad():
        module.log_per_batch_efficiency.normal_()
    _, generated, loss = module(batch)
    log_density = lognorm(s=1).logpdf(generated["per_batch_efficiency"].detach().numpy())
    odds = torch.sigmoid(generated["py_"]["mixing"].detach()).log().sum(-1)
    expected = torch.from_numpy(-log_density.sum(-1)).float() - 1e-3 * odds
    torch.testing.assert_close(loss.kl_local["kl_div_back_pro"], expected)


def test_two_ranks_compute_what_one_does() -> None:
    """Without batch norm, the shares of a global minibatch give its loss and its gradient."""
    module = build(use_batch_norm="none", protein_batch_mask=MEASURED)
    whole = cells()
    expected = bound_loss(module, whole)
    wanted = gradients(module, expected.loss)
    terms, sums = [], {}
    for start, stop in ((0, 5), (5, N)):
        part = {key: whole[key][start:stop] for key in whole}
        module.noise.at(3, 0, start, stop, N)
        loss = module(part)[2]
        terms.append(loss.kl_local["kl_div_back_pro"])
        for name, gradient in gradients(module, loss.loss * (stop - start) / N).items():
            sums[name] = sums.get(name, 0) + gradient
    torch.testing.assert_close(torch.cat(terms), expected.kl_local["kl_div_back_pro"])
    for name, gradient in wanted.items():
        torch.testing.assert_close(sums[name], gradient, rtol=1e-4, atol=1e-5)


def test_mixed_precision_gives_nearly_the_same_loss() -> None:
    module, batch = build(gene_likelihood="zinb").eval(), cells()
    expected = bound_loss(module, batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = bound_loss(module, batch).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)


def test_the_payload_for_tuning_has_the_cells_that_count() -> None:
    loss = bound_loss(build(extra_payload_autotune=True), cells(n_padding=2))
    sizes = {key: len(value) for key, value in loss.extra_metrics.items()}
    assert sizes == {"z": N, "batch": N, "labels": N}


@pytest.mark.parametrize(
    ("args", "missing", "hint"),
    [
        ({"use_size_factor_key": True}, REGISTRY_KEYS.SIZE_FACTOR_KEY, "size_factor_key"),
        ({"gene_dispersion": "gene-label"}, REGISTRY_KEYS.LABELS_KEY, "labels_key"),
        ({"protein_dispersion": "protein-label"}, REGISTRY_KEYS.LABELS_KEY, "labels_key"),
        ({}, REGISTRY_KEYS.PROTEIN_EXP_KEY, "'proteins'.*obsm"),
        ({"panel_key": "panel"}, "panel", "'panel'.*obs column"),
    ],
)
def test_an_input_that_the_minibatch_lacks_is_named(args: dict, missing: str, hint: str) -> None:
    batch = cells()
    fields = {key: value for key, value in batch.fields.items() if key != missing}
    with pytest.raises(FieldNotFound, match=hint):
        build(**args)(replace(batch, fields=fields))
