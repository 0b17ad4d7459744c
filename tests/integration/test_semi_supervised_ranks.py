"""Two Ray workers learn from labels what one process learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from label_jobs import label_job, labelled_cells

from scvi_dist.dataloaders.labelled_cells import LabelledConfig
from scvi_dist.train.configs import RayConfig
from scvi_dist.train.fit import fit
from scvi_dist.train.semi_supervised_config import SemiSupervisedAdversarialPlanConfig

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

WORKERS = RayConfig(num_workers=2, resources_per_worker={"CPU": 1.5})


def test_two_workers_have_the_steps_and_metrics_of_one(tmp_path: Path) -> None:
    """Six labelled cells, gone through again with each of six steps, other ones in each epoch.

    Ray reads both streams for the workers, and an adversary looks on.
    """
    from scvi_dist.train import ray_train

    path = tmp_path / "cells.h5ad"
    labelled_cells().write_h5ad(path)
    given: dict[str, Any] = {
        "plan": SemiSupervisedAdversarialPlanConfig(
            adversarial_classifier=True, n_epochs_kl_warmup=4
        ),
        "labelled": LabelledConfig(n_samples_per_label=2),
        "batch_size": 25,
        "max_epochs": 2,
        "check_val_every_n_epoch": 2,
    }
    job = label_job(path, **given, engine="ray", run_dir=str(tmp_path / "run"))
    together, alone = ray_train.run(job, WORKERS), fit(label_job(path, **given))
    assert alone.steps == together.steps == 2 * 6
    assert together.history.keys() == alone.history.keys()
    for name, points in alone.history.items():
        there = [value for _, value in together.history[name]]
        assert there == pytest.approx([value for _, value in points], rel=1e-5), name
    # A bias in front of a batch norm has no gradient but rounding, which labels make larger.
    torch.testing.assert_close(together.state_dict, alone.state_dict, rtol=1e-4, atol=2e-5)
    found = {"train_calibration_error", "validation_accuracy", "adversarial_loss"}
    assert found <= set(alone.history)
