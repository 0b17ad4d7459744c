"""How loops are compiled: on first use, without the GIL, kept on disk where that is possible."""

from collections.abc import Callable, Iterable
from typing import Any

from numba import njit

FUSED_MULTIPLY_ADD = frozenset({"contract"})
"""May round less, never more: the one liberty that compensated formulas stand."""
SUMS = FUSED_MULTIPLY_ADD | {"reassoc", "nsz"}
"""Sums may be taken in lanes. Not for formulas that recover rounding errors."""

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
"""Division by zero gives what IEEE 754 says: a check would keep loops out of vector lanes."""


_WITHOUT_WRAPPERS = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def part(
    fastmath: Iterable[str] = FUSED_MULTIPLY_ADD,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator of a function that only compiled functions call: it is compiled into them."""
    options = OPTIONS | _WITHOUT_WRAPPERS | {"fastmath": set(fastmath)}
    return lambda function: njit(**options)(function)


def compiled(
    fastmath: Iterable[str] = FUSED_MULTIPLY_ADD,
    *,
    inlined: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that compiles a function of scalars and arrays.

    Code goes to numba's cache beside the source or in the user's cache folder. Where neither can
    be written it is compiled in each process.

    Parameters
    ----------
    fastmath
        What the compiler may do to sums; it reaches the function's own arithmetic, not that of
        the functions it calls.
    inlined
        Put the code into each loop that calls it, however long it is: a loop with a call in it has
        no lanes.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        options = OPTIONS | {"fastmath": set(fastmath), "forceinline": inlined}
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            return njit(**options)(function)

    return decorate
