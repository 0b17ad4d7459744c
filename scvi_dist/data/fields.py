"""What a model reads of a store: one frozen class per kind of field, named as in scvi-tools.

A field knows where its values lie, how they are coded, and how scvi-tools' registry describes
them. What the data held (the categories) is the :class:`~scvi_dist.data.schema.Schema`'s; it is
handed in as one tuple of categories for each of the field's columns.

Axis suffixes: ``n`` cells, ``k`` columns.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.data.categories import (
    Category,
    CategoryCount,
    category_array,
    check_one_kind,
    code_dtype,
    encode,
)
from scvi_dist.errors import SchemaMismatch

Categories = tuple[tuple[Category, ...], ...]
"""The categories of each categorical column of a field; empty for a numerical field."""


@dataclass(frozen=True, slots=True)
class LayerField:
    """The matrix of counts: X (``layer=None``) or a layer."""

    registry_key: str
    layer: str | None = None

    def data_registry(self) -> dict[str, Any]:
        """Where scvi-tools finds it in an AnnData."""
        return {"attr_name": "X" if self.layer is None else "layers", "attr_key": self.layer}

    def state_registry(self, n_obs: int, var_names: Sequence[str]) -> dict[str, Any]:
        """Shape and gene names."""
        return {
            "n_obs": n_obs,
            "n_vars": len(var_names),
            "column_names": np.array(var_names, dtype=object),
        }

    def summary_stats(self, n_obs: int, var_names: Sequence[str]) -> dict[str, int]:
        """``n_vars`` and ``n_cells``."""
        return {"n_vars": len(var_names), "n_cells": n_obs}


class ObsField(ABC):
    """Columns of obs that become one input ``[n, k]`` of a model."""

    registry_key: str

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Columns of obs that are read."""

    @property
    def is_empty(self) -> bool:
        """True if the model gets no such input."""
        return not self.columns

    @property
    @abstractmethod
    def is_categorical(self) -> bool:
        """True if the columns are coded, False if they are numbers."""

    @abstractmethod
    def fit(self, seen: Sequence[CategoryCount]) -> Categories:
        """The categories, from what one pass over the data has counted for each column."""

    @abstractmethod
    def encode(
        self, obs: pd.DataFrame, categories: Categories, where: str, first_row: int = 0
    ) -> np.ndarray:
        """``[n, k]``: codes in the smallest integer type that holds them, or float32.

        Raises
        ------
        SchemaMismatch
            A value is missing, not a category of the schema, or not a number.
        """

    @abstractmethod
    def row_nbytes(self, categories: Categories) -> int:
        """Bytes that :meth:`encode` needs for one cell."""

    @abstractmethod
    def data_registry(self) -> dict[str, Any]:
        """Where scvi-tools finds it in an AnnData that it has set up."""

    @abstractmethod
    def state_registry(self, categories: Categories) -> dict[str, Any]:
        """What scvi-tools remembers of the data."""

    @abstractmethod
    def summary_stats(self, categories: Categories) -> dict[str, int]:
        """The sizes that a model is built with."""


@dataclass(frozen=True, slots=True)
class CategoricalObsField(ObsField):
    """One categorical column; without a column, one constant category 0."""

    registry_key: str
    attr_key: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return () if self.attr_key is None else (self.attr_key,)

    @property
    def is_empty(self) -> bool:
        return False

    @property
    def is_categorical(self) -> bool:
        return True

    def fit(self, seen: Sequence[CategoryCount]) -> Categories:
        return (seen[0].categories(),) if self.columns else ((0,),)

    def encode(
        self, obs: pd.DataFrame, categories: Categories, where: str, first_row: int = 0
    ) -> np.ndarray:
        if self.attr_key is None:
            return np.zeros((len(obs), 1), dtype=code_dtype(1))
        at = f"obs[{self.attr_key!r}] of {where}"
        return encode(obs[self.attr_key], categories[0], at, first_row)[:, None]

    def row_nbytes(self, categories: Categories) -> int:
        return np.dtype(code_dtype(len(categories[0]))).itemsize if self.columns else 0

    def data_registry(self) -> dict[str, Any]:
        return {"attr_name": "obs", "attr_key": f"_scvi_{self.registry_key}"}

    def state_registry(self, categories: Categories) -> dict[str, Any]:
        return {
            "categorical_mapping": category_array(categories[0]),
            "original_key": self.attr_key or f"_scvi_{self.registry_key}",
        }

    def summary_stats(self, categories: Categories) -> dict[str, int]:
        return {f"n_{self.registry_key}": len(categories[0])}


@dataclass(frozen=True, slots=True)
class LabelsWithUnlabeledObsField(CategoricalObsField):
    """Labels of which one means "not labelled"; that one is always the last category."""

    unlabeled_category: Category = "Unknown"

    def fit(self, seen: Sequence[CategoryCount]) -> Categories:
        return (unlabeled_last(seen[0].categories(), self.unlabeled_category, seen[0].where),)

    def state_registry(self, categories: Categories) -> dict[str, Any]:
        # super() without arguments does not work in a class that slots=True has made anew.
        state = CategoricalObsField.state_registry(self, categories)
        return {**state, "unlabeled_category": self.unlabeled_category}


