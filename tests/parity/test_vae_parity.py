"""Our VAE and scvi-tools': same weights, minibatch and noise give the same numbers.

Both run in float32 and order their sums differently, so a tensor is compared relative to its
largest entry. A bias in front of a batch norm has a gradient of exactly zero but for rounding;
there, both have to be that small beside the gradient of their layer's weight.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from scvi_dist.batch import CellBatch, SparseCounts
from scvi_dist.module import VAE, LossOutput

pytestmark = pytest.mark.parity

RELATIVE = 1e-5
N_CELLS, N_GENES, N_BATCH, N_LABELS = 64, 40, 3, 2
N_CATS = [4, 1, 2]

DISPERSIONS = ("gene", "gene-batch", "gene-label", "gene-cell")
LIKELIHOODS = ("zinb", "nb", "poisson", "normal")
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
    "decoded covariates": {**COVARIATES, "dropout_rate": 0.3},
    "encoded covariates, deep": {**COVARIATES, "encode_covariates": True, "n_layers": 2},
    "encoded covariates, shallow": {
        **COVARIATES,
        "encode_covariates": True,
        "n_layers": 2,
        "deeply_inject_covariates": False,
        "use_layer_norm": "both",
        "latent_distribution": "ln",
    },
    "encoded embedding": {
        **COVARIATES,
        "encode_covariates": True,
        "batch_representation": "embedding",
        "batch_embedding_kwargs": {"embedding_dim": 4},
        "use_batch_norm": "none",
        "use_layer_norm": "decoder",
    },
    "embedding, ln, raw counts": {
        "batch_representation": "embedding",
        "latent_distribution": "ln",
        "use_batch_norm": "decoder",
        "use_layer_norm": "encoder",
        "log_variational": False,
        "dropout_rate": 0.0,
        "var_activation": torch.nn.functional.softplus,
        "extra_encoder_kwargs": {"var_eps": 1e-2},
        "extra_decoder_kwargs": {"activation_fn": torch.nn.ELU},
    },
}
TABLE = [
    pytest.param(
        {"dispersion": dispersion, "gene_likelihood": likelihood, **library, **network},
        id=f"{dispersion}, {likelihood}, {library_name}, {network_name}",
    )
    for dispersion, likelihood, (library_name, library), (network_name, network) in product(
        DISPERSIONS, LIKELIHOODS, LIBRARIES.items(), NETWORKS.items()
    )
]
SPARSE = [case for case in TABLE if case.values[0]["gene_likelihood"] != "normal"][::3]
FEW = [case for case in TABLE if case.values[0]["dispersion"] == "gene-batch"]


@pytest.fixture(scope="module")
def scvi_vae() -> Any:
    """scvi-tools' class; its imports take seconds and are not ours to judge."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from scvi.module import VAE as ScviVAE

    return ScviVAE


@pytest.fixture(scope="module")
def cells() -> dict[str, Tensor]:
    """A minibatch with every kind of covariate; a third of the counts are zero."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.7, 4.0, N_GENES) * rng.gamma(3.0, 0.4, (N_CELLS, 1))
    categories = [rng.integers(0, n, N_CELLS) for n in N_CATS]
    return {
        "X": torch.from_numpy(rng.poisson(rate).astype(np.float32)),
        "batch": torch.from_numpy(rng.integers(0, N_BATCH, (N_CELLS, 1))),
        "labels": torch.from_numpy(rng.integers(0, N_LABELS, (N_CELLS, 1))),
        "extra_categorical_covs": torch.from_numpy(np.stack(categories, axis=1)),
        "extra_continuous_covs": torch.from_numpy(rng.normal(size=(N_CELLS, 2))).float(),
        "size_factor": torch.from_numpy(rng.uniform(0.5, 2.0, (N_CELLS, 1))).float(),
    }


@pytest.fixture
def tensors(cells: dict[str, Tensor], request: pytest.FixtureRequest) -> dict[str, Tensor]:
    """The minibatch with the covariates that the case's module was built for."""
    args = request.getfixturevalue("args")
    unused = (
        set() if "n_cats_per_cov" in args else {"extra_categorical_covs", "extra_continuous_covs"}
    )
    return {key: value for key, value in cells.items() if key not in unused}


