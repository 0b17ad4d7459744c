"""Synthetic cells are those that scvi-tools draws from the same seed."""

import inspect
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scvi_dist.data import synthetic_iid

pytestmark = pytest.mark.parity

CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "sparse": {"sparse_format": "csr_matrix", "n_proteins": 3, "batch_size": 20},
    "more and less": {"n_batches": 3, "n_regions": 0, "n_labels": 0, "generate_coordinates": True},
    "normal": {"rna_dist": "normal", "batch_size": 20},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("return_mudata", [False, True])
def test_the_same_cells(scvi: Any, case: str, return_mudata: bool) -> None:
    arguments = {**CASES[case], "return_mudata": return_mudata}
    drawn = []
    for draw in (scvi.data.synthetic_iid, synthetic_iid):
        np.random.seed(2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawn.append(draw(**arguments))
    theirs, ours = drawn
    assert type(ours) is type(theirs)
    pd.testing.assert_frame_equal(ours.obs, theirs.obs)
    parts = [(ours, theirs)]
    if return_mudata:
        assert list(ours.mod) == list(theirs.mod)
        parts = [(ours[name], theirs[name]) for name in theirs.mod]
    for a, b in parts:
        _assert_equal(a.X, b.X)
        pd.testing.assert_frame_equal(a.var, b.var)
        assert list(a.obsm) == list(b.obsm)
        for key in b.obsm:
            _assert_equal(a.obsm[key], b.obsm[key])
        assert {k: list(v) for k, v in a.uns.items()} == {k: list(v) for k, v in b.uns.items()}


def _assert_equal(a: Any, b: Any) -> None:
    assert (type(a), a.dtype) == (type(b), b.dtype)
    np.testing.assert_array_equal(
        *(m.toarray() if hasattr(m, "toarray") else np.asarray(m) for m in (a, b))
    )


def test_the_same_arguments(scvi: Any) -> None:
    theirs = inspect.signature(scvi.data.synthetic_iid).parameters
    ours = inspect.signature(synthetic_iid).parameters
    for name, parameter in theirs.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            assert ours[name].default == parameter.default
            assert list(ours).index(name) == list(theirs).index(name)
