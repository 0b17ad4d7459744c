"""A TOTALVI of a MuData: scvi-tools' answers, and each other's files."""

import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scvi_pairs import quiet

from scvi_dist.model import TOTALVI

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

mudata = pytest.importorskip("mudata")

N, G, P = 50, 8, 11
WITHIN = {"rna_layer": "rna", "protein_layer": "prot", "batch_key": "rna"}
ARGUMENTS: dict[str, Any] = {"n_latent": 3, "n_hidden": 8}
QUICK: dict[str, Any] = {"max_epochs": 1, "batch_size": 25, "early_stopping": False}


def make_mudata() -> Any:
    rng = np.random.default_rng(0)
    names = [f"cell{i}" for i in range(N)]
    batch = pd.DataFrame({"batch": np.array(["a", "b"])[np.arange(N) % 2]}, index=names)
    genes, proteins = rng.poisson(2.0, (N, G)) + 1.0, rng.poisson(9.0, (N, P)) + 1.0
    proteins[batch["batch"] == "b", 2] = 0
    rna = anndata.AnnData(genes, obs=batch)
    prot = anndata.AnnData(proteins, obs=batch[[]], layers={"counts": proteins})
    prot.var_names = [f"CD{i}" for i in range(P)]
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData({"rna": rna, "prot": prot})


def made(scvi: Any, protein_layer: str | None) -> tuple[TOTALVI, Any]:
    cells = [make_mudata(), make_mudata()]
    models = []
    for kind, data in zip((TOTALVI, scvi.model.TOTALVI), cells, strict=True):
        torch.manual_seed(0)
        np.random.seed(0)
        keys = {"batch_key": "batch", "protein_layer": protein_layer}
        kind.setup_mudata(data, modalities=WITHIN, **keys)
        models.append(kind(data, **ARGUMENTS))
    models[1].module.eval()
    for model in models:
        model.is_trained_ = True
    return models[0], models[1]


@pytest.mark.parametrize("protein_layer", [None, "counts"])
def test_equal_beginnings_and_each_others_files(
    scvi: Any, protein_layer: str | None, tmp_path: Path
) -> None:
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = made(scvi, protein_layer)
        expected = theirs.get_latent_representation()
        assert ours.init_params_ == theirs.init_params_
        assert ours.modalities == theirs.modalities
        names = theirs.get_var_names()
        for modality, features in ours.get_var_names().items():
            np.testing.assert_array_equal(features, names[modality])
        ours.save(tmp_path / "ours", save_anndata=True)
        theirs.save(tmp_path / "theirs", save_anndata=True)
        assert (tmp_path / "ours" / "mdata.h5mu").exists()
        alone = TOTALVI.load(tmp_path / "theirs", adata=False)
        everyone = [
            ours,
            TOTALVI.load(tmp_path / "theirs"),
            TOTALVI.load(tmp_path / "theirs", tmp_path / "theirs" / "mdata.h5mu"),
            TOTALVI.load(tmp_path / "ours", make_mudata()),
            scvi.model.TOTALVI.load(tmp_path / "ours"),
        ]
    assert alone.schema == ours.schema
    for model in everyone:
        with quiet():
            found = model.get_latent_representation()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_file_of_it_trains(tmp_path: Path) -> None:
    path = tmp_path / "cells.h5mu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_mudata().write_h5mu(path)
        TOTALVI.setup_mudata(path, batch_key="batch", modalities=WITHIN)
        model = TOTALVI(path, **ARGUMENTS)
        model.train(**QUICK)
    counts = model.posterior_predictive_sample(indices=[3, 1])
    assert {name: value.shape for name, value in counts.items()} == {"rna": (2, G), "prot": (2, P)}
    model.save(tmp_path / "model", save_anndata=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        back = TOTALVI.load(tmp_path / "model")
    np.testing.assert_array_equal(
        back.get_latent_representation(), model.get_latent_representation()
    )