def pair(scvi_vae: Any, args: dict[str, Any]) -> tuple[VAE, Any]:
    """Our module and theirs, each built anew from the same seed."""
    sizes = {"n_input": N_GENES, "n_batch": N_BATCH, "n_labels": N_LABELS, "n_hidden": 24}
    torch.manual_seed(0)
    ours = VAE(**sizes, **args)
    torch.manual_seed(0)
    return ours, scvi_vae(**sizes, **args)


def move_from_start(*modules: Any) -> None:
    """Add the same noise to all weights: at the start many are 0, which hides what they do."""
    for module in modules:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)


def run(module: Any, tensors: dict[str, Tensor], **kwargs: Any) -> Any:
    """The module's answer with the noise of a fixed seed."""
    torch.manual_seed(7)
    return module(tensors, **kwargs)


def error(seen: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest entry."""
    assert seen.shape == expected.shape
    scale = expected.abs().max().item()
    return (seen - expected).abs().max().item() / scale if scale else seen.abs().max().item()


def assert_same(seen: Tensor, expected: Tensor, name: str) -> None:
    assert error(seen, expected) <= RELATIVE, name


def adam_step(module: Any) -> None:
    """One step with the settings of scvi-tools' training plan."""
    trained = [p for p in module.parameters() if p.requires_grad]
    torch.optim.Adam(trained, lr=1e-3, eps=0.01, weight_decay=1e-6).step()


def terms(loss: LossOutput) -> Iterator[tuple[str, Tensor]]:
    yield "loss", loss.loss
    for name in ("reconstruction_loss", "kl_local", "kl_global"):
        yield f"{name}_sum", getattr(loss, f"{name}_sum")
        yield from getattr(loss, name).items()


def is_before_batch_norm(name: str, module: VAE) -> bool:
    """Whether a batch norm subtracts that bias again."""
    layer, _, last = name.rpartition("0.bias")
    return not last and bool(layer) and f"{layer}1.running_mean" in module.state_dict()


def assert_same_gradients(ours: VAE, theirs: Any) -> None:
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = expected[name].grad
        if gradient is None or not parameter.requires_grad:
            # What scvi-tools never reaches, or reaches with zeros alone, we freeze.
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
            assert gradient is None, name
        elif is_before_batch_norm(name, ours):
            weight = expected[name.replace("bias", "weight")].grad
            assert (
                max(parameter.grad.abs().max(), gradient.abs().max()) <= 1e-5 * weight.abs().max()
            )
        else:
            assert_same(parameter.grad, gradient, name)


@pytest.mark.parametrize("args", TABLE)
def test_a_training_step_is_the_same(
    scvi_vae: Any, args: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Weights from a seed, loss and terms, gradients, one step of Adam, running statistics."""
    assert_same_step(*pair(scvi_vae, args), tensors, tensors)


@pytest.mark.parametrize("args", SPARSE)
def test_a_step_of_sparse_counts_is_the_same(
    scvi_vae: Any, args: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """The same with counts that kernels compute with."""
    ours, theirs = pair(scvi_vae, args)
    batch = sparse_batch(tensors)
    assert_same_step(ours, theirs, batch, tensors)
    assert ours.kernel == "numba"
    assert not batch._dense


def sparse_batch(tensors: dict[str, Tensor]) -> CellBatch:
    """The minibatch as loaders give it."""
    counts = sp.csr_matrix(tensors["X"].numpy())
    return CellBatch(
        x=SparseCounts(
            torch.from_numpy(counts.indptr.astype(np.int64)),
            torch.from_numpy(counts.indices),
            torch.from_numpy(counts.data),
            N_GENES,
        ),
        fields={key: value for key, value in tensors.items() if key != "X"},
        rows=np.arange(N_CELLS),
        n_global=N_CELLS,
    )


def assert_same_step(ours: VAE, theirs: Any, batch: Any, tensors: dict[str, Tensor]) -> None:
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())

    move_from_start(ours, theirs)
    losses = [
        run(module, given, loss_kwargs={"kl_weight": 0.3})[2]
        for module, given in ((ours, batch), (theirs, tensors))
    ]
    for (name, seen), (same_name, expected) in zip(*map(terms, losses), strict=True):
        assert name == same_name
        assert_same(seen, expected, name)
    assert losses[0].n_obs_minibatch == losses[1].n_obs_minibatch

    for module, loss in zip((ours, theirs), losses, strict=True):
        loss.loss.backward()
        adam_step(module)
    assert_same_gradients(ours, theirs)
    for name, expected in theirs.state_dict().items():
        assert_same(ours.state_dict()[name].float(), expected.float(), name)


@pytest.mark.parametrize("args", FEW)
def test_several_draws_and_another_batch_decode_the_same(
    scvi_vae: Any, args: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    ours, theirs = (module.eval() for module in pair(scvi_vae, args))
    if args.get("batch_representation") == "embedding":
        n_samples = 1  # scvi-tools cannot decode several draws with an embedding
    else:
        n_samples = 3
    kwargs = {
        "inference_kwargs": {"n_samples": n_samples},
        "generative_kwargs": {"transform_batch": 2},
        "compute_loss": False,
    }
    (inferred, generated), (their_inferred, their_generated) = (
        run(module, tensors, **kwargs) for module in (ours, theirs)
    )
    for key in ("z", "library"):
        assert_same(inferred[key], their_inferred[key], key)
    for law in ("qz", "ql"):
        if their_inferred[law] is None:
            assert inferred[law] is None
        else:
            assert_same(inferred[law].loc, their_inferred[law].loc, law)
            assert_same(inferred[law].scale, their_inferred[law].scale, law)
    px, their_px = generated["px"], their_generated["px"]
    for name in ("mu", "theta", "zi_logits", "rate", "loc", "scale"):
        assert hasattr(px, name) == hasattr(their_px, name)
        if hasattr(px, name):
            assert_same(getattr(px, name), getattr(their_px, name), name)
    for key in ("mu", "scale"):
        assert_same(px.get_normalized(key), their_px.get_normalized(key), key)


@pytest.mark.parametrize(
    "args", [case for case in FEW if "latent_distribution" not in case.values[0]]
)
def test_the_marginal_likelihood_is_the_same_with_the_same_draws(
    scvi_vae: Any, args: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Not for "ln", where scvi-tools weighs a transformed z by untransformed densities."""
    seen, expected = [], []
    for module, results in zip(pair(scvi_vae, args), (seen, expected), strict=True):
        module.eval()
        for return_mean in (False, True):
            torch.manual_seed(3)
            results.append(torch.as_tensor(module.marginal_ll(tensors, 5, return_mean)))
    for ours, theirs in zip(seen, expected, strict=True):
        assert_same(ours, theirs, "marginal_ll")


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("n_samples", [1, 2])
def test_posterior_predictive_draws_are_the_same(
    scvi_vae: Any, cells: dict[str, Tensor], likelihood: str, n_samples: int
) -> None:
    counts = {key: cells[key] for key in ("X", "batch", "labels")}
    draws = []
    for module in pair(scvi_vae, {"gene_likelihood": likelihood}):
        torch.manual_seed(3)
        draws.append(module.eval().sample(counts, n_samples))
    # A rate one rounding step away can accept another proposal of the gamma sampler.
    assert draws[0].shape == draws[1].shape
    assert torch.isclose(*draws, rtol=1e-4).float().mean() > 0.999


@pytest.mark.parametrize("args", [case for case in FEW if "observed" in str(case.id)])
def test_states_load_in_both_directions(scvi_vae: Any, args: dict[str, Any]) -> None:
    ours, theirs = pair(scvi_vae, args)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    theirs.load_state_dict(ours.state_dict())
    again, _ = pair(scvi_vae, args)
    again.load_state_dict(theirs.state_dict())
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in ours.state_dict().items())
