"""A store's description for a person, and for a program."""

import json
from collections.abc import Iterator
from dataclasses import asdict

from scvi_dist.data.describe import StoreDescription
from scvi_dist.job.plan import in_bytes


def description_json(described: StoreDescription) -> str:
    """As JSON text."""
    return json.dumps(asdict(described), indent=1)


def description_text(described: StoreDescription) -> str:
    """As two columns of text."""
    lines = [f"{name:<16}{value}" for name, value in _rows(described)]
    if described.obs:
        width = max(len(column.name) for column in described.obs)
        lines.append("obs")
        for column in described.obs:
            counted = "" if column.n_categories is None else f", {column.n_categories:,} values"
            lines.append(f"  {column.name:<{width}}  {column.kind}{counted}")
    if described.obsm:
        lines.append("obsm")
        lines.extend(f"  {name}  {width:,} columns" for name, width in described.obsm)
    return "\n".join(lines)


def _rows(described: StoreDescription) -> Iterator[tuple[str, str]]:
    yield "store", described.url
    yield "kind", described.kind
    yield "cells x genes", f"{described.n_obs:,} x {described.n_vars:,}"
    yield "matrix", described.layer or "X"
    yield "other matrices", ", ".join(described.layers) or "none"
    if described.encoding is not None:
        yield "stored as", " ".join(filter(None, (described.encoding, described.dtype)))
    if described.density is not None:
        yield "not zero", f"{100 * described.density:.2g} %"
    yield "chunks", f"{described.chunk_rows:,} rows"
    yield "in memory", f"{described.bytes_per_cell:,.0f} bytes a cell"
    if described.size_bytes is not None:
        yield "on disk", in_bytes(described.size_bytes)
    yield "digest", described.digest
