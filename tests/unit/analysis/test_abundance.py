"""Differential abundance: densities of mixtures, whatever the blocks, the parts and the store."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import logsumexp

from scvi_dist.analysis.abundance import AbundancePass, Mixtures, Samples
from scvi_dist.analysis.mixture_kernels import BLOCK
from scvi_dist.analysis.passes.cell_pass import Parts, run_here
from scvi_dist.data import open_store
from scvi_dist.data.writing.writer import write_zarr
from scvi_dist.errors import ConfigError, FieldNotFound
from scvi_dist.model import SCVI
from tests.unit.analysis.conftest import make_adata


def _mixtures(sizes: tuple[int, ...], k: int, dof: float | None, seed: int = 0) -> Mixtures:
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    loc = rng.normal(0, 2, (n, k)).astype(np.float32)
    scale = rng.uniform(0.01, 1.5, (n, k)).astype(np.float32)
    return Mixtures(loc, scale, (0, *np.cumsum(sizes).tolist()), dof)


@pytest.mark.parametrize("dof", [None, 0.7, 3.0])
@pytest.mark.parametrize("k", [1, 10, 37])
def test_log_densities_are_scipys(dof: float | None, k: int) -> None:
    mixtures = _mixtures((1, BLOCK, 2 * BLOCK + 3), k, dof)
    points = np.random.default_rng(1).normal(0, 3, (30, k))
    got = mixtures.log_density(points)
    law = stats.norm if dof is None else stats.t(dof)
    for m, (a, b) in enumerate(zip(mixtures.bounds, mixtures.bounds[1:], strict=False)):
        loc, scale = (x[a:b].astype(float) for x in (mixtures.loc_ck, mixtures.scale_ck))
        y = (points[:, None] - loc) / scale
        each = (law.logpdf(y) - np.log(scale)).sum(-1)
        np.testing.assert_allclose(got[:, m], logsumexp(each, axis=1) - np.log(b - a), rtol=1e-10)


def test_points_far_from_everything_have_a_density() -> None:
    mixtures = _mixtures((50, 3), 4, None)
    got = mixtures.log_density(np.full((2, 4), 1e3))
    assert np.isfinite(got).all()
    assert (got < -1e4).all()


def test_components_in_any_order_make_the_same_mixture() -> None:
    one = _mixtures((1_500,), 6, None)
    order = np.random.default_rng(3).permutation(1_500)
    other = Mixtures(one.loc_ck[order], one.scale_ck[order], one.bounds)
    points = np.random.default_rng(1).normal(0, 2, (20, 6))
    np.testing.assert_allclose(other.log_density(points), one.log_density(points), rtol=1e-12)


def test_samples_are_in_the_order_in_which_they_occur() -> None:
    samples = Samples.of(np.array(["b", "a", None, "b", np.nan, "c"], dtype=object))
    assert samples.names == ("b", "a", "c")
    assert [p.tolist() for p in samples.positions] == [[0, 3], [1], [5]]
    assert samples.components.tolist() == [0, 3, 1, 5]
    assert samples.bounds == (0, 2, 3, 4)
    few = samples.limited(1, seed=0)
    assert [len(p) for p in few.positions] == [1, 1, 1]
    assert set(few.positions[0]) <= {0, 3}
    with pytest.raises(ConfigError, match="missing"):
        Samples.of(np.array([None, None], dtype=object))
    with pytest.raises(ConfigError, match="num_cells_posterior"):
        samples.limited(0, seed=0)
    with pytest.raises(ConfigError, match="dof"):
        _mixtures((2,), 1, 0.0)


@pytest.fixture
def model() -> SCVI:
    cells = make_adata()
    SCVI.setup_anndata(cells, batch_key="batch")
    model = SCVI(cells, n_latent=3, n_hidden=8)
    model.is_trained = True
    return model


def test_stores_parts_and_copies_give_the_same(model: SCVI, tmp_path: Path) -> None:
    cells = model.adata
    table = model.differential_abundance(sample_key="donor")
    assert list(table.columns) == list(cells.obs["donor"].unique())
    pd.testing.assert_frame_equal(cells.obsm["da_log_probs"], table)
    write_zarr(open_store(cells), tmp_path / "cells.zarr")
    url = str(tmp_path / "cells.zarr")

    def in_parts(*given: Any) -> Any:
        return run_here(*given, Parts(part_cells=7))

    for other in (
        model.differential_abundance(url, "donor"),
        model.differential_abundance(cells.copy(), "donor", batch_size=11),
        model.differential_abundance(sample_key="donor", executor=in_parts),
        model.differential_abundance(url, "donor", adata_sub=cells),
    ):
        pd.testing.assert_frame_equal(other, table, rtol=1e-5, check_names=False)


def test_results_go_to_a_store(model: SCVI, tmp_path: Path) -> None:
    table = model.differential_abundance(sample_key="donor")
    url = model.differential_abundance(sample_key="donor", out=tmp_path / "da.zarr")
    written = anndata.read_zarr(url)
    pd.testing.assert_frame_equal(written.to_df(), table, rtol=1e-5, check_names=False)


def test_few_cells_of_a_sample_and_few_cells_to_score(model: SCVI) -> None:
    cells = model.adata
    some = cells[np.r_[40:20:-1, 7]].copy()
    how: dict[str, Any] = {"sample_key": "donor", "num_cells_posterior": 5, "seed": 1}
    few = model.differential_abundance(**how)
    pd.testing.assert_frame_equal(few, model.differential_abundance(**how))
    other = model.differential_abundance(**{**how, "seed": 2})
    assert not few.equals(other)
    scored = model.differential_abundance(cells, **how, adata_sub=some)
    pd.testing.assert_frame_equal(scored, few.loc[some.obs_names], rtol=1e-5)
    pd.testing.assert_frame_equal(some.obsm["da_log_probs"], scored)


def test_cells_lie_where_their_own_sample_is(model: SCVI) -> None:
    cells = model.adata.copy()
    place = model.get_latent_representation()[:, 0]
    cells.obs["place"] = np.where(place > np.median(place), "right", "left")
    table = model.differential_abundance(cells, "place")
    ratio = table["right"] - table["left"]
    assert ratio[cells.obs["place"] == "right"].mean() > ratio[cells.obs["place"] == "left"].mean()


def test_what_is_missing_is_named(model: SCVI) -> None:
    with pytest.raises(ConfigError, match="sample_key"):
        model.differential_abundance()
    with pytest.raises(FieldNotFound, match="donor"):
        model.differential_abundance(sample_key="donors")


def test_workers_get_components_but_not_the_places_of_all_cells() -> None:
    import pickle

    whole = AbundancePass(_mixtures((4,), 2, None), np.zeros((1_000, 2)))
    sent = pickle.loads(pickle.dumps(whole))
    assert sent.facts == whole.facts
    assert len(pickle.dumps(whole)) < 2_000
    part = whole.payload(np.arange(3))
    expected = whole.mixtures.log_density(part).astype(np.float32)
    got = sent.compute(None, None, part)  # type: ignore[arg-type]
    np.testing.assert_array_equal(got["log_probs"], expected)


def test_engines_give_the_same(model: SCVI) -> None:
    pytest.importorskip("scvi_dist.analysis.passes.engines")
    table = model.differential_abundance(sample_key="donor")
    other = model.differential_abundance(sample_key="donor", dask="threads:2")
    pd.testing.assert_frame_equal(other, table, rtol=1e-5)
