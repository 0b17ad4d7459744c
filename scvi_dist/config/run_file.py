"""A run file as a tree of plain values, with the place that each value came from.

The YAML read is what people expect it to be (the core of YAML 1.2): ``off`` and ``no`` are words,
``1e-3`` is a number, and a key that is given twice is an error.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from scvi_dist.errors import ConfigError

_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.(nan|NaN)",
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    """Safe: makes plain values only."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"line {line}: the key {key!r} is given twice.")
            seen.add(key)
        return super().construct_mapping(node, deep)


for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first
    )


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what :class:`_Loader` would not read as text."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _construct_float(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", ""))
)


@dataclass(frozen=True)
class RunFile:
    """Values by section and key, before anything is known of their meaning."""

    tree: dict[str, Any]
    name: str = "the run file"
    """Path, for messages."""
    lines: Mapping[str, int] = field(default_factory=dict)
    """Dotted key -> line of the file."""
    overrides: Mapping[str, str] = field(default_factory=dict)
    """Dotted key -> text that replaced the file's value."""
    known_keys: Sequence[str] = ()
    """Every dotted key that exists, for hints."""
    types: Mapping[str, type] = field(default_factory=dict)
    """Dotted key of a section -> its class, where that depends on what the file says."""

    def where(self, key: str) -> str:
        """Where the value of a dotted key was given."""
        if key in self.overrides:
            return f"{key}={self.overrides[key]}"
        prefix = key
        while prefix and prefix not in self.lines:
            prefix = prefix.rpartition(".")[0]
        place = f"{self.name}, line {self.lines[prefix]}" if prefix else self.name
        return f"{place}: {key}" if key else place


def read_run_file(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> RunFile:
    """A run file with ``key=value`` texts applied to it.

    Raises
    ------
    ConfigError
        There is no such file, it is no YAML mapping, or an override is not ``key=value``.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the run file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not a text file; expected a run file in YAML. For a store, see "
            "'scvi-dist store info'."
        ) from error
    return parse_run_file(text, str(path), overrides)


def parse_run_file(text: str, name: str, overrides: Sequence[str] = ()) -> RunFile:
    """The same, from text."""
    tree = _load(text, name)
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{name}: expected sections such as 'data:' and 'output:', seen a {_kind(tree)}."
        )
    replaced = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(
                f"{override!r}: expected key=value with a dotted key, such as train.max_epochs=20."
            )
        _put(tree, key.strip(), _load(value, override), override)
        replaced[key.strip()] = value
    return RunFile(tree, name, _lines(text), replaced)


def dump(tree: Mapping[str, Any]) -> str:
    """The text of a tree; reading it again gives the same tree."""
    return yaml.dump(_plain(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _load(text: str, name: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{name}, {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {error.problem}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{name}: not valid YAML: {error}") from error


def _lines(text: str) -> dict[str, int]:
    lines: dict[str, int] = {}

    def walk(node: yaml.Node | None, path: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                dotted = f"{path}.{key.value}" if path else str(key.value)
                lines[dotted] = key.start_mark.line + 1
                walk(value, dotted)

    walk(yaml.compose(text, Loader=_Loader), "")
    return lines


def _put(tree: dict[str, Any], key: str, value: Any, override: str) -> None:
    *sections, last = key.split(".")
    place = tree
    for depth, section in enumerate(sections, start=1):
        inner = place.get(section)
        # A section may be missing, or be switched on by 'true'.
        if inner is None or isinstance(inner, bool):
            inner = place[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{override}: {'.'.join(sections[:depth])} is a {_kind(inner)}, which has no keys."
            )
        place = inner
    place[last] = value


def _kind(value: Any) -> str:
    kinds = {list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return kinds.get(type(value), type(value).__name__)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
