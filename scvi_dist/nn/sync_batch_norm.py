"""Batch normalisation with the statistics of the global minibatch, on any backend.

torch's own ``SyncBatchNorm`` needs a GPU. This one works with gloo and NCCL, with another number of
cells on each rank, and leaves out cells that only fill a rank up. Suffixes: ``n`` cells of this
rank, ``h`` features, ``r`` ranks.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


class Padding:
    """How many cells at the end of the next minibatch only fill it up.

    All layers of a module share one.
    """

    def __init__(self) -> None:
        self.n_cells = 0


class SyncedBatchNorm1d(nn.BatchNorm1d):
    """``BatchNorm1d`` over the cells of all ranks; its state-dict keys are ``BatchNorm1d``'s.

    With one process, or in eval mode, it computes what ``BatchNorm1d`` computes. Input is
    ``[n, h]``, or ``[s, n, h]`` for several samples of each cell, which are pooled. In training
    every rank has to run it equally often and in the same order.
    """

    padding: Padding

    @classmethod
    def of(cls, norm: nn.BatchNorm1d, padding: Padding) -> "SyncedBatchNorm1d":
        """A layer that shares parameters, buffers and mode with ``norm``."""
        synced = cls(
            norm.num_features,
            eps=norm.eps,
            momentum=norm.momentum,
            affine=norm.affine,
            track_running_stats=norm.track_running_stats,
        )
        synced._parameters = norm._parameters
        synced._buffers = norm._buffers
        synced.padding = padding
        return synced.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return self._normalised(x, 1)
        if x.dim() != 3:
            raise ValueError(f"expected [cells, features], got {x.dim()} dimensions.")
        # Cells in front: then the samples of padding cells are the last rows.
        n_samples, n_cells, _ = x.shape
        y_nh = self._normalised(x.transpose(0, 1).flatten(0, 1), n_samples)
        return y_nh.unflatten(0, (n_cells, n_samples)).transpose(0, 1)

    @property
    def has_peers(self) -> bool:
        """Whether there are other ranks, whose cells count as well."""
        return _has_peers()

    def _normalised(self, x_nh: Tensor, rows_per_cell: int) -> Tensor:
        uses_batch = self.training or self.running_mean is None
        if not uses_batch or not _has_peers():
            return super().forward(x_nh)
        n_real = x_nh.shape[0] - self.padding.n_cells * rows_per_cell
        y_nh, mean_h, var_h, count = _Normalise.apply(x_nh, n_real, self.eps)
        self._track(mean_h, var_h, count)
        return y_nh if self.weight is None else y_nh * self.weight + self.bias

    @torch.no_grad()
    def _track(self, mean_h: Tensor, var_h: Tensor, count: Tensor) -> None:
        """Move the running statistics towards the batch's, as ``BatchNorm1d`` does."""
        if not self.training or self.running_mean is None:
            return
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        if self.momentum is None:
            weight = 1.0 / self.num_batches_tracked.to(mean_h.dtype)
        else:
            weight = mean_h.new_tensor(self.momentum)
        unbiased_h = var_h * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean_h.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(unbiased_h.to(self.running_var.dtype), weight)


class _Normalise(torch.autograd.Function):
    """``(x - mean) / sqrt(var + eps)`` with mean and variance over all ranks.

    Source: the backward pass is that of Ioffe & Szegedy 2015 (arXiv:1502.03167), section 3, with
    its two sums over the batch taken over all ranks.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx, x_nh: Tensor, n_real: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean_h, var_h, count = _global_moments(x_nh[:n_real].float())
        inv_std_h = torch.rsqrt(var_h + eps)
        y_nh = ((x_nh - mean_h) * inv_std_h).to(x_nh.dtype)
        ctx.save_for_backward(y_nh, inv_std_h, count)
        ctx.n_real = n_real
        ctx.mark_non_differentiable(mean_h, var_h, count)
        return y_nh, mean_h, var_h, count

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: FunctionCtx, grad_nh: Tensor, *_: Tensor
    ) -> tuple[Tensor, None, None]:
        y_nh, inv_std_h, count = ctx.saved_tensors
        sums_2h = torch.stack([grad_nh.sum(0), (grad_nh * y_nh).sum(0)]).float()
        dist.all_reduce(sums_2h)
        mean_grad_h, mean_grad_y_h = (sums_2h / count).unbind()
        # Padding takes part in no statistic: nothing flows back through mean and variance.
        through_nh = mean_grad_h + y_nh * mean_grad_y_h
        through_nh[ctx.n_real :] = 0.0
        return ((grad_nh - through_nh) * inv_std_h).to(grad_nh.dtype), None, None


def _global_moments(x_nh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean ``[h]``, biased variance ``[h]`` and number of cells (0-d) over all ranks.

    Moments are centred on each rank and then combined, which does not cancel where the mean is
    large (Chan, Golub & LeVeque 1983, equation 2.1b), unlike a sum of squares.
    """
    count = float(x_nh.shape[0])
    mean_h = x_nh.mean(0) if count else x_nh.new_zeros(x_nh.shape[1])
    spread_h = (x_nh - mean_h).square().sum(0)
    mine = torch.cat([mean_h.new_tensor([count]), mean_h, spread_h])
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine)
    all_r = torch.stack(parts)
    count_r1 = all_r[:, :1]
    mean_rh, spread_rh = all_r[:, 1:].chunk(2, dim=1)
    total = count_r1.sum()
    mean_h = (count_r1 * mean_rh).sum(0) / total
    between_h = (count_r1 * (mean_rh - mean_h).square()).sum(0)
    return mean_h, (spread_rh.sum(0) + between_h) / total, total


def _has_peers() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def convert_batch_norm(module: nn.Module, padding: Padding | None = None) -> Padding:
    """Replace every ``BatchNorm1d`` inside ``module`` by a synced one, in place.

    Parameters, buffers and state-dict keys stay the same objects and names. Converting twice is
    harmless.

    Parameters
    ----------
    padding
        What all of them look at; a new one where None.

    Returns
    -------
    Padding
        Set its ``n_cells`` before a minibatch that has padding.
    """
    padding = Padding() if padding is None else padding
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, SyncedBatchNorm1d):
                child.padding = padding
            elif type(child) is nn.BatchNorm1d:
                setattr(parent, name, SyncedBatchNorm1d.of(child, padding))
    return padding
