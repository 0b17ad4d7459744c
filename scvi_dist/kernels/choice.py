"""Which implementation a module computes with: the same functions, for each a name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from scvi_dist.batch import SparseCounts
from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.kernels import triton_support
from scvi_dist.kernels.count_loss import Evaluate

HiddenLayer: TypeAlias = Callable[[Any, nn.Linear, nn.BatchNorm1d, Tensor | None, float], Tensor]
"""See :func:`~scvi_dist.kernels.hidden_layer.hidden_layer`."""


Posterior: TypeAlias = Callable[
    [Tensor, nn.Linear, nn.Linear, Tensor, float], tuple[Tensor, Tensor, Tensor, Tensor]
]
"""See :func:`~scvi_dist.kernels.posterior.posterior`."""


class Passes(NamedTuple):
    """What computes the parts of a network and their derivatives, one after the other."""

    layer: Any
    """See :class:`~scvi_dist.kernels.hidden_layer.LayerPass`."""
    posterior: Any
    """See :class:`~scvi_dist.kernels.posterior.PosteriorPass`."""
    normals: Any
    """See :class:`~scvi_dist.kernels.posterior_rows.Normals`."""
    loss_sums: Callable[[Tensor, Tensor, float], Tensor]
    """See :func:`~scvi_dist.kernels.loss_sums.loss_sums`."""
    log_row_sums: Callable[[SparseCounts], Tensor]
    """The logarithm ``[n]`` of the sum of each row."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One implementation."""

    name: str
    count_loss: Evaluate
    multiply: Callable[[SparseCounts, Tensor], Tensor]
    """See :class:`~scvi_dist.kernels.sparse_linear.Products`, as for ``scatter``."""
    scatter: Callable[[SparseCounts, Tensor, Tensor], None]
    log1p: Callable[[SparseCounts], SparseCounts]
    """The logarithm of one plus each entry."""
    row_sums: Callable[[SparseCounts], Tensor]
    """``[n]``."""
    hidden_layer: HiddenLayer | None = None
    """Computes a trained layer as a whole; None where torch does, part by part."""
    posterior: Posterior | None = None
    """Computes a posterior and what the loss needs of it; None where torch does."""
    fold_norm: Callable[[Tensor, Tensor | None, nn.BatchNorm1d], None] | None = None
    """Evaluates a batch norm and a ReLU at once; None where torch does, one after the other."""
    passes: Passes | None = None
    """The same two, each forward and backward without a graph; None where there are none."""


def _numba() -> Kernel:
    # numba takes long to load, and not every process computes.
    from scvi_dist.kernels import (
        count_loss_numba,
        hidden_layer,
        loss_sums,
        posterior,
        products_numba,
    )

    return Kernel(
        "numba",
        count_loss_numba.evaluate,
        products_numba.multiply,
        products_numba.scatter,
        products_numba.log1p,
        products_numba.row_sums,
        hidden_layer.hidden_layer,
        posterior.posterior,
        hidden_layer.fold_norm,
        Passes(
            hidden_layer.LayerPass,
            posterior.PosteriorPass,
            posterior.Normals,
            loss_sums.loss_sums,
            products_numba.log_row_sums,
        ),
    )


def _torch() -> Kernel:
    from scvi_dist.kernels import count_loss_torch, products_torch

    return Kernel(
        "torch",
        count_loss_torch.evaluate,
        products_torch.multiply,
        products_torch.scatter,
        products_torch.log1p,
        products_torch.row_sums,
    )


def _triton() -> Kernel:
    # Triton loads a compiler, and is not there on every machine.
    from scvi_dist.kernels import count_loss_triton, products_triton

    return Kernel(
        "triton",
        count_loss_triton.evaluate,
        products_triton.multiply,
        products_triton.scatter,
        products_triton.log1p,
        products_triton.row_sums,
    )


KERNELS: dict[str, Callable[[], Kernel]] = {
    "numba": cache(_numba),
    "triton": cache(_triton),
    "torch": cache(_torch),
}
"""The first that works on a device is its default."""
_WORKS_ON: dict[str, Callable[[torch.device], bool]] = {
    "numba": lambda device: device.type == "cpu",
    "triton": lambda device: triton_support.missing(device) is None,
    "torch": lambda device: True,
}


def kernel_for(device: torch.device, name: str | None = None) -> Kernel:
    """The implementation of this name, or the default one of the device."""
    return KERNELS[default_kernel(device) if name is None else name]()


def default_kernel(device: torch.device) -> str:
    """Name of the fastest implementation for a device."""
    return next(name for name in KERNELS if works_on(name, device))


def works_on(name: str, device: torch.device) -> bool:
    """Whether an implementation computes on that device."""
    return _WORKS_ON[name](device)


def checked_name(name: str, names: Iterable[str] = KERNELS) -> str:
    """The name of an implementation.

    Raises
    ------
    ConfigError
        There is none of this name.
    """
    if name not in names:
        raise ConfigError(f"There is no kernel {name!r} here; {did_you_mean(name, names)}")
    return name


def usable_name(name: str, device: torch.device) -> str:
    """The name of an implementation that somebody asks for while a module is on a device.

    Raises
    ------
    ConfigError
        There is none of this name, or it is Triton's and cannot run there.
    """
    what = triton_support.missing(device) if checked_name(name) == "triton" else None
    if what is not None:
        raise ConfigError(
            f"The kernel 'triton' cannot compute here: {what}. It is for NVIDIA GPUs of compute "
            "capability 8.0 or more, and the default on those. Move the module to such a device "
            "before, or choose another kernel."
        )
    return name
