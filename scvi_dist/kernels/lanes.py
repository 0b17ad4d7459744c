"""Sixteen numbers that compiled loops hold in vector registers and compute with as with one.

The compiler finds vectors in a loop by itself only where no array that is written may be one that
is read. Loops that keep many sums, one for each of sixteen features, write them to memory and read
them back for each row; here they are variables. A processor with smaller registers takes several.

Axis suffix of comments: ``l`` lanes.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from scvi_dist.kernels.compiled import part

LANES = 16
"""Numbers of one vector."""
_CONTRACT = ("contract",)
_INLINED = {"forceinline": True, "nogil": True}
_F = np.float32


class LanesType(types.Type):
    """The type of sixteen numbers, or of sixteen answers, in compiled code."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: LanesType) -> None:
        super().__init__(manager, kind, ir.VectorType(_ELEMENTS[kind.dtype], LANES))


_ELEMENTS: dict[Any, ir.Type] = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int32: ir.IntType(32),
    types.boolean: ir.IntType(1),
}
_FLOAT, _DOUBLE, _INT, _MASK = map(LanesType, _ELEMENTS)


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, undefined, zeros)


def _both(context: Any, builder: Any, signature: Any, arguments: Any) -> tuple[Any, Any, Any]:
    """Two operands as lanes, and the type of their numbers; one of them may be one number."""
    dtype = next(kind.dtype for kind in signature.args if isinstance(kind, LanesType))
    a, b = (
        value
        if isinstance(kind, LanesType)
        else _splat(builder, context.cast(builder, value, kind, dtype))
        for kind, value in zip(signature.args, arguments, strict=True)
    )
    return a, b, dtype


