"""Our TOTALVAE and scvi-tools': same weights, minibatch and noise give the same numbers.

Ours runs in float32. In the tests of a training step scvi-tools' runs in float64 with the same
noise: in float32 its differences of logarithms cost it up to 3e-5 of a gradient. Sums are ordered
differently, so a tensor is compared relative to its largest entry. A bias in front of a batch norm
has a gradient of exactly zero but for rounding; there, ours has to be small beside the gradient of
its layer's weight.
"""

from collections.abc import Iterator
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from scvi_dist.batch import CellBatch, SparseCounts
from scvi_dist.module import TOTALVAE, LossOutput

pytestmark = pytest.mark.parity

RELATIVE = 1e-5
LR, EPS = 4e-3, 0.01
N_CELLS, N_GENES, N_PROTEINS, N_BATCH, N_LABELS, N_PANELS = 64, 40, 7, 3, 2, 2
N_CATS = [4, 1, 2]
MEASURED = {
    "0": np.ones(N_PROTEINS, bool),
    "1": np.arange(N_PROTEINS) % 3 > 0,
    "2": np.zeros(N_PROTEINS, bool),
}

DISPERSIONS = [
    ("gene", "protein-label"),
    ("gene-batch", "protein-batch"),
    ("gene-label", "protein"),
]
LIBRARIES: dict[str, dict[str, Any]] = {
    "observed": {},
    "latent": {
        "use_observed_lib_size": False,
        "library_log_means": np.array([[4.0, 4.5, 5.0]]),
        "library_log_vars": np.array([[0.2, 0.5, 1.0]]),
    },
    "size factor": {"use_size_factor_key": True},
}
COUNTS = [("nb", "observed"), ("zinb", "observed"), ("zinb", "latent"), ("nb", "size factor")]
"""Law of a gene's count, and what scales it."""
COVARIATES = {"n_continuous_cov": 2, "n_cats_per_cov": N_CATS}
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "missing proteins": {"protein_batch_mask": MEASURED},
    "panels": {
        "n_panel": N_PANELS,
        "panel_key": "panel",
        "protein_batch_mask": {"0": MEASURED["0"], "1": MEASURED["1"]},
        "protein_background_prior_mean": np.linspace(0, 3, 14).reshape(N_PROTEINS, N_PANELS),
        "protein_background_prior_scale": np.linspace(0.05, 2, 14).reshape(N_PROTEINS, N_PANELS),
    },
    "encoded covariates": {**COVARIATES, "n_layers_decoder": 2, "dropout_rate_decoder": 0.4},
    "decoded covariates": {
        **COVARIATES,
        "encode_covariates": False,
        "n_layers_encoder": 1,
        "use_layer_norm": "both",
        "latent_distribution": "ln",
        "dropout_rate_encoder": 0.0,
    },
    "few parts": {
        "use_batch_norm": "none",
        "use_layer_norm": "decoder",
        "log_variational": False,
        "dropout_rate_encoder": 0.0,
        "dropout_rate_decoder": 0.0,
        "extra_decoder_kwargs": {"activation_function_bg": "exp"},
    },
}
TABLE = [
    pytest.param(
        {
            "gene_dispersion": genes,
            "protein_dispersion": proteins,
            "gene_likelihood": likelihood,
            **LIBRARIES[library],
            **network,
        },
        id=f"{genes}, {proteins}, {likelihood}, {library}, {name}",
    )
    for (genes, proteins), (likelihood, library), (name, network) in product(
        DISPERSIONS, COUNTS, NETWORKS.items()
    )
]
FEW = [case for case in TABLE if case.values[0]["protein_dispersion"] == "protein-batch"]


