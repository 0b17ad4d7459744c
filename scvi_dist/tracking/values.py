"""What may be written down: names MLflow accepts, numbers for a chart, text without secrets."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

MAX_KEY_LENGTH = 250
MAX_PARAM_LENGTH = 6_000
MAX_TAG_LENGTH = 8_000
MAX_DIGEST_LENGTH = 36

_NOT_IN_NAMES = re.compile(r"[^/\w.\- :]")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")
_QUERY = re.compile(r"(\w[\w+.-]*://[^\s?'\"]*)\?[^\s'\"]*")
_SECRET_KEY = re.compile(
    r"(^|[._-])(password|passwd|secret|token|credentials?|(api|access|private|secret|account)[_-]?key)"
    r"($|[._-])",
    re.IGNORECASE,
)


def clean_key(name: str) -> str:
    """``name`` as a metric, parameter or tag may be called in MLflow.

    Other characters become ``_``; MLflow also refuses names that change when read as a path.
    """
    cleaned = _NOT_IN_NAMES.sub("_", str(name))
    segments = [s.replace(".", "_") if set(s) <= {"."} else s for s in cleaned.split("/") if s]
    return "/".join(segments)[:MAX_KEY_LENGTH].rstrip("/") or "unnamed"


def chart_number(value: float) -> float:
    """``value`` with an infinity turned into NaN.

    MLflow would store an infinity as 1.8e308, which flattens every other point of the curve.
    """
    return math.nan if math.isinf(value) else value


def number_or_none(value: Any) -> float | None:
    """``value`` as a float, if it is a number, a tensor of one element or the like."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def redact(text: str) -> str:
    """``text`` with user names, passwords and queries taken out of every URL in it."""
    return _QUERY.sub(r"\1?***", _CREDENTIALS.sub("***@", text))


def flatten(tree: Any, prefix: str = "") -> dict[str, str]:
    """Dotted key -> text of nested mappings, lists and dataclasses; secrets become ``***``."""
    items = _children(tree)
    if items is None:
        hidden = bool(_SECRET_KEY.search(prefix)) and tree is not None
        return {clean_key(prefix): "***" if hidden else _text(tree)[:MAX_PARAM_LENGTH]}
    flat: dict[str, str] = {}
    for key, value in items:
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def tag_texts(tags: Mapping[str, Any]) -> dict[str, str]:
    """Names and values as MLflow's tags may have them."""
    return {clean_key(k): redact(str(v))[:MAX_TAG_LENGTH] for k, v in tags.items()}


def _children(tree: Any) -> Iterable[tuple[Any, Any]] | None:
    """Named parts of a container, or None for a leaf (a list of plain values is a leaf)."""
    if is_dataclass(tree) and not isinstance(tree, type):
        return [(f.name, getattr(tree, f.name)) for f in fields(tree)]
    if isinstance(tree, Mapping) and tree:
        return tree.items()
    if isinstance(tree, list | tuple) and any(_children(v) is not None for v in tree):
        return enumerate(tree)
    return None


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        shown = ", ".join(_text(v) for v in value[:100])
        return f"[{shown}{f', … ({len(value)} in all)' if len(value) > 100 else ''}]"
    if isinstance(value, PurePath):
        value = str(value)
    return redact(str(value))
