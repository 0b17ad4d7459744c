"""Which cells a model was trained on, kept in a file: as a rule where there is one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scvi_dist.dataloaders.rows import HashedRows, RangeRows, RowSet, all_members
from scvi_dist.dataloaders.split import Split

PARTS = ("train", "validation", "test")
MAX_LISTED = 10_000_000
"""Cells up to which their rows are written to a file one by one, as scvi-tools does."""


@dataclass(frozen=True)
class TrainedCells:
    """Rows of the training, validation and test cells."""

    parts: Mapping[str, RowSet | np.ndarray]
    """Part -> rows; an array is as a file listed it."""

    @staticmethod
    def of(split: Split) -> "TrainedCells":
        return TrainedCells({part: getattr(split, part) for part in PARTS})

    def rows(self, part: str) -> np.ndarray | None:
        """int64: rows of a part, which take 8 bytes a cell; None where it is not known."""
        known = self.parts.get(part)
        return known if known is None or isinstance(known, np.ndarray) else all_members(known)

    def with_rows(self, part: str, rows: np.ndarray) -> "TrainedCells":
        """The same, with other rows for a part."""
        return TrainedCells({**self.parts, part: np.asarray(rows, dtype=np.int64)})

    def to_attributes(self) -> dict[str, Any]:
        """scvi-tools' ``train_indices_``, …, and the rule where the cells follow from one."""
        attributes: dict[str, Any] = {}
        rules = {}
        for part in PARTS:
            known = self.parts.get(part)
            is_listed = known is None or isinstance(known, np.ndarray) or known.n <= MAX_LISTED
            attributes[f"{part}_indices_"] = self.rows(part) if is_listed else None
            if isinstance(known, HashedRows):
                rules[part] = {"rule": "hash", **_facts(known, "seed", "n_validation", "n_train")}
            elif isinstance(known, RangeRows):
                rules[part] = {"rule": "range", **_facts(known, "start", "stop")}
        return {**attributes, "split_rules_": rules}

    @staticmethod
    def from_attributes(attributes: Mapping[str, Any]) -> "TrainedCells":
        """What :meth:`to_attributes`, or scvi-tools, wrote."""
        parts: dict[str, RowSet | np.ndarray] = {}
        rules = attributes.get("split_rules_") or {}
        for part in PARTS:
            listed = attributes.get(f"{part}_indices_")
            if part in rules:
                parts[part] = _from_rule(part, dict(rules[part]))
            elif listed is not None:
                parts[part] = np.asarray(listed, dtype=np.int64)
        return TrainedCells(parts)


def _facts(rows: Any, *names: str) -> dict[str, int]:
    return {name: int(getattr(rows, name)) for name in ("n_store", *names)}


def _from_rule(part: str, rule: dict[str, Any]) -> RowSet:
    kind = rule.pop("rule")
    return RangeRows(**rule) if kind == "range" else HashedRows(part=part, **rule)
