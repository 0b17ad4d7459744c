"""Sparse rows times dense ones, of matrices that are gone through block by block."""

import numpy as np
import pytest

from scvi_dist.kernels.sparse_rows import MOST_BYTES, are_sorted, multiply_rows, transpose

N, G = 9, 1_300


def rows(
    rng: np.random.Generator, g: int, real: str, is_sorted: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CSR of ``N`` rows; the second is empty."""
    counts = rng.integers(1, 300, N)
    counts[1] = 0
    columns = [rng.choice(g, n, replace=False) for n in counts]
    columns = [np.sort(c) for c in columns] if is_sorted else columns
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    indices = np.concatenate(columns).astype(np.int32)
    return indptr, indices, rng.normal(size=len(indices)).astype(real)


@pytest.mark.parametrize("real", ["float32", "float64"])
@pytest.mark.parametrize("is_sorted", [True, False])
def test_large_matrices_are_multiplied_in_the_order_of_the_entries(
    is_sorted: bool, real: str
) -> None:
    rng = np.random.default_rng(0)
    h = 150
    g = 2 * MOST_BYTES // (h * np.dtype(real).itemsize)
    csr, matrix_gh = rows(rng, g, real, is_sorted), rng.normal(size=(g, h)).astype(real)
    indptr, indices, values = csr
    out_nh = np.full((N, h), np.nan, real)
    multiply_rows(2, N, *csr, matrix_gh, out_nh)
    assert np.isnan(out_nh[:2]).all()
    multiply_rows(0, 2, *csr, matrix_gh, out_nh)
    # The rows that are met alone, in the same order, lie in one block.
    few_kh, places = matrix_gh[indices], np.arange(len(indices), dtype=np.int32)
    assert few_kh.nbytes <= MOST_BYTES
    same_nh = np.empty_like(out_nh)
    multiply_rows(0, N, indptr, places, values, few_kh, same_nh)
    assert np.array_equal(out_nh, same_nh)
    dense_ng = np.zeros((N, g))
    dense_ng[np.repeat(np.arange(N), np.diff(indptr)), indices] = values
    assert np.abs(out_nh - dense_ng @ matrix_gh).max() < {"float32": 1e-4, "float64": 1e-12}[real]


@pytest.mark.parametrize("columns", [(0, G), (0, 700), (700, G)])
def test_entries_of_a_column_are_in_the_order_of_the_rows(columns: tuple[int, int]) -> None:
    a, b = columns
    for is_sorted in (True, False) if columns == (0, G) else (True,):
        csr = indptr, indices, values = rows(np.random.default_rng(1), G, "float32", is_sorted)
        assert are_sorted(indptr, indices) == is_sorted
        starts, of_rows = np.empty(b - a + 1, np.int64), np.full(len(indices), -1, np.int32)
        sorted_values = np.full_like(values, np.nan)
        transpose(columns, csr, is_sorted, (starts, of_rows, sorted_values))
        order = np.argsort(indices, kind="stable")
        assert np.array_equal(starts, np.searchsorted(indices[order], np.arange(a, b + 1)))
        wanted = slice(starts[0], starts[-1])
        seen = np.repeat(np.arange(N), np.diff(indptr))[order]
        assert np.array_equal(of_rows[wanted], seen[wanted])
        assert np.array_equal(sorted_values[wanted], values[order][wanted])
        assert (of_rows < 0).sum() == len(indices) - (wanted.stop - wanted.start)
