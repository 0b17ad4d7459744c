"""CellAssign's module: its fast sum over genes is the plain one, and takes little memory."""

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scvi_dist.batch import CellBatch, SparseCounts
from scvi_dist.errors import ConfigError, FieldNotFound
from scvi_dist.module.cellassign import MIN_DELTA, CellAssignModule
from scvi_dist.module.cellassign_likelihood import SLICE_ENTRIES
from scvi_dist.module.cellassign_terms import KERNELS

N, G, C = 70, 9, 4


def new_module(seed: int = 0, n_genes: int = G, n_types: int = C) -> CellAssignModule:
    """A module with every kind of covariate, away from its initial weights."""
    torch.manual_seed(seed)
    rho = (torch.rand(n_genes, n_types) < 0.4).float()
    module = CellAssignModule(
        n_genes, rho, np.linspace(0, 60, 10), n_batch=2, n_cats_per_cov=[3], n_continuous_cov=1
    )
    with torch.no_grad():
        assert module.beta is not None
        module.beta.normal_(0, 0.2)
        module.log_a.normal_(0, 0.5)
        module.delta_log_mean.fill_(0.3)
        module.delta_log_log_scale.fill_(-0.2)
    return module


def minibatch(n: int = N, n_genes: int = G, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    torch.manual_seed(1)
    return {
        "X": torch.poisson(torch.rand(n, n_genes) ** 3 * 40).to(dtype),
        "batch": torch.randint(0, 2, (n, 1)),
        "size_factor": torch.rand(n, 1).to(dtype) + 0.5,
        "extra_continuous_covs": torch.randn(n, 1).to(dtype),
        "extra_categorical_covs": torch.randint(0, 3, (n, 1)),
    }


def plain(module: CellAssignModule, batch: dict[str, Any]) -> dict[str, Tensor]:
    """What ``generative`` gives, by the law of every count under every type and autograd alone."""
    given = module._get_generative_input(batch)
    laws = module.count_laws(given["size_factor"], given["design_matrix"])
    log_p_nc = laws.log_prob(batch["X"][:, :, None]).sum(1)
    p_nc = log_p_nc + torch.log_softmax(module.theta_logit, -1)
    return {"p_x_c": p_nc, "gamma": (p_nc - p_nc.logsumexp(1, keepdim=True)).exp()}


def gradients(module: CellAssignModule, batch: Any, outputs: dict[str, Any]) -> dict[str, Tensor]:
    module.zero_grad()
    loss = module.loss(batch, {}, outputs, n_obs=500).loss
    loss.backward()
    trained = {k: p for k, p in module.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    return {"loss": loss.detach()} | {k: p.grad.clone() for k, p in trained.items()}


@pytest.mark.parametrize("slice_entries", [1, 2 * G * C, 1 << 20], ids=["row", "rows", "whole"])
def test_float64_is_the_plain_formula(monkeypatch: Any, slice_entries: int) -> None:
    """However the cells are sliced."""
    monkeypatch.setitem(SLICE_ENTRIES, "cpu", slice_entries)
    module, batch = new_module().double(), minibatch(dtype=torch.float64)
    fast = module.generative(**module._get_generative_input(batch))
    for name, expected in plain(module, batch).items():
        torch.testing.assert_close(fast[name], expected, rtol=1e-12, atol=1e-12)
    seen = gradients(module, batch, fast)
    for name, expected in gradients(module, batch, plain(module, batch)).items():
        torch.testing.assert_close(
            seen[name], expected, rtol=1e-10, atol=1e-12 * float(expected.abs().max())
        )


@pytest.mark.parametrize("seed", range(3))
def test_float32_is_float64_to_1e_5(seed: int) -> None:
    """Also where dispersions lie near their least value, as with these weights."""
    module, batch = new_module(seed), minibatch()
    seen = gradients(module, batch, module.generative(**module._get_generative_input(batch)))
    exact = new_module(seed).double()
    batch64 = minibatch(dtype=torch.float64)
    expected = gradients(exact, batch64, plain(exact, batch64))
    for name, value in expected.items():
        error = (seen[name].double() - value).abs().max() / value.abs().max()
        assert error < 1e-5, (name, error)


def test_large_counts_do_not_blur_types() -> None:
    """lgamma of 2e6 is resolved to 2 in float32: types would be told by rounding."""
    module, batch = new_module(), minibatch()
    batch["X"][0, 0] = 2e6
    seen = module.generative(**module._get_generative_input(batch))["p_x_c"]
    exact, batch64 = new_module().double(), minibatch(dtype=torch.float64)
    batch64["X"][0, 0] = 2e6
    expected = plain(exact, batch64)["p_x_c"]
    assert torch.isfinite(seen).all()
    torch.testing.assert_close(seen.double(), expected, rtol=1e-5, atol=1e-4)
    assert module.loss(batch, {}, {"p_x_c": seen, "gamma": seen.softmax(1)}).loss.isfinite()


def test_padding_carries_no_loss() -> None:
    module, batch = new_module(), minibatch()

    def loss(n: int, n_padding: int) -> Tensor:
        cells = CellBatch(
            x=batch["X"][:n],
            fields={k: v[:n] for k, v in batch.items() if k != "X"},
            rows=np.arange(n),
            n_padding=n_padding,
        )
        _, _, output = module(cells, loss_kwargs={"n_obs": 500})
        assert len(output.reconstruction_loss["reconstruction_loss"]) == n - n_padding
        return output.loss

    torch.testing.assert_close(loss(N, 20), loss(N - 20, 0))
    assert loss(3, 3).isfinite()


def sparse(batch: dict[str, Any], n_padding: int = 0) -> CellBatch:
    csr = csr_matrix(batch["X"].numpy())
    arrays = csr.indptr.astype(np.int64), csr.indices, csr.data
    counts = SparseCounts(*map(torch.from_numpy, arrays), csr.shape[1])
    fields = {k: v for k, v in batch.items() if k != "X"}
    return CellBatch(counts, fields, np.arange(csr.shape[0]), n_padding=n_padding)


@pytest.mark.parametrize("kernel", KERNELS)
def test_each_kernel_gives_what_the_parts_give(kernel: str) -> None:
    """Loss, its terms, outputs, gradients, and the probabilities without a gradient."""
    module, batch = new_module().double(), sparse(minibatch(dtype=torch.float64), n_padding=7)
    module.kernel = kernel
    _, generated, output = module(batch, loss_kwargs={"n_obs": 500})
    module.zero_grad()
    output.loss.backward()
    seen = {k: p.grad.clone() for k, p in module.named_parameters() if p.requires_grad}
    assert not generated["p_x_c"].requires_grad
    expected = module.generative(**module._get_generative_input(batch))
    for name in ("p_x_c", "gamma"):
        torch.testing.assert_close(generated[name], expected[name].detach(), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(module.type_probabilities(batch), generated["gamma"])
    terms = module.loss(batch, {}, expected, n_obs=500)
    for name in ("reconstruction_loss_sum", "kl_global_sum", "loss"):
        torch.testing.assert_close(getattr(output, name), getattr(terms, name))
    for name, value in gradients(module, batch, expected).items():
        if name in seen:
            atol = 1e-12 * float(value.abs().max())
            torch.testing.assert_close(seen[name], value, rtol=1e-10, atol=atol)


def test_the_kernel_is_chosen_and_can_be_set() -> None:
    module = new_module()
    assert module.kernel == "numba"
    module.basis_means = module.basis_means**2
    assert module.kernel == "torch"
    module = new_module()
    module.kernel = "torch"
    assert pickle.loads(pickle.dumps(module)).kernel == "torch"
    with pytest.raises(ConfigError, match="numba"):
        module.kernel = "numbr"
    module.kernel, module.basis_means = "numba", module.basis_means**2
    with pytest.raises(ConfigError, match="equally spaced"):
        module(minibatch())


def test_constraint_bounds_the_over_expression() -> None:
    module = new_module()
    above = module.delta_log > np.log(MIN_DELTA)
    before = module.delta_log.detach().clone()
    module.constrain()
    torch.testing.assert_close(module.delta_log.exp().min(), torch.tensor(MIN_DELTA))
    assert torch.equal(module.delta_log[above], before[above])


def test_a_module_is_built_anew_from_its_arguments() -> None:
    module = new_module()
    again = CellAssignModule(**module.init_args)
    again.load_state_dict(module.state_dict())
    batch = minibatch()
    one, other = (m(batch, compute_loss=False)[1]["gamma"] for m in (module, again))
    assert torch.equal(one, other)


def test_what_does_not_fit_is_refused() -> None:
    rho = torch.ones(G, C)
    with pytest.raises(ConfigError, match=r"9 genes .*\[8, 4\]"):
        CellAssignModule(G, rho[:8], np.arange(10.0))
    with pytest.raises(ConfigError, match="10 values"):
        CellAssignModule(G, rho, np.arange(9.0))
    with pytest.raises(ConfigError, match="b_g_0"):
        CellAssignModule(G, rho, np.arange(10.0), b_g_0=torch.ones(3))
    batch = minibatch()
    del batch["size_factor"]
    with pytest.raises(FieldNotFound, match="size_factor_key"):
        new_module()(batch)
    with pytest.raises(ConfigError, match="count_laws"):
        new_module().sample(minibatch())


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        parts = result if isinstance(result, list | tuple) else [result]
        sizes = [part.numel() for part in parts if isinstance(part, Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


def test_no_array_of_all_cells_genes_and_types_exists() -> None:
    n, n_genes, n_types = 256, 100, 20
    module, batch = new_module(n_genes=n_genes, n_types=n_types), minibatch(n, n_genes)
    with LargestTensor() as largest:
        gradients(module, batch, module.generative(**module._get_generative_input(batch)))
    # The ten basis functions of one slice.
    assert largest.numel <= 10 * SLICE_ENTRIES["cpu"]
    assert largest.numel < 6 * n * n_genes * n_types


PEAK = """
import resource, sys, torch
sys.path.insert(0, sys.argv[1])
from test_cellassign_module import minibatch, new_module

def step(n, n_genes, n_types):
    module, batch = new_module(0, n_genes, n_types), minibatch(n, n_genes)
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad])
    module(batch)[2].loss.backward()
    optimizer.step()

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

step(8, 5, 3)
before = peak_mb()
step(1024, 200, 20)
print(peak_mb() - before)
"""


def test_a_step_of_20_types_and_200_markers_takes_less_than_200_mb() -> None:
    folder = __file__.rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, folder], capture_output=True, text=True, check=True
    )
    # One array [1024, 200, 20, 10] alone would have 164 MB.
    assert float(done.stdout) < 200
