"""Weighted sums of rows of a matrix, kept in the processor's registers while rows are gone through.

The compiler keeps no sums of a whole row in registers by itself: it would load and store them for
each row that is added, and a view of each row would cost as much as the sums. So these loops are
written out in LLVM's vectors. Arrays are contiguous and seen as flat; nothing is checked.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

VECTOR_BYTES = 64
"""Also a line of the cache: a vector that lies in two of them takes twice as long."""


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
            lanes = _Lanes(context, builder, signature, arguments, real=4, n_vectors=n_vectors)
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
            lanes = _Lanes(context, builder, signature, arguments, real=0, n_vectors=n_vectors)
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
            lanes = _Lanes(context, builder, signature, arguments, real=0, n_vectors=n_vectors)
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
            lanes = _Lanes(context, builder, signature, arguments, real=0, n_vectors=n_vectors)
            lanes.prefetch(lanes.pointer(0, arguments[1]), is_written=False)
            return context.get_dummy_value()

        return types.void(matrix, types.intp), generate

    return fetch


class _Lanes:
    """Writes the code of one call.

    Parameters
    ----------
    real
        Which argument is an array of what is added.
    """

    def __init__(
        self,
        context: Any,
        builder: Any,
        signature: Any,
        arguments: Any,
        *,
        real: int,
        n_vectors: int,
    ) -> None:
        self.context, self.builder, self.n_vectors = context, builder, n_vectors
        self.signature, self.arguments = signature, arguments
        self.real = context.get_data_type(signature.args[real].dtype)
        self.item_bytes = context.get_abi_sizeof(self.real)
        self.n_lanes = VECTOR_BYTES // self.item_bytes
        self.vector = ir.VectorType(self.real, self.n_lanes)

    def pointer(self, k: int, at: Any = None) -> Any:
        """To an element of an array that is the ``k``-th argument."""
        array = self.context.make_array(self.signature.args[k])
        data = array(self.context, self.builder, self.arguments[k]).data
        return data if at is None else self.builder.gep(data, [at])

    def sums(self, initial: list[Any], span: Any, term: Callable[[Any], tuple[Any, Any]]) -> Any:
        """``initial`` plus the terms of a span: a vector of one factor, and a row for each."""
        builder, (start, stop) = self.builder, span
        entry = builder.block
        head, body, end = (builder.append_basic_block(name) for name in ("rows", "row", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        i = builder.phi(start.type)
        i.add_incoming(start, entry)
        sums = [builder.phi(self.vector) for _ in initial]
        for total, value in zip(sums, initial, strict=True):
            total.add_incoming(value, entry)
        builder.cbranch(builder.icmp_signed("<", i, stop), body, end)
        builder.position_at_end(body)
        factor, row = term(i)
        for total, value in zip(sums, self.load_row(row), strict=True):
            product = builder.fmul(factor, value, flags=("contract",))
            total.add_incoming(builder.fadd(total, product, flags=("contract",)), body)
        i.add_incoming(builder.add(i, ir.Constant(i.type, 1)), body)
        builder.branch(head)
        builder.position_at_end(end)
        return sums

    def entry(self, entries: Any, tile: Any, i: Any) -> tuple[Any, Any]:
        """The factor of an entry, and where its row is."""
        builder, bits = self.builder, 8 * self.item_bytes
        if bits == 32:
            # Loads are what the processor can do fewest of: one for both, and the value comes to
            # all lanes by another way.
            both = builder.load(builder.gep(self._as(entries, ir.IntType(64)), [i]))
            offset = builder.and_(both, ir.Constant(both.type, 2**32 - 1))
            value = builder.trunc(builder.lshr(both, ir.Constant(both.type, 32)), ir.IntType(32))
        else:
            first = builder.gep(entries, [builder.shl(i, ir.Constant(i.type, 1))])
            offset = builder.load(first)
            value = builder.load(builder.gep(first, [ir.Constant(i.type, 1)]))
        factor = builder.bitcast(self.everywhere(value), self.vector)
        row = builder.gep(self._as(tile, ir.IntType(8)), [offset])
        return factor, self._as(row, self.real)

    def everywhere(self, value: Any) -> Any:
        """A vector of one value."""
        kind = ir.VectorType(value.type, self.n_lanes)
        undefined, lane = ir.Constant(kind, ir.Undefined), ir.IntType(32)
        first = self.builder.insert_element(undefined, value, ir.Constant(lane, 0))
        mask = ir.Constant(ir.VectorType(lane, self.n_lanes), [0] * self.n_lanes)
        return self.builder.shuffle_vector(first, undefined, mask)

    def masks(self, n_items: Any) -> list[Any]:
        """For each vector of a row, which of its lanes are among the first items."""
        kind, count = ir.VectorType(ir.IntType(32), self.n_lanes), range(self.n_lanes)
        limit = self.everywhere(self.builder.trunc(n_items, ir.IntType(32)))
        firsts = range(0, self.n_vectors * self.n_lanes, self.n_lanes)
        lanes = [ir.Constant(kind, [first + k for k in count]) for first in firsts]
        return [self.builder.icmp_signed("<", lane, limit) for lane in lanes]

    def load_row(self, row: Any, masks: list[Any] | None = None) -> list[Any]:
        if masks is not None:
            nothing = ir.Constant(self.vector, [ir.Constant(self.real, 0.0)] * self.n_lanes)
            places = zip(self._vectors(row), masks, strict=True)
            return [self._masked("load", self.vector, [p, mask, nothing]) for p, mask in places]
        loaded = [self.builder.load(place) for place in self._vectors(row)]
        for value in loaded:
            value.align = self.item_bytes
        return loaded

    def store_row(self, values: list[Any], row: Any, masks: list[Any] | None = None) -> None:
        for k, (value, place) in enumerate(zip(values, self._vectors(row), strict=True)):
            if masks is not None:
                self._masked("store", ir.VoidType(), [value, place, masks[k]])
            else:
                self.builder.store(value, place).align = self.item_bytes

    def prefetch(self, row: Any, *, is_written: bool) -> None:
        builder, byte, number = self.builder, ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        # The last vector may end in a line of its own.
        ends = [(self.n_vectors * VECTOR_BYTES) - 1]
        for at in [*range(0, self.n_vectors * VECTOR_BYTES, VECTOR_BYTES), *ends]:
            place = builder.gep(self._as(row, ir.IntType(8)), [ir.Constant(ir.IntType(64), at)])
            into_all_caches = is_data = 1
            options = int(is_written), 3 * into_all_caches, is_data
            builder.call(function, [place, *(ir.Constant(number, k) for k in options)])

    def _masked(self, name: str, returned: Any, arguments: list[Any]) -> Any:
        place = next(k for k, x in enumerate(arguments) if isinstance(x.type, ir.PointerType))
        align = ir.Constant(ir.IntType(32), self.item_bytes)
        arguments = [*arguments[: place + 1], align, *arguments[place + 1 :]]
        kind = ir.FunctionType(returned, [x.type for x in arguments])
        name = f"llvm.masked.{name}.v{self.n_lanes}f{8 * self.item_bytes}.p0"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, arguments)

    def _vectors(self, row: Any) -> list[Any]:
        first, kind = self._as(row, self.vector), ir.IntType(64)
        return [self.builder.gep(first, [ir.Constant(kind, k)]) for k in range(self.n_vectors)]

    def _as(self, pointer: Any, kind: Any) -> Any:
        return self.builder.bitcast(pointer, kind.as_pointer())
