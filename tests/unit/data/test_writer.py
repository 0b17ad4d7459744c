"""What is written is what was given, whole or not at all, however often it was interrupted."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix, random_array

from scvi_dist.batch import CsrRows
from scvi_dist.data import open_store
from scvi_dist.data.memory import MemoryStore
from scvi_dist.data.simulated.small_atlas import small_atlas
from scvi_dist.data.writing import anndata_writer, writer
from scvi_dist.data.writing.writer import ShardedWriter, write_h5ad, write_zarr
from scvi_dist.errors import OutputExists, PlanError

N, G = 103, 17


def make_adata(dtype: Any = np.float32, n: int = N) -> anndata.AnnData:
    rng = np.random.default_rng(0)
    counts = csr_matrix(random_array((n, G), density=0.3, rng=rng, data_sampler=rng.poisson))
    counts.eliminate_zeros()
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(np.arange(n) % 3, categories=[2, 9, 0, 1], ordered=True),
            "batch": pd.Categorical(np.array(["b", "a"])[np.arange(n) % 2]),
            "name": [f"é{i}" for i in range(n)],
            "depth": rng.uniform(size=n),
            "count": rng.integers(0, 99, n),
            "flag": np.arange(n) % 2 == 0,
        },
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(G)])
    obsm = {"pca": rng.normal(size=(n, 3)).astype(np.float32)}
    return anndata.AnnData(counts.astype(dtype), obs=obs, var=var, obsm=obsm)


def read(path: Path) -> anndata.AnnData:
    return anndata.read_h5ad(path) if path.suffix == ".h5ad" else anndata.read_zarr(path)


def write(store: Any, path: Path, **options: Any) -> None:
    (write_h5ad if path.suffix == ".h5ad" else write_zarr)(store, path, **options)


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(params=["copy.h5ad", "copy.zarr"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a small store as many pieces as a large one has."""
    monkeypatch.setattr(writer, "_BLOCK_BYTES", 1_000)
    monkeypatch.setattr(writer, "_MIN_CHUNK_ENTRIES", 8)
    monkeypatch.setattr(anndata_writer, "_SHARD_ENTRIES", 64)
    monkeypatch.setattr(anndata_writer, "_FRAME_CHUNK_ROWS", 10)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16])
def test_a_copy_has_everything_the_store_has(path: Path, dtype: Any) -> None:
    adata = make_adata(dtype)
    heard: list[tuple[int, int]] = []
    write(open_store(adata), path, chunk_rows=3, on_progress=lambda *at: heard.append(at))
    found = read(path)
    assert found.X.dtype == dtype
    assert (found.X != adata.X).nnz == 0
    pd.testing.assert_frame_equal(found.obs, adata.obs)
    assert list(found.var_names) == list(adata.var_names)
    np.testing.assert_array_equal(found.obsm["pca"], adata.obsm["pca"])
    assert [done for done, _ in heard] == sorted({done for done, _ in heard})
    assert heard[-1] == (N, N)
    assert len(heard) > 3


@pytest.mark.usefixtures("small_pieces")
def test_a_copy_is_a_store_again(path: Path) -> None:
    adata = make_adata()
    write(open_store(adata), path)
    with open_store(path) as store:
        rows = store.read_rows([(50, 70), (3, 5)])
        expected = np.concatenate([adata.X[50:70].toarray(), adata.X[3:5].toarray()])
        np.testing.assert_array_equal(rows.to_dense(), expected)
        assert store.obs_columns == open_store(adata).obs_columns


@pytest.mark.parametrize("layer", [None, "counts", "spliced", "raw"])
def test_any_layer_of_a_store_with_everything_becomes_x(path: Path, layer: str | None) -> None:
    adata = small_atlas()
    store = open_store(adata, layer=layer)
    write(store, path)
    found = read(path)
    expected = store.read_rows([(0, store.n_obs)]).to_dense()
    np.testing.assert_array_equal(found.X.toarray(), expected)
    assert list(found.var_names) == list(store.var_names)
    pd.testing.assert_frame_equal(found.obs, adata.obs)
    np.testing.assert_allclose(found.obsm["proteins"], adata.obsm["proteins"])


