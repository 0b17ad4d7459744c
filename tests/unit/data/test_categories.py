"""Categories depend on the data alone; codes point back to them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_dist.data.categories import CategoryCount, category_array, code_dtype, encode
from scvi_dist.errors import SchemaMismatch

# pandas, the oracle, takes a text that ends in a NUL for the one without.
TEXTS = st.text(st.characters(exclude_characters="\x00"), max_size=3)
COLUMNS = st.one_of(
    st.lists(TEXTS, min_size=1, max_size=40),
    st.lists(st.integers(-5, 5), min_size=1, max_size=40),
    st.lists(st.booleans(), min_size=1, max_size=40),
    st.lists(st.floats(-2, 2, width=16), min_size=1, max_size=40),
)


def counted(values: pd.Series, chunk: int) -> CategoryCount:
    count = CategoryCount("here")
    for start in range(0, len(values), chunk):
        count.add(values.iloc[start : start + chunk], start)
    return count


@given(values=COLUMNS, chunk=st.integers(1, 50), seed=st.integers(0, 99))
def test_categories_do_not_depend_on_order_or_chunks(values: list, chunk: int, seed: int) -> None:
    column = pd.Series(values)
    mixed = column.sample(frac=1, random_state=seed).reset_index(drop=True)
    expected = tuple(column.astype("category").cat.categories)
    assert counted(column, len(column)).categories() == expected
    assert counted(mixed, chunk).categories() == expected
    assert sum(counted(mixed, chunk).cells.values()) == len(values)


@given(values=COLUMNS)
def test_codes_point_back_to_the_values(values: list) -> None:
    column = pd.Series(values)
    categories = counted(column, 7).categories()
    codes = encode(column, categories, "here")
    assert [categories[code] for code in codes] == values
    np.testing.assert_array_equal(encode(column.astype("category"), categories, "here"), codes)


def test_declared_order_and_unused_levels_stay() -> None:
    column = pd.Series(pd.Categorical(["b", "a", "b"], categories=["z", "b", "a"]))
    count = counted(column, 2)
    assert count.categories() == ("z", "b", "a")
    assert count.used == {"b": 2, "a": 1}


@pytest.mark.parametrize("dtype", [object, "category"])
def test_missing_values_are_refused_with_their_rows(dtype: object) -> None:
    column = pd.Series(["a", None, "b", None], dtype=dtype)
    with pytest.raises(SchemaMismatch, match=r"here: .* 2 of rows 10 to 13 have none \(row 11, 13"):
        CategoryCount("here").add(column, 10)
    with pytest.raises(SchemaMismatch, match="row 11, 13"):
        encode(column, ("a", "b"), "here", 10)


@pytest.mark.parametrize("falsy", [0, "", False, 0.0])
def test_unknown_categories_are_refused_even_if_false(falsy: object) -> None:
    known = {str: "x", int: 7, bool: True, float: 7.5}[type(falsy)]
    with pytest.raises(SchemaMismatch, match=r"1 categories are not in the schema: .* \(1 cells\)"):
        encode(pd.Series([known, falsy, known]), (known,), "here")


def test_true_is_not_one_but_one_is_one_point_zero() -> None:
    with pytest.raises(SchemaMismatch, match="True"):
        encode(pd.Series([True, True]), (0, 1), "here")
    assert encode(pd.Series([1.0, 0.0]), (0, 1), "here").tolist() == [1, 0]


@pytest.mark.parametrize(
    "values", [["a", 1], [True, "a"], [pd.Timestamp("2020-01-01")] * 2, [("a",), ("b",)]]
)
def test_values_without_an_order_are_refused(values: list) -> None:
    with pytest.raises(SchemaMismatch, match=r"astype\(str\)"):
        counted(pd.Series(values, dtype=object), 2).categories()


def test_a_column_has_one_list_of_categories() -> None:
    count = CategoryCount("here")
    count.add(pd.Series(["a"], dtype="category"), 0)
    with pytest.raises(SchemaMismatch, match="rows from 1"):
        count.add(pd.Series(["b"], dtype="category"), 1)


@pytest.mark.parametrize("n", [1, 128, 129, 32_768, 32_769])
def test_code_dtype_is_the_smallest_that_holds_all_codes(n: int) -> None:
    dtype = code_dtype(n)
    smaller = {np.int8: None, np.int16: np.int8, np.int32: np.int16}[dtype]
    assert n - 1 <= np.iinfo(dtype).max
    assert smaller is None or n - 1 > np.iinfo(smaller).max


def test_category_array_has_the_dtype_of_the_registry() -> None:
    kinds = [category_array(c).dtype.kind for c in (("a",), (1, 2), (0.5,), (False, True))]
    assert kinds == ["O", "i", "f", "b"]


def test_few_cells_are_warned_of_by_name() -> None:
    count = counted(pd.Series(["rare", "rare", "often", "often", "often"]), 5)
    with pytest.warns(UserWarning, match=r"fewer than 3 cells: 'rare' \(2\)\."):
        count.warn_if_few()
