"""From a tree of plain values to frozen dataclasses, strictly.

Every key must be a field, every value of its field's type; nothing is guessed. A message names the
file and line (or the override), the key, what was expected and what was seen.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch

from scvi_dist.config.run_file import RunFile
from scvi_dist.errors import ConfigError, did_you_mean

T = TypeVar("T")

INLINE = {"inline": True}
"""Metadata of a field whose own fields are keys of the section that holds it."""


def hidden(*names: str) -> dict[str, Any]:
    """Metadata of a field of which some fields are not keys: another key decides them."""
    return {"hidden": names}


def _hints(cls: Any) -> dict[str, Any]:
    return _resolved(cls)


_resolved = cache(get_type_hints)


class _Misfit(Exception):
    """A value is not of the type; the message says what was expected."""


def build(cls: type[T], tree: Any, source: RunFile, path: str = "", skip: Sequence[str] = ()) -> T:
    """An instance of the dataclass ``cls``.

    A class with a method ``from_tree(tree, source, path)`` builds itself.
    """
    custom = getattr(cls, "from_tree", None)
    if tree is None:
        tree = {}
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{source.where(path)}: expected keys below it, seen {_seen(tree)}.")
    if custom is not None:
        return custom(tree, source, path)
    hints = _hints(cls)
    valid = list(keys_of(cls, skip=skip))
    for key in tree:
        if key not in valid:
            raise ConfigError(_unknown_key(str(key), valid, source, path))
    values = {
        item.name: value
        for item in fields(cls)  # type: ignore[arg-type]
        if item.name not in skip
        for value in _value_of(item, hints[item.name], tree, source, path)
    }
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{source.where(path)}: {error}") from error


def keys_of(cls: type, skip: Sequence[str] = ()) -> Iterator[str]:
    """Keys that a section of this class may have."""
    hints = _hints(cls)
    for item in fields(cls):
        if item.name in skip or is_code(hints[item.name]):
            continue
        if item.metadata.get("inline"):
            yield from keys_of(hints[item.name], item.metadata.get("hidden", ()))
        else:
            yield item.name


def dotted_keys(cls: type, prefix: str = "", skip: Sequence[str] = ()) -> Iterator[str]:
    """Every key of a run file, sections included."""
    hints = _hints(cls)
    for item in fields(cls):
        hint = hints[item.name]
        if item.name in skip or is_code(hint):
            continue
        if item.metadata.get("inline"):
            yield from dotted_keys(hint, prefix, item.metadata.get("hidden", ()))
            continue
        yield f"{prefix}{item.name}"
        inner = _dataclass_in(hint)
        if inner is not None:
            below = f"{prefix}{item.name}."
            custom = getattr(inner, "keys", None)
            if custom is not None:
                yield from (f"{below}{key}" for key in custom())
            else:
                yield from dotted_keys(inner, below, item.metadata.get("hidden", ()))


def to_tree(value: Any, skip: Sequence[str] = ()) -> Any:
    """The tree that :func:`build` makes ``value`` from."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    custom = getattr(value, "to_tree", None)
    if custom is not None:
        return custom()
    hints = _hints(type(value))
    tree: dict[str, Any] = {}
    for item in fields(value):
        if item.name in skip or is_code(hints[item.name]):
            continue
        inner = to_tree(getattr(value, item.name), item.metadata.get("hidden", ()))
        tree.update(inner if item.metadata.get("inline") else {item.name: inner})
    return tree


def convert(hint: Any, value: Any, source: RunFile, key: str) -> Any:
    """``value`` as the type ``hint``; raises :class:`ConfigError` where it is none."""
    try:
        return _convert(hint, value, source, key)
    except _Misfit as misfit:
        seen = _seen(value)
        raise ConfigError(f"{source.where(key)}: expected {misfit}, seen {seen}.") from None


def _value_of(
    item: Field, hint: Any, tree: Mapping[str, Any], source: RunFile, path: str
) -> Iterator[Any]:
    """The value of a field, if there is one to give."""
    skip = item.metadata.get("hidden", ())
    if item.metadata.get("inline"):
        own = set(keys_of(hint, skip))
        yield build(hint, {k: v for k, v in tree.items() if k in own}, source, path, skip)
        return
    key = f"{path}.{item.name}" if path else item.name
    hint = source.types.get(key, hint)
    if item.name in tree and skip:
        yield build(hint, tree[item.name], source, key, skip)
    elif item.name in tree:
        yield convert(hint, tree[item.name], source, key)
    elif item.default is MISSING and item.default_factory is MISSING and not is_code(hint):
        section = _dataclass_in(hint)
        if section is not None:
            # Says which of its keys is missing.
            yield build(section, {}, source, key)
        raise ConfigError(
            f"{source.where(path)}: the key {key!r} is missing; expected {_describe(hint)}."
        )


