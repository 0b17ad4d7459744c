"""What a model knows about its data: genes, categories and columns. Built once, saved as JSON.

A :class:`Schema` is fitted by one streaming pass over obs (:func:`fit_schema`), or carried over to
another store (:func:`transfer_schema`). Codes are those that scvi-tools gives; they depend neither
on the order of rows nor on how a store is cut into shards.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from scvi_dist.data.minified import Minified
from scvi_dist.data.proteins import ProteinMask, ProteinPass, names_of
from scvi_dist.data.schema_pass import gene_order, look_at
from scvi_dist.data.setup import PANEL_KEY, SetupArgs, check_setup
from scvi_dist.data.store import Store
from scvi_dist.errors import SchemaMismatch

__all__ = ["Schema", "SetupArgs", "check_setup", "fit_schema", "transfer_schema"]

_FORMAT = "scvi_dist.schema"
_VERSION = 1


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
    protein_names: tuple[str, ...] = ()
    """Protein of each column of their counts; empty for a model of genes alone."""
    protein_batch_mask: ProteinMask | None = None
    """Code of a panel (a batch, without panels), as text -> for each protein whether it was
    measured there; None where every panel has every protein."""
    minified: Minified | None = None
    """Where the data has posteriors in place of counts; None where they are read as they are."""

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
    def n_proteins(self) -> int:
        """Proteins."""
        return len(self.protein_names)

    @property
    def n_panel(self) -> int:
        """Panels of proteins; the batches where there are no panels."""
        return len(self.categories[self.panel_registry_key])

    @property
    def panel_registry_key(self) -> str:
        """Key under which a module finds the panels."""
        return PANEL_KEY if self.setup.panel_key else REGISTRY_KEYS.BATCH_KEY

    @property
    def dense_bytes_per_cell(self) -> int:
        """What is read of a cell besides its counts of genes, in float32."""
        posterior = 0 if self.minified is None else self.minified.bytes_per_cell
        return 4 * self.n_proteins + posterior

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
            "protein_names": self.protein_names,
            "protein_batch_mask": self.protein_batch_mask,
            "minified": None if self.minified is None else asdict(self.minified),
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
        mask, minified = content.get("protein_batch_mask"), content.get("minified")
        return Schema(
            setup=SetupArgs(**content["setup"]),
            var_names=tuple(content["var_names"]),
            n_obs=content["n_obs"],
            categories=_tuples(content["categories"]),
            joint_categories=_tuples(content["joint_categories"]),
            protein_names=tuple(content.get("protein_names", ())),
            protein_batch_mask=None if mask is None else _tuples(mask),
            minified=None if minified is None else Minified(**minified),
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
        registry: Mapping[str, Any],
        var_names: Sequence[str] | np.ndarray | Mapping[str, Any] | None = None,
    ) -> "Schema":
        """The schema in a registry that scvi-tools (or :meth:`registry`) made.

        ``var_names`` are needed only for registries that do not hold them (old releases).
        """
        from scvi_dist.data.registry import schema_from_registry

        return schema_from_registry(registry, var_names)


def _tuples(lists: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Any, ...]]:
    return {key: tuple(values) for key, values in lists.items()}


def fit_schema(store: Store, setup: SetupArgs, chunk_rows: int = 200_000) -> Schema:
    """The schema of a store, by one streaming pass over the columns of obs that it needs.

    Memory is that of ``chunk_rows`` rows. Warns of categories with fewer than three cells. Where
    there are proteins their counts are read in the same pass.

    Raises
    ------
    FieldNotFound, SchemaMismatch, ConfigError
        See :func:`check_setup`; also for missing categories and numbers that are not finite.
    """
    check_setup(store, setup)
    names: tuple[str, ...] = ()
    if setup.protein_key is not None:
        names = names_of(store, setup.protein_key, setup.protein_names)
    seen = look_at(store, setup, names, chunk_rows)
    fitted = {
        f.registry_key: f.fit([seen.counts[c] for c in f.columns])
        for f in setup.obs_fields
        if f.is_categorical
    }
    seen.warn()
    known = Schema(setup, tuple(store.var_names.tolist()), store.n_obs, {}, {}, names)
    return _with_fitted(known, fitted, seen.proteins)


def _with_fitted(
    known: Schema, fitted: Mapping[str, Categories], proteins: ProteinPass | None
) -> Schema:
    """The schema with the categories that were fitted and with what the pass saw of proteins."""
    setup = known.setup
    joint_columns = setup.categorical_covariate_keys or ()
    single = (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY, PANEL_KEY)
    schema = replace(
        known,
        categories={key: fitted[key][0] for key in single if key in fitted},
        joint_categories=dict(zip(joint_columns, fitted[REGISTRY_KEYS.CAT_COVS_KEY], strict=True)),
    )
    if proteins is None:
        return schema
    mask = proteins.mask(schema.categories[schema.panel_registry_key])
    return replace(schema, protein_batch_mask=mask)


def transfer_schema(
    schema: Schema, store: Store, extend_categories: bool = False, chunk_rows: int = 200_000
) -> tuple[Schema, np.ndarray | None]:
    """The schema for another store, whose cells get the codes that the schema's cells have.

    Its ``protein_batch_mask`` says what was measured there.

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
    genes = gene_order(schema.var_names, store)
    seen = look_at(store, schema.setup, schema.protein_names, chunk_rows)
    fitted: dict[str, Categories] = {}
    for field in schema.setup.obs_fields:
        if field.is_categorical:
            known = schema.categories_of(field)
            may_extend = extend_categories and not isinstance(field, LabelsWithUnlabeledObsField)
            # A field without a column has its one constant category.
            fitted[field.registry_key] = (
                tuple(
                    _extended(c, seen.counts[column], may_extend)
                    for c, column in zip(known, field.columns, strict=True)
                )
                if field.columns
                else known
            )
    seen.warn()
    as_it_is = replace(schema, n_obs=store.n_obs, minified=None)
    return _with_fitted(as_it_is, fitted, seen.proteins), genes


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