@pytest.fixture(scope="module")
def scvi_totalvae() -> Any:
    """scvi-tools' class; its imports take seconds and are not ours to judge.

    Its inference asks for the labels but is not given them: every dispersion of labels would fail.
    """
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from scvi.module import TOTALVAE as ScviTOTALVAE

    class WithLabels(ScviTOTALVAE):
        def _get_inference_input(self, tensors: Any, **kwargs: Any) -> Any:
            found = super()._get_inference_input(tensors, **kwargs)
            return {**found, "label": tensors["labels"]}

    return WithLabels


@pytest.fixture(scope="module")
def cells() -> dict[str, Tensor]:
    """A minibatch with every kind of covariate; a third of the genes' counts are zero."""
    rng = np.random.default_rng(0)
    depth = rng.gamma(3.0, 0.4, (N_CELLS, 1))
    categories = [rng.integers(0, n, N_CELLS) for n in N_CATS]

    def counts(n: int, mean: float) -> Tensor:
        rate = rng.gamma(0.7, mean, n) * depth
        return torch.from_numpy(rng.poisson(rate).astype(np.float32))

    def codes(n: int) -> Tensor:
        return torch.from_numpy(rng.integers(0, n, (N_CELLS, 1)))

    return {
        "X": counts(N_GENES, 4.0),
        "proteins": counts(N_PROTEINS, 60.0),
        "batch": codes(N_BATCH),
        "labels": codes(N_LABELS),
        "panel": codes(N_PANELS).float(),
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


def pair(scvi_totalvae: Any, args: dict[str, Any]) -> tuple[TOTALVAE, Any]:
    """Our module and theirs, each built anew from the same seed."""
    sizes = {
        "n_input_genes": N_GENES,
        "n_input_proteins": N_PROTEINS,
        "n_batch": N_BATCH,
        "n_labels": N_LABELS,
        "n_hidden": 24,
        "n_latent": 5,
        "n_panel": N_BATCH,
    }
    torch.manual_seed(0)
    ours = TOTALVAE(**{**sizes, **args})
    torch.manual_seed(0)
    return ours, scvi_totalvae(**{**sizes, **args})


def move_from_start(*modules: Any) -> None:
    """Add the same noise to all weights: at the start many are 0, which hides what they do.

    The law of the library size gets near to the cells': else its gradient, and that one's rounding,
    is enormous.
    """
    for module in modules:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.05)
            module.encoder.l_gene_mean_encoder.bias.add_(4.5)
            module.encoder.l_gene_var_encoder.bias.sub_(4.0)


def sparse(tensors: dict[str, Tensor]) -> CellBatch:
    """The minibatch as the loaders give it, which the kernels take."""
    csr = csr_matrix(tensors["X"].numpy())
    arrays = csr.indptr.astype(np.int64), csr.indices, csr.data
    counts = SparseCounts(*map(torch.from_numpy, arrays), csr.shape[1])
    fields = {key: value for key, value in tensors.items() if key != "X"}
    return CellBatch(counts, fields, np.arange(N_CELLS), n_global=N_CELLS)


def run(module: Any, tensors: dict[str, Tensor] | CellBatch, **kwargs: Any) -> Any:
    """The module's answer with the noise of a fixed seed."""
    torch.manual_seed(7)
    return module(tensors, **kwargs)


def in_float64(module: Any, patch: pytest.MonkeyPatch) -> Any:
    """scvi-tools' module in float64, with the normal noise that a float32 one draws."""

    def noise(shape: Any, dtype: Any, device: Any) -> Tensor:
        return torch.normal(torch.zeros(shape), torch.ones(shape)).to(dtype)

    def one_hot(codes: Tensor, n: int) -> Any:
        indicators = torch.nn.functional.one_hot(codes, n).double()
        return SimpleNamespace(float=lambda: indicators)

    def wide(measured: np.ndarray) -> Any:
        return SimpleNamespace(astype=lambda dtype: measured.astype(np.float64))

    mask = module.protein_batch_mask
    module.protein_batch_mask = mask and {panel: wide(mask[panel]) for panel in mask}
    patch.setattr("torch.distributions.normal._standard_normal", noise)
    patch.setattr("scvi.module._totalvae.one_hot", one_hot)
    return module.double()


