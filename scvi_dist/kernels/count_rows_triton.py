"""Triton's kernels for the cells of a block: the loss of each and its derivatives by the logits.

Each program computes one cell. The first kernel looks at the cell's counts, in float64; the second
at all genes as if their counts were zeros, and puts together what both found. They are two because
few threads that compute in float64 fit on a processor at a time.

Axis suffixes: ``r`` cells of a block, ``g`` genes, ``m`` entries of the minibatch's counts.
"""

import triton
import triton.language as tl

from scvi_dist.kernels.count_terms_triton import EPS, count_terms, scale_of, zero_terms
from scvi_dist.kernels.triton_math import half_logistic

N_KEPT = 4
INNER, PULL, BY_THETA, BY_DROPOUT = (tl.constexpr(k) for k in range(N_KEPT))
"""Rows of what is kept of each count from one kernel to the next."""
HIGH, DIVISOR, LOSS, TOTAL = (tl.constexpr(k) for k in range(N_KEPT))
"""Rows of what is kept of each cell: the largest logit, what scales are divided by, and the sums
over counts of losses and of means times slopes."""
_LOWEST = tl.constexpr(-3e38)


@triton.jit
def _divisor(logits: tl.tensor, n_genes: tl.tensor, BLOCK_G: tl.constexpr) -> tuple[tl.tensor, ...]:
    """The largest logit, and the sum of exponentials of all relative to it."""
    real = logits.dtype.element_ty
    lane = tl.arange(0, BLOCK_G)
    high = tl.full([BLOCK_G], _LOWEST, real)
    total = tl.zeros([BLOCK_G], real)
    for start in range(0, n_genes, BLOCK_G):
        x = tl.load(logits + start + lane, start + lane < n_genes, other=-float("inf"))
        # The larger one of a number and a NaN is the number: the NaN goes into the sum.
        higher = tl.maximum(high, x)
        total = total * tl.exp(high - higher) + tl.exp(x - higher)
        high = higher
    highest = tl.max(high, 0)
    return highest, tl.sum(total * tl.exp(high - highest), 0)


