"""A copy holds what the source holds, in any kind and layout; what it lacks is said."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from scvi_dist.batch import CsrRows
from scvi_dist.data import open_store
from scvi_dist.data.writing.content import Content, index_type, pointer_type
from scvi_dist.data.writing.convert import CopyConfig, convert_store, kind_of_output, stored_content
from scvi_dist.errors import ConfigError, OutputExists, StoreCorrupt
from scvi_dist.testing import dense_of, small_atlas, write_atlas

N, G = 120, 30
TARGETS = [("a.h5ad", "anndata"), ("a.zarr", "anndata"), ("a.zarr", "training")]
ARRAYS = ("indptr", "indices", "data")


def full_atlas() -> anndata.AnnData:
    adata = small_atlas(n=N, g=G)
    adata.var["mean"] = np.arange(G, dtype=np.float64)
    adata.var["chosen"] = pd.Categorical(["yes", "no"] * (G // 2))
    adata.varm["loadings"] = np.ones((G, 2))
    adata.uns["about"] = {"title": "atlas", "numbers": np.arange(3)}
    adata.obsp["distances"] = sparse.eye_array(N, format="csr")
    return adata


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    return full_atlas()


@pytest.fixture(scope="module", params=["a.h5ad", "2.zarr", "3.zarr", "memory", "view"])
def source(request: pytest.FixtureRequest, adata: Any, tmp_path_factory: Any) -> Any:
    """What opens the source."""
    if request.param == "memory":
        return lambda: open_store(adata)
    folder = tmp_path_factory.mktemp("source")
    path = write_atlas(
        adata,
        folder / request.param.replace("view", "v.h5ad"),
        **({"zarr_format": 2} if request.param == "2.zarr" else {}),
    )
    if request.param == "view":
        return lambda: open_store(path, obs_filter="depth >= 0")
    return lambda: open_store(path)


def read(path: Path) -> anndata.AnnData:
    return anndata.read_h5ad(path) if path.suffix == ".h5ad" else anndata.read_zarr(path)


@pytest.mark.parametrize(("name", "layout"), TARGETS)
def test_a_copy_is_the_whole_of_its_source(
    name: str, layout: str, source: Any, adata: Any, tmp_path: Path
) -> None:
    heard: list[tuple[int, int]] = []
    with source() as store:
        done = convert_store(
            store,
            tmp_path / name,
            config=CopyConfig(layout=layout),
            on_progress=lambda *at: heard.append(at),
        )
    found = read(tmp_path / name)
    assert list(done.matrices) == ["X", "layers/counts", "layers/spliced", "raw/X"]
    for layer in (None, "counts", "spliced", "raw"):
        np.testing.assert_array_equal(dense_of(found, layer), dense_of(adata, layer))
    pd.testing.assert_frame_equal(found.obs, adata.obs)
    pd.testing.assert_frame_equal(found.var, adata.var)
    assert found.raw.var_names.tolist() == adata.raw.var_names.tolist()
    np.testing.assert_array_equal(found.obsm["pca"], adata.obsm["pca"].astype("f4"))
    np.testing.assert_allclose(found.obsm["proteins"], adata.obsm["proteins"])
    assert list(found.obsm["proteins"].columns) == ["CD3", "CD4", "CD8"]
    np.testing.assert_array_equal(found.varm["loadings"], adata.varm["loadings"])
    assert found.uns["about"]["title"] == "atlas"
    assert done.lost == ("obsp['distances']",)
    assert heard[-1][0] == heard[-1][1]
    assert [at[0] for at in heard] == sorted(at[0] for at in heard)


def test_the_training_layout_is_small_and_read_past_the_zarr_library(
    adata: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(adata) as store:
        convert_store(store, tmp_path / "a.zarr", config=CopyConfig(layout="training"))
    root = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert [root[f"X/{part}"].dtype for part in ARRAYS] == ["int32", "int16", "uint8"]
    assert root["X/data"].shards is not None
    monkeypatch.delattr(zarr.Array, "__getitem__")
    with open_store(tmp_path / "a.zarr") as store:
        block = store.read_rows([(3, 40), (90, N)])
    rows = np.r_[3:40, 90:N]
    np.testing.assert_array_equal(block.to_dense(), dense_of(adata)[rows])


def test_a_flipped_bit_is_noticed(adata: Any, tmp_path: Path) -> None:
    with open_store(adata) as store:
        convert_store(store, tmp_path / "a.zarr", config=CopyConfig(layout="training"))
    for part in ("data", "indices"):
        path = tmp_path / "a.zarr" / "X" / part / "c" / "0"
        raw = path.read_bytes()
        path.write_bytes(raw[:40] + bytes([raw[40] ^ 4]) + raw[41:])
        with (
            open_store(tmp_path / "a.zarr") as store,
            pytest.raises(StoreCorrupt, match=rf"X/{part}.*CRC32C"),
        ):
            store.read_rows([(0, N)])
        path.write_bytes(raw)


def test_one_layer_or_some_genes(adata: Any, tmp_path: Path) -> None:
    with open_store(adata, layer="counts") as store:
        done = convert_store(store, tmp_path / "counts.zarr")
    assert done.matrices == ("X",)
    np.testing.assert_array_equal(
        dense_of(read(tmp_path / "counts.zarr")), dense_of(adata, "counts")
    )
    genes = adata.var_names[[7, 2, 11]].tolist()
    with open_store(adata, genes=genes, obs_filter="batch == 'early'") as store:
        convert_store(store, tmp_path / "some.h5ad")
    part = adata[adata.obs["batch"] == "early", genes]
    found = read(tmp_path / "some.h5ad")
    np.testing.assert_array_equal(dense_of(found), dense_of(part))
    assert found.var["mean"].tolist() == [7, 2, 11]
    assert found.raw.var_names.tolist() == genes


def test_nothing_is_overwritten_unasked(adata: Any, tmp_path: Path) -> None:
    with open_store(adata) as store:
        for name in ("a.h5ad", "a.zarr"):
            path = tmp_path / name
            convert_store(store, path)
            before = path.stat().st_mtime_ns
            with pytest.raises(OutputExists, match="exists"):
                convert_store(store, path)
            assert path.stat().st_mtime_ns == before
            convert_store(store, path, overwrite=True)


def test_an_interrupted_copy_is_no_store_and_is_written_anew(adata: Any, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with open_store(adata) as store:
        for name in ("a.h5ad", "a.zarr"):
            with pytest.raises(KeyboardInterrupt):
                convert_store(store, tmp_path / name, on_progress=stop)
            assert not (tmp_path / name).is_file()
            convert_store(store, tmp_path / name)
            np.testing.assert_array_equal(dense_of(read(tmp_path / name)), dense_of(adata))
        with pytest.raises(KeyboardInterrupt):
            convert_store(store, tmp_path / "b.zarr", on_progress=stop)
    with open_store(adata[:50].copy()) as other, pytest.raises(OutputExists):
        convert_store(other, tmp_path / "b.zarr")


def test_what_cannot_be_written_is_refused_first(adata: Any, tmp_path: Path) -> None:
    with open_store(adata) as store:
        with pytest.raises(ConfigError, match=r"end it with \.h5ad"):
            convert_store(store, tmp_path / "a.csv")
        with pytest.raises(ConfigError, match="did you mean 'zarr'"):
            convert_store(store, tmp_path / "a", kind="zar")
        with pytest.raises(ConfigError, match="training layout"):
            convert_store(store, tmp_path / "a.h5ad", config=CopyConfig(layout="training"))
        with pytest.raises(ConfigError, match="local paths"):
            convert_store(store, "memory://a.h5ad")
    assert list(tmp_path.iterdir()) == []
    assert kind_of_output("s3://b/a.zarr?x") == "zarr"


@pytest.mark.parametrize("wrong", [{"layout": "trainin"}, {"codec": "lz5"}, {"chunk_rows": 0}])
def test_wrong_layouts_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        CopyConfig(**wrong)


# content


def block(dense_ng: np.ndarray) -> CsrRows:
    x = sparse.csr_matrix(dense_ng)
    return CsrRows(x.indptr.astype(np.int64), x.indices, x.data, x.shape[1])


counts = st.lists(st.lists(st.integers(0, 300), min_size=4, max_size=4), min_size=1, max_size=9)


@given(counts, st.randoms(use_true_random=False))
def test_content_adds_up_whatever_the_order_of_cells(rows: list[list[int]], random: Any) -> None:
    dense_ng = np.array(rows, dtype=np.float32)
    whole = Content.of(block(dense_ng))
    order = list(range(len(rows)))
    random.shuffle(order)
    cut = random.randint(0, len(rows))
    parts = dense_ng[order[:cut]], dense_ng[order[cut:]]
    assert Content.of(block(parts[0])) + Content.of(block(parts[1])) == whole
    assert Content.from_json(whole.to_json()) == whole
    assert whole.n_entries == np.count_nonzero(dense_ng)
    dtype = whole.value_type(np.dtype(np.float32))
    assert (dense_ng.astype(dtype) == dense_ng).all()
    assert dtype == (np.uint8 if dense_ng.max() < 256 else np.uint16)


@given(counts, st.integers(0, 8), st.integers(0, 3), st.integers(1, 9))
def test_content_tells_other_cells(rows: list[list[int]], row: int, gene: int, by: int) -> None:
    dense_ng = np.array(rows, dtype=np.float32)
    other = dense_ng.copy()
    other[row % len(rows), gene] += by
    assert Content.of(block(other)).checksum != Content.of(block(dense_ng)).checksum


def test_values_that_are_no_counts_keep_their_type() -> None:
    for value in (-1.0, 0.5, 2.0**33):
        found = Content.of(block(np.array([[value, 1]], dtype=np.float32)))
        assert found.value_type(np.dtype(np.float32)) == np.float32


def test_types_of_indices_hold_them() -> None:
    for n in (1, 1 << 15, (1 << 15) + 1, 1 << 16, (1 << 16) + 1, 1 << 20):
        assert np.iinfo(index_type(n)).max >= n - 1
    assert pointer_type(2**31 - 1) == np.int32
    assert pointer_type(2**31) == np.int64


def test_a_copy_says_what_it_holds(adata: Any, tmp_path: Path) -> None:
    for name in ("a.h5ad", "a.zarr"):
        with open_store(adata) as store:
            done = convert_store(store, tmp_path / name)
        with open_store(tmp_path / name) as store:
            written = stored_content(store.tree.attributes(""))
            assert written == done.content
            assert written["X"] == Content.of(store.read_rows([(0, N)]))
