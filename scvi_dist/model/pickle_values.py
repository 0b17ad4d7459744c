"""The allow-list: the names that a model file may contain, and our own function for each.

None of these functions calls anything that came from the file, and none makes an object larger
than the bytes that the file spends on it.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch

from scvi_dist.model.safe_pickle import Constructor, Unfinished

_SIMPLE_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|O8?|[US]\d+)")

Block = tuple[np.ndarray, Any, int]
"""Values ``[columns, rows]``, the columns they belong to, and 2."""


# Python


def _bytes(*arguments: Any) -> bytes:
    """``bytes()``; ``bytes(n)`` would let a few bytes of a file ask for any amount of memory."""
    if arguments:
        raise TypeError("bytes takes no arguments here")
    return b""


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How protocol 2 writes bytes."""
    if encoding.replace("-", "").lower() not in {"latin1", "utf8", "ascii"}:
        raise ValueError(f"unknown encoding {encoding!r}")
    return str(text).encode(encoding)


def _default_dict(_factory: Any = None) -> dict[Any, Any]:
    """A plain dict: what is in it is all that matters."""
    return {}


def _ordered_dict(items: Iterable[Iterable[Any]] = ()) -> "OrderedDict[Any, Any]":
    return OrderedDict((key, value) for key, value in items)


def _slice(start: Any, stop: Any, step: Any = None) -> slice:
    return slice(start, stop, step)


def _collection(kind: Callable[[Iterable[Any]], Any]) -> Callable[..., Any]:
    def build(items: Any = ()) -> Any:
        if not isinstance(items, list | tuple | set | frozenset | dict):
            raise TypeError(f"cannot make a collection of a {type(items).__name__}")
        return kind(items)

    return build


# NumPy


def _dtype(code: Any, *_flags: Any) -> Unfinished:
    if not _SIMPLE_DTYPE.fullmatch(str(code)):
        raise ValueError(f"arrays of dtype {code!r} are not read")
    dtype = np.dtype(str(code).replace("O8", "O"))

    def with_state(state: tuple[Any, ...]) -> np.dtype:
        order, *structure = state[1:5]
        if any(part is not None for part in structure):
            raise ValueError("structured arrays are not read")
        return dtype.newbyteorder(order) if order in "<>" else dtype

    return Unfinished("dtype", with_state)


def _reconstruct(*_: Any) -> Unfinished:
    """An empty array; its state brings shape, dtype and content."""

    def with_state(state: tuple[Any, ...]) -> np.ndarray:
        shape, dtype, fortran, content = state[-4:]
        return _array(content, dtype, shape, "F" if fortran else "C")

    return Unfinished("array", with_state)


def _array(content: Any, dtype: np.dtype, shape: Any, order: str = "C") -> np.ndarray:
    shape = tuple(int(n) for n in shape)
    if dtype.hasobject:
        if len(content) != int(np.prod(shape)):
            raise ValueError(f"{len(content)} objects do not fill an array of shape {shape}")
        flat = np.empty(len(content), dtype=object)
        # Not flat[:] = content: NumPy would look into objects that are sequences.
        for i, item in enumerate(content):
            flat[i] = item
    else:
        # Python's integers, since a crafted shape overflows NumPy's.
        wanted = dtype.itemsize
        for n in shape:
            wanted *= n
        if len(content) != wanted or min(shape, default=0) < 0:
            raise ValueError(f"{len(content)} bytes do not fill {dtype} of shape {shape}")
        flat = np.frombuffer(bytearray(content), dtype=dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: np.dtype, content: Any = b"") -> Any:
    """A NumPy number."""
    return content if dtype.hasobject else _array(content, dtype, ())[()]


# pandas


def _unpickle_block(values: np.ndarray, placement: Any, n_dims: int) -> Block:
    if not isinstance(values, np.ndarray) or values.ndim != 2:
        raise ValueError(f"columns stored as {type(values).__name__} are not read")
    return values, placement, n_dims


