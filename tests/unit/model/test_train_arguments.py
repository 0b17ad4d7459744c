"""scvi-tools' arguments become the configs they mean; what is not known is an error."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from scvi_dist.dataloaders.split import Split, SplitConfig
from scvi_dist.errors import ConfigError
from scvi_dist.model.train_arguments import (
    as_mapping,
    lightning_callbacks,
    lightning_loggers,
    savers_of,
    split_config,
    train_config,
    training_plan_config,
)
from scvi_dist.train import SaveCheckpoint
from scvi_dist.train.configs import (
    EarlyStoppingConfig,
    TrainConfig,
    TrainingPlanConfig,
)


def test_trainer_arguments() -> None:
    assert train_config({}, early_stopping=False) == TrainConfig()
    config = train_config(
        {
            "max_steps": 7,
            "gradient_clip_val": 1.0,
            "enable_progress_bar": False,
            "logger": None,
            "ckpt_path": None,
        },
        early_stopping=False,
        batch_size=64,
        max_epochs=3,
    )
    assert config == TrainConfig(max_steps=7, gradient_clip_val=1.0, batch_size=64, max_epochs=3)


def test_checkpoints_loggers_and_learning_rates() -> None:
    saver = SaveCheckpoint(monitor="elbo_validation", mode="max", save_top_k=3)
    other, logger = object(), object()
    given = {"callbacks": [saver, other], "logger": logger, "precision": 32}
    expected = TrainConfig(
        checkpoint_monitor="elbo_validation", checkpoint_mode="max", keep_best_checkpoints=3
    )
    assert train_config(given, early_stopping=False) == expected
    assert savers_of(given) == [saver]
    assert lightning_callbacks(given) == [other]
    assert lightning_loggers(given) == [logger]
    (default,) = savers_of({"enable_checkpointing": True})
    assert default.monitor == "validation_loss"
    watched = train_config({"learning_rate_monitor": True}, early_stopping=False)
    assert watched == TrainConfig(learning_rate_monitor=True, check_val_every_n_epoch=1)
    assert train_config({"precision": "bf16"}, early_stopping=False).precision == "bf16-mixed"
    with pytest.raises(ConfigError, match="CSVLogger"):
        lightning_loggers({"logger": True})
    for name in ("gradient_clip_algorithm", "checkpoint_mode"):
        with pytest.raises(ConfigError, match=f"{name} must be"):
            TrainConfig(**{name: "other"})


def test_early_stopping_is_on_only_when_asked_for() -> None:
    patience = {"early_stopping_patience": 5, "early_stopping_monitor": "validation_loss"}
    assert train_config(patience, early_stopping=False).early_stopping is None
    expected = EarlyStoppingConfig(patience=5, monitor="validation_loss")
    assert train_config(patience, early_stopping=True).early_stopping == expected
    in_kwargs = {**patience, "early_stopping": True}
    assert train_config(in_kwargs, early_stopping=False).early_stopping == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_step", 3, "did you mean 'max_steps'"),
        ("early_stopping_patince", 3, "did you mean 'early_stopping_patience'"),
        ("ckpt_path", "x.ckpt", "resume=True"),
        ("log_save_dir", "logs", "CSVLogger"),
        ("accumulate_grad_batches", 4, "multiply"),
        ("limit_train_batches", 0.5, "train_size"),
        ("datamodule", object(), "no argument 'datamodule'"),
    ],
)
def test_trainer_arguments_that_are_not_known(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_config({name: value}, early_stopping=False)


def test_the_training_plan() -> None:
    assert training_plan_config(None, None) == TrainingPlanConfig()
    assert training_plan_config({"lr": 1e-2, "eps": 1e-3}, {"lr": 1e-4}) == TrainingPlanConfig(
        lr=1e-4, eps=1e-3
    )
    ours = TrainingPlanConfig(lr=0.5)
    assert training_plan_config(ours, None) is ours
    assert training_plan_config(ours, {"eps": 0.25}) == TrainingPlanConfig(lr=0.5, eps=0.25)
    tolerated = {"on_epoch": True, "update_only_decoder": False}
    assert training_plan_config(tolerated, None) == TrainingPlanConfig()
    assert training_plan_config({"on_step": True}, None) == TrainingPlanConfig(on_step=True)
    with pytest.raises(ConfigError, match="weight_decay"):
        training_plan_config(None, {"weight_decy": 0.1})
    with pytest.raises(ConfigError, match="update_only_decoder"):
        training_plan_config(None, {"update_only_decoder": True})


def test_configs_of_any_make() -> None:
    @dataclass
    class Theirs:
        lr: float = 2.0

    class WithKwargs:
        def to_kwargs(self) -> dict[str, float]:
            return {"lr": 3.0}

    assert as_mapping(Theirs(), "x") == {"lr": 2.0}
    assert as_mapping(WithKwargs(), "x") == {"lr": 3.0}
    with pytest.raises(ConfigError, match="x must be a mapping or a config, got int"):
        as_mapping(3, "x")


def test_the_split() -> None:
    assert split_config(10, None, train_size=0.5, validation_size=None) == SplitConfig(
        train_size=0.5
    )
    merged = split_config(10, {"train_size": 0.8, "pin_memory": True}, train_size=0.5)
    assert merged == SplitConfig(train_size=0.5)
    assert split_config(10, {"method": "hash"}) == SplitConfig(method="hash")
    external = split_config(10, {"external_indexing": [[3, 1], np.array([5]), []]}, seed=4)
    assert isinstance(external, Split)
    assert external.train.digest() != external.validation.digest()
    assert [external.train.n, external.validation.n, external.test.n] == [2, 1, 0]
    with pytest.raises(ConfigError, match="external_indexing"):
        split_config(10, {"external_index": []})
