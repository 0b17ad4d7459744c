"""Products with hidden units of which many are zero, as a ReLU leaves them; compiled, for CPUs.

A dense product multiplies by each zero. Here sums stay in registers while a row's active units are
gone through, one row of a tile of the other factor for each: half the units take little more than
half the time.

Axis suffixes: ``n`` rows, ``k`` columns that are summed over, ``g`` genes.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from scvi_dist.kernels.compiled import compiled
from scvi_dist.kernels.workspace import Workspace

STRETCH = 64
"""Columns whose part of the tile is in the cache together."""
_VECTORS, _VECTOR_BYTES = 6, 64
"""Of sums in registers; with fewer the processor waits for each."""
TILE_BYTES = _VECTORS * _VECTOR_BYTES
"""A row of a tile; 64 of them fit into 32 KiB with room for what streams past."""


class Active(NamedTuple):
    """The entries of a matrix ``[n, k]`` that are not zero."""

    starts: np.ndarray
    """int64 ``[n, s + 1]``: where the entries of each stretch of columns begin, and end."""
    columns: np.ndarray
    """int32: column of each entry, counted from the first of its stretch."""
    values: np.ndarray


def n_stretches(n_columns: int) -> int:
    """Stretches that a row has."""
    return -(-n_columns // STRETCH)


@compiled()
def find_active(
    hidden_nh: np.ndarray,
    rows: tuple[int, int],
    units: tuple[int, int],
    by_unit: bool,
    active: Active,
) -> int:
    """Fill ``active`` with a part of the hidden units, or its transpose; the number of entries.

    Parameters
    ----------
    rows, units
        First and one after the last of the part.
    by_unit
        Whether the matrix has a row for each unit, and not for each row of these.
    active
        With room for all entries.
    """
    outer, inner = (units, rows) if by_unit else (rows, units)
    count = 0
    for i in range(outer[0], outer[1]):
        for s in range(active.starts.shape[1] - 1):
            active.starts[i - outer[0], s] = count
            first = inner[0] + s * STRETCH
            for j in range(first, min(first + STRETCH, inner[1])):
                value = hidden_nh[j, i] if by_unit else hidden_nh[i, j]
                active.columns[count] = j - first
                active.values[count] = value
                # Without a branch: what is zero is written over. A NaN is no zero.
                count += value != 0.0
        active.starts[i - outer[0], -1] = count
    return count


@compiled()
def multiply_active(
    active: Active,
    matrix_kg: np.ndarray,
    genes: tuple[int, int],
    bias_g: np.ndarray,
    tile: np.ndarray,
    out_ng: np.ndarray,
) -> None:
    """Fill some columns of ``out_ng`` with ``active @ matrix_kg + bias_g``.

    Parameters
    ----------
    genes
        First column and one after the last.
    bias_g
        Where it is empty, the product is added to ``out_ng``.
    tile
        Room: ``[STRETCH + 1, TILE_BYTES // itemsize]``.
    """
    n, n_genes = out_ng.shape
    starts, columns, values = active.starts, active.columns, active.values
    width, spare = tile.shape[1], tile[STRETCH]
    for a in range(genes[0], genes[1], width):
        w = min(width, genes[1] - a)
        for s in range(starts.shape[1] - 1):
            first = s * STRETCH
            for k in range(min(STRETCH, matrix_kg.shape[0] - first)):
                tile[k, :w] = matrix_kg[first + k, a : a + w]
            is_first = s == 0 and bias_g.size > 0
            for row in range(n):
                start, stop, at = starts[row, s], starts[row, s + 1], row * n_genes + a
                if w < width:
                    spare[:w] = bias_g[a : a + w] if is_first else out_ng[row, a : a + w]
                    _add_rows(spare, 0, spare, 0, tile, columns, values, start, stop)
                    out_ng[row, a : a + w] = spare[:w]
                elif is_first:
                    _add_rows(out_ng, at, bias_g, a, tile, columns, values, start, stop)
                else:
                    _add_rows(out_ng, at, out_ng, at, tile, columns, values, start, stop)


@intrinsic
def _add_rows(
    typing_context: Any,
    out: Any,
    at: Any,
    before: Any,
    before_at: Any,
    tile: Any,
    columns: Any,
    values: Any,
    start: Any,
    stop: Any,
) -> Any:
    """``out = before + Σ values[i] tile[columns[i]]`` over ``start <= i < stop``.

    ``out`` and ``before`` are a row of the tile long and begin at these entries of contiguous
    arrays; nothing is checked. The compiler keeps no sums of a whole row in registers by itself,
    and a view for each row would cost as much as the sums.
    """
    at, before_at, start, stop = (types.intp,) * 4
    signature = types.void(out, at, before, before_at, tile, columns, values, start, stop)
    return signature, _emit_rows


def _emit_rows(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    def data(k: int) -> Any:
        return context.make_array(signature.args[k])(context, builder, arguments[k]).data

    out, before = (builder.gep(data(k), [arguments[k + 1]]) for k in (0, 2))
    tile, columns, values = map(data, (4, 5, 6))
    start, stop = arguments[7:]
    real = context.get_data_type(signature.args[4].dtype)
    lanes = _VECTOR_BYTES // context.get_abi_sizeof(real)
    vector = ir.VectorType(real, lanes)

    def vectors(row: Any) -> list[Any]:
        first = builder.bitcast(row, vector.as_pointer())
        return [builder.gep(first, [ir.Constant(start.type, k)]) for k in range(_VECTORS)]

    def load(pointer: Any) -> Any:
        loaded = builder.load(pointer)
        loaded.align = context.get_abi_sizeof(real)
        return loaded

    initial = [load(pointer) for pointer in vectors(before)]
    entry = builder.block
    head, body, end = (builder.append_basic_block(name) for name in ("rows", "row", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    i = builder.phi(start.type)
    i.add_incoming(start, entry)
    sums = [builder.phi(vector) for _ in initial]
    for total, value in zip(sums, initial, strict=True):
        total.add_incoming(value, entry)
    builder.cbranch(builder.icmp_signed("<", i, stop), body, end)
    builder.position_at_end(body)
    column = builder.sext(builder.load(builder.gep(columns, [i])), start.type)
    width = ir.Constant(start.type, _VECTORS * lanes)
    row = builder.gep(tile, [builder.mul(column, width)])
    undefined, lane = ir.Constant(vector, ir.Undefined), ir.IntType(32)
    factor = builder.insert_element(
        undefined, builder.load(builder.gep(values, [i])), ir.Constant(lane, 0)
    )
    everywhere = ir.Constant(ir.VectorType(lane, lanes), [0] * lanes)
    factor = builder.shuffle_vector(factor, undefined, everywhere)
    for total, pointer in zip(sums, vectors(row), strict=True):
        product = builder.fmul(factor, load(pointer), flags=("contract",))
        total.add_incoming(builder.fadd(total, product, flags=("contract",)), body)
    i.add_incoming(builder.add(i, ir.Constant(start.type, 1)), body)
    builder.branch(head)
    builder.position_at_end(end)
    for total, pointer in zip(sums, vectors(out), strict=True):
        stored = builder.store(total, pointer)
        stored.align = context.get_abi_sizeof(real)
    return context.get_dummy_value()


class ActiveProducts:
    """Products of one thread, in room that it keeps.

    Parameters
    ----------
    space
        Whose arrays these are.
    name
        What they are called there, after what they are for.
    hidden_nh
        Contiguous.
    """

    def __init__(self, space: Workspace, name: str, hidden_nh: np.ndarray) -> None:
        self._space, self._name, self._hidden_nh = space, name, hidden_nh
        real = hidden_nh.dtype
        room = space.array(f"tile {name}", ((STRETCH + 1) * TILE_BYTES + TILE_BYTES,), np.uint8)
        # A vector that lies in two lines of the cache takes twice as long.
        first = -room.ctypes.data % _VECTOR_BYTES
        room = room[first : first + (STRETCH + 1) * TILE_BYTES]
        self._tile = room.view(real).reshape(STRETCH + 1, -1)

    def logits(
        self,
        rows: tuple[int, int],
        units: tuple[int, int],
        weight_hg: np.ndarray,
        bias_g: np.ndarray,
        out_rg: np.ndarray,
    ) -> None:
        """Fill ``out_rg`` with the units of these rows times the weights, plus the bias."""
        active = self._active(rows, units, by_unit=False)
        genes = (0, out_rg.shape[1])
        multiply_active(active, weight_hg, genes, bias_g, self._tile, out_rg)

    def add_weights(
        self,
        rows: tuple[int, int],
        units: tuple[int, int],
        slope_rg: np.ndarray,
        genes: tuple[int, int],
        gradient_hg: np.ndarray,
        is_new: bool,
    ) -> None:
        """Add the transposed units of these rows times their slopes, for some genes.

        ``is_new`` says that nothing is there to be added to.
        """
        active = self._active(rows, units, by_unit=True)
        real = self._hidden_nh.dtype
        before_g = np.zeros(gradient_hg.shape[1] if is_new else 0, real)
        multiply_active(active, slope_rg, genes, before_g, self._tile, gradient_hg)

    def _active(self, rows: tuple[int, int], units: tuple[int, int], by_unit: bool) -> Active:
        outer, inner = (units, rows) if by_unit else (rows, units)
        n, n_columns = outer[1] - outer[0], inner[1] - inner[0]
        # One more: what comes after the last is written before it is known to be zero.
        room, real = (n * n_columns + 1,), self._hidden_nh.dtype
        active = Active(
            self._space.array(f"starts {self._name}", (n, n_stretches(n_columns) + 1), np.int64),
            self._space.array(f"columns {self._name}", room, np.int32),
            self._space.array(f"values {self._name}", room, real),
        )
        find_active(self._hidden_nh, rows, units, by_unit, active)
        return active
