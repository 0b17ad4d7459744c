"""LLVM's vectors over stretches of rows: what the loops of ``row_lanes`` are written with."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

VECTOR_BYTES = 64
"""Also a line of the cache: a vector that lies in two of them takes twice as long."""
SUM_BYTES = 16
"""Of a sum that is not yet one number: to add up all lanes of a vector takes long."""


class Lanes:
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

    def _loop(
        self, span: Any, initial: list[Any], step: Callable[[Any, list[Any]], list[Any]]
    ) -> list[Any]:
        """What ``step`` makes of values, from the first to the last index of a span."""
        builder, (start, stop) = self.builder, span
        entry = builder.block
        head, body, end = (builder.append_basic_block(name) for name in ("rows", "row", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        i = builder.phi(start.type)
        i.add_incoming(start, entry)
        carried = [builder.phi(value.type) for value in initial]
        for phi, value in zip(carried, initial, strict=True):
            phi.add_incoming(value, entry)
        builder.cbranch(builder.icmp_signed("<", i, stop), body, end)
        builder.position_at_end(body)
        for phi, value in zip(carried, step(i, carried), strict=True):
            phi.add_incoming(value, body)
        i.add_incoming(builder.add(i, ir.Constant(i.type, 1)), body)
        builder.branch(head)
        builder.position_at_end(end)
        return carried

    def sums(self, initial: list[Any], span: Any, term: Callable[[Any], tuple[Any, Any]]) -> Any:
        """``initial`` plus the terms of a span: a vector of one factor, and a row for each."""

        def step(i: Any, sums: list[Any]) -> list[Any]:
            factor, row = term(i)
            return [
                self._fused(factor, value, total)
                for total, value in zip(sums, self.load_row(row), strict=True)
            ]

        return self._loop(span, initial, step)

    def _fused(self, one: Any, other: Any, total: Any) -> Any:
        product = self.builder.fmul(one, other, flags=("contract",))
        return self.builder.fadd(total, product, flags=("contract",))

    def add_dots(self, sums: Any, row: list[Any], span: Any, place: Callable[[Any], Any]) -> None:
        """Add to ``sums[i]`` the products of one row with others, summed in few lanes.

        Parameters
        ----------
        sums
            Of :data:`SUM_BYTES` each.
        place
            Where the other row is.
        """
        builder = self.builder

        def step(i: Any, nothing: list[Any]) -> list[Any]:
            (one, *ones), (other, *others) = row, self.load_row(place(i))
            total = builder.fmul(one, other, flags=("contract",))
            for one, other in zip(ones, others, strict=True):
                total = self._fused(one, other, total)
            total = self._few_lanes(total)
            into = builder.gep(self._as(sums, total.type), [i])
            before = builder.load(into)
            before.align = self.item_bytes
            builder.store(builder.fadd(before, total), into).align = self.item_bytes
            return nothing

        self._loop(span, [], step)

    def _few_lanes(self, total: Any) -> Any:
        """The sums of lanes that are far from each other, ``SUM_BYTES`` long."""
        lane, count = ir.IntType(32), self.n_lanes
        while count * self.item_bytes > SUM_BYTES:
            count //= 2
            kind, nothing = ir.VectorType(lane, count), ir.Constant(total.type, ir.Undefined)
            halves = (
                self.builder.shuffle_vector(
                    total, nothing, ir.Constant(kind, [first + k for k in range(count)])
                )
                for first in (0, count)
            )
            total = self.builder.fadd(*halves)
        return total

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
            offset, value = (builder.load(self._part(entries, i, k)) for k in (0, 1))
        return builder.bitcast(self.everywhere(value), self.vector), self._at(tile, offset)

    def entry_row(self, entries: Any, tile: Any, i: Any) -> Any:
        """Where the row of an entry is."""
        offset = self.builder.load(self._part(entries, i, 0))
        if offset.type.width < i.type.width:
            offset = self.builder.zext(offset, i.type)
        return self._at(tile, offset)

    def _part(self, entries: Any, i: Any, k: int) -> Any:
        first = self.builder.gep(entries, [self.builder.shl(i, ir.Constant(i.type, 1))])
        return self.builder.gep(first, [ir.Constant(i.type, k)])

    def _at(self, tile: Any, offset: Any) -> Any:
        row = self.builder.gep(self._as(tile, ir.IntType(8)), [offset])
        return self._as(row, self.real)

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
