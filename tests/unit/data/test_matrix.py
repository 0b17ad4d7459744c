"""Rows of a matrix: dense to sparse and back, and the selection of genes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scvi_dist.batch import CsrRows
from scvi_dist.data.memory import ArrayInMemory
from scvi_dist.data.on_disk.matrix import (
    CsrMatrix,
    DenseMatrix,
    csr_of_dense,
    empty_rows,
    gene_lookup,
    select_genes,
)
from scvi_dist.data.spans import span

blocks = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.sampled_from([0.0, 0.0, 0.0, 1.0, -2.5, float("inf"), float("nan")]),
)


@given(blocks)
def test_dense_rows_lose_zeros_only(dense_ng: np.ndarray) -> None:
    block = csr_of_dense(dense_ng)
    assert np.count_nonzero(block.data) == len(block.data)  # NaN counts as non-zero
    assert block.data.dtype == dense_ng.dtype
    np.testing.assert_array_equal(block.to_dense(), dense_ng)


@given(blocks, st.data())
def test_selected_genes_are_columns(dense_ng: np.ndarray, data: Any) -> None:
    g = dense_ng.shape[1]
    order = data.draw(st.permutations(range(g)))
    genes = np.array(order[: data.draw(st.integers(0, g))], dtype=np.int64)
    block = select_genes(csr_of_dense(dense_ng), gene_lookup(genes, g), len(genes))
    assert block.n_genes == len(genes)
    assert block.indptr.dtype == np.int64
    np.testing.assert_array_equal(block.to_dense(), dense_ng[:, genes])


def test_a_lookup_refuses_what_is_no_selection() -> None:
    assert gene_lookup(np.array([2, 0]), 4).tolist() == [1, -1, 0, -1]
    with pytest.raises(IndexError, match="gene 4"):
        gene_lookup(np.array([0, 4]), 4)
    with pytest.raises(IndexError, match="gene -1"):
        gene_lookup(np.array([-1]), 4)
    with pytest.raises(ValueError, match="twice"):
        gene_lookup(np.array([1, 1]), 4)


def test_no_rows() -> None:
    block = empty_rows(5, np.dtype("u1"))
    assert (block.n_cells, block.n_genes, block.data.dtype) == (0, 5, np.uint8)
    assert block.to_dense().shape == (0, 5)


@pytest.mark.parametrize("limit", [1, 40, 10_000])
@pytest.mark.parametrize("dense", [True, False])
def test_reading_in_portions_changes_nothing(
    limit: int, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scvi_dist.data.on_disk.matrix.GROUP_BYTES", limit)
    rng = np.random.default_rng(0)
    expected = rng.poisson(0.4, (50, 12)).astype(np.float32)
    if dense:
        matrix: Any = DenseMatrix("here", ArrayInMemory(expected))
    else:
        block = csr_of_dense(expected)
        arrays = (ArrayInMemory(part) for part in (block.indptr, block.indices, block.data))
        matrix = CsrMatrix("here", (50, 12), *arrays)
    spans = np.array([[0, 3], [7, 30], [49, 50]])
    rows = [*range(3), *range(7, 30), 49]
    genes = np.array([11, 3, 0])
    np.testing.assert_array_equal(matrix.read(spans, None).to_dense(), expected[rows])
    np.testing.assert_array_equal(matrix.read(spans, genes).to_dense(), expected[rows][:, genes])
    assert matrix.entries_per_row == pytest.approx(np.count_nonzero(expected) / 50)


def test_wide_matrices_have_wide_indices() -> None:
    g = 2**31 + 10
    parts = (np.array([0, 1]), np.array([g - 1]), np.array([3.0]))
    matrix = CsrMatrix("here", (1, g), *(ArrayInMemory(part) for part in parts))
    block = matrix.read(span(0, 1), None)
    assert block.indices.dtype == np.int64
    assert block.indices.tolist() == [g - 1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "int64"])
def test_indices_of_any_width_make_a_matrix_of_scipys(dtype: str) -> None:
    dense_ng = np.random.default_rng(0).poisson(0.3, (30, 200)).astype(np.float32)
    block = csr_of_dense(dense_ng)
    block = CsrRows(block.indptr, block.indices.astype(dtype), block.data, block.n_genes)
    matrix = block.to_scipy()
    assert matrix.indices.dtype in (np.int32, np.int64)
    np.testing.assert_array_equal(matrix.toarray(), dense_ng)
    np.testing.assert_array_equal((matrix @ matrix.T).toarray(), dense_ng @ dense_ng.T)
