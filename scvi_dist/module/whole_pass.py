"""The loss of a VAE and all its derivatives, computed from one end to the other without a graph.

To record what is to be differentiated, and to find the way back, takes as long for a small
minibatch as to compute. Here each part is called once forward and once backward, and the loss
knows its derivatives by the parameters. Latent variables have none.

Axis suffixes: ``n`` cells, ``k`` latent.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scvi_dist.batch import REGISTRY_KEYS, CellBatch, SparseCounts
from scvi_dist.kernels.choice import kernel_for
from scvi_dist.kernels.count_loss import Expected
from scvi_dist.kernels.problem import CountProblem
from scvi_dist.module.base import LossOutput, Tensors
from scvi_dist.module.fused import has_kernels, takes
from scvi_dist.module.library import observed_library
from scvi_dist.module.vae_networks import VAENetworks
from scvi_dist.nn import DecoderSCVI, Encoder, FCLayers
from scvi_dist.nn.whole_layers import Gradients, WholeLayers

_GOES_THROUGH = (
    *("__call__", "forward", "inference", "generative", "loss"),
    *("decode_units", "_drawn", "_fused", "_reconstruction_loss"),
)
"""Methods that the loss of a module goes through otherwise."""


def takes_whole(tensors: Tensors, module: VAENetworks, kind: type) -> TypeGuard[CellBatch]:
    """Whether :func:`whole_loss` computes what the module's own methods would, and derivatives.

    Parameters
    ----------
    kind
        The class whose methods it knows: a subclass, or somebody who puts a function of his own
        in a method's place, may compute something else.
    """
    args, encoder, decoder = module.args, module.z_encoder, module.decoder
    if not torch.is_grad_enabled() or not takes(tensors, module.device):
        return False
    if REGISTRY_KEYS.LATENT_QZM_KEY in tensors or args.extra_payload_autotune:
        return False
    if args.uses_embedding or not args.observes_library or not has_kernels(module):
        return False
    if encoder.distribution != "normal" or encoder.var_activation is not torch.exp:
        return False
    methods = [(getattr(module, name), getattr(kind, name)) for name in _GOES_THROUGH]
    if any(getattr(own, "__func__", None) is not known for own, known in methods):
        return False
    if kernel_for(module.device, module.kernel).passes is None or _has_hooks(module):
        return False
    parts = encoder, encoder.encoder, decoder, decoder.px_decoder
    if tuple(map(type, parts)) != (Encoder, FCLayers, DecoderSCVI, FCLayers):
        return False
    # The weights of others may be computed from parameters.
    linears = (encoder.mean_encoder, encoder.var_encoder, *decoder.gene_heads)
    if any(type(linear) is not nn.Linear for linear in linears):
        return False
    n, dtype = tensors.n_cells, tensors.x.data.dtype
    return encoder.encoder.is_whole(n, dtype, True) and decoder.px_decoder.is_whole(n, dtype, False)


def _has_hooks(module: VAENetworks) -> bool:
    """Whether somebody wants to be called when a part computes."""
    if torch.nn.modules.module._has_any_global_hook():
        return True
    encoder, decoder = module.z_encoder, module.decoder
    parts: tuple[nn.Module, ...] = (module, encoder, encoder.encoder, decoder, decoder.px_decoder)
    return any(p._forward_hooks or p._forward_pre_hooks for p in parts) or any(
        p._backward_hooks or p._backward_pre_hooks for p in parts
    )


def whole_loss(module: VAENetworks, batch: CellBatch, kl_weight: float) -> LossOutput:
    """The loss that the module's :meth:`loss` gives after a forward pass, with the same noise.

    Parameters
    ----------
    module, batch
        Such that :func:`takes_whole`.
    kl_weight
        Of the divergence of ``z``.
    """
    with torch.no_grad():
        rec_n, kl_n, gradients = _there_and_back(module, batch, kl_weight)
        total_n = rec_n + kl_weight * kl_n
        # A batch of padding alone has a loss of zero with a gradient of zeros, not NaN.
        value = total_n.sum() / max(len(total_n), 1)
        kl_local = {"kl_divergence_l": torch.zeros_like(kl_n), "kl_divergence_z": kl_n}
    loss = _Known.apply(list(gradients.values()), value, *gradients)
    return LossOutput(loss=loss, reconstruction_loss=rec_n, kl_local=kl_local)


def _there_and_back(
    module: VAENetworks, batch: CellBatch, kl_weight: float
) -> tuple[Tensor, Tensor, Gradients]:
    """Losses and divergences of the cells that count, and derivatives of the mean objective."""
    kernel, n_real, heads = kernel_for(module.device, module.kernel), batch.n_real, module.z_encoder
    assert kernel.passes is not None
    encoder = WholeLayers(module.z_encoder.encoder, kernel.passes.layer)
    decoder = WholeLayers(module.decoder.px_decoder, kernel.passes.layer)

    hidden_nh = encoder.forward(*module._encoder_input(**module._get_inference_input(batch)))
    noise_nk = module.noise.normal_like(hidden_nh.new_empty(len(hidden_nh), module.args.n_latent))
    linears = heads.mean_encoder, heads.var_encoder
    posterior = kernel.passes.posterior(*linears, noise_nk, heads.var_eps)
    _, _, z_nk, kl_n = posterior.forward(hidden_nh)
    problem, parameters = _problem(module, batch, decoder, z_nk)
    weight_n = Expected(n_real, 1.0 / max(n_real, 1)).weights(kl_n)
    wanted = frozenset(name for name, p in parameters.items() if p.requires_grad)
    result = kernel.count_loss(problem, weight_n, wanted | {"hidden_nh"})

    slopes = result.gradients
    gradients = {parameters[name]: slopes[name] for name in wanted}
    if "log_theta_tg" in wanted:
        # Of the shape of the parameter, which is [g] or [g, t].
        slope_tg = slopes["log_theta_tg"]
        gradients[module.px_r] = slope_tg.t() if module.px_r.dim() == 2 else slope_tg[0]
    by_z = decoder.backward(slopes["hidden_nh"], z_nk.shape[1], gradients)
    by_hidden, *by_heads = posterior.backward(None, None, by_z, kl_weight * weight_n, True)
    of_heads = (parameter for linear in linears for parameter in (linear.weight, linear.bias))
    for parameter, slope in zip(of_heads, by_heads, strict=True):
        if slope is not None:
            gradients[parameter] = slope
    encoder.backward(by_hidden, 0, gradients)
    return result.loss_n[:n_real], kl_n[:n_real], gradients


def _problem(
    module: VAENetworks, batch: CellBatch, decoder: WholeLayers, z_nk: Tensor
) -> tuple[CountProblem, dict[str, nn.Parameter]]:
    """The likelihood given a draw, and name -> parameter of what it can be differentiated by."""
    x = batch.x
    assert isinstance(x, SparseCounts)
    given = module._get_generative_input(batch, {"z": z_nk, "library": observed_library(x)})
    batch_index = given["batch_index"]
    seen = module._with_columns(z_nk, batch_index, given["cont_covs"])
    units_nh = decoder.forward(seen, module._codes(batch_index, given["cat_covs"]))
    log_size = given["size_factor" if module.args.use_size_factor_key else "library"]
    problem = module.count_problem(x, units_nh, log_size, batch_index, given["y"])
    parameters = {} if problem.log_theta_tg is None else {"log_theta_tg": module.px_r}
    for name, head in problem.heads:
        parameters |= {f"{name}.weight": head.weight_gh, f"{name}.bias": head.bias_g}
    return problem.detached(), parameters


class _Known(torch.autograd.Function):
    """A number whose derivatives by parameters were computed together with it."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, gradients: list[Tensor], value: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "The derivatives of this loss were given away when backward() was called first: "
                "call forward() of the module for a loss that can be differentiated again."
            )
        factor = float(slope)
        if factor != 1.0:
            for gradient in gradients:
                gradient.mul_(factor)
        return (None, None, *gradients)
