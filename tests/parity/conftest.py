"""What the comparisons with scvi-tools share."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from scvi_pairs import SETUPS, quiet, theirs_of

from scvi_dist.model import SCVI


@pytest.fixture(scope="module")
def scvi() -> Any:
    with quiet():
        return pytest.importorskip("scvi")


@pytest.fixture(scope="module")
def adata(shared_data: Path) -> anndata.AnnData:
    whole = anndata.read_h5ad(shared_data / "scvi_tools_1.4.2_scvi_mixology" / "adata.h5ad")
    rng = np.random.default_rng(0)
    cells = whole[rng.permutation(whole.n_obs)[:150], rng.permutation(whole.n_vars)[:80]].copy()
    cells = cells[np.asarray(cells.X.sum(1)).ravel() > 0].copy()
    cells.layers["counts"] = cells.X.copy()
    cells.obs["depth"] = np.log1p(np.asarray(cells.X.sum(1)).ravel())
    cells.obs["size"] = cells.obs["depth"] / cells.obs["depth"].mean()
    return cells


@pytest.fixture(scope="module", params=SETUPS)
def pair(
    request: pytest.FixtureRequest,
    scvi: Any,
    adata: anndata.AnnData,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[SCVI, Any]:
    """Ours, read from the file that theirs wrote."""
    theirs = theirs_of(scvi, adata, request.param)
    folder = tmp_path_factory.mktemp("theirs") / "model"
    theirs.save(folder, save_anndata=True)
    return SCVI.load(folder), theirs
