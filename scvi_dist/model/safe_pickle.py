"""Values out of a pickle without running it.

Unpickling is running a program: it imports what it names and calls it. This file reads the same
program with a machine of its own that can only make plain values (numbers, strings, lists,
dicts, ...) and hand them to the constructors of an allow-list. Nothing is imported, no attribute
is looked up, no method of an object in the file is called; anything else is refused by name.
"""

import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scvi_dist.errors import StoreCorrupt, UnsafeFile


@dataclass(frozen=True, slots=True)
class Constructor:
    """What stands for a function or class that a pickle may name."""

    name: str
    """``module.name`` as the file writes it."""
    build: Callable[..., Any]
    """Our own function that is called in its place."""


class Unfinished:
    """An object that is made in two steps, and is not to be used before the second."""

    __slots__ = ("_finish", "_name", "_value", "finished")

    def __init__(self, name: str, finish: Callable[[Any], Any]) -> None:
        self._name = name
        self._finish = finish
        self._value: Any = None
        self.finished = False

    def with_state(self, state: Any) -> Any:
        """The object, from the state that the pickle gives it."""
        self._value = self._finish(state)
        self.finished = True
        return self._value

    @property
    def value(self) -> Any:
        if not self.finished:
            raise ValueError(f"a {self._name} is used before it has a state")
        return self._value


Persistent = Callable[[Any], Any]
"""From a persistent id (how torch names a storage) to the object."""

_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_TEXT = {"STRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_BYTES = {"BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_PUSHED_AS_READ = _NUMBERS | _TEXT | _BYTES
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_FROM_MARK: dict[str, Callable[[list[Any]], Any]] = {
    "LIST": list,
    "TUPLE": tuple,
    "FROZENSET": frozenset,
    "DICT": lambda items: dict(zip(items[::2], items[1::2], strict=True)),
}
_TUPLE_LENGTH = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})
_CONTRADICTIONS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)
"""What our own constructors and the machine raise when the file does not make sense."""


