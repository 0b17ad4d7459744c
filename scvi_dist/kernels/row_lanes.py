"""Weighted sums of rows of a matrix, kept in the processor's registers while rows are gone through.

The compiler keeps no sums of a whole row in registers by itself: it would load and store them for
each row that is added, and a view of each row would cost as much as the sums. So these loops are
written out in LLVM's vectors. Arrays are contiguous and seen as flat; nothing is checked.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import types
from numba.extending import intrinsic

from scvi_dist.kernels.lane_code import Lanes


@cache
def add_rows(n_vectors: int) -> Callable[..., None]:
    """A function for compiled code that sums stretches of rows.

    ``(out, at, before, before_at, matrix, matrix_at, stride, columns, values, start, stop)`` does
    ``out[at:] = before[before_at:] + Σ values[i] matrix[matrix_at + stride columns[i]:]`` over
    ``start <= i < stop``, each stretch ``n_vectors`` vectors long. All that is real has one type.
    """

    @intrinsic
    def add(
        typing_context: Any,
        out: Any,
        at: Any,
        before: Any,
        before_at: Any,
        matrix: Any,
        matrix_at: Any,
        stride: Any,
        columns: Any,
        values: Any,
        start: Any,
        stop: Any,
    ) -> Any:
        n = types.intp
        given = out, n, before, n, matrix, n, n, columns, values, n, n

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            lanes = Lanes(context, builder, signature, arguments, real=4, n_vectors=n_vectors)
            out, before, matrix = (lanes.pointer(k, arguments[k + 1]) for k in (0, 2, 4))
            columns, values, stride = lanes.pointer(7), lanes.pointer(8), arguments[6]

            def term(i: Any) -> tuple[Any, Any]:
                column = builder.load(builder.gep(columns, [i]))
                if column.type.width < i.type.width:
                    column = builder.sext(column, i.type)
                row = builder.gep(matrix, [builder.mul(column, stride)])
                return lanes.everywhere(builder.load(builder.gep(values, [i]))), row

            sums = lanes.sums(lanes.load_row(before), arguments[9:], term)
            lanes.store_row(sums, out)
            return context.get_dummy_value()

        return types.void(*given), generate

    return add


@cache
def add_entries(n_vectors: int, is_part: bool = False) -> Callable[..., None]:
    """As :func:`add_rows`, of rows that lie together in the cache.

    ``(out, at, ahead, before, before_at, tile, entries, start, stop, n_items)`` does
    ``out[at:] = before[before_at:] + Σ value tile[offset:]`` with the offset in bytes and the bits
    of the value in ``entries[i]``, an array ``[entries, 2]`` of integers as wide as the value.

    ``ahead`` is where the next call will write. Of a function for parts, no more than ``n_items``
    are read and written, less than ``n_vectors`` vectors hold.
    """

    @intrinsic
    def add(
        typing_context: Any,
        out: Any,
        at: Any,
        ahead: Any,
        before: Any,
        before_at: Any,
        tile: Any,
        entries: Any,
        start: Any,
        stop: Any,
        n_items: Any,
    ) -> Any:
        n = types.intp
        given = out, n, n, before, n, tile, entries, n, n, n

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            lanes = Lanes(context, builder, signature, arguments, real=0, n_vectors=n_vectors)
            out, before = lanes.pointer(0, arguments[1]), lanes.pointer(3, arguments[4])
            tile, entries = lanes.pointer(5), lanes.pointer(6)
            masks = lanes.masks(arguments[9]) if is_part else None
            # Else a line comes from a cache far away when it is stored to, and others wait for it.
            lanes.prefetch(lanes.pointer(0, arguments[2]), is_written=True)
            before_row = lanes.load_row(before, masks)
            sums = lanes.sums(before_row, arguments[7:9], lambda i: lanes.entry(entries, tile, i))
            lanes.store_row(sums, out, masks)
            return context.get_dummy_value()

        return types.void(*given), generate

    return add


@cache
def copy_row(n_vectors: int) -> Callable[..., None]:
    """A function for compiled code: ``(matrix, at, out, out_at)`` copies ``n_vectors`` vectors."""

    @intrinsic
    def copy(typing_context: Any, matrix: Any, at: Any, out: Any, out_at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            lanes = Lanes(context, builder, signature, arguments, real=0, n_vectors=n_vectors)
            row = lanes.load_row(lanes.pointer(0, arguments[1]))
            lanes.store_row(row, lanes.pointer(2, arguments[3]))
            return context.get_dummy_value()

        return types.void(matrix, types.intp, out, types.intp), generate

    return copy


@cache
def fetch_row(n_vectors: int) -> Callable[..., None]:
    """A function for compiled code: ``(matrix, at)`` has ``n_vectors`` vectors come to the cache.

    They may lie beside the matrix.
    """

    @intrinsic
    def fetch(typing_context: Any, matrix: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            lanes = Lanes(context, builder, signature, arguments, real=0, n_vectors=n_vectors)
            lanes.prefetch(lanes.pointer(0, arguments[1]), is_written=False)
            return context.get_dummy_value()

        return types.void(matrix, types.intp), generate

    return fetch


@cache
def add_dots(n_vectors: int, is_part: bool = False) -> Callable[..., None]:
    """A function for compiled code that multiplies a row with rows in a tile, each with each.

    ``(sums, matrix, at, ahead, tile, entries, start, stop, n_items)`` adds the scalar product of
    ``matrix[at:]`` with ``tile[offset:]`` to ``sums[i]``, for ``start <= i < stop`` and the offsets
    of the ``entries`` of :func:`add_entries`. The lanes of a sum, ``[entries, SUM_BYTES //
    itemsize]``, are to be added up.

    ``ahead`` is where the next call will read. Of a function for parts no more than ``n_items`` of
    the row are read; where the tile goes on, it is finite.
    """

    @intrinsic
    def add(
        typing_context: Any,
        sums: Any,
        matrix: Any,
        at: Any,
        ahead: Any,
        tile: Any,
        entries: Any,
        start: Any,
        stop: Any,
        n_items: Any,
    ) -> Any:
        n = types.intp

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            lanes = Lanes(context, builder, signature, arguments, real=1, n_vectors=n_vectors)
            sums, tile, entries = lanes.pointer(0), lanes.pointer(4), lanes.pointer(5)
            masks = lanes.masks(arguments[8]) if is_part else None
            lanes.prefetch(lanes.pointer(1, arguments[3]), is_written=False)
            row = lanes.load_row(lanes.pointer(1, arguments[2]), masks)
            lanes.add_dots(sums, row, arguments[6:8], lambda i: lanes.entry_row(entries, tile, i))
            return context.get_dummy_value()

        return types.void(sums, matrix, n, n, tile, entries, n, n, n), generate

    return add
