"""Each field codes its columns, sizes the model and names its place as scvi-tools does."""

from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest

from scvi_dist.data.categories import CategoryCount
from scvi_dist.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    Categories,
    LabelsWithUnlabeledObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
    ObsField,
)
from scvi_dist.errors import SchemaMismatch

OBS = pd.DataFrame(
    {
        "batch": ["b", "a", "c", "a"],
        "plate": pd.Categorical([1, 2, 1, 2], categories=[2, 1, 0]),
        "depth": [1.0, 2.0, 0.5, 4.0],
        "age": [1, 2, 3, 4],
    }
)

FIELDS: list[ObsField] = [
    CategoricalObsField("batch"),
    CategoricalObsField("batch", "batch"),
    LabelsWithUnlabeledObsField("labels", "batch", "a"),
    CategoricalJointObsField("extra_categorical_covs", ()),
    CategoricalJointObsField("extra_categorical_covs", ("plate", "batch")),
    NumericalObsField("size_factor"),
    NumericalObsField("size_factor", "depth"),
    NumericalJointObsField("extra_continuous_covs", ()),
    NumericalJointObsField("extra_continuous_covs", ("depth", "age")),
]


def fitted(field: ObsField) -> Categories:
    counts = []
    for column in field.columns if field.is_categorical else ():
        counts.append(CategoryCount(column))
        counts[-1].add(OBS[column], 0)
    return field.fit(counts)


@pytest.mark.parametrize("field", FIELDS, ids=repr)
def test_a_field_fits_encodes_and_describes_itself_consistently(field: ObsField) -> None:
    categories = fitted(field)
    encoded_nk = field.encode(OBS, categories, "here")
    width = len(field.columns) or (0 if field.is_empty else 1)
    assert encoded_nk.shape == (len(OBS), width)
    assert encoded_nk.dtype.kind == ("i" if field.is_categorical else "f")
    if field.columns:
        assert field.row_nbytes(categories) * len(OBS) == encoded_nk.nbytes
    assert bool(field.data_registry()) == (not field.is_empty)
    for column, values, codes in zip(field.columns, categories, encoded_nk.T, strict=False):
        assert [values[code] for code in codes] == OBS[column].tolist()
    with pytest.raises((FrozenInstanceError, TypeError)):
        field.registry_key = "other"


@pytest.mark.parametrize("unlabeled", ["a", "b", "c", "not there"])
def test_the_unlabeled_category_is_last_and_only_one_other_moves(unlabeled: str) -> None:
    (plain,) = fitted(CategoricalObsField("labels", "batch"))
    (labels,) = fitted(LabelsWithUnlabeledObsField("labels", "batch", unlabeled))
    assert labels[-1] == unlabeled
    assert set(labels) == {*plain, unlabeled}
    moved = [value for value in plain if labels.index(value) != plain.index(value)]
    assert len(set(moved) - {unlabeled}) <= 1


def test_a_declared_but_unused_unlabeled_category_is_last_too() -> None:
    (labels,) = fitted(LabelsWithUnlabeledObsField("labels", "plate", 0))
    assert labels == (2, 1, 0)
    (labels,) = fitted(LabelsWithUnlabeledObsField("labels", "plate", 2))
    assert labels == (0, 1, 2)


def test_an_unlabeled_category_of_another_kind_is_refused() -> None:
    with pytest.raises(SchemaMismatch, match="unlabeled"):
        fitted(LabelsWithUnlabeledObsField("labels", "plate", "Unknown"))


@pytest.mark.parametrize(
    ("values", "bad_row"),
    [([1.0, np.nan, 2.0], 8), ([1.0, 2.0, np.inf], 9), ([1e300, 1.0, 1.0], 7)],
)
def test_numbers_that_are_not_finite_are_refused_with_their_row(
    values: list[float], bad_row: int
) -> None:
    field = NumericalObsField("size_factor", "depth")
    with pytest.raises(SchemaMismatch, match=rf"obs\['depth'\] of here: .*row {bad_row}:"):
        field.encode(pd.DataFrame({"depth": values}), (), "here", first_row=7)


def test_nullable_numbers_are_numbers() -> None:
    field = NumericalObsField("size_factor", "depth")
    frame = pd.DataFrame({"depth": pd.array([1, 2], dtype="Int64")})
    assert field.encode(frame, (), "here").tolist() == [[1.0], [2.0]]
    with pytest.raises(SchemaMismatch, match="row 1"):
        field.encode(pd.DataFrame({"depth": pd.array([1, None], dtype="Int64")}), (), "here")


def test_text_is_not_a_number() -> None:
    with pytest.raises(SchemaMismatch, match="numbers is needed"):
        NumericalObsField("size_factor", "batch").encode(OBS, (), "here")


def test_counts_lie_in_x_or_in_a_layer() -> None:
    assert LayerField("X").data_registry() == {"attr_name": "X", "attr_key": None}
    assert LayerField("X", "raw_counts").data_registry()["attr_name"] == "layers"
    assert LayerField("X").summary_stats(5, ["a", "b"]) == {"n_vars": 2, "n_cells": 5}
