"""Defaults of a session: each has an effect where nothing else is said, and only there."""

import logging
import random
from collections.abc import Iterator
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

import scvi_dist
from scvi_dist.errors import ConfigError
from scvi_dist.global_settings import Settings, settings
from scvi_dist.model import SCVI
from scvi_dist.model.train_call import TrainCall
from scvi_dist.tracking import TrackingConfig


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kept = dict(vars(settings))
    yield
    vars(settings).clear()
    vars(settings).update(kept)


def call(**options: Any) -> TrainCall:
    return TrainCall(max_epochs=1, batch_size=8, options=options)  # type: ignore[typeddict-item]


def test_they_are_where_users_look() -> None:
    assert scvi_dist.settings is settings
    assert settings.seed is None
    assert settings.batch_size == 128


def test_the_seed_seeds_everything() -> None:
    draws = []
    for _ in range(2):
        settings.seed = 17
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
    settings.seed = 18
    assert random.random() != draws[0][0]
    settings.seed = None
    assert settings.seed is None
    for wrong in (-1, 2**32, True):
        with pytest.raises(ConfigError, match="seed"):
            settings.seed = wrong


def test_the_seed_is_trains_default() -> None:
    assert call().seed == 0
    settings.seed = 5
    assert call().seed == 5
    assert call(seed=3).seed == 3


def test_a_tracking_uri_is_trains_default() -> None:
    assert call().tracking is None
    settings.mlflow_set_tracking_uri = "http://localhost:5000"
    settings.mlflow_set_experiment = "trial"
    assert call().tracking == TrackingConfig(uri="http://localhost:5000", experiment="trial")
    assert call(tracking="off").tracking == "off"


def test_the_number_of_readers_is_the_loaders_default() -> None:
    plan: Any = None
    usual = call().settings(100, plan, "run").loader.n_threads
    settings.dl_num_workers = 5
    assert call().settings(100, plan, "run").loader.n_threads == 5 != usual


def test_the_batch_size_is_that_of_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = anndata.AnnData(
        csr_matrix(np.ones((30, 4), dtype=np.float32)),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(30)]),
    )
    SCVI.setup_anndata(adata)
    model = SCVI(adata, n_hidden=4, n_latent=2)
    seen: list[int] = []
    inference = model.module.inference
    monkeypatch.setattr(
        model.module,
        "inference",
        lambda x, **given: seen.append(x.shape[0]) or inference(x, **given),
    )
    model.is_trained = True
    model.get_normalized_expression(batch_size=15)
    settings.batch_size = 10
    model.get_normalized_expression()
    assert seen == [15, 15, 10, 10, 10]
    with pytest.raises(ConfigError, match="batch_size"):
        settings.batch_size = 0


def test_verbosity_is_that_of_the_logger() -> None:
    logger = logging.getLogger("scvi_dist")
    before = logger.level
    try:
        settings.verbosity = "debug"
        assert logger.level == settings.verbosity == logging.DEBUG
        settings.verbosity = logging.ERROR
        assert logger.level == logging.ERROR
        with pytest.raises(ConfigError, match="verbosity"):
            settings.verbosity = "loud"
        logger.addHandler(logging.NullHandler())
        settings.reset_logging_handler()
        assert not logger.handlers
    finally:
        logger.setLevel(before)


def test_other_settings_of_scvi_tools_are_accepted() -> None:
    fresh = Settings()
    fresh.num_threads = torch.get_num_threads()
    assert fresh.num_threads == torch.get_num_threads()
    fresh.progress_bar_style = "tqdm"
    assert fresh.progress_bar_style == "tqdm"
    with pytest.raises(ConfigError, match="'rich' or 'tqdm'"):
        fresh.progress_bar_style = "ascii"  # type: ignore[assignment]
    fresh.logging_dir, fresh.dl_persistent_workers, fresh.warnings_stacklevel = "x", True, 3