def _operator(
    function: Callable[..., Any],
    emit: Callable[[Any, Any, Any, Any], Any],
    result: LanesType | None = None,
) -> None:
    """Let compiled code apply ``function`` to lanes; ``emit`` gets a builder, both and a type."""

    @intrinsic
    def compute(typing_context: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return emit(builder, *_both(context, builder, signature, arguments))

        kind = a if isinstance(a, LanesType) else b
        return (result or kind)(a, b), generate

    @overload(function, strict=False, jit_options=_INLINED)
    def choose(a: Any, b: Any) -> Any:
        if isinstance(a, LanesType) or isinstance(b, LanesType):
            return lambda a, b: compute(a, b)
        return None


def _arithmetic(name: str) -> Callable[[Any, Any, Any, Any], Any]:
    def emit(builder: Any, a: Any, b: Any, dtype: Any) -> Any:
        if isinstance(dtype, types.Float):
            return getattr(builder, f"f{name}")(a, b, flags=_CONTRACT)
        return getattr(builder, name)(a, b)

    return emit


def _comparison(sign: str) -> Callable[[Any, Any, Any, Any], Any]:
    def emit(builder: Any, a: Any, b: Any, dtype: Any) -> Any:
        is_real = isinstance(dtype, types.Float)
        return (builder.fcmp_ordered if is_real else builder.icmp_signed)(sign, a, b)

    return emit


for _name in ("add", "sub", "mul"):
    _operator(getattr(operator, _name), _arithmetic(_name))
    _operator(getattr(operator, f"i{_name}"), _arithmetic(_name))
_operator(operator.truediv, lambda builder, a, b, _: builder.fdiv(a, b))
_operator(operator.and_, lambda builder, a, b, _: builder.and_(a, b))
_operator(operator.or_, lambda builder, a, b, _: builder.or_(a, b))
_operator(operator.lshift, lambda builder, a, b, _: builder.shl(a, b))
_operator(operator.rshift, lambda builder, a, b, _: builder.ashr(a, b))
for _name, _sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
    _operator(getattr(operator, _name), _comparison(_sign), _MASK)


def _place(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    """Pointer to the lanes that begin at an entry of a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    vector = ir.VectorType(_ELEMENTS[array_type.dtype], LANES)
    return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())


@intrinsic
def load(typing_context: Any, array: Any, at: Any) -> Any:
    """The lanes that begin at entry ``at`` of a contiguous array; nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found = builder.load(_place(context, builder, signature.args[0], *arguments))
        found.align = context.get_abi_sizeof(_ELEMENTS[array.dtype])
        return found

    return LanesType(array.dtype)(array, types.intp), generate


@intrinsic
def store(typing_context: Any, array: Any, at: Any, lanes: Any) -> Any:
    """Write lanes to a contiguous array, from entry ``at`` on; nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments[:2])
        stored = builder.store(arguments[2], place)
        stored.align = context.get_abi_sizeof(_ELEMENTS[array.dtype])
        return context.get_dummy_value()

    return types.void(array, types.intp, LanesType(array.dtype)), generate


@intrinsic
def prefetch(typing_context: Any, array: Any, at: Any) -> Any:
    """Have entry ``at`` of a contiguous array brought to the cache, while other things go on.

    It may lie beyond the end of the array: nothing comes then.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments)
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, second_level, data = (ir.Constant(number, n) for n in (0, 2, 1))
        builder.call(function, [builder.bitcast(place, byte), read, second_level, data])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def fill(typing_context: Any, value: Any) -> Any:
    """One number in all lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[0])

    return LanesType(value)(value), generate


@intrinsic
def choose(typing_context: Any, where: Any, a: Any, b: Any) -> Any:
    """``a`` in the lanes in which it holds, ``b`` in the others."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return a(_MASK, a, a), generate


def _conversion(emit: Callable[[Any, Any, Any], Any], result: LanesType) -> Callable[..., Any]:
    def convert(typing_context: Any, lanes: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return emit(builder, arguments[0], ir.VectorType(_ELEMENTS[result.dtype], LANES))

        return result(lanes), generate

    return intrinsic(convert)


widened = _conversion(lambda builder, lanes, kind: builder.fpext(lanes, kind), _DOUBLE)
"""float64 of float32."""
rounded = _conversion(lambda builder, lanes, kind: builder.sitofp(lanes, kind), _FLOAT)
"""float32 of int32."""
bits = _conversion(lambda builder, lanes, kind: builder.bitcast(lanes, kind), _INT)
"""The bits of float32 as int32."""
from_bits = _conversion(lambda builder, lanes, kind: builder.bitcast(lanes, kind), _FLOAT)
"""The float32 whose bits these are."""
ones = _conversion(lambda builder, lanes, kind: builder.zext(lanes, kind), _INT)
"""int32: 1 where it holds, else 0."""


@intrinsic
def any_of(typing_context: Any, where: Any) -> Any:
    """Whether it holds in any lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        flags = builder.bitcast(arguments[0], ir.IntType(LANES))
        return cgutils.is_true(builder, flags)

    return types.boolean(_MASK), generate


@part()
def smaller(a: Any, b: Any) -> Any:
    """The smaller number of each lane; ``b`` where one is no number."""
    return choose(a < b, a, b)


@part()
def larger(a: Any, b: Any) -> Any:
    """The larger number of each lane; ``b`` where one is no number."""
    return choose(a > b, a, b)


_SQRT_2, _TO_LOG2 = _F(1.4142135), _F(1.4426950408889634)
_L8, _L7, _L6 = _F(7.0376836292e-2), _F(-1.1514610310e-1), _F(1.1676998740e-1)
_L5, _L4, _L3 = _F(-1.2420140846e-1), _F(1.4249322787e-1), _F(-1.6668057665e-1)
_L2, _L1, _L0 = _F(2.0000714765e-1), _F(-2.4999993993e-1), _F(3.3333331174e-1)


@part()
def log2(x: Any) -> Any:
    """Binary logarithms of positive normal float32 numbers; the error is below 1e-6.

    Source
    ------
    Moshier's Cephes library, logf: log(1 + f) on [sqrt(1/2) - 1, sqrt(2) - 1].
    """
    there = bits(x)
    exponent = rounded((there >> 23) - 127)
    m = from_bits((there & 0x7FFFFF) | 0x3F800000)
    is_large = m > _SQRT_2
    f = choose(is_large, m * _F(0.5), m) - _F(1.0)
    exponent = choose(is_large, exponent + _F(1.0), exponent)
    p = ((_L8 * f + _L7) * f + _L6) * f + _L5
    p = ((p * f + _L4) * f + _L3) * f + _L2
    p = (p * f + _L1) * f + _L0
    square = f * f
    return (f + (p * f * square - _F(0.5) * square)) * _TO_LOG2 + exponent


_LOWEST, _TO_BASE_2 = _F(-87.3), _F(1.44269504088896341)
_ROUNDS = _F(12582912.0)  # 1.5 * 2^23: adding it rounds to a whole number.
_ROUNDS_BITS = 0x4B400000
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(-2.12194440e-4)
_E5, _E4, _E3 = _F(1.9875691500e-4), _F(1.3981999507e-3), _F(8.3334519073e-3)
_E2, _E1, _E0 = _F(4.1665795894e-2), _F(1.6666665459e-1), _F(5.0000001201e-1)


@part()
def exp(x: Any) -> Any:
    """``e^x`` of float32 up to 88, to 2 units; 0 where it is no normal number.

    Source
    ------
    Moshier's Cephes library, expf.
    """
    shifted = x * _TO_BASE_2 + _ROUNDS
    n = shifted - _ROUNDS
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = ((((_E5 * r + _E4) * r + _E3) * r + _E2) * r + _E1) * r + _E0
    power = from_bits((bits(shifted) - _ROUNDS_BITS + 127) << 23)
    return choose(x < _LOWEST, fill(_F(0.0)), ((p * r) * r + r + _F(1.0)) * power)
