"""The loss of a VAE and all its derivatives, computed from one end to the other without a graph.

To record what is to be differentiated, and to find the way back, takes as long for a small
minibatch as to compute. Here each part is called once forward and once backward, and the loss
knows its derivatives by the parameters. Latent variables have none.

Axis suffixes: ``n`` cells, ``k`` latent.
"""

from collections.abc import Callable
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scvi_dist.batch import REGISTRY_KEYS, CellBatch, SparseCounts
from scvi_dist.kernels.choice import kernel_for
from scvi_dist.kernels.problem import CountProblem
from scvi_dist.kernels.sparse_linear import SparseColumns
from scvi_dist.module.base import LossOutput, Tensors
from scvi_dist.module.fused import has_kernels, takes
from scvi_dist.module.vae_networks import VAENetworks
from scvi_dist.nn import DecoderSCVI, Encoder, FCLayers
from scvi_dist.nn.watched import is_watched
from scvi_dist.nn.whole_layers import Gradients, WholeLayers, note

_GOES_THROUGH = (
    *("__call__", "forward", "inference", "generative", "loss"),
    *("decode_units", "_drawn", "_fused", "_reconstruction_loss"),
)
"""Methods that the loss of a module goes through otherwise."""


def objective_of(
    module: VAENetworks, kind: type, usual: Callable[..., LossOutput], with_graph: bool
) -> Callable[..., LossOutput]:
    """What computes the loss of minibatches for as long as nobody changes the module.

    Parameters
    ----------
    kind
        As for :func:`can_be_whole`.
    usual
        Computes it otherwise.
    with_graph
        As for :class:`WholeLoss`.
    """
    if not can_be_whole(module, kind):
        return usual
    whole = WholeLoss(module)

    def objective(tensors: Tensors, **loss_kwargs: Any) -> LossOutput:
        if loss_kwargs.keys() <= {"kl_weight"} and whole.takes(tensors):
            return whole(tensors, float(loss_kwargs.get("kl_weight", 1.0)), with_graph)
        return usual(tensors, **loss_kwargs)

    return objective


def can_be_whole(module: VAENetworks, kind: type) -> bool:
    """Whether a :class:`WholeLoss` of this module is what its own methods would compute.

    Parameters
    ----------
    kind
        The class whose methods it knows: a subclass, or somebody who puts a function of his own
        in a method's place, may compute something else.
    """
    args, encoder, decoder = module.args, module.z_encoder, module.decoder
    if args.uses_embedding or not args.observes_library or args.extra_payload_autotune:
        return False
    if encoder.distribution != "normal" or encoder.var_activation is not torch.exp:
        return False
    methods = [(getattr(module, name), getattr(kind, name)) for name in _GOES_THROUGH]
    if any(getattr(own, "__func__", None) is not known for own, known in methods):
        return False
    if not has_kernels(module) or is_watched(module.modules()):
        return False
    if kernel_for(module.device, module.kernel).passes is None:
        return False
    parts = encoder, encoder.encoder, decoder, decoder.px_decoder
    if tuple(map(type, parts)) != (Encoder, FCLayers, DecoderSCVI, FCLayers):
        return False
    # The weights of others may be computed from parameters.
    linears = (encoder.mean_encoder, encoder.var_encoder, *decoder.gene_heads)
    if any(type(linear) is not nn.Linear for linear in linears):
        return False
    dtype = encoder.mean_encoder.weight.dtype
    return encoder.encoder.is_whole(2, dtype, True) and decoder.px_decoder.is_whole(2, dtype, False)


