"""A linear layer of sparse columns beside the dense one, and what else kernels do with counts."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from count_cases import DEVICE, USABLE, sparse
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scvi_dist.batch import SparseCounts
from scvi_dist.errors import ConfigError
from scvi_dist.kernels import products_numba
from scvi_dist.kernels.choice import KERNELS, checked_name, kernel_for
from scvi_dist.kernels.problem import Head
from scvi_dist.kernels.scales import log_totals, scales_of
from scvi_dist.kernels.sparse_linear import SparseColumns, column_major
from scvi_dist.nn import FCLayers
from scvi_dist.nn.partly_frozen import PartlyFrozenLinear

each_kernel = pytest.mark.parametrize("kernel", USABLE)


def counts(n: int, g: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x_ng = rng.poisson(0.4, (n, g)).astype(np.float32)
    x_ng[0] = 0
    return x_ng


def gradients(layer: torch.nn.Linear, out: Tensor, *more: Tensor) -> list[Tensor | None]:
    layer.zero_grad()
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [layer.weight.grad, layer.bias.grad, *(value.grad for value in more)]


@each_kernel
@given(
    n=st.integers(1, 40),
    g=st.integers(1, 60),
    c=st.integers(0, 3),
    # Loops take stretches of 128, then of 16, then single units.
    h=st.integers(1, 40) | st.sampled_from([128, 131, 257]),
    by_column=st.booleans(),
)
def test_sparse_and_dense_columns_give_the_same(
    kernel: str, n: int, g: int, c: int, h: int, by_column: bool
) -> None:
    x_ng = counts(n, g)
    layer = torch.nn.Linear(g + c, h, device=DEVICE)
    if by_column:
        layer.weight.data = column_major(layer.weight.data)
    dense_nc = torch.randn(n, c, device=DEVICE, requires_grad=True)
    same_nc = dense_nc.detach().clone().requires_grad_()
    expected = layer(torch.cat([torch.log1p(torch.from_numpy(x_ng).to(DEVICE)), same_nc], -1))
    implementation = KERNELS[kernel]()
    columns = SparseColumns(implementation.log1p(sparse(x_ng)), None, implementation)
    seen = (columns.with_columns(dense_nc) if c else columns).linear(layer.weight, layer.bias)
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)
    expected_gradients = gradients(layer, expected, *([same_nc] if c else []))
    expected_gradients = [value.clone() for value in expected_gradients]
    for one, other in zip(
        gradients(layer, seen, *([dense_nc] if c else [])), expected_gradients, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@each_kernel
def test_gradients_of_the_layer_are_exact(kernel: str) -> None:
    implementation = KERNELS[kernel]()
    columns = SparseColumns(sparse(counts(5, 7)), None, implementation)
    exact: dict[str, Any] = {"dtype": torch.float64, "device": DEVICE, "requires_grad": True}
    weight = torch.randn(3, 9, **exact)
    bias = torch.randn(3, **exact)
    dense = torch.randn(5, 2, **exact)

    def layer(weight: Tensor, bias: Tensor, dense: Tensor) -> Tensor:
        return columns.with_columns(dense).linear(weight, bias)

    assert torch.autograd.gradcheck(layer, (weight, bias, dense))


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("is_sorted", [True, False])
def test_gradients_do_not_depend_on_the_threads(
    is_sorted: bool, n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products_numba, "LEAST_PRODUCTS_OF_PART", 1)
    implementation = kernel_for(torch.device("cpu"), "numba")
    x = sparse(counts(50, 30))
    if not is_sorted:
        order = torch.cat([torch.arange(a, b).flip(0) for a, b in pairwise(x.indptr.tolist())])
        x = SparseCounts(x.indptr, x.indices[order], x.data[order], x.n_genes)
    columns = SparseColumns(x, None, implementation)
    layer = torch.nn.Linear(30, 37)
    alone = gradients(layer, columns.linear(layer.weight, layer.bias))
    alone = [value.clone() for value in alone]
    torch.set_num_threads(n_threads)
    try:
        for one, other in zip(
            gradients(layer, columns.linear(layer.weight, layer.bias)), alone, strict=True
        ):
            assert torch.equal(one, other)
    finally:
        torch.set_num_threads(1)


@each_kernel
def test_a_partly_frozen_layer_trains_its_last_columns(kernel: str) -> None:
    layers = FCLayers(20, 6, n_cat_list=[3], n_layers=2, dropout_rate=0).to(DEVICE)
    first = layers.fc_layers[0]
    first._modules["0"] = PartlyFrozenLinear.of(first[0], 3)
    x_ng, codes = counts(8, 20), torch.arange(8, device=DEVICE).remainder(3)[:, None]
    implementation = KERNELS[kernel]()
    layers(torch.from_numpy(x_ng).to(DEVICE), codes).square().sum().backward()
    expected = first[0].weight.grad.clone()
    first[0].weight.grad = None
    seen = layers(SparseColumns(sparse(x_ng), None, implementation), codes)
    seen.square().sum().backward()
    torch.testing.assert_close(first[0].weight.grad, expected, rtol=1e-4, atol=1e-5)
    assert not first[0].weight.grad[:, :20].any()
    assert first[0].weight.grad[:, 20:].any()


@each_kernel
@pytest.mark.parametrize("bias", [True, False])
def test_an_evaluated_layer_is_that_of_dense_counts(kernel: str, bias: bool) -> None:
    layers = FCLayers(20, 6, n_cat_list=[3], n_layers=2, n_hidden=37, bias=bias).double().to(DEVICE)
    x_ng, codes = counts(8, 20), torch.arange(8, device=DEVICE).remainder(3)[:, None]
    dense = torch.from_numpy(x_ng).to(DEVICE)
    for _ in range(3):
        layers(torch.log1p(dense).double() * 3, codes)
    expected = layers.eval()(dense.double(), codes)
    columns = SparseColumns(sparse(x_ng), None, KERNELS[kernel]())
    with torch.no_grad():
        seen = layers.float()(columns, codes)
        torch.testing.assert_close(seen.double(), expected.detach(), rtol=1e-5, atol=1e-5)
        norm, seen_units = layers.fc_layers[0][1], []
        norm.register_forward_hook(lambda module, given, out: seen_units.append(out))
        torch.testing.assert_close(layers(columns, codes), seen, rtol=1e-5, atol=1e-5)
    assert [units.shape for units in seen_units] == [(8, 37)]


@each_kernel
def test_sums_of_rows(kernel: str) -> None:
    x_ng = counts(9, 11)
    sums = KERNELS[kernel]().row_sums(sparse(x_ng))
    assert torch.equal(sums.cpu(), torch.from_numpy(x_ng.sum(1)))


@pytest.mark.parametrize("activation", ["softmax", "softplus"])
def test_scales_of_some_genes_are_those_of_all(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scvi_dist.kernels import scales

    monkeypatch.setattr(scales, "BLOCK_ENTRIES", 100)
    hidden_nh, head = torch.randn(17, 5), Head(torch.randn(30, 5), torch.randn(30))
    genes_k = torch.tensor([29, 3, 3])
    logits_ng = head.logits(hidden_nh)
    function = torch.nn.functional.softplus if activation == "softplus" else torch.softmax
    all_ng = function(logits_ng) if activation == "softplus" else function(logits_ng, -1)
    seen = scales_of(hidden_nh, head, activation, genes_k)
    torch.testing.assert_close(seen, all_ng[:, genes_k])
    torch.testing.assert_close(log_totals(hidden_nh, head), logits_ng.logsumexp(-1, keepdim=True))


def test_an_unknown_kernel_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"no kernel 'nunba'.*numba"):
        checked_name("nunba")


def test_without_a_folder_for_compiled_code_kernels_still_work(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    code = (
        "import numpy as np\n"
        "from scvi_dist.kernels import sparse_rows\n"
        "y = np.empty(2); sparse_rows.log1p_entries(np.array([0.0, 1.0]), y)\n"
        "assert np.allclose(y, np.log([1, 2])); print('computed')\n"
    )
    where = {**os.environ, "NUMBA_CACHE_DIR": str(blocked / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=where, capture_output=True, text=True, check=False
    )
    assert done.stdout == "computed\n", done.stderr


def test_importing_modules_loads_no_compiler() -> None:
    code = "import sys, scvi_dist.module; print({'numba', 'triton'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