def error(seen: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest entry."""
    assert seen.shape == expected.shape
    scale = expected.abs().max().item()
    return (seen - expected).abs().max().item() / scale if scale else seen.abs().max().item()


def assert_same(seen: Tensor, expected: Tensor, name: str) -> None:
    assert error(seen, expected) <= RELATIVE, name


def adam_step(module: Any) -> None:
    """One step with the settings of TOTALVI."""
    trained = [p for p in module.parameters() if p.requires_grad]
    torch.optim.Adam(trained, lr=LR, eps=EPS, weight_decay=1e-6).step()


def terms(loss: LossOutput) -> Iterator[tuple[str, Tensor]]:
    yield "loss", loss.loss
    for name in ("reconstruction_loss", "kl_local", "kl_global"):
        yield f"{name}_sum", getattr(loss, f"{name}_sum")
        yield from getattr(loss, name).items()


def is_before_batch_norm(name: str, module: TOTALVAE) -> bool:
    """Whether a batch norm subtracts that bias again."""
    layer, _, last = name.rpartition("0.bias")
    return not last and bool(layer) and f"{layer}1.running_mean" in module.state_dict()


def gradient_tolerance(name: str, ours: TOTALVAE, theirs: Any) -> float:
    """Largest difference that an entry of a gradient may have."""
    factor = RELATIVE
    if is_before_batch_norm(name, ours):
        name, factor = name.replace("bias", "weight"), 3 * RELATIVE
    gradient = theirs.get_parameter(name).grad
    # The floor is for gradients whose parts cancel; the loss they belong to is some hundreds.
    return 0.0 if gradient is None else max(factor * gradient.abs().max().item(), 1e-6)


def assert_same_gradients(ours: TOTALVAE, theirs: Any) -> None:
    for name, parameter in ours.named_parameters():
        gradient = theirs.get_parameter(name).grad
        if gradient is None or not parameter.requires_grad:
            # What scvi-tools never reaches we freeze.
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
            assert gradient is None, name
        else:
            difference = (parameter.grad - gradient).abs().max()
            assert difference <= gradient_tolerance(name, ours, theirs), name


def assert_same_state(ours: TOTALVAE, theirs: Any) -> None:
    """Weights and running statistics; not those of a library encoder that nothing reads.

    Adam's first step turns a small difference of gradients into one that is LR / EPS times as large
    at most.
    """
    unread = "encoder.l_gene_encoder" if ours.use_observed_lib_size else "nothing"
    trained = dict(theirs.named_parameters())
    for name, expected in theirs.state_dict().items():
        if name.startswith(unread):
            continue
        tolerance = RELATIVE * expected.abs().max().item()
        if name in trained:
            tolerance += LR / EPS * gradient_tolerance(name, ours, theirs)
        assert (ours.state_dict()[name] - expected).abs().max() <= tolerance, name


@pytest.mark.parametrize(
    ("args", "kernel"),
    [
        *(pytest.param(*case.values, "numba", id=f"{case.id}, numba") for case in TABLE),
        *(pytest.param(*case.values, "torch", id=f"{case.id}, torch") for case in FEW),
        *(pytest.param(*case.values, None, id=f"{case.id}, part by part") for case in FEW),
    ],
)
def test_a_training_step_is_the_same(
    scvi_totalvae: Any,
    args: dict[str, Any],
    kernel: str | None,
    tensors: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights from a seed, loss and terms, gradients, one step of Adam, running statistics.

    With a kernel counts are sparse, and no law is built; part by part they are dense.
    """
    ours, theirs = pair(scvi_totalvae, args)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())

    move_from_start(ours, theirs)
    weights = {"kl_weight": 0.3, "pro_recons_weight": 0.7}
    ours.kernel = kernel
    ours_see = tensors if kernel is None else sparse(tensors)
    losses = [run(ours, ours_see, loss_kwargs=weights)[2]]
    in_float64(theirs, monkeypatch)
    wide = {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()}
    losses.append(run(theirs, wide, loss_kwargs=weights)[2])
    for (name, seen), (same_name, expected) in zip(*map(terms, losses), strict=True):
        assert name == same_name
        assert_same(seen, expected, name)
    assert losses[0].n_obs_minibatch == losses[1].n_obs_minibatch

    for module, loss in zip((ours, theirs), losses, strict=True):
        loss.loss.backward()
        adam_step(module)
    assert_same_gradients(ours, theirs)
    assert_same_state(ours, theirs)


