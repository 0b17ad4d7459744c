"""A report as Markdown and as one HTML file that needs nothing beside it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif;
  color: #262626; background: #f5f6f8; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 36px 28px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 0 0 6px; }
p { margin: 0 0 14px; max-width: 78ch; }
p.lead { color: #5a5a5a; margin-bottom: 22px; }
section { background: #fff; border: 1px solid #e3e5e8; border-radius: 10px; padding: 22px 26px;
  margin: 0 0 20px; }
.scroll { overflow-x: auto; margin: 0 0 14px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 16px 6px 0; border-bottom: 1px solid #ececec; text-align: right;
  white-space: nowrap; }
th { font-weight: 600; color: #5a5a5a; font-size: 14px; }
th:first-child, td:first-child { text-align: left; }
tr:last-child td { border-bottom: 0; }
img { display: block; max-width: 100%; height: auto; margin: 6px auto 0; }
.beside { display: flex; flex-wrap: wrap; gap: 12px 40px; align-items: flex-start; }
.beside .picture { flex: 1 1 420px; min-width: 0; }
.beside img { max-height: 460px; margin-top: 0; }
td.text, th.text { text-align: left; }
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading, what it says, and what shows it."""

    title: str
    text: str
    table: pd.DataFrame | None = None
    """Its index is the first column."""
    figures: tuple[str, ...] = ()
    """Names of PNG files in the folder of figures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """All that is shown."""

    title: str
    lead: str
    sections: Sequence[Section] = field(default_factory=list)


FIGURES = "figures"
"""Folder of the figures, beside the report."""


def markdown(document: Document) -> str:
    """The report as Markdown; its figures are files beside it."""
    lines = [f"# {document.title}", "", document.lead, ""]
    for section in document.sections:
        lines += [f"## {section.title}", "", section.text, ""]
        if section.table is not None:
            lines += [markdown_table(section.table), ""]
        for name in section.figures:
            lines += [f"![{section.title}]({FIGURES}/{name})", ""]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(table: pd.DataFrame) -> str:
    """A table with its index as the first column."""
    head = [table.index.name or "", *map(str, table.columns)]
    rows = [[str(index), *map(shown, row)] for index, row in _rows(table)]
    lines = [head, ["---", *["---:"] * len(table.columns)], *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def html(document: Document, folder: Path) -> str:
    """The report as one HTML file; ``folder`` has the figures, which become a part of it."""
    parts = [_section(section, folder) for section in document.sections]
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(document.title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main><h1>{escape(document.title)}</h1>"
        f'<p class="lead">{escape(document.lead)}</p>\n' + "\n".join(parts) + _END
    )


_END = "</main></body></html>\n"


def _section(section: Section, folder: Path) -> str:
    table = (
        "" if section.table is None else f'<div class="scroll">{_html_table(section.table)}</div>'
    )
    pictures = [_picture(section.title, folder / name) for name in section.figures]
    content = table + "".join(pictures)
    if table and len(pictures) == 1:
        content = f'<div class="beside">{table}<div class="picture">{pictures[0]}</div></div>'
    title, text = escape(section.title), escape(section.text)
    return f"<section><h2>{title}</h2><p>{text}</p>{content}</section>"


def _picture(title: str, path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(title)}: figure" src="data:image/png;base64,{content}">'


def _html_table(table: pd.DataFrame) -> str:
    is_text = [False, *(not pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes)]
    # The first column is on the left anyway; figures are on the right, a column of words is not.
    is_text[-1] = False
    kinds = [' class="text"' if text else "" for text in is_text]
    names = (table.index.name or "", *table.columns)
    head = "".join(
        f"<th{kind}>{escape(str(name))}</th>" for kind, name in zip(kinds, names, strict=True)
    )
    body = "".join(
        f"<tr>{_html_row(kinds, (str(index), *map(shown, row)))}</tr>"
        for index, row in _rows(table)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html_row(kinds: Sequence[str], cells: Sequence[str]) -> str:
    return "".join(
        f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds, cells, strict=True)
    )


def _rows(table: pd.DataFrame) -> list[tuple[object, tuple[object, ...]]]:
    return [(row[0], row[1:]) for row in table.itertuples(name=None)]


def shown(value: object) -> str:
    """A value for people: integers with separators, other numbers to three figures."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if isinstance(value, float | np.floating):
        number = float(value)
        if not np.isfinite(number):
            return "n/a"
        return f"{number:.3f}" if 1e-3 <= abs(number) < 1e4 or number == 0 else f"{number:.3g}"
    return str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
