"""What the bits of floating-point numbers tell, for compiled loops: exponents, mantissas, order.

Functions of float32 or float64 scalars, in integer operations that the compiler can put into
vector lanes.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# Formats: integer type, bits of the mantissa, exponent bias, and the bits of sqrt(1/2).
_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_FORMATS: dict[Any, tuple[ir.IntType, ir.Type, int, int, int]] = {
    types.float32: (_INT32, ir.FloatType(), 23, 127, 0x3F3504F3),
    types.float64: (_INT64, ir.DoubleType(), 52, 1023, 0x3FE6A09E667F3BCD),
}


def _offset_bits(builder: Any, value: Any, x_type: Any) -> tuple[Any, Any]:
    """Bits of ``x`` less those of sqrt(1/2), and those bits as a constant."""
    integer, _, _, _, root = _FORMATS[x_type]
    constant = ir.Constant(integer, root)
    return builder.sub(builder.bitcast(value, integer), constant), constant


@intrinsic
def exponent(typing_context: Any, x: Any) -> Any:
    """``e`` of ``x = m 2^e`` with ``m`` between sqrt(1/2) and sqrt(2)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer, real, mantissa_bits, _, _ = _FORMATS[x]
        offset, _ = _offset_bits(builder, arguments[0], x)
        return builder.sitofp(builder.ashr(offset, ir.Constant(integer, mantissa_bits)), real)

    return (x(x), generate) if x in _FORMATS else None


@intrinsic
def mantissa(typing_context: Any, x: Any) -> Any:
    """``m`` of ``x = m 2^e`` with ``m`` between sqrt(1/2) and sqrt(2)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer, real, mantissa_bits, _, _ = _FORMATS[x]
        offset, root = _offset_bits(builder, arguments[0], x)
        low = builder.and_(offset, ir.Constant(integer, (1 << mantissa_bits) - 1))
        return builder.bitcast(builder.add(low, root), real)

    return (x(x), generate) if x in _FORMATS else None


@intrinsic
def power_of_two(typing_context: Any, n: Any) -> Any:
    """``2^n`` of a whole number, within the range of normal numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer, real, mantissa_bits, bias, _ = _FORMATS[n]
        biased = builder.add(builder.fptosi(arguments[0], integer), ir.Constant(integer, bias))
        return builder.bitcast(builder.shl(biased, ir.Constant(integer, mantissa_bits)), real)

    return (n(n), generate) if n in _FORMATS else None


@intrinsic
def power_of_low_bits(typing_context: Any, shifted: Any) -> Any:
    """``2^n`` of float32 ``1.5 * 2^23 + n``: the low bits are those of ``n``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.shl(builder.bitcast(arguments[0], _INT32), ir.Constant(_INT32, 23))
        return builder.bitcast(builder.add(bits, ir.Constant(_INT32, 127 << 23)), ir.FloatType())

    return (shifted(shifted), generate) if shifted == types.float32 else None


def _exponent_bits(builder: Any, value: Any) -> Any:
    """``e`` of float32 ``x = m 2^e`` at the place of an exponent's bits; see :func:`exponent`."""
    offset, _ = _offset_bits(builder, value, types.float32)
    return builder.and_(offset, ir.Constant(_INT32, -(1 << 23)))


@intrinsic
def scaled_exponent(typing_context: Any, x: Any) -> Any:
    """``2^23 e`` of float32 ``x = m 2^e`` with ``m`` between sqrt(1/2) and sqrt(2)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.sitofp(_exponent_bits(builder, arguments[0]), ir.FloatType())

    return (x(x), generate) if x == types.float32 else None


@intrinsic
def inverse_power(typing_context: Any, x: Any) -> Any:
    """``2^-e`` of float32 ``x = m 2^e``; 0 from 2^127 sqrt(1/2) on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one = ir.Constant(_INT32, 127 << 23)
        bits = builder.sub(one, _exponent_bits(builder, arguments[0]))
        return builder.bitcast(bits, ir.FloatType())

    return (x(x), generate) if x == types.float32 else None


_INTEGERS = {types.float32: types.int32, types.float64: types.int64}
_REALS = {integer: real for real, integer in _INTEGERS.items()}


def _flipped(builder: Any, bits: Any, integer: Any) -> Any:
    """The bits of a negative number but for its sign turned over, those of others as they are."""
    sign = builder.ashr(bits, ir.Constant(integer, integer.width - 1))
    mask = builder.lshr(sign, ir.Constant(integer, 1))
    return builder.xor(bits, mask)


@intrinsic
def order_bits(typing_context: Any, x: Any) -> Any:
    """An integer that is larger for larger ``x``, and largest for NaN.

    The largest of integers is found in vector lanes, that of floats is not.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer = _FORMATS[x][0]
        return _flipped(builder, builder.bitcast(arguments[0], integer), integer)

    return (_INTEGERS[x](x), generate) if x in _FORMATS else None


@intrinsic
def from_order_bits(typing_context: Any, bits: Any) -> Any:
    """The ``x`` whose :func:`order_bits` these are."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer, real = _FORMATS[_REALS[bits]][:2]
        return builder.bitcast(_flipped(builder, arguments[0], integer), real)

    return (_REALS[bits](bits), generate) if bits in _REALS else None
