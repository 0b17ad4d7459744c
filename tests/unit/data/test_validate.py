"""What is wrong with a store is found, and named by its rows; a sound one is called sound."""

from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
import zarr

from scvi_dist.data import open_store
from scvi_dist.data.writing.convert import CopyConfig, convert_store
from scvi_dist.data.writing.shuffle_store import shuffle_store
from scvi_dist.data.writing.validate import Validation, validate_store
from scvi_dist.errors import StoreUnreachable
from scvi_dist.testing import dense_of, small_atlas, write_atlas

N, G = 400, 30


def full() -> anndata.AnnData:
    """An atlas without empty cells."""
    adata = small_atlas(n=N, g=G)
    dense_ng = np.asarray(dense_of(adata)).copy()
    dense_ng[:, 0] += 1
    return anndata.AnnData(dense_ng, obs=adata.obs[["batch"]], var=adata.var)


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    return full()


@pytest.fixture
def copy(adata: Any, tmp_path: Path) -> Path:
    """A copy in the training layout, with several chunks."""
    with open_store(adata) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr("scvi_dist.data.writing.writer._MIN_CHUNK_ENTRIES", 64)
        patch.setattr("scvi_dist.data.writing.anndata_writer._SHARD_ENTRIES", 2048)
        convert_store(
            store, tmp_path / "a.zarr", config=CopyConfig(layout="training", chunk_rows=8)
        )
    return tmp_path / "a.zarr"


def look(source: Any, **options: Any) -> Validation:
    with open_store(source) as store:
        return validate_store(store, **options)


@pytest.mark.parametrize("name", ["a.h5ad", "gzip.h5ad", "2.zarr", "3.zarr"])
def test_a_sound_store_is_valid(name: str, adata: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"2.zarr": {"zarr_format": 2}, "gzip.h5ad": {"compression": "gzip"}}
    heard: list[tuple[int, int]] = []
    path = write_atlas(adata, tmp_path / name, **options.get(name, {}))
    found = look(path, on_progress=lambda *at: heard.append(at))
    assert found.is_valid, found.problems
    assert found.notes == ()
    assert found.content.n_cells == N
    assert found.content.n_entries == np.count_nonzero(dense_of(adata))
    assert heard[-1] == (N, N)


def test_copies_and_shuffled_copies_have_the_checksum_of_their_source(
    adata: Any, copy: Path, tmp_path: Path
) -> None:
    with open_store(adata) as store:
        shuffle_store(store, tmp_path / "s.zarr", seed=1)
        expected = validate_store(store).content
    for path in (copy, tmp_path / "s.zarr"):
        found = look(path)
        assert found.is_valid
        assert found.content == expected


def test_the_digest_is_compared(copy: Path) -> None:
    digest = look(copy).digest
    assert look(copy, digest=digest).is_valid
    assert "expected 0" in str(look(copy, digest="0").problems[0])


@pytest.mark.parametrize("part", ["data", "indices"])
def test_damaged_chunks_are_named_by_their_rows(part: str, adata: Any, copy: Path) -> None:
    path = copy / "X" / part / "c" / "0"
    raw = bytearray(path.read_bytes())
    place = len(raw) // 3
    raw[place : place + 3] = b"\xff\x00\x55"
    path.write_bytes(bytes(raw))
    found = look(copy)
    assert not found.is_valid
    damaged = [problem for problem in found.problems if problem.rows is not None]
    assert damaged
    with open_store(copy) as store:
        sound = np.ones(N, dtype=bool)
        for problem in damaged:
            assert problem.rows is not None
            sound[slice(*problem.rows)] = False
        rows = np.flatnonzero(sound)
        assert 0 < len(rows) < N
        np.testing.assert_array_equal(store.read_rows_at(rows).to_dense(), dense_of(adata)[rows])
    assert found.content.n_cells == len(rows)


def edit(path: Path, name: str, place: int, value: Any) -> None:
    with h5py.File(path, "r+") as file:
        file[f"X/{name}"][place] = value


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("indptr", 10**6, "row pointers fall"),
        ("indices", G + 5, f"a value for gene {G + 5}"),
        ("indices", -1, "gene -1"),
        ("data", -2.0, "1 value is negative, the first is -2"),
        ("data", np.nan, "NaN or infinite"),
        ("data", 0.5, "not whole"),
    ],
)
def test_what_is_wrong_in_a_matrix_is_found(
    name: str, value: Any, told: str, adata: Any, tmp_path: Path
) -> None:
    sparse = anndata.AnnData(_csr(adata), obs=adata.obs, var=adata.var)
    path = write_atlas(sparse, tmp_path / "a.h5ad")
    with h5py.File(path) as file:
        indptr = file["X/indptr"][:]
    row = 123
    edit(path, name, row if name == "indptr" else int(indptr[row]), value)
    found = look(path)
    assert any(told in str(problem) for problem in found.problems), found.problems
    if name != "indptr":
        assert found.problems[0].rows == (row, row + 1)


def _csr(adata: Any) -> Any:
    from scipy.sparse import csr_matrix

    return csr_matrix(np.asarray(dense_of(adata), dtype=np.float32))


def test_a_value_that_was_changed_since_it_was_written(copy: Path) -> None:
    root = zarr.open_group(copy, mode="r+", use_consolidated=False)
    data = root["X/data"]
    data[5] = data[5] + 1
    found = look(copy)
    assert [problem.rows for problem in found.problems] == [None]
    assert "not what was written: checksum" in str(found.problems[0])


def test_repeated_names_are_found(adata: Any, tmp_path: Path) -> None:
    twice = adata.copy()
    twice.var_names = ["g", "g", *twice.var_names[2:]]
    twice.obs_names = [*twice.obs_names[:300], twice.obs_names[7], *twice.obs_names[301:]]
    found = look(write_atlas(twice, tmp_path / "a.h5ad"))
    told = [str(problem) for problem in found.problems]
    assert any("1 gene names occur more than once, such as 'g'" in text for text in told)
    assert any(text.startswith("row 300: the cell name") for text in told)


def test_empty_cells_are_odd_but_no_mistake(adata: Any, tmp_path: Path) -> None:
    dense_ng = np.asarray(dense_of(adata)).copy()
    dense_ng[[4, 9]] = 0
    found = look(anndata.AnnData(dense_ng, obs=adata.obs, var=adata.var))
    assert found.is_valid
    assert "2 cells have no counts" in found.notes[0]


def test_there_is_an_end_to_problems_and_a_silent_service_is_none(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(copy) as store:
        monkeypatch.setattr(
            type(store), "read_rows", lambda *_, **__: (_ for _ in ()).throw(StoreUnreachable("x"))
        )
        with pytest.raises(StoreUnreachable):
            validate_store(store)