@triton.jit
def _zeros_at(
    g: tl.tensor,
    n_genes: tl.tensor,
    logits: tl.tensor,
    dropout: tl.tensor,
    theta: tl.tensor,
    high: tl.tensor,
    factor: tl.tensor,
    IS_SOFTMAX: tl.constexpr,
    LAW: tl.constexpr,
    BY_CELL: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """:func:`zero_terms` of some genes, and before them the mean and the scale's derivative."""
    is_gene = g < n_genes
    scale, inner = scale_of(tl.load(logits + g, is_gene, other=-float("inf")), high, IS_SOFTMAX)
    mu = scale * factor
    own_theta, own_dropout = mu, mu
    if LAW != "poisson":
        own_theta = tl.load(theta + g, is_gene, other=1.0)
        if BY_CELL:
            own_theta = tl.exp(own_theta)
    if LAW == "zinb":
        own_dropout = tl.load(dropout + g, is_gene, other=0.0)
    loss, by_mu, by_theta, by_dropout = zero_terms(mu, own_theta, own_dropout, IS_SOFTMAX, LAW)
    return inner, mu, loss, by_mu, by_theta, by_dropout


@triton.jit
def _counts_at(
    counts: tl.tensor, m: tl.tensor, is_entry: tl.tensor, LAW: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """Counts in float64, and which entries are any; those that are not are ones."""
    x = tl.load(counts + m, is_entry, other=0.0).to(tl.float64)
    # A NaN is to be seen in the loss, and so is no zero.
    is_count = is_entry & (x != 0.0)
    if LAW == "zinb":
        is_count = is_count & ((x >= EPS) | (x != x))
    return tl.where(is_count, x, 1.0), is_count


@triton.jit
def _counted(
    entries: tl.tensor,
    m: tl.tensor,
    is_entry: tl.tensor,
    n_entries: tl.tensor,
    genes: tl.tensor,
    counts: tl.tensor,
    logits: tl.tensor,
    dropout: tl.tensor,
    theta: tl.tensor,
    high: tl.tensor,
    factor: tl.tensor,
    IS_SOFTMAX: tl.constexpr,
    LAW: tl.constexpr,
    BY_CELL: tl.constexpr,
    WANTS: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Losses of some counts and their means times slopes; their genes' logits become ``-∞``.

    A gene with a count has the scale 0 from then on, and costs nothing as a zero.
    """
    x, is_count = _counts_at(counts, m, is_entry, LAW)
    g = tl.load(genes + m, is_count, other=0).to(tl.int64)
    logit = tl.load(logits + g, is_count, other=0.0)
    scale, inner = scale_of(logit, tl.where(is_count, high, 0.0).to(logit.dtype), IS_SOFTMAX)
    mu = scale.to(tl.float64) * tl.where(is_count, factor, 1.0)
    own_theta = mu
    if LAW != "poisson":
        own_theta = tl.load(theta + g, is_count, other=0.0 if BY_CELL else 1.0)
        if BY_CELL:
            own_theta = tl.exp(own_theta)
    loss, by_mu, by_theta = count_terms(x, mu, own_theta.to(tl.float64), IS_SOFTMAX, LAW)
    total = tl.where(is_count, mu * by_mu, 0.0)
    if LAW == "zinb":
        pi = tl.load(dropout + g, is_count, other=0.0)
        low, sigmoid = half_logistic(pi)
        loss += (tl.maximum(pi, 0.0) + low).to(tl.float64)
        if WANTS:
            tl.store(entries + BY_DROPOUT * n_entries + m, sigmoid, is_count)
    if WANTS:
        pull = inner.to(tl.float64) * factor * by_mu
        tl.store(entries + INNER * n_entries + m, inner, is_count)
        tl.store(entries + PULL * n_entries + m, pull.to(logit.dtype), is_count)
        if LAW != "poisson":
            tl.store(entries + BY_THETA * n_entries + m, by_theta.to(logit.dtype), is_count)
    tl.store(logits + g, tl.zeros_like(logit) - float("inf"), is_count)
    return tl.where(is_count, loss, 0.0), total


# Each minibatch has another number of entries: code for each kind of number would be built anew.
@triton.jit(do_not_specialize=["n_entries"])
def take_counts(
    logits_rg: tl.tensor,
    dropout_rg: tl.tensor,
    theta_tg: tl.tensor,
    indptr_r: tl.tensor,
    genes: tl.tensor,
    counts: tl.tensor,
    size_r: tl.tensor,
    kind_r: tl.tensor,
    cells: tl.tensor,
    entries: tl.tensor,
    n_genes: tl.tensor,
    n_entries: tl.tensor,
    IS_SOFTMAX: tl.constexpr,
    LAW: tl.constexpr,
    BY_CELL: tl.constexpr,
    WANTS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> None:
    """What the counts of some cells cost; where they are, the logits of the scales become ``-∞``.

    Parameters
    ----------
    logits_rg, dropout_rg
        Logits of the scales and of extra zeros.
    theta_tg
        Dispersions of each kind of cells; with ``BY_CELL`` logarithms ``[r, g]`` of each cell's.
    indptr_r, genes, counts
        The cells' rows of a CSR matrix.
    size_r, kind_r
        float64 and int64: what the scales are multiplied by, and rows of ``theta_tg``.
    cells, entries
        float64 ``[4, r]``, filled; and ``[4, m]``, filled where derivatives are wanted.
    """
    r, n_rows = tl.program_id(0), tl.num_programs(0)
    row = r.to(tl.int64) * n_genes
    logits, dropout, theta = logits_rg + row, dropout_rg + row, theta_tg + row
    if LAW != "poisson" and not BY_CELL:
        theta = theta_tg + tl.load(kind_r + r) * n_genes
    real = logits_rg.dtype.element_ty
    begin, end = tl.load(indptr_r + r), tl.load(indptr_r + r + 1)
    high, divisor = tl.full([], 0.0, real), tl.full([], 1.0, real)
    if IS_SOFTMAX:
        high, divisor = _divisor(logits, n_genes, BLOCK_G)
    factor = tl.load(size_r + r) / divisor.to(tl.float64)
    # What all threads have read is overwritten from here on.
    tl.debug_barrier()
    loss_m, total_m = tl.zeros([BLOCK_M], tl.float64), tl.zeros([BLOCK_M], tl.float64)
    for start in range(0, (end - begin).to(tl.int32), BLOCK_M):
        m = begin + start + tl.arange(0, BLOCK_M)
        loss, total = _counted(
            entries, m, m < end, n_entries, genes, counts, logits, dropout, theta, high, factor,
            IS_SOFTMAX, LAW, BY_CELL, WANTS,
        )  # fmt: skip
        loss_m += loss
        total_m += total
    tl.store(cells + HIGH * n_rows + r, high.to(tl.float64))
    tl.store(cells + DIVISOR * n_rows + r, divisor.to(tl.float64))
    tl.store(cells + LOSS * n_rows + r, tl.sum(loss_m, 0))
    tl.store(cells + TOTAL * n_rows + r, tl.sum(total_m, 0))


@triton.jit
def _write_slopes(
    logits: tl.tensor,
    dropout: tl.tensor,
    theta: tl.tensor,
    theta_slope: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    genes: tl.tensor,
    counts: tl.tensor,
    entries: tl.tensor,
    n_entries: tl.tensor,
    n_genes: tl.tensor,
    high: tl.tensor,
    factor: tl.tensor,
    weight: tl.tensor,
    shift: tl.tensor,
    IS_SOFTMAX: tl.constexpr,
    LAW: tl.constexpr,
    BY_CELL: tl.constexpr,
    WANTS_THETA: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> None:
    """Derivatives by the logits in their places: as if all counts were zeros, then the counts'."""
    real = logits.dtype.element_ty
    has_part = weight != 0.0
    f, w, s = factor.to(real), weight.to(real), shift.to(real)
    pull_of_mu = (factor * weight).to(real)
    for start in range(0, n_genes, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)
        inner, _, _, by_mu, by_theta, by_dropout = _zeros_at(
            g, n_genes, logits, dropout, theta, high, f, IS_SOFTMAX, LAW, BY_CELL
        )
        by_logit = inner * (pull_of_mu * by_mu - s)
        tl.store(logits + g, tl.where(has_part, by_logit, 0.0), g < n_genes)
        if LAW == "zinb":
            tl.store(dropout + g, tl.where(has_part, w * by_dropout, 0.0), g < n_genes)
        if WANTS_THETA:
            tl.store(theta_slope + g, tl.where(has_part, w * by_theta, 0.0), g < n_genes)
    tl.debug_barrier()
    for start in range(0, (end - begin).to(tl.int32), BLOCK_M):
        m = begin + start + tl.arange(0, BLOCK_M)
        _, is_count = _counts_at(counts, m, m < end, LAW)
        g = tl.load(genes + m, is_count, other=0).to(tl.int64)
        pull = tl.load(entries + PULL * n_entries + m, is_count, other=0.0)
        inner = tl.load(entries + INNER * n_entries + m, is_count, other=0.0)
        tl.store(logits + g, tl.where(has_part, w * pull - s * inner, 0.0), is_count)
        if LAW == "zinb":
            by_dropout = tl.load(entries + BY_DROPOUT * n_entries + m, is_count, other=0.0)
            tl.store(dropout + g, tl.where(has_part, w * by_dropout, 0.0), is_count)
        if WANTS_THETA:
            by_theta = tl.load(entries + BY_THETA * n_entries + m, is_count, other=0.0)
            tl.store(theta_slope + g, tl.where(has_part, w * by_theta, 0.0), is_count)


@triton.jit(do_not_specialize=["n_entries"])
def put_together(
    logits_rg: tl.tensor,
    dropout_rg: tl.tensor,
    theta_tg: tl.tensor,
    theta_slope_rg: tl.tensor,
    indptr_r: tl.tensor,
    genes: tl.tensor,
    counts: tl.tensor,
    size_r: tl.tensor,
    weight_r: tl.tensor,
    kind_r: tl.tensor,
    cells: tl.tensor,
    entries: tl.tensor,
    loss_r: tl.tensor,
    size_slope_r: tl.tensor,
    n_genes: tl.tensor,
    n_entries: tl.tensor,
    IS_SOFTMAX: tl.constexpr,
    LAW: tl.constexpr,
    BY_CELL: tl.constexpr,
    WANTS: tl.constexpr,
    WANTS_THETA: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
) -> None:
    """Losses of some cells, and derivatives of their weighted sum in the places of the logits.

    Parameters
    ----------
    logits_rg, dropout_rg, theta_tg, indptr_r, genes, counts, size_r, kind_r, cells, entries
        As :func:`take_counts` left them. The logits become the derivatives by them.
    theta_slope_rg
        Filled with the derivatives by the logarithms of the dispersions; may be ``theta_tg`` with
        ``BY_CELL``.
    weight_r
        float64: derivatives of the objective by the losses.
    loss_r, size_slope_r
        float64, filled: losses, and derivatives by the logarithms of the sizes.
    """
    r, n_rows = tl.program_id(0), tl.num_programs(0)
    row = r.to(tl.int64) * n_genes
    logits, dropout, theta_slope = logits_rg + row, dropout_rg + row, theta_slope_rg + row
    theta = theta_tg + row
    if LAW != "poisson" and not BY_CELL:
        theta = theta_tg + tl.load(kind_r + r) * n_genes
    real = logits_rg.dtype.element_ty
    high = tl.load(cells + HIGH * n_rows + r).to(real)
    divisor = tl.load(cells + DIVISOR * n_rows + r)
    factor = tl.load(size_r + r) / divisor
    f = factor.to(real)
    loss_g, total_g = tl.zeros([BLOCK_G], real), tl.zeros([BLOCK_G], real)
    for start in range(0, n_genes, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)
        _, mu, loss, by_mu, _, _ = _zeros_at(
            g, n_genes, logits, dropout, theta, high, f, IS_SOFTMAX, LAW, BY_CELL
        )
        loss_g += loss
        total_g += mu * by_mu
    mean = tl.zeros([], tl.float64)
    if LAW == "poisson" and IS_SOFTMAX:
        mean += factor * divisor
    zeros_loss = tl.sum(loss_g.to(tl.float64), 0)
    tl.store(loss_r + r, tl.load(cells + LOSS * n_rows + r) + zeros_loss + mean)
    if WANTS:
        total = tl.load(cells + TOTAL * n_rows + r) + tl.sum(total_g.to(tl.float64), 0)
        weight = tl.load(weight_r + r)
        tl.store(size_slope_r + r, tl.where(weight != 0.0, weight * (total + mean), 0.0))
        shift = tl.zeros([], tl.float64)
        if IS_SOFTMAX:
            shift += weight * total / divisor
        begin, end = tl.load(indptr_r + r), tl.load(indptr_r + r + 1)
        # What all threads have read is overwritten from here on.
        tl.debug_barrier()
        _write_slopes(
            logits, dropout, theta, theta_slope, begin, end, genes, counts, entries, n_entries,
            n_genes, high, factor, weight, shift,
            IS_SOFTMAX, LAW, BY_CELL, WANTS_THETA, BLOCK_G, BLOCK_M,
        )  # fmt: skip
