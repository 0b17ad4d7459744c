"""Who is compared with whom follows from obs, whatever it is asked with."""

from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scvi_dist.analysis import raw_statistics
from scvi_dist.analysis.differential.groups import Grouping, grouping_of, read_groups
from scvi_dist.analysis.raw_statistics import digest_of
from scvi_dist.data import Store, open_store
from scvi_dist.errors import ConfigError, FieldNotFound
from tests.unit.analysis.conftest import KINDS


def sides(grouping: Grouping) -> list[tuple[set[int], set[int]]]:
    """Rows of both sides of each comparison."""
    return [
        (set(grouping.rows(c.first)), set(grouping.rows(c.second))) for c in grouping.comparisons
    ]


def labels_of(adata: anndata.AnnData, label: str) -> set[int]:
    return set(np.flatnonzero(adata.obs["label"] == label))


def with_column(values: Any) -> Store:
    obs = pd.DataFrame({"group": values}, index=[f"c{i}" for i in range(len(values))])
    return open_store(anndata.AnnData(csr_matrix((len(values), 2), dtype=np.float32), obs=obs))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_masks_queries_and_columns_say_the_same(
    stores: dict[str, Store], adata: anndata.AnnData, kind: str
) -> None:
    store = stores[kind]
    x, y = labels_of(adata, "x"), labels_of(adata, "y")
    mask = np.array([i in x for i in range(store.n_obs)])
    for idx1 in (mask, list(mask), sorted(x), np.array(sorted(x)) - store.n_obs, "label == 'x'"):
        assert sides(grouping_of(store, idx1=idx1)) == [(x, y)]
        assert sides(grouping_of(store, idx1=idx1, idx2="label == 'y'")) == [(x, y)]
    for group1 in (["x"], "x"):
        assert sides(grouping_of(store, groupby="label", group1=group1)) == [(x, y)]
    both = grouping_of(store, groupby="label")
    assert sides(both) == [(x, y), (y, x)]
    assert [(c.group1, c.group2) for c in both.comparisons] == [("x", "Rest"), ("y", "Rest")]


def test_the_rest_is_every_other_cell_even_one_without_a_group() -> None:
    store = with_column(pd.Categorical(["a", "b", None, "c", "a"], categories=["c", "b", "a", "d"]))
    (first, second), *others = sides(grouping_of(store, groupby="group"))
    assert (first, second) == ({3}, {0, 1, 2, 4})
    assert len(others) == 2, "a category without cells is not compared"
    few = grouping_of(store, groupby="group", group1="a")
    assert sides(few) == [({0, 4}, {1, 2, 3})]
    assert few.n_strata == 2, "what is not named is one stratum"


def test_a_pair_leaves_all_others_out() -> None:
    store = with_column(["a", "b", "c", "a"])
    pair = grouping_of(store, groupby="group", group1=["a"], group2="c")
    assert sides(pair) == [({0, 3}, {2})]
    assert pair.codes_n[1] == -1
    each = grouping_of(store, groupby="group", group2="c")
    assert [c.group1 for c in each.comparisons] == ["a", "b"], "c is not compared with itself"


def test_cells_of_both_sides_count_in_both() -> None:
    store = with_column(["a"] * 6)
    assert sides(grouping_of(store, idx1=[0, 1, 2], idx2=[2, 3])) == [({0, 1, 2}, {2, 3})]


@pytest.mark.parametrize("values", [[3, 1, 2, 1], [True, False, True, True], ["b", "a", "b", "b"]])
def test_values_without_categories_are_sorted(values: list[Any]) -> None:
    codes, names = read_groups(with_column(values), "group")
    assert names == sorted(set(values))
    assert [names[code] for code in codes] == values
    text = grouping_of(with_column(values), groupby="group", group1=str(names[0]))
    assert text.comparisons[0].group1 == names[0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ConfigError, "groupby"),
        ({"idx2": [1]}, ConfigError, "idx1"),
        ({"groupby": "gruop"}, FieldNotFound, "group"),
        ({"groupby": "group", "group1": "z"}, FieldNotFound, "no group 'z'"),
        ({"groupby": "group", "group1": "a", "group2": "a"}, ConfigError, "itself"),
        ({"idx1": "group == 'z'"}, ConfigError, "idx1 has no cells"),
        ({"idx1": [0], "idx2": []}, ConfigError, "idx2 has no cells"),
        ({"idx1": [0, 1, 2, 3]}, ConfigError, "idx2 has no cells"),
        ({"idx1": [True]}, ConfigError, "mask"),
        ({"idx1": [9]}, IndexError, "9"),
        ({"idx1": "gruop == 'a'"}, FieldNotFound, "group"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        grouping_of(with_column(["a", "b", "b", "c"]), **arguments)


@pytest.mark.parametrize("n_groups", [2, 127, 128, 300])
def test_codes_are_small_and_hold_every_group(n_groups: int) -> None:
    values = [f"{i:03d}" for i in range(n_groups)] * 2
    everyone = grouping_of(with_column(values), groupby="group")
    assert everyone.codes_n.itemsize == (1 if n_groups < 128 else 2)
    assert everyone.n_strata == n_groups
    np.testing.assert_array_equal(everyone.cells_s, 2)
    for s, comparison in enumerate(everyone.comparisons):
        assert comparison.first == (s,)
        np.testing.assert_array_equal(everyone.rows(comparison.first), [s, n_groups + s])
        assert len(everyone.rows(comparison.second)) == 2 * n_groups - 2


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
def test_a_digest_of_strata_is_of_their_numbers(
    dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes_n = np.random.default_rng(0).integers(-1, 30, 1_000)
    whole = digest_of(codes_n)
    monkeypatch.setattr(raw_statistics, "_DIGESTED", 64)
    assert digest_of(codes_n.astype(dtype)) == whole
    assert digest_of(codes_n[::-1].astype(dtype)) != whole


def test_one_group_has_no_rest() -> None:
    with pytest.raises(ConfigError, match="single group"):
        grouping_of(with_column(["a", "a"]), groupby="group")
    with pytest.raises(ConfigError, match="no rest"):
        grouping_of(with_column(["a", "a"]), groupby="group", group1="a")
