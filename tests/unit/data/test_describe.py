"""A description's figures are those of the AnnData."""

from pathlib import Path

import numpy as np
import pytest

from scvi_dist.data import describe_store, open_store
from scvi_dist.data.describe import ObsColumn
from scvi_dist.testing import dense_of, small_atlas, write_atlas


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_descriptions_of_files(suffix: str, tmp_path: Path) -> None:
    adata = small_atlas()
    path = write_atlas(adata, tmp_path / f"a.{suffix}")
    nonzeros = int(np.count_nonzero(dense_of(adata)))
    files = [path] if suffix == "h5ad" else [f for f in path.rglob("*") if f.is_file()]
    with open_store(path) as store:
        seen = describe_store(store)
        assert (seen.url, seen.kind, seen.layer) == (str(path), suffix, None)
        assert (seen.n_obs, seen.n_vars) == adata.shape
        assert seen.layers == ("counts", "spliced", "raw")
        assert seen.obsm == (("pca", 5), ("proteins", 3))
        assert (seen.dtype, seen.encoding, seen.n_stored) == ("float32", "csr", nonzeros)
        assert seen.density == pytest.approx(nonzeros / adata.X.shape[0] / adata.X.shape[1])
        assert seen.size_bytes == sum(f.stat().st_size for f in files)
        assert seen.digest == store.digest()
        assert seen.obs[:2] == (
            ObsColumn(name="batch", kind="category", n_categories=4),
            ObsColumn(name="donor", kind="category", n_categories=2),
        )
        assert [column.name for column in seen.obs] == list(store.obs_columns)
        assert {column.n_categories for column in seen.obs[3:]} == {None}


def test_descriptions_of_dense_matrices_and_views() -> None:
    adata = small_atlas(x="dense")
    share = np.count_nonzero(adata.X) / adata.X.size
    seen = describe_store(open_store(adata))
    assert (seen.encoding, seen.n_stored, seen.size_bytes) == ("dense", None, None)
    assert seen.density == pytest.approx(share)
    genes = adata.var_names[:4].tolist()
    view = describe_store(open_store(adata, genes=genes, obs_filter="n_reads > 400"))
    kept = adata.X[adata.obs["n_reads"] > 400][:, :4]
    assert (view.n_obs, view.n_vars) == kept.shape
    assert view.density == pytest.approx(np.count_nonzero(kept) / kept.size)


def test_descriptions_of_collections(tmp_path: Path) -> None:
    parts = [small_atlas(seed=1), small_atlas(seed=2)]
    paths = [write_atlas(a, tmp_path / f"{i}.h5ad") for i, a in enumerate(parts)]
    seen = describe_store(open_store(paths))
    nonzeros = sum(int(np.count_nonzero(dense_of(a))) for a in parts)
    assert (seen.kind, seen.n_obs, seen.n_stored) == ("collection", 114, nonzeros)
    assert seen.size_bytes == sum(path.stat().st_size for path in paths)
    assert seen.density == pytest.approx(nonzeros / 114 / 23)
