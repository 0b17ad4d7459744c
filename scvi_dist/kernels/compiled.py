"""How loops are compiled: on first use, without the GIL, kept on disk where that is possible."""

from collections.abc import Callable, Iterable
from typing import Any

from numba import njit

from scvi_dist.kernels.code_cache import cached_njit

FUSED_MULTIPLY_ADD = frozenset({"contract"})
"""May round less, never more: the one liberty that compensated formulas stand."""
SUMS = FUSED_MULTIPLY_ADD | {"reassoc", "nsz"}
"""Sums may be taken in lanes. Not for formulas that recover rounding errors."""

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
"""Division by zero gives what IEEE 754 says: a check would keep loops out of vector lanes."""


_WITHOUT_WRAPPERS = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def part(
    fastmath: Iterable[str] = FUSED_MULTIPLY_ADD,
    *,
    inlined: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator of a function that only compiled functions call: it is compiled into them.

    Arguments are as for :func:`compiled`.
    """
    options = OPTIONS | _WITHOUT_WRAPPERS | {"fastmath": set(fastmath), "forceinline": inlined}
    return lambda function: njit(**options)(function)


def compiled(
    fastmath: Iterable[str] = FUSED_MULTIPLY_ADD,
    *,
    inlined: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that compiles a function of scalars and arrays, and keeps the code on disk.

    Parameters
    ----------
    fastmath
        What the compiler may do to sums; it reaches the function's own arithmetic, not that of
        the functions it calls.
    inlined
        Put the code into each loop that calls it, however long it is: a loop with a call in it has
        no lanes.
    """
    options = OPTIONS | {"fastmath": set(fastmath), "forceinline": inlined}
    return cached_njit(**options)
