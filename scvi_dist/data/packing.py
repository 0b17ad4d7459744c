"""Arrays as short texts that JSON and a locator can hold."""

import base64
import zlib
from collections.abc import Iterable

import numpy as np


def pack_numbers(values: np.ndarray) -> str:
    """Whole numbers from 0 on as a short text."""
    small = values.astype(np.min_scalar_type(int(values.max(initial=0))))
    return f"{small.dtype.str}:{base64.b85encode(zlib.compress(small.tobytes(), 1)).decode()}"


def unpack_numbers(text: str) -> np.ndarray:
    """int64: what :func:`pack_numbers` was given."""
    dtype, _, packed = text.partition(":")
    return np.frombuffer(zlib.decompress(base64.b85decode(packed)), dtype=dtype).astype(np.int64)


def pack_names(names: Iterable[str]) -> str:
    """Names as a short text; none may hold the character 0."""
    return base64.b85encode(zlib.compress("\0".join(names).encode(), 6)).decode()


def unpack_names(text: str) -> np.ndarray:
    """Object array of str: what :func:`pack_names` was given (at least one name)."""
    return np.array(zlib.decompress(base64.b85decode(text)).decode().split("\0"), dtype=object)
