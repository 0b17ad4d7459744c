"""Weighted sums of rows of a matrix, kept in the processor's registers while rows are gone through.

The compiler keeps no sums of a whole row in registers by itself: it would load and store them for
each row that is added, and a view of each row would cost as much as the sums. So these loops are
written out in LLVM's vectors.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

VECTOR_BYTES = 64


@cache
def add_rows(n_vectors: int) -> Callable[..., None]:
    """A function for compiled code that sums stretches of rows.

    ``(out, at, before, before_at, matrix, matrix_at, stride, columns, values, start, stop)`` does
    ``out[at:] = before[before_at:] + Σ values[i] matrix[matrix_at + stride columns[i]:]`` over
    ``start <= i < stop``, each stretch ``n_vectors`` vectors long. ``out``, ``before`` and
    ``matrix`` are contiguous and seen as flat; all that is real has one type. Nothing is checked.
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
            return _Emitter(context, builder, signature, arguments, n_vectors).emit()

        return types.void(*given), generate

    return add


class _Emitter:
    """Writes the loop of one call."""

    def __init__(
        self, context: Any, builder: Any, signature: Any, arguments: Any, n_vectors: int
    ) -> None:
        def data(k: int) -> Any:
            return context.make_array(signature.args[k])(context, builder, arguments[k]).data

        self.context, self.builder, self.n_vectors = context, builder, n_vectors
        self.out, self.before, self.matrix = (
            builder.gep(data(k), [arguments[k + 1]]) for k in (0, 2, 4)
        )
        self.stride, self.start, self.stop = arguments[6], arguments[9], arguments[10]
        self.columns, self.values = data(7), data(8)
        real = context.get_data_type(signature.args[4].dtype)
        self.item_bytes = context.get_abi_sizeof(real)
        self.lanes = VECTOR_BYTES // self.item_bytes
        self.vector = ir.VectorType(real, self.lanes)

    def emit(self) -> Any:
        builder = self.builder
        initial = [self._load(pointer) for pointer in self._vectors(self.before)]
        entry = builder.block
        head, body, end = (builder.append_basic_block(name) for name in ("rows", "row", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        i = builder.phi(self.start.type)
        i.add_incoming(self.start, entry)
        sums = [builder.phi(self.vector) for _ in initial]
        for total, value in zip(sums, initial, strict=True):
            total.add_incoming(value, entry)
        builder.cbranch(builder.icmp_signed("<", i, self.stop), body, end)
        builder.position_at_end(body)
        factor, row = self._everywhere(builder.load(builder.gep(self.values, [i]))), self._row(i)
        for total, pointer in zip(sums, self._vectors(row), strict=True):
            product = builder.fmul(factor, self._load(pointer), flags=("contract",))
            total.add_incoming(builder.fadd(total, product, flags=("contract",)), body)
        i.add_incoming(builder.add(i, ir.Constant(i.type, 1)), body)
        builder.branch(head)
        builder.position_at_end(end)
        for total, pointer in zip(sums, self._vectors(self.out), strict=True):
            stored = builder.store(total, pointer)
            stored.align = self.item_bytes
        return self.context.get_dummy_value()

    def _row(self, i: Any) -> Any:
        builder = self.builder
        column = builder.load(builder.gep(self.columns, [i]))
        if column.type.width < i.type.width:
            column = builder.sext(column, i.type)
        return builder.gep(self.matrix, [builder.mul(column, self.stride)])

    def _vectors(self, row: Any) -> list[Any]:
        first = self.builder.bitcast(row, self.vector.as_pointer())
        kind = self.start.type
        return [self.builder.gep(first, [ir.Constant(kind, k)]) for k in range(self.n_vectors)]

    def _load(self, pointer: Any) -> Any:
        loaded = self.builder.load(pointer)
        loaded.align = self.item_bytes
        return loaded

    def _everywhere(self, value: Any) -> Any:
        """A vector of one value."""
        undefined, lane = ir.Constant(self.vector, ir.Undefined), ir.IntType(32)
        first = self.builder.insert_element(undefined, value, ir.Constant(lane, 0))
        mask = ir.Constant(ir.VectorType(lane, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, mask)
