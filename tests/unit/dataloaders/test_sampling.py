"""Sampling: groups meet their quotas exactly, cells their shares on average, for any world."""

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.data import open_store
from scvi_dist.dataloaders.read_plan import PlanConfig, ReadPlan
from scvi_dist.dataloaders.rows import AllRows, ArrayRows, HashedRows, RowSet, all_members
from scvi_dist.dataloaders.sampled_rows import STRATUM, EpochRows, SampledRows
from scvi_dist.dataloaders.sampling import apportion, sample_rows
from scvi_dist.dataloaders.sampling_config import SamplingConfig
from scvi_dist.errors import ConfigError, FieldNotFound, PlanError, SchemaMismatch
from scvi_dist.testing import small_atlas


def base_of(kind: str, n: int, seed: int) -> RowSet:
    if kind == "all":
        return AllRows(n)
    if kind == "hashed":
        return HashedRows(n, seed, "train", n_validation=n // 10, n_train=n - n // 5)
    rng = np.random.default_rng(seed)
    return ArrayRows(np.sort(rng.choice(n, max(1, n // 2), replace=False)), n)


@st.composite
def sampled(draw: Any) -> SampledRows:
    n, seed = draw(st.integers(1, 3000)), draw(st.integers(0, 99))
    base = base_of(draw(st.sampled_from(["all", "hashed", "some"])), n, seed)
    rng = np.random.default_rng(seed)
    n_groups = draw(st.integers(1, 6))
    groups = rng.integers(-1, n_groups, n).astype(np.int16)
    if draw(st.booleans()):
        groups.sort()  # In runs, as an atlas is stored.
    weights = rng.integers(0, 5, n).astype(np.int32) if draw(st.booleans()) else None
    mass = np.zeros(n_groups)
    members = all_members(base)
    chosen = members[groups[members] >= 0]
    np.add.at(mass, groups[chosen], 1 if weights is None else weights[chosen])
    quotas = rng.integers(0, 2 * n, n_groups) * (mass > 0)
    return SampledRows(base, groups, quotas.astype(np.int64), weights, seed)


def drawn(rows: SampledRows, epoch: int) -> np.ndarray:
    return all_members(rows.of_epoch(epoch))


@given(sampled(), st.integers(0, 9))
def test_every_group_meets_its_quota_and_every_cell_its_share(
    rows: SampledRows, epoch: int
) -> None:
    found = drawn(rows, epoch)
    assert len(found) == rows.n
    assert (np.diff(found) >= 0).all()
    assert np.isin(found, all_members(rows.base)).all()
    counts = np.bincount(rows.groups[found], minlength=len(rows.quotas)) if rows.n else 0
    np.testing.assert_array_equal(counts, rows.quotas)
    members = all_members(rows.base)
    members = members[rows.groups[members] >= 0]
    groups = rows.groups[members]
    share = rows.quotas[groups] * rows.weight_of(members) / np.maximum(rows.totals[groups], 1)
    times = np.bincount(found, minlength=rows.n_store)[members]
    assert (np.abs(times - share) < 1 + 1e-6).all()


@given(sampled(), st.integers(0, 5), st.data())
def test_any_stretch_gives_its_part_of_the_whole(
    rows: SampledRows, epoch: int, data: st.DataObject
) -> None:
    found, of_epoch = drawn(rows, epoch), rows.of_epoch(epoch)
    n_strata = -(-rows.n_store // STRATUM)
    edges = np.minimum(np.arange(n_strata + 1) * STRATUM, rows.n_store)
    np.testing.assert_array_equal(of_epoch.count_before(edges), np.searchsorted(found, edges))
    picks = data.draw(st.lists(st.integers(0, n_strata - 1), min_size=1, max_size=8))
    starts, stops = edges[picks], edges[np.array(picks) + 1]
    parts = [found[(found >= a) & (found < b)] for a, b in zip(starts, stops, strict=True)]
    np.testing.assert_array_equal(of_epoch.members_of(starts, stops), np.concatenate(parts))
    again = pickle.loads(pickle.dumps(rows))
    np.testing.assert_array_equal(drawn(again, epoch), found)
    assert again.digest() == rows.digest()


@settings(max_examples=15)
@given(sampled(), st.integers(0, 3), st.integers(1, 5), st.integers(1, 70), st.data())
def test_plans_over_what_is_drawn_keep_their_laws(
    rows: SampledRows, epoch: int, world: int, batch_size: int, data: st.DataObject
) -> None:
    config = PlanConfig(batch_size=batch_size, window_cells=300, block_rows=64, seed=1)
    plan = ReadPlan(rows, config)

    def cells(plan: ReadPlan, world: int, position: int = 0) -> list[list[int]]:
        steps: dict[int, list[tuple[int, list[int]]]] = {}
        for rank in range(world):
            for task in plan.tasks(epoch, rank, world, position):
                for cut in task.cuts:
                    own = task.rows[cut.pick][: len(cut.pick) - cut.n_padding].tolist()
                    steps.setdefault(cut.step, []).append((cut.start, own))
        return [
            [row for _, part in sorted(parts) for row in part] for _, parts in sorted(steps.items())
        ]

    whole = cells(plan, 1)
    assert sorted(row for step in whole for row in step) == drawn(rows, epoch).tolist()
    assert cells(plan, world) == whole
    assert cells(pickle.loads(pickle.dumps(plan)), world) == whole
    step = data.draw(st.integers(0, plan.n_steps))
    assert cells(plan, world, plan.position_of(step)) == whole[step:]


def test_the_mean_over_epochs_is_the_share() -> None:
    n, epochs = 500, 600
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(0, 3, n)).astype(np.int16)
    weights = rng.integers(0, 100, n).astype(np.int32)
    rows = SampledRows(AllRows(n), groups, np.array([40, 300, 700]), weights, 5)
    times = np.zeros(n)
    together = 0
    for epoch in range(epochs):
        found = drawn(rows, epoch)
        np.add.at(times, found, 1)
        together += bool({10, 12} <= set(found.tolist()))
    share = rows.quotas[groups] * weights / rows.totals[groups]
    spread = np.sqrt(np.maximum(share % 1 * (1 - share % 1), 1e-4) / epochs)
    assert (np.abs(times / epochs - share) < 5.5 * spread).all()
    assert (times[weights == 0] == 0).all()
    # Neighbours are not always drawn together, nor never.
    assert 0 <= together < epochs


def test_other_epochs_draw_other_cells() -> None:
    rows = SampledRows(AllRows(1000), np.zeros(1000, np.int16), np.array([100]), None, 0)
    sets = [set(drawn(rows, epoch).tolist()) for epoch in range(20)]
    assert len(set.union(*sets)) > 800
    assert max(len(sets[0] & other) for other in sets[1:]) < 40


def test_many_groups_take_little_memory() -> None:
    n, g = 200_000, 3_000
    groups = (np.arange(n) * 7919 % g).astype(np.int16)
    rows = SampledRows(AllRows(n), groups, np.full(g, 10), None, 0)
    assert rows.marks.nbytes <= 20 << 20
    assert (np.bincount(groups[drawn(rows, 0)], minlength=g) == 10).all()


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(PlanError, match="group 1"):
        SampledRows(AllRows(9), np.zeros(9, np.int16), np.array([3, 3]), None, 0)
    with pytest.raises(PlanError, match="9 rows, 8 groups"):
        SampledRows(AllRows(9), np.zeros(8, np.int16), np.array([3]), None, 0)


# from a store


@pytest.fixture(scope="module")
def atlas() -> Any:
    adata = small_atlas(n=400, g=8)
    rng = np.random.default_rng(2)
    kinds = np.array(["T", "B", "NK", None], dtype=object)
    adata.obs["kind"] = pd.Categorical(kinds[rng.choice(4, 400, p=[0.8, 0.1, 0.05, 0.05])])
    adata.obs["weight"] = rng.integers(0, 4, 400).astype(float)
    return adata


def draw(atlas: Any, epoch: int = 0, rows: RowSet | None = None, **config: Any) -> np.ndarray:
    with open_store(atlas) as store:
        found = sample_rows(rows or AllRows(400), store, SamplingConfig(**config), 7)
    assert isinstance(found, SampledRows)
    assert isinstance(found.of_epoch(epoch), EpochRows)
    return drawn(found, epoch)


def test_nothing_asked_is_nothing_changed(atlas: Any) -> None:
    with open_store(atlas) as store:
        rows = AllRows(400)
        assert sample_rows(rows, store, SamplingConfig(), 0) is rows


def test_balanced_categories_are_drawn_equally_often(atlas: Any) -> None:
    kinds = atlas.obs["kind"]
    found = draw(atlas, balance_by="kind", epoch_cells=300)
    assert kinds.iloc[found].value_counts().to_dict() == {"T": 100, "B": 100, "NK": 100}
    # Cells without a category are never drawn; cells of large ones at most once.
    assert kinds.iloc[found].notna().all()
    assert np.bincount(found[(kinds.iloc[found] == "T").to_numpy()]).max() == 1


def test_a_cap_holds_and_leaves_the_rest(atlas: Any) -> None:
    kinds = atlas.obs["kind"]
    have = kinds.value_counts()
    seen: set[int] = set()
    for epoch in range(12):
        found = draw(atlas, epoch, cap_by="kind", cap=60)
        assert len(np.unique(found)) == len(found)
        counts = kinds.iloc[found].value_counts()
        assert counts.to_dict() == np.minimum(have, 60).to_dict()
        seen |= set(found.tolist())
    assert len(seen) > 0.9 * have.sum()


def test_weights_are_met(atlas: Any) -> None:
    weights = atlas.obs["weight"].to_numpy()
    found = draw(atlas, weight_by="weight", epoch_cells=1000)
    times = np.bincount(found, minlength=400)
    assert (np.abs(times - 1000 * weights / weights.sum()) < 1 + 1e-4).all()


def test_stores_get_their_shares_and_categories_theirs_within(atlas: Any) -> None:
    parts = [atlas[:100].copy(), atlas[100:].copy()]
    kinds = atlas.obs["kind"]
    found = draw(parts, store_shares=(3, 1), epoch_cells=400)
    assert (found < 100).sum() == 300
    found = draw(parts, store_shares=(1, 1), balance_by="kind", epoch_cells=600)
    for part in (found[found < 100], found[found >= 100]):
        assert kinds.iloc[part].value_counts().to_dict() == {"T": 100, "B": 100, "NK": 100}
    only = draw(parts, store_shares=(0, 1))
    assert len(only) == 400
    assert only.min() >= 100


def test_only_training_cells_are_drawn(atlas: Any) -> None:
    train = ArrayRows(np.arange(0, 400, 3), 400)
    found = draw(atlas, rows=train, balance_by="kind")
    assert len(found) == train.n
    assert (found % 3 == 0).all()


@given(
    st.integers(0, 10**6),
    st.lists(st.floats(0, 1e6), min_size=1, max_size=9).filter(lambda shares: sum(shares) > 0),
)
def test_parts_add_up_and_are_in_proportion(n: int, shares: list[float]) -> None:
    whole = apportion(n, np.array(shares))
    assert whole.sum() == n
    assert (np.abs(whole - np.array(shares) / sum(shares) * n) < 1 + 1e-6 * n).all()


@pytest.mark.parametrize(
    ("config", "error", "told"),
    [
        ({"balance_by": "kid"}, FieldNotFound, "did you mean 'kind'"),
        ({"weight_by": "kind"}, SchemaMismatch, "weights are numbers"),
        ({"weight_by": "negative"}, SchemaMismatch, "row 5 has -1"),
        ({"store_shares": (1, 2)}, ConfigError, "is 1 store; give one for each"),
    ],
)
def test_wrong_columns_are_refused(
    config: dict[str, Any], error: type[Exception], told: str, atlas: Any
) -> None:
    adata = atlas.copy()
    adata.obs["negative"] = np.where(np.arange(400) == 5, -1.0, 1.0)
    with pytest.raises(error, match=told):
        draw(adata, **config)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cap": 3},
        {"cap_by": "a"},
        {"cap_by": "a", "cap": 0},
        {"epoch_cells": 0},
        {"balance_by": "a", "cap_by": "b", "cap": 2},
        {"store_shares": (0, 0)},
        {"store_shares": (-1, 2)},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SamplingConfig(**wrong)


def test_settings_from_a_mapping() -> None:
    config = SamplingConfig.of({"store_shares": [1, 2], "epoch_cells": 5})
    assert config == SamplingConfig(store_shares=(1, 2), epoch_cells=5)
    assert SamplingConfig.of(None).is_plain
    with pytest.raises(ConfigError, match="did you mean 'balance_by'"):
        SamplingConfig.of({"balanced_by": "a"})
