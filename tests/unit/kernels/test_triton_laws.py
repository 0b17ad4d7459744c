"""What holds of Triton's kernels beyond the laws of all kernels.

They run on a GPU, or on a CPU in Triton's interpreter, which has to be asked for before Triton is
imported: ``test_triton_kernels.py`` starts processes that do, and the tests are skipped elsewhere.
"""

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from count_cases import (
    DEVICE,
    DISPERSIONS,
    USABLE,
    Case,
    distances,
    fused,
    leaves,
    problem_of,
    sparse,
)
from torch import Tensor
from torch.testing import assert_close

from scvi_dist.batch import CellBatch, SparseCounts
from scvi_dist.kernels.choice import kernel_for
from scvi_dist.kernels.problem import LAWS, CountResult
from scvi_dist.module import VAE

pytestmark = pytest.mark.skipif(
    "triton" not in USABLE,
    reason="Triton's kernels run on an NVIDIA GPU, or with TRITON_INTERPRET=1",
)
EXACT = torch.float64
ALL = frozenset({"hidden_nh", "log_size_n", "scale.weight", "scale.bias"})


def evaluated(
    case: Case, kernel: str, counts: SparseCounts | None = None, weight_n: Tensor | None = None
) -> dict[str, Tensor]:
    """Losses and gradients for given counts and weights, on the CPU."""
    problem = problem_of(case, {k: v.detach() for k, v in leaves(case, case.dtype).items()})
    if counts is not None:
        problem = replace(problem, counts=counts)
    wanted = set(ALL)
    if problem.log_theta_tg is not None:
        wanted.add("log_theta_tg")
    for name, _ in problem.heads:
        wanted |= {f"{name}.weight", f"{name}.bias"}
    if weight_n is None:
        weight_n = torch.linspace(0.5, 2.0, case.n, dtype=case.dtype, device=DEVICE)
    evaluate = kernel_for(DEVICE, kernel).count_loss
    result: CountResult = evaluate(problem, weight_n, frozenset(wanted))
    assert result.gradients.keys() == wanted
    return {"loss": result.loss_n.cpu(), **{k: v.cpu() for k, v in result.gradients.items()}}


def assert_same(case: Case, **given: Any) -> dict[str, Tensor]:
    """As plain torch computes it, to the last digits of float64."""
    seen = evaluated(case, "triton", **given)
    apart = distances(seen, evaluated(case, "torch", **given))
    assert max(apart.values()) < 1e-12, apart
    return seen


@pytest.mark.parametrize(
    "shape",
    [
        {"n": 1, "g": 1, "h": 1},
        {"n": 2, "g": 3, "h": 5, "by_unit": False},
        {"n": 3, "g": 1024, "h": 2, "density": 0.25},
        {"n": 2, "g": 1025, "h": 3, "density": 0.26},
        {"n": 2, "g": 2600, "h": 17, "density": 0.9},
    ],
    ids=lambda shape: f"{shape['n']} x {shape['g']}",
)
@pytest.mark.parametrize("law", LAWS)
def test_sizes_need_not_fit_the_programs(law: str, shape: dict[str, Any]) -> None:
    assert_same(Case(law=law, dispersion="cell", dtype=EXACT, **shape))


