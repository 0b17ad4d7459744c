"""Our SCANVAE and scvi-tools': same weights, minibatches and noise give the same numbers.

Tensors are compared relative to their largest entry. A bias in front of a batch norm has a
gradient of exactly zero but for rounding; there, both have to be that small beside the gradient of
their layer's weight.
"""

import warnings
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scvi_dist.module import LossOutput
from scvi_dist.module.scanvae import SCANVAE

pytestmark = pytest.mark.parity

RELATIVE = 1e-5
N_CELLS, N_LABELLED, N_GENES, N_BATCH, N_CLASSES = 64, 40, 30, 3, 4
N_CATS = [4, 1, 2]

DISPERSIONS = ("gene", "gene-batch", "gene-cell")
LIKELIHOODS = ("zinb", "nb", "poisson")
LIBRARIES: dict[str, dict[str, Any]] = {
    "observed": {},
    "latent": {
        "use_observed_lib_size": False,
        "library_log_means": np.array([[4.0, 4.5, 5.0]]),
        "library_log_vars": np.array([[0.2, 0.5, 1.0]]),
    },
    "size factor": {"use_size_factor_key": True},
}
COVARIATES = {"n_continuous_cov": 2, "n_cats_per_cov": N_CATS}
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "linear classifier, decoded covariates": {**COVARIATES, "linear_classifier": True},
    "two layers, classifier of its own": {
        "n_layers": 2,
        "dropout_rate": 0.3,
        "classifier_parameters": {"n_hidden": 9, "n_layers": 1, "dropout_rate": 0.5},
        "y_prior": torch.tensor([[0.1, 0.2, 0.3, 0.4]]),
    },
    "encoded covariates, layer norm": {
        **COVARIATES,
        "encode_covariates": True,
        "use_batch_norm": "none",
        "use_layer_norm": "both",
    },
    "embedding, ln, half the norms": {
        "batch_representation": "embedding",
        "latent_distribution": "ln",
        "use_batch_norm": "decoder",
        "log_variational": False,
        "dropout_rate": 0.0,
        "var_activation": torch.nn.functional.softplus,
    },
}
# The side of the counts and that of the labels have the latent variable in common, no more: each
# law of counts meets networks of all kinds, but not every one of them.
COUNTS = [
    *product(DISPERSIONS[:1], LIKELIHOODS, LIBRARIES),
    *product(DISPERSIONS[1:], LIKELIHOODS[:2], ("observed",)),
]
TABLE = [
    pytest.param(
        {
            "dispersion": dispersion,
            "gene_likelihood": likelihood,
            **LIBRARIES[library],
            **NETWORKS[network],
        },
        id=f"{dispersion}, {likelihood}, {library}, {network}",
    )
    for k, (dispersion, likelihood, library) in enumerate(COUNTS)
    for network in (list(NETWORKS) * 2)[k % 5 : k % 5 + 3]
]


@pytest.fixture(scope="module")
def scvi_scanvae() -> Any:
    """scvi-tools' class; its imports take seconds and are not ours to judge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from scvi.module import SCANVAE as ScviSCANVAE

    return ScviSCANVAE


def minibatch(n_cells: int, seed: int) -> dict[str, Tensor]:
    """Cells with every kind of covariate; a third of the counts are zero."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.7, 4.0, N_GENES) * rng.gamma(3.0, 0.4, (n_cells, 1))
    categories = [rng.integers(0, n, n_cells) for n in N_CATS]
    return {
        "X": torch.from_numpy(rng.poisson(rate).astype(np.float32)),
        "batch": torch.from_numpy(rng.integers(0, N_BATCH, (n_cells, 1))),
        "labels": torch.from_numpy(rng.integers(0, N_CLASSES, (n_cells, 1))),
        "extra_categorical_covs": torch.from_numpy(np.stack(categories, axis=1)),
        "extra_continuous_covs": torch.from_numpy(rng.normal(size=(n_cells, 2))).float(),
        "size_factor": torch.from_numpy(rng.uniform(0.5, 2.0, (n_cells, 1))).float(),
    }


CELLS, LABELLED = minibatch(N_CELLS, 0), minibatch(N_LABELLED, 1)


def without_covariates(cells: dict[str, Tensor], args: dict[str, Any]) -> dict[str, Tensor]:
    """The minibatch with the covariates that the case's module was built for."""
    extra = () if "n_cats_per_cov" in args else ("extra_categorical_covs", "extra_continuous_covs")
    return {key: value for key, value in cells.items() if key not in extra}


