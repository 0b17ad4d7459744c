"""Saved models of proteins: of older releases, and brought to cells with other proteins."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from scvi_dist.model import TOTALVI
from scvi_dist.model.file_format import SavedModel, read_model_file, write_model_file
from scvi_dist.model.protein_files import legacy_background

N, P = 30, 4
ARGUMENTS: dict[str, Any] = {"n_latent": 2, "n_hidden": 4}


def make_cells(lacks: bool) -> anndata.AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"batch": np.array(["a", "b"])[np.arange(N) % 2]}, index=[f"c{i}" for i in range(N)]
    )
    proteins = rng.poisson(4.0, (N, P)).astype(np.float32) + 1
    if lacks:
        proteins[::2, 1] = 0
    x = rng.poisson(2.0, (N, 5)).astype(np.float32) + 1
    return anndata.AnnData(x, obs=obs, obsm={"adt": proteins})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    cells = make_cells(lacks=False)
    TOTALVI.setup_anndata(cells, "adt", batch_key="batch")
    model = TOTALVI(cells, **ARGUMENTS)
    model.is_trained = True
    model.save(tmp_path / "model")
    return tmp_path / "model"


def rewritten(folder: Path, version: str, without: str | None = None) -> None:
    file = read_model_file(folder / "model.pt")
    weights = {name: value for name, value in file.state_dict.items() if name != without}
    registry = {**file.attributes["registry_"], "scvi_version": version}
    attributes = {**file.attributes, "registry_": registry}
    changed = SavedModel(state_dict=weights, var_names=file.var_names, attributes=attributes)
    write_model_file(folder / "model.pt", changed)


def spread(model: TOTALVI) -> torch.Tensor:
    return model.module.decoder.activation_function_bg(torch.tensor([0.0, 3.0]))


@pytest.mark.parametrize(("version", "is_old"), [("1.1.5", True), ("1.2.0", False), ("2.0", False)])
def test_old_files_have_their_background_and_no_efficiencies(
    saved: Path, version: str, is_old: bool
) -> None:
    rewritten(saved, version, without="log_per_batch_efficiency")
    model = TOTALVI.load(saved, adata=False)
    expected = torch.exp if is_old else torch.nn.functional.softplus
    torch.testing.assert_close(spread(model), expected(torch.tensor([0.0, 3.0])))
    assert (model.module.log_per_batch_efficiency == 0).all()


def test_what_an_old_model_was_given_wins() -> None:
    given = {"extra_decoder_kwargs": {"activation_function_bg": "softplus"}, "n_latent": 3}
    assert legacy_background(given, "1.0.3") == given
    assert legacy_background({}, "no release") == {}


def test_cells_with_other_proteins_are_masked_as_they_are(saved: Path) -> None:
    complete, lacking = make_cells(lacks=False), make_cells(lacks=True)
    mask = {"0": (True, False, True, True), "1": (True,) * P}
    state = torch.get_rng_state()
    model = TOTALVI.load(saved, lacking)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.module.protein_batch_mask == mask
    assert model._use_adversarial_classifier
    # What was not measured is not to be explained.
    same = TOTALVI.load(saved, complete)
    assert same.module.protein_batch_mask is None
    assert not same._use_adversarial_classifier
    key = "reconst_loss_protein"
    masked, unmasked = (
        m.get_reconstruction_error(lacking, return_mean=False, seed=0)[key] for m in (model, same)
    )
    assert (masked[::2] < unmasked[::2]).all()
    torch.testing.assert_close(masked[1::2], unmasked[1::2])
