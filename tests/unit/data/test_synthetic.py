"""Synthetic cells: the layout that scvi-tools' users know, and independent values."""

import sys

import numpy as np
import pytest
from scipy import sparse

import scvi_dist
from scvi_dist.data import synthetic_iid
from scvi_dist.errors import ConfigError, MissingDependency


def test_the_layout() -> None:
    cells = synthetic_iid(batch_size=50, n_genes=7, n_proteins=4, n_regions=5, n_batches=3)
    assert cells.shape == (150, 7)
    assert cells.var_names.tolist() == [f"gene_{i}" for i in range(7)]
    assert cells.obs["batch"].value_counts().to_dict() == {f"batch_{i}": 50 for i in range(3)}
    assert cells.obs["labels"].cat.categories.tolist() == ["label_0", "label_1", "label_2"]
    assert cells.obsm["protein_expression"].shape == (150, 4)
    assert cells.uns["protein_names"].tolist() == [f"protein_{i}" for i in range(4)]
    assert cells.obsm["accessibility"].shape == (150, 5)
    assert "coordinates" not in cells.obsm


def test_what_is_not_asked_for_is_not_there() -> None:
    cells = synthetic_iid(
        10, n_proteins=0, n_regions=0, n_labels=0, generate_coordinates=True, batch_key="lane"
    )
    assert list(cells.obsm) == ["coordinates"]
    assert list(cells.obs) == ["lane"]
    assert not cells.uns


@pytest.mark.parametrize("name", ["csr_matrix", "csc_matrix", "csr_array"])
def test_sparse_formats(name: str) -> None:
    cells = synthetic_iid(20, sparse_format=name)
    for matrix in (cells.X, cells.obsm["protein_expression"], cells.obsm["accessibility"]):
        assert type(matrix) is getattr(sparse, name)


def test_values_follow_the_global_seed_and_their_law() -> None:
    scvi_dist.settings.seed = 4
    try:
        one = synthetic_iid(300)
        scvi_dist.settings.seed = 4
        two = synthetic_iid(300)
    finally:
        scvi_dist.settings.seed = None
    np.testing.assert_array_equal(one.X, two.X)
    mean = 5 * 0.7 / 0.3
    assert one.obsm["protein_expression"].mean() == pytest.approx(mean, rel=0.02)
    assert one.X.mean() == pytest.approx(0.7 * mean, rel=0.02)
    rows = np.corrcoef(one.X)
    assert abs(rows[np.triu_indices(600, 1)].mean()) < 0.01
    normal = synthetic_iid(100, rna_dist="normal", dropout_ratio=1.0)
    assert normal.X.std() == pytest.approx(2.0, rel=0.05)


def test_modalities_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    mudata = pytest.importorskip("mudata")
    cells = synthetic_iid(10, return_mudata=True, rna_key="genes")
    assert isinstance(cells, mudata.MuData)
    assert list(cells.mod) == ["genes", "accessibility", "protein_expression"]
    assert "batch" in cells.obs
    monkeypatch.setitem(sys.modules, "mudata", None)
    with pytest.raises(MissingDependency, match="pip install mudata"):
        synthetic_iid(10, return_mudata=True)


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'csr_matrix'"):
        synthetic_iid(10, sparse_format="csr_matrx")
    with pytest.raises(ConfigError, match="Unknown RNA distribution"):
        synthetic_iid(10, rna_dist="zinb")  # type: ignore[arg-type]


def test_readers_are_anndatas_and_scanpys(monkeypatch: pytest.MonkeyPatch) -> None:
    import anndata

    assert scvi_dist.data.read_h5ad is anndata.read_h5ad
    assert scvi_dist.data.read_csv is anndata.io.read_csv
    monkeypatch.setitem(sys.modules, "scanpy", None)
    with pytest.raises(MissingDependency, match="pip install scanpy"):
        scvi_dist.data.read_10x_h5  # noqa: B018
