"""Which cells have a label, and which of them an epoch learns from."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.data.hashing import splitmix64
from scvi_dist.data.schema import Schema
from scvi_dist.dataloaders.marked_rows import MarkedRows
from scvi_dist.dataloaders.rows import ArrayRows, RowSet, members
from scvi_dist.dataloaders.source import OpenSource
from scvi_dist.errors import ConfigError

CHUNK_ROWS = 1 << 18
"""Rows whose labels are looked at together; a multiple of 64."""

_SAMPLE_TAG = 0x5A3B1E


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledConfig:
    """How minibatches of labelled cells are drawn."""

    n_samples_per_label: int | None = None
    """Cells of each label that an epoch learns from, drawn anew for every epoch; all of a label
    that has fewer. ``None``: all cells of all labels."""

    def __post_init__(self) -> None:
        n = self.n_samples_per_label
        if n is not None and n < 1:
            raise ConfigError(f"n_samples_per_label must be at least 1, seen {n}.")


def unlabeled_code(schema: Schema) -> int:
    """Code of the unlabeled category.

    Raises
    ------
    ConfigError
        The data was set up without one.
    """
    category = schema.setup.unlabeled_category
    if category is None:
        raise ConfigError(
            "labelled cells are asked for, but the data was set up without an unlabeled_category: "
            "give it, and labels_key, to setup_anndata()."
        )
    return schema.categories[REGISTRY_KEYS.LABELS_KEY].index(category)


def is_labelled(source: OpenSource) -> Iterator[np.ndarray]:
    """Whether each cell of a store has a label, in order, for ``CHUNK_ROWS`` rows at a time."""
    unlabeled = unlabeled_code(source.schema)
    for codes in _label_codes(source):
        yield codes != unlabeled


def _label_codes(source: OpenSource) -> Iterator[np.ndarray]:
    for start in range(0, source.store.n_obs, CHUNK_ROWS):
        rows = np.arange(start, min(start + CHUNK_ROWS, source.store.n_obs))
        yield source.coded_obs.take(rows)[REGISTRY_KEYS.LABELS_KEY][:, 0]


@dataclass(frozen=True, eq=False)
class LabelledCells:
    """The labelled cells among some rows, and those of them that each epoch takes.

    Immutable and picklable; what an epoch takes is a pure function of seed and epoch.
    """

    rows: MarkedRows
    """All of them."""
    codes: np.ndarray | None = None
    """Label of each of them, ascending in rows; ``None`` where all cells are taken."""
    n_per_label: int | None = None
    """Cells taken of each label."""

    @staticmethod
    def among(rows: RowSet, source: OpenSource, config: LabelledConfig) -> "LabelledCells":
        """Found in one pass over the codes in memory."""
        masks, codes = [], []
        unlabeled, start = unlabeled_code(source.schema), 0
        for chunk in _label_codes(source):
            inside = np.zeros(len(chunk), dtype=bool)
            inside[members(rows, start, start + len(chunk)) - start] = True
            inside &= chunk != unlabeled
            masks.append(inside)
            codes.append(chunk[inside].astype(np.min_scalar_type(unlabeled)))
            start += len(chunk)
        marked = MarkedRows.of(masks, rows.n_store)
        if config.n_samples_per_label is None:
            return LabelledCells(marked)
        return LabelledCells(marked, np.concatenate(codes), config.n_samples_per_label)

    @property
    def n(self) -> int:
        """Cells that an epoch takes."""
        if self.codes is None or self.n_per_label is None:
            return self.rows.n
        return int(np.minimum(np.bincount(self.codes), self.n_per_label).sum())

    def of_epoch(self, seed: int, epoch: int) -> RowSet:
        """The cells that an epoch takes."""
        if self.codes is None or self.n_per_label is None:
            return self.rows
        words = np.random.SeedSequence([seed, epoch, _SAMPLE_TAG])
        key = words.generate_state(1, np.uint64)[0]
        best = np.empty(0, np.int64)
        best_codes = np.empty(0, self.codes.dtype)
        for start in range(0, self.rows.n_store, CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, self.rows.n_store)
            low, high = self.rows.count_before(np.array([start, stop]))
            rows = np.concatenate([best, members(self.rows, start, stop)])
            codes = np.concatenate([best_codes, self.codes[low:high]])
            kept = _first_of_each(codes, splitmix64(rows.astype(np.uint64) ^ key), self.n_per_label)
            best, best_codes = rows[kept], codes[kept]
        return ArrayRows(np.sort(best), self.rows.n_store)


def _first_of_each(codes: np.ndarray, draw: np.ndarray, n: int) -> np.ndarray:
    """Places of the ``n`` smallest draws of each code."""
    order = np.lexsort((draw, codes))
    sorted_codes = codes[order]
    is_first = np.concatenate([[True], sorted_codes[1:] != sorted_codes[:-1]])
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))
    return order[np.arange(len(order)) - first < n]