@pytest.mark.parametrize("args", FEW)
def test_several_draws_and_another_batch_decode_the_same(
    scvi_totalvae: Any, args: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    ours, theirs = (module.eval() for module in pair(scvi_totalvae, args))
    kwargs = {
        "inference_kwargs": {"n_samples": 3},
        "generative_kwargs": {"transform_batch": 2},
        "compute_loss": False,
    }
    (inferred, generated), (their_inferred, their_generated) = (
        run(module, tensors, **kwargs) for module in (ours, theirs)
    )
    for key in ("z", "untran_z", "library_gene"):
        assert_same(inferred[key], their_inferred[key], key)
    for law in ("qz", "ql", "back_mean_prior"):
        if inferred[law] is not None:
            assert_same(inferred[law].loc, their_inferred[law].loc, law)
            assert_same(inferred[law].scale, their_inferred[law].scale, law)
    for part in ("px_", "py_", "py_norm_"):
        assert generated[part].keys() == their_generated[part].keys()
        for name, seen in generated[part].items():
            if seen is None:
                assert (part, name, ours.gene_likelihood) == ("px_", "dropout", "nb")
            else:
                assert_same(seen, their_generated[part][name], f"{part} {name}")
    for key in ("per_batch_efficiency", "log_pro_back_mean"):
        assert_same(generated[key], their_generated[key], key)


@pytest.mark.parametrize(
    "args",
    [
        case
        for case in FEW
        if not {"latent_distribution", "protein_batch_mask"} & case.values[0].keys()
    ],
)
def test_the_marginal_likelihood_is_the_same_with_the_same_draws(
    scvi_totalvae: Any, args: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Not for "ln", where scvi-tools weighs a transformed z by the densities of the other, nor
    with missing proteins, whose background rates it weighs as well."""
    seen = []
    for module in pair(scvi_totalvae, args):
        torch.manual_seed(3)
        seen.append(torch.tensor(module.eval().marginal_ll(tensors, 5)))
    assert_same(seen[0], seen[1], "marginal_ll")


@pytest.mark.parametrize("n_samples", [1, 2])
def test_posterior_predictive_draws_are_the_same(
    scvi_totalvae: Any, cells: dict[str, Tensor], n_samples: int
) -> None:
    """With efficiencies of 1, as they are at the start: scvi-tools leaves them out."""
    counts = {key: cells[key] for key in ("X", "proteins", "batch", "labels")}
    draws = []
    for module in pair(scvi_totalvae, {}):
        torch.manual_seed(3)
        draws.append(module.eval().sample(counts, n_samples))
    for ours, theirs in zip(*draws, strict=True):
        assert ours.shape == theirs.shape
        # A rate one rounding step away can accept another proposal of the gamma sampler.
        assert torch.isclose(ours, theirs, rtol=1e-4).float().mean() > 0.999


@pytest.mark.parametrize("args", [case for case in FEW if "observed" in str(case.id)])
def test_states_load_in_both_directions(scvi_totalvae: Any, args: dict[str, Any]) -> None:
    ours, theirs = pair(scvi_totalvae, args)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    theirs.load_state_dict(ours.state_dict())
    again, _ = pair(scvi_totalvae, args)
    again.load_state_dict(theirs.state_dict())
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in ours.state_dict().items())
