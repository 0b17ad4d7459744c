"""Where the background of proteins begins: from a sample of the cells of each panel."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest

from scvi_dist.analysis import protein_background
from scvi_dist.analysis.protein_background import NO_CELLS, NO_MIXTURE, background_prior
from scvi_dist.data.open import open_store
from scvi_dist.data.schema import SetupArgs, fit_schema
from scvi_dist.dataloaders.source import OpenSource

N, P = 400, 24
LOW = {"few": 1.0, "many": 3.0}


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    """Batches whose background is known; ``bare`` has four proteins, ``unused`` no cell."""
    rng = np.random.default_rng(0)
    batch = rng.choice(["few", "many", "bare", "flat"], N, p=[0.4, 0.4, 0.15, 0.05])
    log_rate = np.array([LOW.get(b, 2.0) for b in batch])[:, None] + np.zeros((N, P))
    is_fore = rng.random((N, P)) < 0.4
    counts = np.round(np.exp(log_rate + 3.0 * is_fore + rng.normal(0, 0.05, (N, P))))
    counts[batch == "bare", 4:] = 0
    counts[batch == "flat"] = 5
    levels = ["few", "many", "bare", "flat", "unused"]
    obs = pd.DataFrame({"batch": pd.Categorical(batch, levels)}, index=[f"c{i}" for i in range(N)])
    return anndata.AnnData(np.ones((N, 2), np.float32), obs=obs, obsm={"adt": counts})


def prior_of(cells: anndata.AnnData, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    store = open_store(cells)
    schema = fit_schema(store, SetupArgs(batch_key="batch", protein_key="adt"))
    np.random.seed(seed)
    return background_prior(OpenSource(store, schema))


def test_it_is_the_lower_law_of_each_batch(cells: anndata.AnnData) -> None:
    mean, scale = prior_of(cells)
    assert mean.shape == scale.shape == (P, 5)
    assert (mean == mean[0]).all()
    assert (scale == scale[0]).all()
    assert mean[0, 0] == pytest.approx(np.log1p(np.exp(LOW["few"])), abs=0.15)
    assert mean[0, 1] == pytest.approx(np.log1p(np.exp(LOW["many"])), abs=0.15)
    assert (mean[0, 2], scale[0, 2]) == pytest.approx(NO_MIXTURE)
    # No cell has two components: each counts as the law of nothing, and so does their mean.
    assert mean[0, 3] == 0
    assert scale[0, 3] == pytest.approx(NO_MIXTURE[1] / np.sqrt(100))
    assert (mean[0, 4], scale[0, 4]) == pytest.approx(NO_CELLS)


def test_it_does_not_depend_on_how_cells_are_gone_through(
    cells: anndata.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prior_of(cells)
    monkeypatch.setattr(protein_background, "CHUNK_ROWS", 37)
    for got, value in zip(prior_of(cells), expected, strict=True):
        np.testing.assert_array_equal(got, value)
    other = prior_of(cells, seed=1)
    assert not np.array_equal(other[0], expected[0])


def test_only_the_drawn_cells_are_read(
    cells: anndata.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(cells)
    schema = fit_schema(store, SetupArgs(batch_key="batch", protein_key="adt"))
    source = OpenSource(store, schema)
    n_read: list[int] = []
    assert source.proteins is not None
    read_at = source.proteins.read_at
    monkeypatch.setattr(
        source.proteins, "read_at", lambda rows: n_read.append(len(rows)) or read_at(rows)
    )
    monkeypatch.setattr(protein_background, "_mean_law", lambda counts_np: (0.0, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        background_prior(source)
    assert n_read == [100, 100, 100]
