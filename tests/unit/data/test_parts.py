"""Of many stores few are open at a time, and a store that has changed is noticed."""

import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from scvi_dist.data import open_store
from scvi_dist.data.joined.collection import CollectionStore, collect
from scvi_dist.data.joined.parts import LazyParts, open_limit
from scvi_dist.data.open import locate
from scvi_dist.errors import StoreChanged, StoreError, StoreNotFound
from scvi_dist.testing import dense_of, small_atlas, write_atlas


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("forty")
    first = write_atlas(small_atlas(n=3, g=5), folder / "00.h5ad")
    return [first, *(Path(shutil.copy(first, folder / f"{i:02}.h5ad")) for i in range(1, 40))]


def test_few_stores_are_open_at_a_time(forty: list[Path]) -> None:
    with collect([locate(path) for path in forty], max_open=4) as store:
        assert store.n_open <= 4
        expected = dense_of(small_atlas(n=3, g=5))
        np.testing.assert_array_equal(
            store.read_rows([(0, 120)]).to_dense(), np.tile(expected, (40, 1))
        )
        store.digest()
        store.read_obs(["batch", "depth"])
        assert store.n_open <= 4
    assert store.n_open == 0
    with pytest.raises(StoreError, match="was closed"):
        store.read_rows([(0, 1)])


def test_threads_share_few_stores(forty: list[Path]) -> None:
    expected = np.tile(dense_of(small_atlas(n=3, g=5)), (40, 1))
    with collect([locate(path) for path in forty], max_open=3) as store:

        def read(seed: int) -> bool:
            rows = np.random.default_rng(seed).integers(0, 120, 17)
            return np.array_equal(store.read_rows_at(rows).to_dense(), expected[rows])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(40)))
        assert store.n_open <= 3


def test_a_store_in_use_is_not_closed(forty: list[Path]) -> None:
    parts = LazyParts([locate(path) for path in forty[:5]], max_open=1)
    with parts.lease(0) as store:
        for other in range(1, 5):
            with parts.lease(other):
                assert store.obs_names(0, 1).tolist() == ["cell-0"]
        parts.close()
        assert store.obs_names(0, 1).tolist() == ["cell-0"]
    assert parts.n_open == 0
    with pytest.raises(StoreError, match="closed"):
        store.obs_names()
    assert 2 <= open_limit() <= 256


def test_a_store_is_opened_once_for_all_who_wait(forty: list[Path]) -> None:
    opened: list[int] = []
    gate = threading.Barrier(6)
    parts = LazyParts([locate(forty[0])], check=lambda part, _: bool(opened.append(part)))

    def use(_: int) -> int:
        gate.wait(timeout=30)
        with parts.lease(0) as store:
            return store.n_obs

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(use, range(6))) == [3] * 6
    assert opened == [0]
    parts.close()


def test_a_store_that_could_not_be_opened_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "late.h5ad"
    parts = LazyParts([locate(path)])
    with pytest.raises(StoreNotFound), parts.lease(0):
        pass
    write_atlas(small_atlas(n=5), path)
    with parts.lease(0) as store:
        assert store.n_obs == 5
    parts.close()


def test_opening_by_locator_touches_no_store(forty: list[Path]) -> None:
    with open_store(forty, join="outer") as store:
        locator = pickle.loads(pickle.dumps(store.locator))
    assert len(pickle.dumps(locator)) < 400 * len(forty)
    again = locator.open()
    assert isinstance(again, CollectionStore)
    assert again.shape == (120, 5)
    assert again.n_open == 0
    again.read_rows([(50, 51)])
    assert again.n_open == 1
    again.close()


def test_a_part_that_changed_is_named(tmp_path: Path) -> None:
    paths = [write_atlas(small_atlas(n=4, seed=i), tmp_path / f"{i}.h5ad") for i in range(3)]
    with open_store(paths) as store:
        locator = store.locator
    for changed, message in (
        (small_atlas(n=5), r"1\.h5ad was changed: it has 5 cells .* had 4 cells"),
        (
            small_atlas(n=4, g=9),
            r"1\.h5ad was changed: it has 4 cells and 9 genes, and it had other",
        ),
    ):
        paths[1].unlink()
        write_atlas(changed, paths[1])
        with locator.open() as again:
            assert again.read_rows([(0, 4)]).n_cells == 4
            with pytest.raises(StoreChanged, match=message):
                again.read_rows([(4, 8)])
    paths[1].unlink()
    with locator.open() as again, pytest.raises(StoreNotFound, match=r"1\.h5ad"):
        again.read_rows([(4, 8)])
