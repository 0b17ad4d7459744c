"""One data set and one model for the tests of a file."""

import anndata
import pytest
from scvi_models import make_adata, make_model

from scvi_dist.model import SCVI


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    return make_adata()


@pytest.fixture(scope="module")
def model(adata: anndata.AnnData) -> SCVI:
    return make_model(adata)
