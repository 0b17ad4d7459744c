"""The two ways to what a minibatch says of its cells' types.

Axis suffixes: ``n`` cells, ``g`` genes, ``c`` types.
"""

from collections.abc import Callable

from torch import Tensor

from scvi_dist.batch import SparseCounts
from scvi_dist.kernels.cell_types import TypeParameters, TypeTerms, expected_loss
from scvi_dist.module.cellassign_likelihood import type_log_likelihood


def expected_loss_by_slices(
    x: SparseCounts | Tensor, given: TypeParameters, n_real: int
) -> TypeTerms:
    """What :func:`~scvi_dist.kernels.cell_types.expected_loss` gives, on any device.

    Cells are taken some at a time, and once more on the way back.
    """
    x_ng = x if isinstance(x, Tensor) else x.to_dense()
    log_p_nc = type_log_likelihood(
        x_ng.to(given.log_base_ng.dtype),
        given.log_base_ng,
        given.shift_gc,
        given.a_b,
        given.means_b.to(given.log_base_ng.dtype),
    )
    log_joint_nc = log_p_nc + given.log_proportion_c
    real_nc = log_joint_nc[:n_real]
    expected = -(real_nc.softmax(1) * real_nc).sum()
    return TypeTerms(log_joint_nc.detach(), expected)


KERNELS: dict[str, Callable[[SparseCounts | Tensor, TypeParameters, int], TypeTerms]] = {
    "numba": expected_loss,
    "torch": expected_loss_by_slices,
}
"""By the name that a module's ``kernel`` has."""
