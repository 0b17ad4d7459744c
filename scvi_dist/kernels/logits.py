"""The last layer of a decoder, applied to many batches of hidden units. For CPUs.

Axis suffixes: ``n`` rows, ``h`` hidden units, ``g`` genes.
"""

from functools import partial

import numpy as np
from torch import Tensor

from scvi_dist.kernels import threads
from scvi_dist.kernels.active_units import ActiveProducts
from scvi_dist.kernels.problem import Head
from scvi_dist.kernels.workspace import Workspace


class Logits:
    """Products of hidden units with weights that stay, of the units that are not zero.

    Parameters
    ----------
    head
        Whose weights they are; copied where they are not kept by hidden unit.
    """

    def __init__(self, head: Head) -> None:
        self._weight_hg = np.ascontiguousarray(head.weight_gh.detach().numpy().T)
        self._bias_g = head.bias_g.detach().numpy()
        self._space = Workspace()

    def of(self, hidden_nh: Tensor) -> np.ndarray:
        """``[n, g]``, which the next call writes over."""
        units_nh = hidden_nh.contiguous().numpy()
        n, h = units_nh.shape
        real = units_nh.dtype
        logits_ng = self._space.array("logits", (n, self._weight_hg.shape[1]), real)
        spans = threads.cuts(0, n, threads.n_threads())
        threads.run([partial(self._multiply, units_nh, rows, h, logits_ng) for rows in spans])
        return logits_ng

    def _multiply(
        self, units_nh: np.ndarray, rows: tuple[int, int], n_units: int, logits_ng: np.ndarray
    ) -> None:
        # Each thread has room of its own there.
        products = ActiveProducts(self._space, "logits", units_nh)
        out_rg = logits_ng[rows[0] : rows[1]]
        products.logits(rows, (0, n_units), self._weight_hg, self._bias_g, out_rg)