class WholeLoss:
    """The loss of minibatches, for as long as nobody changes the module.

    Its weights and the state of its norms may change, in place.

    Parameters
    ----------
    module
        One that :func:`can_be_whole`.
    """

    def __init__(self, module: VAENetworks) -> None:
        self._module, self._args, self._noise = module, module.args, module.noise
        self._kernel = kernel_for(module.device, module.kernel)
        encoder, passes = module.z_encoder, self._kernel.passes
        assert passes is not None
        self._passes, self._device = passes, module.device
        self._encoder = WholeLayers(encoder.encoder, passes.layer)
        heads = encoder.mean_encoder, encoder.var_encoder
        self._posterior = passes.posterior(*heads, encoder.var_eps)
        self._decoder = WholeLayers(module.decoder.px_decoder, passes.layer)
        self._dtype = encoder.mean_encoder.weight.dtype
        self._none = np.empty((0, 0), encoder.mean_encoder.weight.detach().numpy().dtype)
        last = module.count_model()
        self._count_model = last.detached()
        self._by_name: dict[str, Any] = (
            {} if last.log_theta_tg is None else {"log_theta_tg": module.px_r}
        )
        for name, head in last.heads:
            self._by_name |= {f"{name}.weight": head.weight_gh, f"{name}.bias": head.bias_g}
        trained = (name for name, p in self._by_name.items() if p.requires_grad)
        self._wanted = frozenset(trained) | {"hidden_nh"}

    def takes(self, tensors: Tensors) -> TypeGuard[CellBatch]:
        """Whether it is for this minibatch, and for what is asked of it now."""
        if not torch.is_grad_enabled() or not self._module.training or not self._noise.is_bound:
            return False
        if not takes(tensors, self._device) or tensors.n_cells < 2:
            return False
        fields, args = tensors.fields, self._args
        if REGISTRY_KEYS.LATENT_QZM_KEY in fields or tensors.x.data.dtype != self._dtype:
            return False
        return not args.use_size_factor_key or REGISTRY_KEYS.SIZE_FACTOR_KEY in fields

    def __call__(
        self, batch: CellBatch, kl_weight: float = 1.0, with_graph: bool = True
    ) -> LossOutput:
        """The loss that the module's own methods give after a forward pass, with the same noise.

        Parameters
        ----------
        batch
            Such that it :meth:`takes`.
        kl_weight
            Of the divergence of ``z``.
        with_graph
            Whether the loss can be differentiated; else the output has the derivatives.
        """
        with torch.no_grad():
            rec_n, kl_n, gradients = self._there_and_back(batch, kl_weight)
            loss, *sums = self._passes.loss_sums(rec_n, kl_n, kl_weight).unbind()
        no_kl_n = torch.from_numpy(np.zeros(kl_n.shape[0], self._none.dtype))
        if with_graph:
            loss = _Known.apply(list(gradients.values()), loss, *gradients)
        kl_local = {"kl_divergence_l": no_kl_n, "kl_divergence_z": kl_n}
        known = None if with_graph else gradients
        return LossOutput.of_sums(loss, rec_n, kl_local, sums, known)

    def _there_and_back(
        self, batch: CellBatch, kl_weight: float
    ) -> tuple[Tensor, Tensor, Gradients]:
        """Losses and divergences of the cells that count, and derivatives of the mean objective."""
        n, n_real = batch.n_cells, batch.n_real
        hidden_nh = self._encoder.forward(*self._encoder_input(batch))
        like_nk = torch.empty((n, self._args.n_latent), dtype=self._dtype)
        noise_nk = self._noise.normal_like(like_nk).numpy()
        (_, _, z_nk), kl_n = self._posterior.forward(hidden_nh, noise_nk)
        problem = self._problem(batch, self._decode(batch, z_nk))
        weight_n = np.full(n, 1.0 / max(n_real, 1), z_nk.dtype)
        weight_n[n_real:] = 0.0
        result = self._kernel.count_loss(problem, torch.from_numpy(weight_n), self._wanted)

        slopes, gradients = result.gradients, {}
        for name, parameter in self._by_name.items():
            if name in slopes:
                gradients[parameter] = slopes[name]
        if "log_theta_tg" in slopes:
            # Of the shape of the parameter, which is [g] or [g, t].
            by_theta, px_r = slopes["log_theta_tg"].numpy(), self._by_name["log_theta_tg"]
            gradients[px_r] = torch.from_numpy(by_theta.T if px_r.dim() == 2 else by_theta[0])
        by_units_nh = slopes["hidden_nh"].numpy()
        by_z_nk = self._decoder.backward(by_units_nh, z_nk.shape[1], gradients)
        slopes_by_draw = self._passes.normals(self._none, self._none, by_z_nk)
        weight_n *= kl_weight
        by_hidden_nh, *by_heads = self._posterior.backward(slopes_by_draw, weight_n, True)
        note(gradients, self._posterior.parameters, by_heads)
        self._encoder.backward(by_hidden_nh, 0, gradients)
        rec_n = result.loss_n if n_real == n else result.loss_n[:n_real]
        return rec_n, torch.from_numpy(kl_n[:n_real]), gradients

    def _encoder_input(self, batch: CellBatch) -> tuple[SparseColumns, tuple[Tensor, ...]]:
        """As the module's own, of what it takes."""
        x, fields = batch.x, batch.fields
        assert isinstance(x, SparseCounts)
        seen = self._kernel.log1p(x) if self._args.log_variational else x
        columns = SparseColumns(seen, None, self._kernel)
        if not self._args.encode_covariates:
            return columns, ()
        if REGISTRY_KEYS.CONT_COVS_KEY in fields:
            columns = columns.with_columns(fields[REGISTRY_KEYS.CONT_COVS_KEY])
        return columns, self._codes(batch)

    def _decode(self, batch: CellBatch, z_nk: np.ndarray) -> Tensor:
        """Hidden units ``[n, h]`` before the heads of the genes."""
        cont_covs = batch.fields.get(REGISTRY_KEYS.CONT_COVS_KEY)
        seen = z_nk if cont_covs is None else np.concatenate((z_nk, cont_covs.numpy()), axis=1)
        return torch.from_numpy(self._decoder.forward(seen, self._codes(batch)))

    def _codes(self, batch: CellBatch) -> tuple[Tensor, ...]:
        fields = batch.fields
        cat_covs = fields.get(REGISTRY_KEYS.CAT_COVS_KEY)
        return self._module._codes(fields[REGISTRY_KEYS.BATCH_KEY], cat_covs)

    def _problem(self, batch: CellBatch, units_nh: Tensor) -> CountProblem:
        """The likelihood given a draw."""
        x, fields, module, group_n = batch.x, batch.fields, self._module, None
        assert isinstance(x, SparseCounts)
        if self._args.use_size_factor_key:
            log_size = torch.log(fields[REGISTRY_KEYS.SIZE_FACTOR_KEY]).reshape(-1)
        else:
            log_size = self._passes.log_row_sums(x)
        if self._args.has_groups:
            labels = fields.get(REGISTRY_KEYS.LABELS_KEY)
            group_n = module._group_codes(fields[REGISTRY_KEYS.BATCH_KEY], labels)
        return self._count_model.problem(x, units_nh, log_size, group_n)


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
