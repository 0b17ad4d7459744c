"""Products of sparse rows with dense ones by Triton's kernels. For GPUs.

Nothing waits for the device, and sums are taken in the same order each time.

Axis suffixes: ``n`` cells, ``g`` columns of the sparse matrix, ``h`` hidden units, ``m`` entries.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from scvi_dist.batch import SparseCounts
from scvi_dist.kernels.triton_math import OPTIONS

MOST_UNITS = 128
"""Hidden units that a program computes at a time."""
N_ROWS = 16
"""Entries whose dense rows a program adds at a time."""
BLOCK_M = 512


@triton.jit
def _multiply_rows(
    indptr_n: tl.tensor,
    genes_m: tl.tensor,
    values_m: tl.tensor,
    weight_gh: tl.tensor,
    out_nh: tl.tensor,
    n_units: tl.tensor,
    N_ROWS: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """Each program adds weights of one row's columns, for some units."""
    row = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    is_unit = unit < n_units
    begin, end = tl.load(indptr_n + row), tl.load(indptr_n + row + 1)
    total = tl.zeros([BLOCK_H], out_nh.dtype.element_ty)
    for start in range(0, (end - begin).to(tl.int32), N_ROWS):
        m = begin + start + tl.arange(0, N_ROWS)
        gene = tl.load(genes_m + m, m < end, other=0).to(tl.int64)
        value = tl.load(values_m + m, m < end, other=0.0).to(out_nh.dtype.element_ty)
        where = weight_gh + gene[:, None] * n_units + unit[None, :]
        weight = tl.load(where, (m < end)[:, None] & is_unit[None, :], other=0.0)
        total += tl.sum(value[:, None] * weight, 0)
    tl.store(out_nh + row * n_units + unit, total, is_unit)


@triton.jit
def _add_columns(
    first_g: tl.tensor,
    order_m: tl.tensor,
    rows_m: tl.tensor,
    values_m: tl.tensor,
    slope_nh: tl.tensor,
    gradient_gh: tl.tensor,
    n_units: tl.tensor,
    N_ROWS: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """Each program adds slopes of the rows that have one column, for some units."""
    gene = tl.program_id(0).to(tl.int64)
    unit = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    is_unit = unit < n_units
    begin, end = tl.load(first_g + gene), tl.load(first_g + gene + 1)
    total = tl.zeros([BLOCK_H], gradient_gh.dtype.element_ty)
    for start in range(0, (end - begin).to(tl.int32), N_ROWS):
        k = begin + start + tl.arange(0, N_ROWS)
        m = tl.load(order_m + k, k < end, other=0)
        row = tl.load(rows_m + m, k < end, other=0)
        value = tl.load(values_m + m, k < end, other=0.0).to(total.dtype)
        where = slope_nh + row[:, None] * n_units + unit[None, :]
        slope = tl.load(where, (k < end)[:, None] & is_unit[None, :], other=0.0)
        total += tl.sum(value[:, None] * slope, 0)
    tl.store(gradient_gh + gene * n_units + unit, total, is_unit)


@triton.jit
def _row_sums(
    indptr_n: tl.tensor, values_m: tl.tensor, sums_n: tl.tensor, BLOCK_M: tl.constexpr
) -> None:
    """Each program adds the entries of one row, in float64."""
    row = tl.program_id(0)
    begin, end = tl.load(indptr_n + row), tl.load(indptr_n + row + 1)
    total = tl.zeros([BLOCK_M], tl.float64)
    for start in range(0, (end - begin).to(tl.int32), BLOCK_M):
        m = begin + start + tl.arange(0, BLOCK_M)
        total += tl.load(values_m + m, m < end, other=0.0).to(tl.float64)
    tl.store(sums_n + row, tl.sum(total, 0).to(sums_n.dtype.element_ty))


def multiply(x: SparseCounts, weight_gh: Tensor) -> Tensor:
    """``[n, h]``, of the dtype of the weights."""
    n, h = x.shape[0], weight_gh.shape[1]
    out_nh = weight_gh.new_empty(n, h)
    if out_nh.numel():
        block_h, grid = _units(n, h)
        with torch.cuda.device_of(weight_gh):
            _multiply_rows[grid](
                x.indptr,
                x.indices,
                x.data,
                weight_gh.contiguous(),
                out_nh,
                h,
                N_ROWS=N_ROWS,
                BLOCK_H=block_h,
                **OPTIONS,
            )
    return out_nh


def scatter(x: SparseCounts, slope_nh: Tensor, gradient_gh: Tensor) -> None:
    """Fill the gradient, which is contiguous, with the transposed rows times the slopes.

    Entries are sorted by column first: adding to shared places as they come would give other sums
    each time, and all cells share the genes that most of them have.
    """
    g, h = gradient_gh.shape
    n, m = x.shape[0], len(x.data)
    if not m or not h:
        gradient_gh.zero_()
        return
    rows_n = torch.arange(n, device=x.data.device)
    rows_m = torch.repeat_interleave(rows_n, x.indptr.diff(), output_size=m)
    sorted_m, order_m = torch.sort(x.indices, stable=True)
    genes_g = torch.arange(g + 1, device=x.data.device, dtype=sorted_m.dtype)
    first_g = torch.searchsorted(sorted_m, genes_g)
    block_h, grid = _units(g, h)
    with torch.cuda.device_of(gradient_gh):
        _add_columns[grid](
            first_g,
            order_m,
            rows_m,
            x.data,
            slope_nh,
            gradient_gh,
            h,
            N_ROWS=N_ROWS,
            BLOCK_H=block_h,
            **OPTIONS,
        )


def log1p(x: SparseCounts) -> SparseCounts:
    """The logarithm of one plus each entry."""
    return SparseCounts(x.indptr, x.indices, torch.log1p(x.data), x.n_genes)


def row_sums(x: SparseCounts) -> Tensor:
    """The sum ``[n]`` of each row, of the dtype of the entries."""
    sums_n = x.data.new_empty(x.shape[0])
    if len(sums_n):
        with torch.cuda.device_of(sums_n):
            _row_sums[(len(sums_n),)](x.indptr, x.data, sums_n, BLOCK_M=BLOCK_M, **OPTIONS)
    return sums_n


def _units(n_programs: int, n_units: int) -> tuple[int, tuple[int, int]]:
    """Hidden units of a program, and the grid of programs."""
    block_h = min(MOST_UNITS, max(16, triton.next_power_of_2(n_units)))
    return block_h, (n_programs, triton.cdiv(n_units, block_h))
