"""Likelihoods of counts by Triton's kernels, between the matrix products of torch. For GPUs.

Cells are done block by block; a block's logits stay in the cache of the device until they are used
again. Nothing waits for the device, and sums are taken in the same order each time. Whether torch
may round what it multiplies to TF32, ``torch.set_float32_matmul_precision`` says.

Axis suffixes: ``n`` cells, ``r`` those of a block, ``g`` genes, ``h`` hidden units, ``t`` kinds of
cells that have dispersions of their own, ``m`` counts.
"""

from typing import Any

import torch
from torch import Tensor

from scvi_dist.kernels.count_rows_triton import N_KEPT, put_together, take_counts
from scvi_dist.kernels.problem import CountProblem, CountResult
from scvi_dist.kernels.triton_math import OPTIONS

BLOCK_BYTES = 40 << 20
"""Of the logits of a block: no more than the second-level cache of an A100 or H100."""
LEAST_ROWS = 256
"""Of a block: about two for each processor of such a device; fewer would leave some idle."""
BLOCK_G, BLOCK_M = 1_024, 256
"""Genes and counts that a program computes at a time."""
N_WARPS = 8


def evaluate(problem: CountProblem, weight_n: Tensor, wanted: frozenset[str]) -> CountResult:
    """Losses and derivatives; see :data:`~scvi_dist.kernels.count_loss.Evaluate`."""
    run = _Evaluation(problem, weight_n, wanted)
    n = problem.counts.shape[0]
    # A device other than the current one would be given the addresses of another.
    with torch.cuda.device_of(problem.hidden_nh):
        for first in range(0, n, run.n_rows):
            run.block(first, min(first + run.n_rows, n))
    return run.result()