@pytest.mark.parametrize("dispersion", DISPERSIONS)
@pytest.mark.parametrize("law", LAWS)
def test_blocks_of_cells_add_up(law: str, dispersion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from scvi_dist.kernels import count_loss_triton

    monkeypatch.setattr(count_loss_triton, "BLOCK_BYTES", 1)
    monkeypatch.setattr(count_loss_triton, "LEAST_ROWS", 5)
    assert_same(Case(law=law, dispersion=dispersion, n=12, g=40, n_padding=2, dtype=EXACT))


@pytest.mark.parametrize("law", LAWS)
def test_a_cell_without_weight_has_no_part(law: str) -> None:
    """Whatever is in it."""
    case = Case(law=law, dispersion="group", n=9, g=30, dtype=EXACT)
    weight_n = torch.ones(case.n, dtype=EXACT, device=DEVICE)
    weight_n[[2, 5]] = 0.0
    p = {k: v.detach() for k, v in leaves(case, EXACT).items()}
    problem = problem_of(case, p)
    problem.counts.data[int(problem.counts.indptr[2])] = math.nan
    problem.log_size_n[5] = math.nan
    wanted = ALL if problem.log_theta_tg is None else ALL | {"log_theta_tg"}
    result = kernel_for(DEVICE, "triton").count_loss(problem, weight_n, wanted)
    assert torch.isnan(result.loss_n[2])
    for gradient in result.gradients.values():
        assert torch.isfinite(gradient).all()
    assert not result.gradients["hidden_nh"][[2, 5]].any()
    assert not result.gradients["log_size_n"][[2, 5]].any()


@pytest.mark.parametrize("law", LAWS)
def test_rows_are_taken_as_they_are(law: str) -> None:
    """In any order of genes, with zeros among them, and less than scvi-tools takes for a count."""
    case = Case(law=law, n=4, g=8, dtype=EXACT)
    counts = SparseCounts(
        torch.tensor([0, 3, 3, 7, 8]),
        torch.tensor([7, 0, 3, 6, 1, 5, 2, 4]),
        torch.tensor([2.0, 0.0, 11.0, 0.25, 5e-9, 300.0, 1.5, 1e-3]),
        case.g,
    ).to(DEVICE)
    assert_same(case, counts=counts)


@pytest.mark.parametrize("law", LAWS)
def test_a_count_that_is_no_number_is_seen_where_it_is(law: str) -> None:
    case = Case(law=law, n=5, g=30)
    problem = problem_of(case, {k: v.detach() for k, v in leaves(case, case.dtype).items()})
    problem.counts.data[int(problem.counts.indptr[3])] = math.nan
    weight_n = torch.ones(case.n, device=DEVICE)
    result = kernel_for(DEVICE, "triton").count_loss(problem, weight_n, ALL)
    assert torch.isnan(result.loss_n).tolist() == [False, False, False, True, False]
    assert torch.isnan(result.gradients["hidden_nh"]).any(1).tolist() == [
        False, False, False, True, False,
    ]  # fmt: skip


def test_results_do_not_depend_on_chance() -> None:
    case = Case(law="zinb", dispersion="group", n=10, g=300)
    one, other = fused(case, "triton"), fused(case, "triton")
    assert all(torch.equal(one[name], other[name]) for name in one)
    x, kernel = problem_of(case, leaves(case, case.dtype)).counts, kernel_for(DEVICE, "triton")
    slope_nh = torch.randn(case.n, 20, device=DEVICE)
    sums = []
    for _ in range(2):
        sums.append(torch.empty(case.g, 20, device=DEVICE))
        kernel.scatter(x, slope_nh, sums[-1])
    assert torch.equal(*sums)


@pytest.mark.parametrize("h", [1, 16, 130])
@pytest.mark.parametrize("dtype", [torch.float32, EXACT])
def test_products_are_those_of_dense_rows(h: int, dtype: torch.dtype) -> None:
    case, kernel = Case(n=7, g=45, density=0.6), kernel_for(DEVICE, "triton")
    x = problem_of(case, leaves(case, case.dtype)).counts
    x = replace(x, indices=x.indices.long())
    dense_ng = x.to_dense().to(dtype)
    weight_gh, slope_nh = (torch.randn(k, h, dtype=dtype, device=DEVICE) for k in (45, 7))
    rtol = 1e-5 if dtype == torch.float32 else 1e-12
    close: dict[str, float] = {"rtol": rtol, "atol": rtol * 100}
    assert_close(kernel.multiply(x, weight_gh), dense_ng @ weight_gh, **close)
    gradient_gh = torch.full((45, h), math.nan, dtype=dtype, device=DEVICE)
    kernel.scatter(x, slope_nh, gradient_gh)
    assert_close(gradient_gh, dense_ng.t() @ slope_nh, **close)


def test_nothing_comes_of_no_cells_and_of_empty_ones() -> None:
    kernel = kernel_for(DEVICE, "triton")
    weight_gh = torch.randn(6, 3, device=DEVICE)
    for n in (0, 2):
        nothing = torch.zeros(0, device=DEVICE)
        indptr = torch.zeros(n + 1, dtype=torch.int64, device=DEVICE)
        x = SparseCounts(indptr, nothing.int(), nothing, 6)
        assert kernel.multiply(x, weight_gh).tolist() == [[0.0] * 3] * n
        assert kernel.row_sums(x).tolist() == [0.0] * n
        gradient_gh = torch.full_like(weight_gh, math.nan)
        kernel.scatter(x, torch.ones(n, 3, device=DEVICE), gradient_gh)
        assert not gradient_gh.any()


def step(module: VAE, batch: CellBatch, kernel: str) -> dict[str, Tensor]:
    """State of a module after a step of training by a kernel, and its loss."""
    module = deepcopy(module)
    module.kernel = kernel
    assert module.kernel == kernel
    module.noise.at(3, 0, 0, batch.n_cells, batch.n_global)
    adam = torch.optim.Adam(module.parameters(), lr=0.1, eps=0.01)
    loss = module(batch, loss_kwargs={"kl_weight": 0.5})[2].loss
    loss.backward()
    adam.step()
    return {"loss": loss.detach(), **module.state_dict()}


def cells(n: int, g: int, dtype: torch.dtype, n_padding: int = 0) -> CellBatch:
    """A minibatch on the CPU; no cell is empty, since the logarithm of its size is no number."""
    x_ng = np.random.default_rng(0).poisson(0.4, (n, g)).astype(np.float32)
    x_ng[:, 0] += 1
    counts = replace(sparse(x_ng), data=sparse(x_ng).data.to(dtype)).to("cpu")
    codes = torch.arange(n).remainder(3)[:, None]
    fields = {"batch": codes, "labels": torch.zeros_like(codes)}
    return CellBatch(x=counts, fields=fields, rows=np.arange(n), n_global=n, n_padding=n_padding)


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"gene_likelihood": "nb", "dispersion": "gene-batch", "encode_covariates": True},
        {"dispersion": "gene-cell", "n_layers": 2, "batch_representation": "embedding"},
        {"gene_likelihood": "poisson", "log_variational": False},
    ],
    ids=["zinb", "nb by batch", "zinb by cell", "poisson"],
)
def test_a_step_of_training_is_that_of_torch(args: dict[str, Any]) -> None:
    torch.manual_seed(1)
    module = VAE(n_input=30, n_batch=3, n_hidden=12, n_latent=4, **args).double().to(DEVICE)
    batch = cells(8, 30, EXACT, n_padding=2).to(DEVICE)
    seen, expected = step(module, batch, "triton"), step(module, batch, "torch")
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(seen[name], value, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="a CPU is never waited for")
@pytest.mark.parametrize("args", [{}, {"gene_likelihood": "nb", "dispersion": "gene-batch"}])
def test_a_step_does_not_wait_for_the_device(args: dict[str, Any]) -> None:
    module = VAE(n_input=300, n_batch=3, n_hidden=12, n_latent=4, **args).to(DEVICE)
    batch = cells(200, 300, torch.float32)
    step(module, batch.to(DEVICE), "triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(module, batch.pin_memory().to(DEVICE, non_blocking=True), "triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_trial_passes_where_the_kernels_compute_what_torch_does() -> None:
    from scvi_dist.kernels import triton_trial

    torch.manual_seed(1)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(1))
    assert triton_trial.failure(DEVICE) is None
    assert torch.equal(torch.rand(3), expected)


def test_a_trial_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from scvi_dist.kernels import count_loss_triton, products_triton, triton_trial

    def wrong(*arguments: Any) -> CountResult:
        result = right(*arguments)
        result.gradients["dropout.bias"][7] = math.nan
        return result

    def broken(x: SparseCounts, weight_gh: Tensor) -> Tensor:
        raise RuntimeError("no image for this device")

    right = count_loss_triton.evaluate
    monkeypatch.setattr(count_loss_triton, "evaluate", wrong)
    seen = "on a few cells they give another gradient by dropout.bias than torch"
    assert triton_trial.failure(DEVICE) == seen
    monkeypatch.setattr(products_triton, "multiply", broken)
    assert triton_trial.failure(DEVICE) == (
        "on a few cells they failed with RuntimeError: no image for this device"
    )