def _convert(hint: Any, value: Any, source: RunFile, key: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        return _convert_union(get_args(hint), value, source, key)
    if origin is Literal:
        if value in get_args(hint):
            return value
        raise _Misfit(f"{_describe(hint)} ({did_you_mean(str(value), get_args(hint))[:-1]})")
    section = _dataclass_in(hint)
    if section is not None:
        # 'true' switches a section on as it is.
        return build(section, {} if value is True else value, source, key)  # type: ignore[arg-type]
    if origin in (tuple, list, Sequence):
        if not isinstance(value, list | tuple):
            raise _Misfit(_describe(hint))
        items = [convert(get_args(hint)[0], v, source, f"{key}[{i}]") for i, v in enumerate(value)]
        return tuple(items)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _Misfit(_describe(hint))
        inner = get_args(hint)[1]
        return {str(k): convert(inner, v, source, f"{key}.{k}") for k, v in value.items()}
    return _CONVERTERS[hint](value, source.overrides.get(key))


def _convert_union(members: Sequence[Any], value: Any, source: RunFile, key: str) -> Any:
    if value is None and NoneType in members:
        return None
    inner = next((m for m in members if is_dataclass(m)), None)
    if inner is not None and isinstance(value, Mapping | bool):
        return None if value is False else _convert(inner, value, source, key)
    # Text last: it takes the raw text of an override, whatever that looks like.
    for member in sorted(members, key=lambda m: m is str):
        if member is not NoneType and not is_code(member):
            try:
                return _convert(member, value, source, key)
            except _Misfit:
                continue
    raise _Misfit(_describe(Union[tuple(members)]))  # noqa: UP007


def _to_bool(value: Any, raw: str | None) -> bool:
    if isinstance(value, bool):
        return value
    raise _Misfit(_describe(bool))


def _to_int(value: Any, raw: str | None) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise _Misfit(_describe(int))


def _to_float(value: Any, raw: str | None) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise _Misfit(_describe(float))


def _to_str(value: Any, raw: str | None) -> str:
    if isinstance(value, str):
        return value
    if raw is not None and not isinstance(value, list | Mapping):
        # On a command line nobody should have to quote a name that looks like a number.
        return raw
    raise _Misfit("text (write it in quotes)" if value is not None else "text")


_CONVERTERS: dict[Any, Callable[[Any, str | None], Any]] = {
    bool: _to_bool,
    int: _to_int,
    float: _to_float,
    str: _to_str,
}


def _describe(hint: Any) -> str:
    """A type in words."""
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    origin, args = get_origin(hint), get_args(hint)
    if hint in words:
        return words[hint]
    if origin in (Union, UnionType):
        parts = [_describe(a) for a in args if a is not NoneType and not is_code(a)]
        return " or ".join(dict.fromkeys(parts))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (tuple, list, Sequence):
        return f"a list of {_describe(args[0])}"
    return "keys and values"


def _seen(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "keys: " + ", ".join(map(str, list(value)[:5]))
    return f"{str(value)[:60]!r}" if isinstance(value, str) else repr(value)[:60]


def _unknown_key(key: str, valid: Sequence[str], source: RunFile, path: str) -> str:
    dotted = f"{path}.{key}" if path else key
    place = f"section {path!r}" if path else "a run file"
    elsewhere = [known for known in source.known_keys if known.rpartition(".")[2] == key]
    if elsewhere:
        hint = f"it belongs elsewhere: {elsewhere[0]}."
    else:
        hint = did_you_mean(key, valid)
    return f"{source.where(dotted)}: {place} has no key {key!r}; {hint}"


def _dataclass_in(hint: Any) -> type | None:
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next((m for m in members if is_dataclass(m) and isinstance(m, type)), None)


def is_code(hint: Any) -> bool:
    """Whether values of this type are functions or networks, which no run file can hold."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return all(_is_code(m) for m in members if m is not NoneType)


def _is_code(member: Any) -> bool:
    if get_origin(member) is Callable or member is Callable:
        return True
    return isinstance(member, type) and issubclass(member, torch.nn.Module)
