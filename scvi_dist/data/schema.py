"""What a model knows about its data: genes, categories and columns. Built once, saved as JSON.

A :class:`Schema` is fitted by one streaming pass over obs (:func:`fit_schema`), or carried over to
another store (:func:`transfer_schema`). Codes are those that scvi-tools gives; they depend neither
on the order of rows nor on how a store is cut into shards.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.data.categories import (
    Category,
    CategoryCount,
    check_one_kind,
    in_order,
    unknown_categories,
    without,
)
from scvi_dist.data.fields import Categories, LabelsWithUnlabeledObsField, ObsField
from scvi_dist.data.setup import SetupArgs, check_setup
from scvi_dist.data.store import Store
from scvi_dist.errors import SchemaMismatch

__all__ = ["Schema", "SetupArgs", "check_setup", "fit_schema", "transfer_schema"]

_FORMAT = "scvi_dist.schema"
_VERSION = 1
_SHOWN = 5


@dataclass(frozen=True)
class Schema:
    """Genes, categories and columns that a model was set up with. Immutable, JSON-able."""

    setup: SetupArgs
    var_names: tuple[str, ...]
    """Gene of each column of the counts."""
    n_obs: int
    """Cells of the store that it was fitted to."""
    categories: Mapping[str, tuple[Category, ...]]
    """Registry key (``batch``, ``labels``) -> category of each code."""
    joint_categories: Mapping[str, tuple[Category, ...]]
    """Column of obs, for each categorical covariate -> category of each code."""

    @property
    def n_vars(self) -> int:
        """Genes."""
        return len(self.var_names)

    @property
    def n_batch(self) -> int:
        """Batches; 1 without a batch key. Unused levels of a categorical column count."""
        return len(self.categories[REGISTRY_KEYS.BATCH_KEY])

    @property
    def n_labels(self) -> int:
        """Labels, the unlabeled category included; 1 without a labels key."""
        return len(self.categories[REGISTRY_KEYS.LABELS_KEY])

    @property
    def n_cats_per_cov(self) -> list[int] | None:
        """Categories of each categorical covariate; None without any."""
        columns = self.setup.categorical_covariate_keys
        return [len(self.joint_categories[c]) for c in columns] if columns else None

    @property
    def n_continuous_cov(self) -> int:
        """Continuous covariates."""
        return len(self.continuous_columns)

    @property
    def continuous_columns(self) -> tuple[str, ...]:
        """Columns of obs that are continuous covariates."""
        return self.setup.continuous_covariate_keys or ()

    @property
    def size_factor_column(self) -> str | None:
        """Column of obs that holds the size factors."""
        return self.setup.size_factor_key

    def categories_of(self, field: ObsField) -> Categories:
        """One tuple of categories for each categorical column of the field."""
        if not field.is_categorical:
            return ()
        if field.registry_key in self.categories:
            return (self.categories[field.registry_key],)
        return tuple(self.joint_categories[c] for c in field.columns)

    def encode(
        self, obs: pd.DataFrame, where: str = "the data", first_row: int = 0
    ) -> dict[str, np.ndarray]:
        """What the model gets of some rows of obs.

        Parameters
        ----------
        obs
            At least the columns ``setup.obs_columns``.
        where
            Store that the rows come from, for messages.
        first_row
            Row of the store that ``obs`` begins with, for messages.

        Returns
        -------
        dict
            Registry key -> ``[n, k]``: codes in the smallest integer type that holds them,
            numbers as float32. Inputs that the model does not have are left out.

        Raises
        ------
        SchemaMismatch
            A category is unknown, or a value is missing or not finite.
        """
        return {
            field.registry_key: field.encode(obs, self.categories_of(field), where, first_row)
            for field in self.setup.obs_fields
            if not field.is_empty
        }

    def to_json(self) -> str:
        """The schema as JSON text; equal schemas give equal text."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "setup": asdict(self.setup),
            "var_names": self.var_names,
            "n_obs": self.n_obs,
            "categories": dict(self.categories),
            "joint_categories": dict(self.joint_categories),
        }
        return json.dumps(content, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "Schema":
        """The schema that :meth:`to_json` wrote. Raises :class:`SchemaMismatch` for another."""
        content = json.loads(text)
        seen = (content.get("format"), content.get("version"))
        if seen != (_FORMAT, _VERSION):
            raise SchemaMismatch(
                f"expected a schema of format {_FORMAT!r} version {_VERSION}; "
                f"seen {seen[0]!r} version {seen[1]!r}. It was written by another release."
            )
        return Schema(
            setup=SetupArgs(**content["setup"]),
            var_names=tuple(content["var_names"]),
            n_obs=content["n_obs"],
            categories=_tuples(content["categories"]),
            joint_categories=_tuples(content["joint_categories"]),
        )

    def digest(self) -> str:
        """32 hex digits of the whole schema."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    def __hash__(self) -> int:
        return hash(self._digest)

    def registry(self, model_name: str, scvi_version: str | None = None) -> dict[str, Any]:
        """The registry that scvi-tools keeps beside a model and writes to ``model.pt``."""
        # registry.py builds schemas, so it cannot be imported while this file is.
        from scvi_dist.data.registry import SCVI_TOOLS_VERSION, registry_of

        return registry_of(self, model_name, scvi_version or SCVI_TOOLS_VERSION)

    @staticmethod
    def from_registry(
        registry: Mapping[str, Any], var_names: Sequence[str] | None = None
    ) -> "Schema":
        """The schema in a registry that scvi-tools (or :meth:`registry`) made.

        ``var_names`` are needed only for registries that do not hold them (old releases).
        """
        from scvi_dist.data.registry import schema_from_registry

        return schema_from_registry(registry, var_names)


def _tuples(lists: Mapping[str, Sequence[Category]]) -> dict[str, tuple[Category, ...]]:
    return {key: tuple(values) for key, values in lists.items()}


def _count_categories(store: Store, setup: SetupArgs, chunk_rows: int) -> dict[str, CategoryCount]:
    """One pass over the columns of obs: cells of each category; numbers are checked on the way."""
    where = store.locator.redacted_url
    coded = dict.fromkeys(c for f in setup.obs_fields if f.is_categorical for c in f.columns)
    counts = {column: CategoryCount(f"obs[{column!r}] of {where}") for column in coded}
    numerical = [f for f in setup.obs_fields if not f.is_categorical and not f.is_empty]
    if not setup.obs_columns:
        return counts
    for start in range(0, store.n_obs, chunk_rows):
        stop = min(start + chunk_rows, store.n_obs)
        obs = store.read_obs(setup.obs_columns, start, stop)
        for column, count in counts.items():
            count.add(obs[column], start)
        for field in numerical:
            field.encode(obs, (), where, start)
    return counts


def fit_schema(store: Store, setup: SetupArgs, chunk_rows: int = 200_000) -> Schema:
    """The schema of a store, by one streaming pass over the columns of obs that it needs.

    Memory is that of ``chunk_rows`` rows. Warns of categories with fewer than three cells.

    Raises
    ------
    FieldNotFound, SchemaMismatch, ConfigError
        See :func:`check_setup`; also for missing categories and numbers that are not finite.
    """
    check_setup(store, setup)
    counts = _count_categories(store, setup, chunk_rows)
    fitted = {
        f.registry_key: f.fit([counts[c] for c in f.columns])
        for f in setup.obs_fields
        if f.is_categorical
    }
    for count in counts.values():
        count.warn_if_few()
    return _assemble(setup, tuple(store.var_names.tolist()), store.n_obs, fitted)


def _assemble(
    setup: SetupArgs, var_names: tuple[str, ...], n_obs: int, fitted: Mapping[str, Categories]
) -> Schema:
    joint_columns = setup.categorical_covariate_keys or ()
    return Schema(
        setup=setup,
        var_names=var_names,
        n_obs=n_obs,
        categories={
            key: fitted[key][0] for key in (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY)
        },
        joint_categories=dict(zip(joint_columns, fitted[REGISTRY_KEYS.CAT_COVS_KEY], strict=True)),
    )


def transfer_schema(
    schema: Schema, store: Store, extend_categories: bool = False, chunk_rows: int = 200_000
) -> tuple[Schema, np.ndarray | None]:
    """The schema for another store, whose cells get the codes that the schema's cells have.

    Parameters
    ----------
    schema
        What the model was set up with.
    store
        The data that it should see now.
    extend_categories
        Append categories that the schema does not have, sorted, to batches, labels and
        categorical covariates. Labels with an unlabeled category are never extended.
    chunk_rows
        Rows of obs in memory at a time.

    Returns
    -------
    tuple
        The schema, and the columns of the store (int64 ``[n_vars]``) that are its genes in its
        order, or None where the store has just these genes in this order.

    Raises
    ------
    SchemaMismatch
        Genes are missing or ambiguous; categories are unknown; a value is missing.
    FieldNotFound, ConfigError
        See :func:`check_setup`.
    """
    check_setup(store, schema.setup)
    genes = _gene_order(schema.var_names, store)
    counts = _count_categories(store, schema.setup, chunk_rows)
    fitted: dict[str, Categories] = {}
    for field in schema.setup.obs_fields:
        if field.is_categorical:
            known = schema.categories_of(field)
            may_extend = extend_categories and not isinstance(field, LabelsWithUnlabeledObsField)
            # A field without a column has its one constant category.
            fitted[field.registry_key] = (
                tuple(
                    _extended(c, counts[column], may_extend)
                    for c, column in zip(known, field.columns, strict=True)
                )
                if field.columns
                else known
            )
    for count in counts.values():
        count.warn_if_few()
    return _assemble(schema.setup, schema.var_names, store.n_obs, fitted), genes


def _extended(
    known: tuple[Category, ...], count: CategoryCount, may_extend: bool
) -> tuple[Category, ...]:
    """The known categories and, behind them, the unknown ones that some cell has."""
    unknown = without(count.used, known)
    if not unknown:
        return known
    if not may_extend:
        raise unknown_categories(unknown, known, count.where)
    check_one_kind([*known, *unknown], count.where)
    return known + in_order(unknown, count.where)


def _gene_order(var_names: tuple[str, ...], store: Store) -> np.ndarray | None:
    """Columns of the store that are the schema's genes, in the schema's order; None: as it is."""
    names = store.var_names
    if len(names) == len(var_names) and bool(np.all(names == np.array(var_names, dtype=object))):
        return None
    where = store.locator.redacted_url
    column = {name: i for i, name in enumerate(names.tolist())}
    missing = [name for name in var_names if name not in column]
    if missing:
        raise SchemaMismatch(
            f"{where} has {len(names)} genes, but {len(missing)} of the schema's {len(var_names)} "
            f"are not among them: {_named(missing)}. Seen: {_named(names[:_SHOWN].tolist())}. "
            "Use data with the same gene names, or add the missing genes to it."
        )
    repeated = [n for n, many in Counter(names.tolist()).items() if many > 1]
    ambiguous = sorted(set(repeated) & set(var_names))
    if ambiguous or len(set(var_names)) < len(var_names):
        raise SchemaMismatch(
            f"{where}: its genes are in another order than the schema's and cannot be put in "
            f"order, because names occur more than once: {_named(ambiguous)}. "
            "Make the names unique."
        )
    return np.array([column[name] for name in var_names], dtype=np.int64)


def _named(names: Sequence[str]) -> str:
    return ", ".join(repr(n) for n in names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
