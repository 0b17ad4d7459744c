"""TOTALVAE's loss by kernels is that of its laws: value, terms, gradients, running statistics."""

import pickle
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from totalvae_cases import COVARIATES, VARIANTS, build, cells, each_variant, gradients

from scvi_dist.batch import CellBatch, SparseCounts
from scvi_dist.errors import ConfigError
from scvi_dist.kernels.choice import KERNELS, works_on
from scvi_dist.module import TOTALVAE
from scvi_dist.module.base import BaseModule, LossOutput
from scvi_dist.module.surgery import FreezeOptions, freeze

each_kernel = pytest.mark.parametrize(
    "kernel", [name for name in KERNELS if works_on(name, torch.device("cpu"))]
)
WEIGHTS = {"kl_weight": 0.3, "pro_recons_weight": 0.7}


def as_dtype(batch: CellBatch, dtype: torch.dtype) -> CellBatch:
    assert isinstance(batch.x, SparseCounts)
    x = SparseCounts(batch.x.indptr, batch.x.indices, batch.x.data.to(dtype), batch.x.n_genes)
    fields = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.fields.items()}
    return replace(batch, x=x, fields=fields, _dense=[])


def results(module: TOTALVAE, batch: CellBatch, kernel: str | None) -> dict[str, Tensor]:
    """Of a step with noise of this batch; part by part where there is no kernel."""
    module = deepcopy(module)
    module.kernel = "torch" if kernel is None else kernel
    forward = BaseModule.forward if kernel is None else TOTALVAE.forward
    module.noise.at(3, 0, 0, batch.n_cells, batch.n_global)
    output: LossOutput = forward(module, batch, loss_kwargs=WEIGHTS)[2]
    terms = {**output.reconstruction_loss, **output.kl_local, "loss": output.loss}
    found = {f"term {name}": term.detach() for name, term in terms.items()}
    found |= gradients(module, output.loss)
    return found | {
        f"buffer {k}": v.clone() for k, v in module.named_buffers() if v.is_floating_point()
    }


def moved(module: TOTALVAE) -> TOTALVAE:
    """Away from the start, where many weights are 0."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    return module


def assert_near(seen: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    """To ``rtol`` of the largest value of each, but for gradients that are sums of nothing."""
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        # What a batch norm subtracts again has a gradient of rounding errors.
        atol = rtol * max(float(value.abs().max()), 1.0) if value.numel() else 0.0
        assert_close(seen[name], value, rtol=0, atol=atol, msg=name)


@each_kernel
@pytest.mark.parametrize("is_training", [True, False], ids=["training", "evaluation"])
@each_variant
def test_the_loss_is_that_of_the_laws(args: dict[str, Any], is_training: bool, kernel: str) -> None:
    """In float64, with cells that only fill the batch up."""
    module = moved(build(**args)).double().train(is_training)
    batch = as_dtype(cells(n_padding=2, **args), torch.float64)
    assert_near(results(module, batch, kernel), results(module, batch, None), 1e-10)


@each_kernel
@each_variant
def test_float32_is_as_near_to_float64_as_the_laws_are(args: dict[str, Any], kernel: str) -> None:
    """In evaluation: noise of another precision would be another noise."""
    module = moved(build(**args)).eval()
    batch = cells(**args)
    seen, expected = results(module, batch, kernel), results(module, batch, None)
    assert_near(seen, expected, 1e-4)


def test_laws_are_there_for_whoever_asks() -> None:
    """Those of the draws that the loss was computed with."""
    for args in VARIANTS.values():
        module, batch = build(**args), cells(**args)
        _, generated, output = module(batch)
        rec = -generated["px"].log_prob(batch["X"]).sum(-1)
        assert_close(rec, output.reconstruction_loss["reconst_loss_gene"], rtol=1e-4, atol=1e-3)
        measured = module.measured(batch)
        log_p = generated["py"].log_prob(batch["proteins"])
        rec = -(log_p if measured is None else log_p.masked_fill(~measured, 0)).sum(-1)
        assert_close(rec, output.reconstruction_loss["reconst_loss_protein"], rtol=1e-4, atol=1e-3)
        with pytest.raises(KeyError):
            generated["px_"]


@each_kernel
def test_what_is_frozen_for_a_query_has_no_gradient(kernel: str) -> None:
    """Of a layer that is trained in part, only the columns of covariates have one."""
    args = {**COVARIATES, "gene_likelihood": "zinb"}
    module = moved(build(**args)).double()
    freeze(module, FreezeOptions())
    batch = as_dtype(cells(**args), torch.float64)
    seen, expected = results(module, batch, kernel), results(module, batch, None)
    assert_near(seen, expected, 1e-10)
    name = "decoder.px_scale_decoder.fc_layers.Layer 0.0.weight"
    assert seen[name][:, : -sum(module.decoder.px_scale_decoder.n_cat_list)].eq(0).all()
    assert not seen[name].eq(0).all()


def test_the_kernel_is_chosen_and_can_be_set() -> None:
    module = build()
    assert module.kernel == "numba"
    module.kernel = "torch"
    assert pickle.loads(pickle.dumps(module)).kernel == deepcopy(module).kernel == "torch"
    module.kernel = None
    assert module.kernel == "numba"
    with pytest.raises(ConfigError, match="numba"):
        module.kernel = "numbr"


def test_latent_variables_are_the_same_without_dense_counts() -> None:
    for args in VARIANTS.values():
        module, batch = moved(build(**args)).eval(), cells(**args)
        dense = {key: cells(**args)[key] for key in batch}
        with torch.inference_mode():
            seen, expected = (
                module.inference(**module._get_inference_input(tensors), use_mean=True)
                for tensors in (batch, dense)
            )
        for name in ("z", "library_gene"):
            assert_close(seen[name], expected[name], rtol=1e-4, atol=1e-5)
        assert not batch._dense
