"""Elementary functions for compiled loops, which the compiler can put into vector lanes.

They are to be called in code that numba compiles, on float32 or float64 scalars; the result has
the argument's type. A call of the C library stops the vectoriser and costs ten times as much.
NaN gives NaN: a model that diverges is noticed. Errors are relative, in units of the last place.

Source
------
The float32 logarithm and the reduction of exponentials are those of Cephes (Moshier 1989, ``logf``
and ``expf``), the float64 logarithm is fdlibm's ``__ieee754_log`` (Sun Microsystems 1993). The
polynomials of float32 exponentials and inverse hyperbolic tangents are minimax fits, exact to 5e-9.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from scvi_dist.kernels.compiled import FUSED_MULTIPLY_ADD, OPTIONS
from scvi_dist.kernels.float_bits import (
    exponent,
    inverse_power,
    mantissa,
    power_of_low_bits,
    power_of_two,
    scaled_exponent,
)

_F = np.float32
_INF = float("inf")
_INLINED = OPTIONS | {"fastmath": set(FUSED_MULTIPLY_ADD), "forceinline": True}


def _by_type(
    function: Callable[..., Any], float32: Callable[..., Any], float64: Callable[..., Any]
) -> None:
    """Let compiled calls of ``function`` take one of two implementations."""
    choices = {types.float32: float32, types.float64: float64}

    @overload(function, strict=False, jit_options=_INLINED)
    def choose(x: Any) -> Any:
        return choices.get(x)


def exp(x: float) -> float:
    """``e^x`` to 2 units.

    A float32 result below the smallest normal number is 0; from ``x = 88`` on it is infinite.
    """
    return math.exp(x)


_MAGIC = _F(12582912.0)  # 1.5 * 2^23: adding it rounds to a whole number.
_LOG2_E = _F(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(-2.12194440e-4)
_EXP_LOW, _EXP_HIGH = _F(-87.3), _F(88.0)
_E4, _E3, _E2 = _F(1.38145e-3), _F(8.36878e-3), _F(4.166839e-2)
_E1, _E0 = _F(1.666652e-1), _F(4.9999993e-1)


def _decay32(x: float) -> Any:
    # Where x is far from 0 this is nonsense, which is left out at the end. NaN stays.
    shifted = x * _LOG2_E + _MAGIC
    n = shifted - _MAGIC
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = (((_E4 * r + _E3) * r + _E2) * r + _E1) * r + _E0
    y = (p * (r * r) + (r + _F(1.0))) * power_of_low_bits(shifted)
    return _F(0.0) if x < _EXP_LOW else y


_inlined_decay32 = njit(**_INLINED)(_decay32)


def _exp32(x: float) -> Any:
    return _F(_INF) if x > _EXP_HIGH else _inlined_decay32(x)


_LN2_HIGH64, _LN2_LOW64 = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_MAGIC64 = 6755399441055744.0  # 1.5 * 2^52.
_LOG2_E64 = 1.4426950408889634
_EXP_LOW64, _EXP_HIGH64 = -708.0, 709.0


def _exp64(x: float) -> float:
    within = _EXP_LOW64 if x < _EXP_LOW64 else x
    within = _EXP_HIGH64 if within > _EXP_HIGH64 else within
    n = (within * _LOG2_E64 + _MAGIC64) - _MAGIC64
    r = (within - n * _LN2_HIGH64) - n * _LN2_LOW64
    # Taylor's series; |r| is at most log(2) / 2.
    p = (1.6059043836821613e-10 * r + 2.08767569878681e-09) * r + 2.505210838544172e-08
    p = ((p * r + 2.755731922398589e-07) * r + 2.7557319223985893e-06) * r + 2.48015873015873e-05
    p = ((p * r + 1.984126984126984e-04) * r + 1.388888888888889e-03) * r + 8.333333333333333e-03
    p = ((p * r + 4.1666666666666664e-02) * r + 1.6666666666666666e-01) * r + 0.5
    y = ((p * r + 1.0) * r + 1.0) * power_of_two(n)
    y = 0.0 if x < _EXP_LOW64 else y
    return _INF if x > _EXP_HIGH64 else y


_by_type(exp, _exp32, _exp64)


def decay(x: float) -> float:
    """``e^x`` to 2 units, of an ``x`` that is not above 0."""
    return math.exp(x)


_by_type(decay, _decay32, _exp64)


_L8, _L7, _L6 = _F(7.0376836292e-2), _F(-1.1514610310e-1), _F(1.1676998740e-1)
_L5, _L4, _L3 = _F(-1.2420140846e-1), _F(1.4249322787e-1), _F(-1.6668057665e-1)
_L2, _L1, _L0 = _F(2.0000714765e-1), _F(-2.4999993993e-1), _F(3.3333331174e-1)


@njit(**_INLINED)
def _log32_core(f: float, e: float) -> Any:
    """``log(1 + f) + e log 2`` for ``1 + f`` between sqrt(1/2) and sqrt(2)."""
    z = f * f
    y = ((((_L8 * f + _L7) * f + _L6) * f + _L5) * f + _L4) * f + _L3
    y = (((y * f + _L2) * f + _L1) * f + _L0) * (f * z)
    y = (y + _LN2_LOW * e) - _F(0.5) * z
    return (f + y) + _LN2_HIGH * e


def log(x: float) -> float:
    """Natural logarithm to 2 units; minus infinity of 0, NaN of negative numbers."""
    return math.log(x) if x > 0 else (-_INF if x == 0 else math.nan)


_TINY32, _TWO23 = _F(1.1754943508222875e-38), _F(8388608.0)


def _log32(x: float) -> Any:
    small = x < _TINY32
    normal = x * _TWO23 if small else x
    e = exponent(normal)
    e = e - _F(23.0) if small else e
    y = _log32_core(mantissa(normal) - _F(1.0), e)
    y = y if x < _F(_INF) else x
    y = y if x != _F(0.0) else _F(-_INF)
    return _F(math.nan) if x < _F(0.0) else y


_LG1, _LG2, _LG3 = 6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01
_LG4, _LG5, _LG6 = 2.222219843214978396e-01, 1.818357216161805012e-01, 1.531383769920937332e-01
_LG7 = 1.479819860511658591e-01
_TINY64, _TWO52 = 2.2250738585072014e-308, 4503599627370496.0


@njit(**_INLINED)
def _log64_core(f: float, s: float, e: float) -> float:
    """``log(1 + f) + e log 2`` with ``s = f / (2 + f)``."""
    z = s * s
    r = z * ((((((_LG7 * z + _LG6) * z + _LG5) * z + _LG4) * z + _LG3) * z + _LG2) * z + _LG1)
    half = 0.5 * f * f
    return e * _LN2_HIGH64 - ((half - (s * (half + r) + e * _LN2_LOW64)) - f)


def _log64(x: float) -> float:
    small = x < _TINY64
    normal = x * _TWO52 if small else x
    e = exponent(normal)
    e = e - 52.0 if small else e
    f = mantissa(normal) - 1.0
    y = _log64_core(f, f / (2.0 + f), e)
    y = y if x < _INF else x
    y = y if x != 0.0 else -_INF
    return math.nan if x < 0.0 else y


_by_type(log, _log32, _log64)


def log1p(x: float) -> float:
    """``log(1 + x)`` to 2 units, of small ``x`` too."""
    return math.log1p(x) if x > -1 else (-_INF if x == -1 else math.nan)


def _log1p32(x: float) -> Any:
    u = _F(1.0) + x
    # What the sum has lost, exactly; Knuth's two-sum.
    v = u - _F(1.0)
    lost = (_F(1.0) - (u - v)) + (x - v)
    e = exponent(u)
    # Of large numbers nothing is lost that counts, and 2^-128 is no normal number.
    scale = power_of_two(-e if e < _F(64.0) else _F(-64.0))
    y = _log32_core((mantissa(u) - _F(1.0)) + lost * scale, e)
    y = y if x < _F(_INF) else x
    y = y if x != _F(-1.0) else _F(-_INF)
    return _F(math.nan) if x < _F(-1.0) else y


def _log1p64(x: float) -> float:
    u = 1.0 + x
    v = u - 1.0
    lost = (1.0 - (u - v)) + (x - v)
    y = log(u) + lost / u
    y = y if x < _INF else x
    y = y if x != -1.0 else -_INF
    return math.nan if x < -1.0 else y


_by_type(log1p, _log1p32, _log1p64)


def log1p_from_zero(x: float) -> float:
    """``log(1 + x)`` to 3 units, of an ``x`` from 0 to 1e38 or infinite, at half the cost."""
    return math.log1p(x)


_LN2_SCALED = _F(math.log(2.0) * 2.0**-23)
_A2, _A1, _A0 = _F(2 * 0.14937424), _F(2 * 0.19988717), _F(2 * 0.33333389)


def _log1p_from_zero32(x: float) -> Any:
    u = _F(1.0) + x
    e, power = scaled_exponent(u), inverse_power(u)
    # 1 + x = (1 + f) 2^e; f keeps what the sum has lost.
    f = x * power + (power - _F(1.0))
    # log(1 + f) = 2 artanh(q). Processors divide while they multiply.
    q = f / (_F(2.0) + f)
    w = q * q
    y = (q * w) * ((_A2 * w + _A1) * w + _A0)
    y = ((q + q) + y) + e * _LN2_SCALED
    return y if x < _F(_INF) else x


_by_type(log1p_from_zero, _log1p_from_zero32, _log1p64)


def log1p_difference(x: float, y: float) -> float:
    """``log(1 + x) - log(1 + y)`` to 4 units, of numbers from 0 to 1."""
    return math.log1p((x - y) / (1.0 + y))


_B3, _B2 = _F(2 * 0.14012574), _F(2 * 0.13999506)
_B1, _B0 = _F(2 * 0.20010853), _F(2 * 0.33333207)


def _log1p_difference32(x: float, y: float) -> Any:
    q = (x - y) / ((_F(1.0) + x) + (_F(1.0) + y))
    w = q * q
    return (q * w) * (((_B3 * w + _B2) * w + _B1) * w + _B0) + (q + q)


def _log1p_difference64(x: float, y: float) -> float:
    return log1p((x - y) / (1.0 + y))


@overload(log1p_difference, strict=False, jit_options=_INLINED)
def _choose_difference(x: Any, y: Any) -> Any:
    return {types.float32: _log1p_difference32, types.float64: _log1p_difference64}.get(x)


@njit(**_INLINED)
def three_logs(x: float, inverse: float, y: float, z: float) -> tuple[float, float, float]:
    """``log(1 + x)``, ``log y`` and ``log z`` of normal float64 with one division.

    ``x`` is not negative, ``inverse`` is ``1 / (1 + x)``. NaN is seen in the first.
    """
    u = 1.0 + x
    v = u - 1.0
    lost = (1.0 - (u - v)) + (x - v)
    f, g, h = mantissa(u) - 1.0, mantissa(y) - 1.0, mantissa(z) - 1.0
    a, b, c = 2.0 + f, 2.0 + g, 2.0 + h
    both = a * b
    quotient = 1.0 / (both * c)
    first = _log64_core(f, f * (quotient * (b * c)), exponent(u))
    second = _log64_core(g, g * (quotient * (a * c)), exponent(y))
    return first + lost * inverse, second, _log64_core(h, h * (quotient * both), exponent(z))