def read_pickle(
    data: bytes,
    allowed: Mapping[tuple[str, str], Any],
    where: str,
    persistent: Persistent | None = None,
) -> Any:
    """The value that a pickle describes, made of plain values and of what ``allowed`` makes.

    Parameters
    ----------
    data
        The pickle, of any protocol.
    allowed
        ``(module, name)`` to a :class:`Constructor`, or to the value that the name stands for.
    where
        What to call the file in messages.
    persistent
        Makes the object of a persistent id; without it such ids are refused.

    Raises
    ------
    UnsafeFile
        If the pickle names anything outside ``allowed`` or asks for any other action.
    StoreCorrupt
        If it is cut short or contradicts itself.
    """
    machine = _Machine(allowed, where, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            machine.step(opcode.name, argument)
        return machine.result()
    except _CONTRADICTIONS as error:
        if isinstance(error, UnsafeFile | StoreCorrupt):
            raise
        raise StoreCorrupt(
            f"{where} is not a readable pickle: {error}. The file is cut short or damaged; "
            "copy or save it again."
        ) from error


class _Machine:
    """The stack and the memo of a pickle, and what each opcode does to them."""

    def __init__(
        self,
        allowed: Mapping[tuple[str, str], Any],
        where: str,
        persistent: Persistent | None,
    ) -> None:
        self._allowed = allowed
        self._where = where
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _PUSHED_AS_READ:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in _FROM_MARK:
            self._stack.append(_FROM_MARK[name](self._pop_to_mark()))
        elif name in _TUPLE_LENGTH:
            self._stack.append(tuple(self._pop_many(_TUPLE_LENGTH[name])))
        elif name in self._ACTIONS:
            self._ACTIONS[name](self, argument)
        elif name not in _IGNORED:
            raise self._refusal(f"does what no model file needs (pickle opcode {name})")

    def result(self) -> Any:
        value = self._pop()
        if self._stack:
            raise ValueError(f"{len(self._stack)} values are left over")
        return value

    def _refusal(self, what: str) -> UnsafeFile:
        return UnsafeFile(
            f"{self._where} {what}. Reading it could run code, so it was not read and nothing in "
            "it ran. Expected plain values, arrays and tables, as scvi-tools and scvi_dist save "
            "them. If you trust the file, open it where it was made and save it again without "
            "that object."
        )

    # stack

    def _pop(self) -> Any:
        if self._marks and self._marks[-1] == len(self._stack):
            raise ValueError("a value is taken from below a mark")
        return _settled(self._stack.pop())

    def _pop_many(self, n: int) -> list[Any]:
        return [self._pop() for _ in range(n)][::-1]

    def _pop_to_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return [_settled(item) for item in items]

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _duplicate(self, _: Any) -> None:
        self._stack.append(_settled(self._stack[-1]))

    def _drop(self, _: Any) -> None:
        self._stack.pop()

    def _drop_to_mark(self, _: Any) -> None:
        self._pop_to_mark()

    # memo

    def _put(self, key: int) -> None:
        self._memo[key] = self._stack[-1]

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, key: int) -> None:
        self._stack.append(_settled(self._memo[key]))

    # containers

    def _append(self, _: Any) -> None:
        self._extend([self._pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: Iterable[Any]) -> None:
        _expect(self._stack[-1], list, "list").extend(items)

    def _set_item(self, _: Any) -> None:
        self._update(self._pop_many(2))

    def _set_items(self, _: Any) -> None:
        self._update(self._pop_to_mark())

    def _update(self, items: list[Any]) -> None:
        target = _expect(self._stack[-1], dict, "dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    def _add_items(self, _: Any) -> None:
        items = self._pop_to_mark()
        _expect(self._stack[-1], set, "set").update(items)

    # objects

    def _global(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        self._name(module, name)

    def _stack_global(self, _: Any) -> None:
        module, name = self._pop_many(2)
        self._name(str(module), str(name))

    def _name(self, module: str, name: str) -> None:
        if (module, name) not in self._allowed:
            raise self._refusal(f"names {module}.{name}, which is not on the list of harmless ones")
        self._stack.append(self._allowed[module, name])

    def _reduce(self, _: Any) -> None:
        called, arguments = self._pop_many(2)
        if not isinstance(called, Constructor):
            raise self._refusal(f"calls a {type(called).__name__} as if it were a function")
        self._stack.append(called.build(*_expect(arguments, tuple, "tuple")))

    def _build(self, _: Any) -> None:
        state = self._pop()
        target = self._stack[-1]
        if isinstance(target, Unfinished) and not target.finished:
            self._stack[-1] = target.with_state(state)
        elif not _takes_metadata(target, state):
            raise self._refusal(f"sets attributes of a {type(target).__name__}")

    def _persistent_id(self, _: Any) -> None:
        key = self._pop()
        if self._persistent is None:
            raise self._refusal("refers to objects outside itself")
        self._stack.append(self._persistent(key))

    _ACTIONS: Mapping[str, Callable[["_Machine", Any], None]] = {
        "MARK": _mark,
        "DUP": _duplicate,
        "POP": _drop,
        "POP_MARK": _drop_to_mark,
        "PUT": _put,
        "BINPUT": _put,
        "LONG_BINPUT": _put,
        "MEMOIZE": _memoize,
        "GET": _get,
        "BINGET": _get,
        "LONG_BINGET": _get,
        "APPEND": _append,
        "APPENDS": _appends,
        "SETITEM": _set_item,
        "SETITEMS": _set_items,
        "ADDITEMS": _add_items,
        "GLOBAL": _global,
        "STACK_GLOBAL": _stack_global,
        "REDUCE": _reduce,
        "NEWOBJ": _reduce,
        "BUILD": _build,
        "BINPERSID": _persistent_id,
    }


def _settled(value: Any) -> Any:
    return value.value if isinstance(value, Unfinished) else value


def _expect(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected a {name}, got a {type(value).__name__}")
    return value


def _takes_metadata(target: Any, state: Any) -> bool:
    """Whether this is torch marking a state dict with its modules' versions, which is dropped."""
    return isinstance(target, dict) and isinstance(state, dict) and set(state) == {"_metadata"}