def pair(theirs: Any, args: dict[str, Any]) -> tuple[SCANVAE, Any]:
    """Our module and theirs, each built anew from the same seed."""
    sizes = {"n_input": N_GENES, "n_batch": N_BATCH, "n_labels": N_CLASSES, "n_hidden": 12}
    built = []
    for kind in (SCANVAE, theirs):
        torch.manual_seed(0)
        built.append(kind(**sizes, n_latent=4, **args))
    return built[0], built[1]


def move_from_start(*modules: Any) -> None:
    """Add the same noise to all weights: at the start many are 0, which hides what they do."""
    for module in modules:
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name != "y_prior":
                    parameter.add_(torch.randn(parameter.shape), alpha=0.1)


def run(module: Any, args: dict[str, Any], **loss_kwargs: Any) -> LossOutput:
    """The module's loss with the noise of a fixed seed."""
    torch.manual_seed(7)
    return module(without_covariates(CELLS, args), loss_kwargs=loss_kwargs)[2]


def assert_same(seen: Tensor, expected: Tensor, name: str) -> None:
    assert seen.shape == expected.shape, name
    scale = expected.abs().max().item()
    error = (seen - expected).abs().max().item()
    assert error <= RELATIVE * scale or error == scale == 0, f"{name}: {error} of {scale}"


def terms(loss: LossOutput) -> Iterator[tuple[str, Tensor]]:
    for name in ("loss", "classification_loss", "logits", "n_obs_minibatch"):
        yield name, torch.as_tensor(getattr(loss, name))
    for name in ("reconstruction_loss", "kl_local", "kl_global"):
        yield f"{name}_sum", getattr(loss, f"{name}_sum")
        yield from getattr(loss, name).items()


def assert_same_gradients(ours: SCANVAE, theirs: Any) -> None:
    expected = dict(theirs.named_parameters())
    state = ours.state_dict()
    for name, parameter in ours.named_parameters():
        gradient = expected[name].grad
        layer, _, last = name.rpartition("0.bias")
        if gradient is None or not parameter.requires_grad:
            assert parameter.grad is None, name
            assert gradient is None, name
        elif not last and layer and f"{layer}1.running_mean" in state:
            weight = expected[name.replace("bias", "weight")].grad
            assert max(g.abs().max() for g in (parameter.grad, gradient)) <= (
                1e-5 * weight.abs().max()
            )
        else:
            assert_same(parameter.grad, gradient, name)


@pytest.mark.parametrize("args", TABLE)
def test_a_training_step_is_the_same(scvi_scanvae: Any, args: dict[str, Any]) -> None:
    """Weights from a seed, loss and terms, gradients, one step of Adam, running statistics."""
    ours, theirs = pair(scvi_scanvae, args)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    move_from_start(ours, theirs)
    labelled = without_covariates(LABELLED, args)
    given = {"kl_weight": 0.3, "labelled_tensors": labelled, "classification_ratio": 7}
    losses = [run(module, args, **given) for module in (ours, theirs)]
    for (name, seen), (same_name, expected) in zip(*map(terms, losses), strict=True):
        assert name == same_name
        assert_same(seen.float(), expected.float(), name)
    assert torch.equal(losses[0].true_labels, losses[1].true_labels)
    for module, loss in zip((ours, theirs), losses, strict=True):
        loss.loss.backward()
        trained = [p for p in module.parameters() if p.requires_grad]
        torch.optim.Adam(trained, lr=1e-3, eps=0.01, weight_decay=1e-6).step()
    assert_same_gradients(ours, theirs)
    for name, expected in theirs.state_dict().items():
        assert_same(ours.state_dict()[name].float(), expected.float(), name)


@pytest.mark.parametrize("network", NETWORKS)
def test_cells_without_labels_and_predictions_are_the_same(scvi_scanvae: Any, network: str) -> None:
    args = NETWORKS[network]
    ours, theirs = (module.eval() for module in pair(scvi_scanvae, args))
    losses = [run(module, args, kl_weight=1.0) for module in (ours, theirs)]
    assert losses[0].classification_loss is losses[1].classification_loss is None
    assert_same(losses[0].loss, losses[1].loss, "loss")
    cells = without_covariates(CELLS, args)
    given = ours._get_inference_input(cells)
    for use_mean in (True, False):
        logits = []
        for module in (ours, theirs):
            torch.manual_seed(3)
            logits.append(module.classify(**given, use_posterior_mean=use_mean))
        assert_same(logits[0], logits[1], "logits")