def _block_manager(
    blocks: tuple[Block, ...], axes: list[pd.Index], *_: Any
) -> tuple[tuple[Block, ...], list[pd.Index]]:
    return blocks, axes


def _new_frame() -> Unfinished:
    return Unfinished("DataFrame", lambda state: _frame(*state["_mgr"]))


def _frame(blocks: tuple[Block, ...], axes: list[pd.Index]) -> pd.DataFrame:
    columns, index = axes
    content: dict[int, np.ndarray] = {}
    for values, placement, _ in blocks:
        where = placement
        if isinstance(placement, slice):
            where = range(*placement.indices(len(columns)))
        if values.shape != (len(where), len(index)):
            raise ValueError("a table's columns do not have the length of its index")
        content.update({int(column): row for column, row in zip(where, values, strict=True)})
    if sorted(content) != list(range(len(columns))):
        raise ValueError("a table does not have all its columns")
    frame = pd.DataFrame(content, index=index, columns=range(len(columns)))
    frame.columns = columns
    return frame


def _new_index(kind: Any, state: dict[str, Any]) -> pd.Index:
    if {"start", "stop", "step"} <= set(state):
        return pd.RangeIndex(state["start"], state["stop"], state["step"], name=state.get("name"))
    return pd.Index(state["data"], name=state.get("name"))


def _only_named(*_: Any) -> Any:
    raise TypeError("this class is named but never called in a model file")


# torch


def _rebuild_parameter(data: torch.Tensor, *_: Any) -> torch.Tensor:
    return data


def rebuild_tensor(
    storage: torch.Tensor, offset: int, size: Any, stride: Any, *_: Any
) -> torch.Tensor:
    """A tensor on a storage, which is a tensor ``[numel]``; never reaching outside it."""
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    outside = 0 not in size and last >= len(storage)
    # A stride of 0 lets a few bytes stand for any number of elements.
    if min((offset, *size, *stride)) < 0 or outside or math.prod(size) > len(storage):
        raise ValueError(f"a tensor of size {size} does not lie within its storage")
    # A copy of its own size: as written, views of one storage would keep all of it alive.
    return storage.as_strided(size, stride, offset).clone()


STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

_BUILTINS: dict[str, Callable[..., Any]] = {
    "bytes": _bytes,
    "dict": _only_named,
    "slice": _slice,
    "list": _collection(list),
    "tuple": _collection(tuple),
    "set": _collection(set),
    "frozenset": _collection(frozenset),
}
_CONSTRUCTORS: dict[tuple[str, str], Callable[..., Any]] = {
    **{("__builtin__", name): build for name, build in _BUILTINS.items()},
    **{("builtins", name): build for name, build in _BUILTINS.items()},
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "defaultdict"): _default_dict,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): _only_named,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array for core in ("core", "_core")},
    ("pandas.core.frame", "DataFrame"): _new_frame,
    ("pandas.core.internals.managers", "BlockManager"): _block_manager,
    ("pandas._libs.internals", "_unpickle_block"): _unpickle_block,
    ("pandas.core.indexes.base", "_new_Index"): _new_index,
    ("pandas.core.indexes.base", "Index"): _only_named,
    ("pandas.core.indexes.range", "RangeIndex"): _only_named,
    ("pandas.core.indexes.numeric", "Int64Index"): _only_named,
    ("pandas.core.indexes.numeric", "Float64Index"): _only_named,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): _only_named for name in STORAGE_DTYPES},
}
_ACTIVATIONS = ("ReLU", "LeakyReLU", "ELU", "SELU", "GELU", "SiLU", "Softplus", "Tanh", "Sigmoid")

ALLOWED: dict[tuple[str, str], Any] = {
    **{
        (module, name): Constructor(f"{module}.{name}", build)
        for (module, name), build in _CONSTRUCTORS.items()
    },
    # What a user may have given a module as an activation; these are values, never called here.
    ("torch._C._nn", "softplus"): torch.nn.functional.softplus,
    **{("torch.nn.modules.activation", name): getattr(torch.nn, name) for name in _ACTIVATIONS},
}
"""``(module, name)`` to what stands for it."""
