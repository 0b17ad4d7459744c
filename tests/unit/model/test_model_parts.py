"""Which cells were trained on, the history, devices, init arguments."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from scvi_dist.dataloaders.rows import HashedRows, all_members
from scvi_dist.dataloaders.split import SplitConfig, split_from_indices, split_rows
from scvi_dist.errors import ConfigError, FieldNotFound, SchemaMismatch
from scvi_dist.model import indices as indices_file
from scvi_dist.model.device import resolve_device
from scvi_dist.model.genes import gene_columns
from scvi_dist.model.history import as_history, continued
from scvi_dist.model.indices import PARTS, TrainedCells
from scvi_dist.model.saving import init_arguments


@pytest.mark.parametrize(
    "config",
    [
        SplitConfig(train_size=0.6, validation_size=0.2),
        SplitConfig(train_size=0.6, validation_size=0.2, method="hash"),
        SplitConfig(train_size=0.6, shuffle_set_split=False),
    ],
)
def test_trained_cells_come_back_from_a_file(config: SplitConfig) -> None:
    split = split_rows(1_000, config, 128)
    written = TrainedCells.of(split).to_attributes()
    back = TrainedCells.from_attributes(written)
    for part in PARTS:
        np.testing.assert_array_equal(back.rows(part), all_members(getattr(split, part)))
        # scvi-tools finds its own attribute as well.
        np.testing.assert_array_equal(written[f"{part}_indices_"], back.rows(part))


def test_cells_of_an_atlas_are_a_rule_and_not_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indices_file, "MAX_LISTED", 100)
    split = split_rows(1_000, SplitConfig(method="hash"), 128)
    written = TrainedCells.of(split).to_attributes()
    assert written["train_indices_"] is None
    back = TrainedCells.from_attributes(written)
    assert isinstance(back.parts["train"], HashedRows)
    np.testing.assert_array_equal(back.rows("train"), all_members(split.train))


def test_listed_cells_keep_their_order() -> None:
    listed = np.array([5, 2, 9])
    assert TrainedCells.from_attributes({"train_indices_": listed}).rows("train").tolist() == [
        5,
        2,
        9,
    ]
    assert TrainedCells({}).rows("train") is None
    split = split_from_indices(10, listed)
    assert TrainedCells.of(split).rows("train").tolist() == [2, 5, 9]


def test_history_is_tables_that_continue() -> None:
    first = as_history({"elbo_train": [(0, 3.0), (1, 2.0)], "kl_weight": [(9, 0.5)]})
    assert first["elbo_train"].index.name == "epoch"
    assert first["kl_weight"].index.name == "step"
    second = as_history({"elbo_train": [(0, 1.0)], "validation_loss": [(0, 4.0)]})
    joined = continued(first, second)
    expected = pd.DataFrame(
        {"elbo_train": [3.0, 2.0, 1.0]}, index=pd.Index([0, 1, 2], name="epoch")
    )
    pd.testing.assert_frame_equal(joined["elbo_train"], expected)
    assert joined["validation_loss"].index.tolist() == [0]
    assert joined["kl_weight"].index.tolist() == [9]
    assert continued(None, second) == second


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device() == torch.device("cpu")
    assert resolve_device("cpu", 0) == torch.device("cpu")
    assert resolve_device(device=torch.device("meta")) == torch.device("meta")
    with pytest.raises(ConfigError, match="finds none"):
        resolve_device("gpu")
    with pytest.raises(ConfigError, match="did you mean 'cuda'"):
        resolve_device("cudda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device() == torch.device("cuda", 0)
    assert resolve_device("gpu", "1") == torch.device("cuda", 1)
    assert resolve_device("auto", "cuda:2") == torch.device("cuda", 2)


@pytest.mark.parametrize(
    "params",
    [
        {"kwargs": {"model_kwargs": {"n_layers": 2}}, "non_kwargs": {"n_latent": 5}},
        {"n_latent": 5, "use_cuda": True, "model_kwargs": {"n_layers": 2}},
        {
            "kwargs": {"kwargs": {"n_layers": 2}},
            "non_kwargs": {"n_latent": 5, "datamodule": None, "pretrained_model": None},
        },
    ],
)
def test_init_arguments_of_every_release(params: dict[str, Any]) -> None:
    got = init_arguments({"init_params_": params}, "here")
    assert got == {"n_latent": 5, "n_layers": 2}


def test_init_arguments_that_are_missing() -> None:
    with pytest.raises(SchemaMismatch, match="here has no init_params_"):
        init_arguments({}, "here")


def test_genes_by_name() -> None:
    names = ["a", "b", "c", "d"]
    assert gene_columns(names, None) is None
    assert gene_columns(names, ["d", "b"]).tolist() == [1, 3]
    assert gene_columns(names, "c").tolist() == [2]
    with pytest.raises(FieldNotFound, match="the list is empty"):
        gene_columns(names, [])