def unlabeled_last(
    labels: Sequence[Category], unlabeled_category: Category, where: str
) -> tuple[Category, ...]:
    """Labels of which the unlabeled category, which may be new, is the last.

    It changes places with the label that would have been last, as in scvi-tools.
    """
    known = list(labels)
    if unlabeled_category not in known:
        known.append(unlabeled_category)
        check_one_kind(known, f"{where} with the unlabeled category")
    at = known.index(unlabeled_category)
    known[at], known[-1] = known[-1], known[at]
    return tuple(known)


@dataclass(frozen=True, slots=True)
class CategoricalJointObsField(ObsField):
    """Several categorical columns, side by side."""

    registry_key: str
    attr_keys: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return self.attr_keys

    @property
    def is_categorical(self) -> bool:
        return True

    def fit(self, seen: Sequence[CategoryCount]) -> Categories:
        return tuple(count.categories() for count in seen)

    def encode(
        self, obs: pd.DataFrame, categories: Categories, where: str, first_row: int = 0
    ) -> np.ndarray:
        codes_nk = np.empty((len(obs), len(self.attr_keys)), dtype=self._dtype(categories))
        for k, column in enumerate(self.attr_keys):
            at = f"obs[{column!r}] of {where}"
            codes_nk[:, k] = encode(obs[column], categories[k], at, first_row)
        return codes_nk

    def _dtype(self, categories: Categories) -> type[np.signedinteger]:
        return code_dtype(max((len(c) for c in categories), default=1))

    def row_nbytes(self, categories: Categories) -> int:
        return np.dtype(self._dtype(categories)).itemsize * len(self.attr_keys)

    def data_registry(self) -> dict[str, Any]:
        return _joint_location(self)

    def state_registry(self, categories: Categories) -> dict[str, Any]:
        if self.is_empty:
            return {}
        mappings = zip(self.attr_keys, map(category_array, categories), strict=True)
        return {
            "mappings": dict(mappings),
            "field_keys": list(self.attr_keys),
            "n_cats_per_key": [len(c) for c in categories],
        }

    def summary_stats(self, categories: Categories) -> dict[str, int]:
        return {f"n_{self.registry_key}": len(self.attr_keys)}


class _NumericalField(ObsField):
    """What the fields of numbers share."""

    __slots__ = ()

    @property
    def is_categorical(self) -> bool:
        return False

    def fit(self, seen: Sequence[CategoryCount]) -> Categories:
        return ()

    def encode(
        self, obs: pd.DataFrame, categories: Categories, where: str, first_row: int = 0
    ) -> np.ndarray:
        values_nk = np.empty((len(obs), len(self.columns)), dtype=np.float32)
        for k, column in enumerate(self.columns):
            values_nk[:, k] = _numbers(obs[column], f"obs[{column!r}] of {where}", first_row)
        return values_nk

    def row_nbytes(self, categories: Categories) -> int:
        return 4 * len(self.columns)


@dataclass(frozen=True, slots=True)
class NumericalObsField(_NumericalField):
    """One column of numbers; without a column, nothing."""

    registry_key: str
    attr_key: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return () if self.attr_key is None else (self.attr_key,)

    def data_registry(self) -> dict[str, Any]:
        return {} if self.is_empty else {"attr_name": "obs", "attr_key": self.attr_key}

    def state_registry(self, categories: Categories) -> dict[str, Any]:
        return {}

    def summary_stats(self, categories: Categories) -> dict[str, int]:
        return {}


@dataclass(frozen=True, slots=True)
class NumericalJointObsField(_NumericalField):
    """Several columns of numbers, side by side."""

    registry_key: str
    attr_keys: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return self.attr_keys

    def data_registry(self) -> dict[str, Any]:
        return _joint_location(self)

    def state_registry(self, categories: Categories) -> dict[str, Any]:
        return {} if self.is_empty else {"columns": np.array(self.attr_keys, dtype=object)}

    def summary_stats(self, categories: Categories) -> dict[str, int]:
        return {f"n_{self.registry_key}": len(self.attr_keys)}


def _joint_location(field: ObsField) -> dict[str, Any]:
    if field.is_empty:
        return {}
    return {"attr_name": "obsm", "attr_key": f"_scvi_{field.registry_key}"}


def _numbers(values: pd.Series, where: str, first_row: int) -> np.ndarray:
    """float32 ``[n]``, all finite."""
    if not pd.api.types.is_numeric_dtype(values.dtype):
        raise SchemaMismatch(f"{where}: a column of numbers is needed; seen dtype {values.dtype}.")
    # A nullable column has pd.NA; too large a float64 becomes inf and is caught below.
    with np.errstate(over="ignore"):
        numbers = values.to_numpy(dtype=np.float32, na_value=np.nan)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        at = int(bad[0])
        raise SchemaMismatch(
            f"{where}: every cell needs a finite number; {len(bad)} of rows {first_row} to "
            f"{first_row + len(values) - 1} have none (row {first_row + at}: {values.iloc[at]!r}). "
            "Fill them, or leave those cells out."
        )
    return numbers