@pytest.mark.parametrize("n", [0, 1])
def test_stores_of_no_or_one_cell_are_copied(path: Path, n: int) -> None:
    adata = make_adata(n=n)
    write(open_store(adata), path)
    assert read(path).shape == (n, G)


def test_missing_text_and_nullable_numbers_stay_missing(path: Path) -> None:
    adata = make_adata(n=4)
    adata.obs["text"] = ["b", None, "a", "b"]
    adata.obs["nullable"] = pd.array([1, None, 3, 4], dtype="Int64")
    write(open_store(adata), path)
    found = read(path).obs
    assert found["text"].isna().tolist() == [False, True, False, False]
    assert found["text"].dropna().tolist() == ["b", "a", "b"]
    np.testing.assert_array_equal(found["nullable"].astype(float), [1, np.nan, 3, 4])


def test_nothing_is_overwritten_unasked(path: Path) -> None:
    store, other = open_store(make_adata()), open_store(make_adata(n=5))
    write(store, path)
    with pytest.raises(OutputExists, match="overwrite=True"):
        write(other, path)
    assert read(path).n_obs == N
    write(other, path, overwrite=True)
    assert read(path).n_obs == 5


def test_a_folder_that_is_no_store_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExists, match="not a Zarr store"):
        write_zarr(open_store(make_adata()), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.usefixtures("small_pieces")
def test_half_a_copy_is_not_taken_for_a_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(make_adata())
    n_read = 0

    def failing(self: MemoryStore, ranges: Any, genes: Any = None) -> CsrRows:
        nonlocal n_read
        n_read += 1
        if n_read == 4:
            raise OSError("the disk is gone")
        return whole(self, ranges, genes)

    whole = MemoryStore.read_rows
    monkeypatch.setattr(MemoryStore, "read_rows", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        write(store, path)
    if path.suffix == ".h5ad":
        assert list(path.parent.iterdir()) == []
    else:
        assert "encoding-type" not in (path / "zarr.json").read_text()
    monkeypatch.undo()
    write(store, path, overwrite=True)
    assert read(path).n_obs == N


# --- results in shards ---------------------------------------------------------------------------

RESULTS: dict[str, Any] = {
    "latent": {"obsm": {"latent": 4, "scale": 1}},
    "sparse": {"x": "csr", "var_names": [f"gene{i}" for i in range(G)]},
    "dense": {"x": "dense", "var_names": [f"gene{i}" for i in range(G)], "obsm": {"latent": 4}},
}


def start(url: Path, kind: str, **options: Any) -> ShardedWriter:
    settings = {"n_obs": N, "shard_rows": 25, "fingerprint": "model-1", **RESULTS[kind], **options}
    return ShardedWriter(url, **settings)


def result(kind: str, a: int, b: int) -> dict[str, Any]:
    """What a model would give for rows a to b."""
    rows = np.arange(a, b, dtype=np.float32)[:, None]
    out: dict[str, Any] = {}
    if "obsm" in RESULTS[kind]:
        out["obsm"] = {k: rows + np.arange(w) / 8 for k, w in RESULTS[kind]["obsm"].items()}
    if "x" in RESULTS[kind]:
        x = make_adata().X[a:b]
        csr = CsrRows(x.indptr.astype(np.int64), x.indices, x.data, G)
        out["x"] = csr if kind == "sparse" else x.toarray()
    return out


@pytest.fixture(params=list(RESULTS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def undisturbed(url: Path, kind: str) -> Path:
    sharded = start(url, kind)
    for a, b in sharded.pending():
        sharded.write(a, b, **result(kind, a, b))
    sharded.finish(make_adata().obs)
    return url


def test_results_are_read_by_anndata(tmp_path: Path, kind: str) -> None:
    found = anndata.read_zarr(undisturbed(tmp_path / "out", kind))
    pd.testing.assert_frame_equal(found.obs, make_adata().obs)
    for key in RESULTS[kind].get("obsm", {}):
        np.testing.assert_array_equal(found.obsm[key], result(kind, 0, N)["obsm"][key])
    if "x" in RESULTS[kind]:
        x = found.X.toarray() if kind == "sparse" else found.X
        np.testing.assert_array_equal(x, make_adata().X.toarray())
        assert list(found.var_names) == RESULTS[kind]["var_names"]
        with open_store(tmp_path / "out") as store:
            assert store.shape == (N, G)


@pytest.mark.parametrize("n_before", [0, 1, 3, 5])
def test_a_restart_ends_with_the_bytes_of_an_undisturbed_run(
    tmp_path: Path, kind: str, n_before: int
) -> None:
    expected = bytes_of(undisturbed(tmp_path / "whole", kind))
    sharded = start(tmp_path / "out", kind)
    shards = sharded.pending()
    for a, b in shards[:n_before]:
        sharded.write(a, b, **result(kind, a, b))
    del sharded  # the process dies here
    again = start(tmp_path / "out", kind)
    assert again.pending() == shards[n_before:]
    for a, b in reversed(again.pending()):
        again.write(a, b, **result(kind, a, b))
    assert again.pending() == []
    again.finish(make_adata().obs)
    assert bytes_of(tmp_path / "out") == expected


def test_a_shard_cut_short_is_pending_and_written_again(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = bytes_of(undisturbed(tmp_path / "whole", kind))
    sharded = start(tmp_path / "out", kind)

    def cut_short(self: ShardedWriter, name: str, content: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ShardedWriter, "_put", cut_short)
    garbage = result(kind, 25, 50)
    with pytest.raises(KeyboardInterrupt):
        sharded.write(0, 25, **garbage)
    monkeypatch.undo()
    assert start(tmp_path / "out", kind).pending()[0] == (0, 25)
    assert bytes_of(undisturbed(tmp_path / "out", kind)) == expected


def test_finishing_can_be_interrupted(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = bytes_of(undisturbed(tmp_path / "whole", kind))
    from scvi_dist.data.writing import sharded_writer

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for step in ("write_names", "finish_anndata"):
        monkeypatch.setattr(sharded_writer, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            undisturbed(tmp_path / "out", kind)
        monkeypatch.undo()
    # After the last step only the progress folder is left to remove.
    monkeypatch.setattr(ShardedWriter, "_remove_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        undisturbed(tmp_path / "out", kind)
    monkeypatch.undo()
    assert bytes_of(undisturbed(tmp_path / "out", kind)) == expected


def test_a_finished_result_is_left_as_it_is(tmp_path: Path, kind: str) -> None:
    before = bytes_of(undisturbed(tmp_path / "out", kind))
    sharded = start(tmp_path / "out", kind, overwrite=True)
    assert sharded.pending() == []
    with pytest.raises(PlanError, match="finished"):
        sharded.write(0, 25, **result(kind, 0, 25))
    assert bytes_of(tmp_path / "out") == before


@pytest.mark.parametrize("is_finished", [False, True])
def test_another_fingerprint_is_refused_with_both(tmp_path: Path, is_finished: bool) -> None:
    if is_finished:
        undisturbed(tmp_path / "out", "latent")
    else:
        start(tmp_path / "out", "latent")
    before = bytes_of(tmp_path / "out")
    with pytest.raises(OutputExists, match=r"'model-1'.*'model-2'"):
        start(tmp_path / "out", "latent", fingerprint="model-2")
    with pytest.raises(OutputExists, match="shard_rows: there 25, here 10"):
        start(tmp_path / "out", "latent", shard_rows=10)
    assert bytes_of(tmp_path / "out") == before
    replaced = start(tmp_path / "out", "latent", fingerprint="model-2", overwrite=True)
    assert replaced.pending() == replaced.shards


def test_other_files_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputExists):
            start(tmp_path, "latent", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unfinished_result_is_not_an_anndata(tmp_path: Path, kind: str) -> None:
    sharded = start(tmp_path / "out", kind)
    a, b = sharded.pending()[0]
    sharded.write(a, b, **result(kind, a, b))
    with pytest.raises(PlanError, match=r"4 of 5 shards .* rows 25 to 50"):
        sharded.finish()
    assert "encoding-type" not in (tmp_path / "out" / "zarr.json").read_text()


def test_a_pickled_writer_writes_to_the_same_output(tmp_path: Path, kind: str) -> None:
    sharded = start(tmp_path / "out", kind)
    a, b = sharded.pending()[2]
    pickle.loads(pickle.dumps(sharded)).write(a, b, **result(kind, a, b))
    assert (a, b) not in sharded.pending()
    assert len(sharded.pending()) == 4


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        ((0, 24), {"obsm": {"latent": np.zeros((24, 4)), "scale": np.zeros((24, 1))}}, "shard"),
        ((5, 30), {"obsm": {"latent": np.zeros((25, 4)), "scale": np.zeros((25, 1))}}, "shard"),
        ((100, 125), {"obsm": {"latent": np.zeros((25, 4)), "scale": np.zeros((25, 1))}}, "shard"),
        ((0, 25), {"obsm": {"latent": np.zeros((25, 4))}}, "scale"),
        ((0, 25), {"obsm": {"latent": np.zeros((25, 3)), "scale": np.zeros((25, 1))}}, "25, 3"),
        ((0, 25), {}, "latent"),
    ],
)
def test_what_was_not_announced_is_refused(
    tmp_path: Path, rows: tuple[int, int], given: dict[str, Any], message: str
) -> None:
    sharded = start(tmp_path / "out", "latent")
    with pytest.raises(PlanError, match=message):
        sharded.write(*rows, **given)
    assert sharded.pending() == sharded.shards


def test_x_is_of_the_kind_announced(tmp_path: Path) -> None:
    sharded = start(tmp_path / "out", "sparse")
    with pytest.raises(PlanError, match="announced as 'csr'"):
        sharded.write(0, 25, x=np.zeros((25, G)))
    with pytest.raises(PlanError, match="needs var_names"):
        ShardedWriter(tmp_path / "other", n_obs=3, fingerprint="f", x="dense")


def test_cells_without_obs_are_numbered(tmp_path: Path) -> None:
    sharded = start(tmp_path / "out", "latent", n_obs=3)
    sharded.write(0, 3, **result("latent", 0, 3))
    with pytest.raises(PlanError, match="3 rows"):
        sharded.finish(make_adata().obs)
    sharded.finish()
    with warnings.catch_warnings(record=True) as caught:
        assert list(anndata.read_zarr(tmp_path / "out").obs_names) == ["0", "1", "2"]
    assert caught == []


def test_urls_of_other_file_systems_take_the_same_way() -> None:
    bucket = "memory://test-writer"
    adata = make_adata()
    write_zarr(open_store(adata), f"{bucket}/copy.zarr")
    with pytest.raises(OutputExists):
        write_zarr(open_store(adata), f"{bucket}/copy.zarr")
    write_zarr(open_store(make_adata(n=5)), f"{bucket}/copy.zarr", overwrite=True)
    with open_store(f"{bucket}/copy.zarr") as store:
        assert store.n_obs == 5
    options = {"n_obs": N, "shard_rows": 25, "fingerprint": "f", **RESULTS["dense"]}
    for a, b in ShardedWriter(f"{bucket}/out", **options).pending()[:2]:
        ShardedWriter(f"{bucket}/out", **options).write(a, b, **result("dense", a, b))
    again = ShardedWriter(f"{bucket}/out", **options)
    assert again.pending() == again.shards[2:]
    for a, b in again.pending():
        again.write(a, b, **result("dense", a, b))
    again.finish(adata.obs)
    with open_store(f"{bucket}/out") as store:
        np.testing.assert_array_equal(store.read_rows([(0, N)]).to_dense(), adata.X.toarray())