class _Evaluation:
    """One evaluation."""

    def __init__(self, problem: CountProblem, weight_n: Tensor, wanted: frozenset[str]) -> None:
        self.p, self.wanted = problem, wanted
        self.dtype = problem.hidden_nh.dtype
        n, g = problem.counts.shape
        self.hidden_nh = problem.hidden_nh.contiguous()
        self.size_n = problem.log_size_n.double().exp()
        self.weight_n = weight_n.double().contiguous()
        self.loss_n, self.size_slope_n = (
            torch.empty_like(self.size_n),
            torch.zeros_like(self.size_n),
        )
        self.entries = self._new(N_KEPT if wanted else 0, len(problem.counts.data))
        self.theta_tg = self.kind_n = None
        if problem.log_theta_tg is not None:
            self.theta_tg = problem.log_theta_tg.exp().contiguous()
            self.kind_n = self._kinds(len(self.theta_tg))
        arrays = [name for name, _ in problem.heads]
        if "log_theta_tg" in wanted:
            arrays.append("log_theta")
        size = torch.finfo(self.dtype).bits // 8
        self.n_rows = max(LEAST_ROWS, BLOCK_BYTES // max(1, len(arrays) * g * size) // 64 * 64)
        self.blocks = {name: self._new(min(n, self.n_rows), g) for name in arrays}
        self.gradients: dict[str, Tensor] = {}
        if "hidden_nh" in wanted:
            self.gradients["hidden_nh"] = torch.zeros_like(self.hidden_nh)

    def _new(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.p.hidden_nh.device)

    def _kinds(self, n_kinds: int) -> Tensor:
        """int64 ``[n]``; a look-up refuses those without dispersions, as kernels do not."""
        if self.p.group_n is None:
            return self.p.groups()
        kinds_t = torch.arange(n_kinds, device=self.p.hidden_nh.device)
        return kinds_t.index_select(0, self.p.group_n)

    def block(self, first: int, stop: int) -> None:
        """Losses of some cells, and what they add to the gradients."""
        hidden_rh = self.hidden_nh[first:stop]
        blocks = {name: block[: stop - first] for name, block in self.blocks.items()}
        for name, head in self.p.heads:
            weight_hg = head.weight_gh.t()
            torch.addmm(head.bias_g, head.seen(hidden_rh), weight_hg, out=blocks[name])
        self._kernels(blocks, first, stop)
        for name, head in self.p.heads:
            slope_rg = blocks[name]
            if "hidden_nh" in self.wanted:
                by_hidden_rh = self.gradients["hidden_nh"][first:stop]
                head.seen(by_hidden_rh).addmm_(slope_rg, head.weight_gh)
            if f"{name}.weight" in self.wanted:
                self._add_product(f"{name}.weight", slope_rg, head.seen(hidden_rh), head.weight_gh)
            if f"{name}.bias" in self.wanted:
                self._add(f"{name}.bias", slope_rg.sum(0))
        if "log_theta_tg" in self.wanted:
            self._add("log_theta_tg", self._by_kind(blocks["log_theta"], first, stop))

    def _kernels(self, blocks: dict[str, Tensor], first: int, stop: int) -> None:
        scale_rg = blocks["scale"]
        # A law without one of the arrays never looks at what stands in its place.
        cell_theta_rg, dropout_rg = blocks.get("dispersion"), blocks.get("dropout", scale_rg)
        theta_tg = scale_rg if self.theta_tg is None else self.theta_tg
        theta_slope_rg = blocks.get("log_theta", scale_rg)
        if cell_theta_rg is not None:
            theta_tg = theta_slope_rg = cell_theta_rg
        counts, size_r = self.p.counts, self.size_n[first:]
        rows = counts.indptr[first:], counts.indices, counts.data
        kind_r = size_r if self.kind_n is None else self.kind_n[first:]
        cells = self.size_n.new_empty(N_KEPT, stop - first)
        sizes = counts.n_genes, self.entries.shape[1]
        flags: dict[str, Any] = {
            "IS_SOFTMAX": self.p.law.scale == "softmax",
            "LAW": self.p.law.counts,
            "BY_CELL": cell_theta_rg is not None,
            "WANTS": bool(self.wanted),
            "BLOCK_G": BLOCK_G,
            "BLOCK_M": BLOCK_M,
            "num_warps": N_WARPS,
            **OPTIONS,
        }
        take_counts[(stop - first,)](
            scale_rg, dropout_rg, theta_tg, *rows, size_r, kind_r, cells, self.entries, *sizes,
            **flags,
        )  # fmt: skip
        put_together[(stop - first,)](
            scale_rg, dropout_rg, theta_tg, theta_slope_rg, *rows, size_r, self.weight_n[first:],
            kind_r, cells, self.entries, self.loss_n[first:], self.size_slope_n[first:], *sizes,
            WANTS_THETA=theta_slope_rg is not scale_rg and bool(self.wanted),
            **flags,
        )  # fmt: skip

    def _by_kind(self, slope_rg: Tensor, first: int, stop: int) -> Tensor:
        """Sums ``[t, g]`` over the cells of each kind.

        As a product with indicators, which adds in the same order each time, as scattering does
        not.
        """
        assert self.theta_tg is not None
        assert self.kind_n is not None
        n_kinds = len(self.theta_tg)
        if n_kinds == 1:
            return slope_rg.sum(0, keepdim=True)
        kinds_t1 = torch.arange(n_kinds, device=slope_rg.device)[:, None]
        return (kinds_t1 == self.kind_n[first:stop]).to(self.dtype) @ slope_rg

    def _add_product(self, key: str, slope_rg: Tensor, seen_rh: Tensor, like_gh: Tensor) -> None:
        if key in self.gradients:
            self.gradients[key].addmm_(slope_rg.t(), seen_rh)
        else:
            gradient_gh = self.gradients[key] = torch.empty_like(like_gh)
            torch.mm(slope_rg.t(), seen_rh, out=gradient_gh)

    def _add(self, key: str, value: Tensor) -> None:
        self.gradients[key] = self.gradients[key].add_(value) if key in self.gradients else value

    def result(self) -> CountResult:
        """The losses, and the gradients that were wanted."""
        if "log_size_n" in self.wanted:
            self.gradients["log_size_n"] = self.size_slope_n.to(self.dtype)
        return CountResult(self.loss_n.to(self.dtype), self.gradients)
