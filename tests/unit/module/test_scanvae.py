"""What SCANVAE computes beyond what scvi-tools' module can be compared with."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from scvi_dist.batch import CellBatch
from scvi_dist.errors import ConfigError
from scvi_dist.module.scanvae import SCANVAE

N_GENES, N_CLASSES = 7, 3


def scanvae(**given: Any) -> SCANVAE:
    torch.manual_seed(0)
    sizes = {"n_batch": 2, "n_labels": N_CLASSES, "n_hidden": 6, "n_latent": 2}
    return SCANVAE(N_GENES, **{**sizes, **given})


def cells(n: int, n_padding: int = 0) -> CellBatch:
    rng = np.random.default_rng(0)
    fields = {
        "batch": torch.from_numpy(rng.integers(0, 2, (n, 1))),
        "labels": torch.from_numpy(rng.integers(0, N_CLASSES + 1, (n, 1))),
    }
    x_ng = torch.from_numpy(rng.poisson(3.0, (n, N_GENES)).astype(np.float32))
    return CellBatch(x_ng, fields, np.arange(n), n_global=n, n_padding=n_padding)


def first(batch: CellBatch, n: int) -> CellBatch:
    fields = {key: value[:n] for key, value in batch.fields.items()}
    return replace(batch, x=batch.x[:n], fields=fields, rows=batch.rows[:n], n_padding=0)


def test_padding_is_in_no_term() -> None:
    module = scanvae().eval()
    outputs, found = [], []
    padded, labelled = cells(9, n_padding=3), cells(5, n_padding=2)
    labelled.fields["labels"] %= N_CLASSES
    for batch, others in ((padded, labelled), (first(padded, 6), first(labelled, 3))):
        module.noise.at(seed=0, step=0, start=0, stop=batch.n_cells, n_global=9)
        outputs.append(module(batch, loss_kwargs={"kl_weight": 0.5})[2])
        # The posterior mean is classified: nothing depends on draws.
        module.noise.unbind()
        found.append(module.classification_loss(others))
    whole, real = outputs
    for name in ("loss", "reconstruction_loss_sum", "kl_local_sum"):
        torch.testing.assert_close(getattr(whole, name), getattr(real, name))
    assert whole.n_obs_minibatch == 6
    torch.testing.assert_close(found[0], found[1])
    assert len(found[0][2]) == 3


def test_nothing_but_padding_has_a_loss_of_zero_and_a_gradient_of_zeros() -> None:
    module = scanvae().eval()
    labelled = cells(1, n_padding=1)
    loss = module(cells(1, n_padding=1), loss_kwargs={"labelled_tensors": labelled})[2].loss
    loss.backward()
    assert loss.item() == 0
    gradients = [p.grad for p in module.parameters() if p.requires_grad]
    assert all(g is not None and not g.any() for g in gradients)


def test_cells_without_a_label_have_a_dispersion_of_their_own() -> None:
    module = scanvae(dispersion="gene-label")
    batch = cells(40)
    assert module.px_r.shape == (N_GENES, N_CLASSES + 1)
    module(batch)[2].loss.backward()
    assert (module.px_r.grad.abs().sum(0) > 0).all()
    theta_ng = module.eval().decode_mean(batch).theta
    expected = module.px_r.exp().t()[batch["labels"].view(-1)]
    torch.testing.assert_close(theta_ng, expected)


def test_the_arguments_build_the_module_anew() -> None:
    given = {
        "linear_classifier": True,
        "y_prior": torch.tensor([[0.2, 0.3, 0.5]]),
        "labels_groups": [0, 1, 1],
        "use_labels_groups": True,
        "n_layers": 2,
        "dispersion": "gene-label",
    }
    module = scanvae(**given)
    again = SCANVAE(**module.init_args)
    again.load_state_dict(module.state_dict())
    assert again.n_labels == N_CLASSES
    x = cells(4)
    inputs = module._get_inference_input(x)
    torch.testing.assert_close(again.eval().classify(**inputs), module.eval().classify(**inputs))


@pytest.mark.parametrize("logits", [True, False])
def test_a_class_is_as_probable_as_its_group_and_its_share_of_it(logits: bool) -> None:
    module = scanvae(
        labels_groups=[0, 1, 1],
        use_labels_groups=True,
        classifier_parameters={"logits": logits},
    ).eval()
    z = torch.randn(5, 2)
    probs = module.class_probabilities(module.classify_helper(z))
    groups = module.classifier_groups(z)
    alone = module.class_probabilities(module.classifier(z))
    torch.testing.assert_close(probs[:, 0], groups[:, 0])
    torch.testing.assert_close(probs[:, 1:].sum(-1), groups[:, 1])
    torch.testing.assert_close(probs[:, 1] / probs[:, 2], alone[:, 1] / alone[:, 2])


@pytest.mark.parametrize("logits", [True, False])
def test_the_classification_loss_is_minus_the_logarithm_of_the_true_class(logits: bool) -> None:
    """Also of a classifier that gives probabilities, whose softmax scvi-tools would take."""
    module = scanvae(classifier_parameters={"logits": logits}).eval()
    batch = cells(8)
    batch.fields["labels"] %= N_CLASSES
    loss, labels, scores = module.classification_loss(batch)
    probs = module.class_probabilities(scores)
    torch.testing.assert_close(probs.sum(-1), torch.ones(8))
    torch.testing.assert_close(loss, -probs.gather(1, labels).log().mean())


def test_the_marginal_likelihood_is_that_of_an_integral() -> None:
    """With one latent dimension the prior of ``z1`` is a sum over classes of integrals."""
    module = scanvae(n_latent=1, use_batch_norm="none").eval()
    module.y_prior.data = torch.tensor([[0.2, 0.3, 0.5]])
    torch.nn.init.normal_(module.decoder_z1_z2.var_decoder.weight, std=0.2)
    grid_n = torch.linspace(-8, 8, 4001)
    z1 = torch.tensor([0.3])

    def joint(code: int) -> Tensor:
        one_hot = torch.eye(N_CLASSES)[code].expand(len(grid_n), -1)
        mean, variance = module.decoder_z1_z2(grid_n[:, None], one_hot)
        log_joint = Normal(mean, variance.sqrt()).log_prob(z1) + Normal(0.0, 1.0).log_prob(
            grid_n[:, None]
        )
        return torch.trapezoid(log_joint[:, 0].exp(), grid_n)

    with torch.inference_mode():
        exact = sum(module.y_prior[0, c] * joint(c) for c in range(N_CLASSES))
        torch.manual_seed(1)
        draws = z1.expand(1, 20_000, 1)
        estimate = module._log_prior(draws, Normal(0.0, 1.0)).exp()
    error = estimate.std() / math.sqrt(estimate.numel())
    assert abs(estimate.mean() - exact) < 5 * error
    assert error < 0.01 * exact
    assert torch.isfinite(module.marginal_ll(cells(4), 10)).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_labels": 0}, "at least one class"),
        ({"use_labels_groups": True}, "needs labels_groups"),
        ({"use_labels_groups": True, "labels_groups": [0, 2, 2]}, "without gaps"),
        ({"use_labels_groups": True, "labels_groups": [0, 1]}, "each of 3 classes"),
    ],
)
def test_modules_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scanvae(**given)


def test_a_latent_space_of_unknown_density_has_no_marginal_likelihood() -> None:
    with pytest.raises(ConfigError, match="'ln'"):
        scanvae(latent_distribution="ln").marginal_ll(cells(3), 2)
