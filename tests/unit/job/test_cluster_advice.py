"""Advice comes where something may be missed, and only there."""

import pytest

from scvi_dist.config import RunConfig, parse_run
from scvi_dist.job.cluster_advice import of_devices, of_tracking

RUN = "data: {store: a.zarr}\ntrain: {workers: 2}\noutput: {dir: out}\n"
ON_CLUSTER = "train.ray.address=auto"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


def config(*overrides: str) -> RunConfig:
    return parse_run(RUN, overrides=overrides)


def device_advice(*overrides: str) -> str | None:
    run = config(*overrides)
    return of_devices(run, run.train.ray_config)


def test_a_file_of_mlflow_is_warned_of_on_a_cluster_only(monkeypatch) -> None:
    assert of_tracking(config(), "sqlite:////x/mlflow.db") is None
    assert of_tracking(config(ON_CLUSTER), "http://host:5000") is None
    assert "server" in str(of_tracking(config(ON_CLUSTER), "sqlite:////x/mlflow.db"))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert of_tracking(config(), "sqlite:////x/mlflow.db") is not None


def test_idle_gpus_are_told_of_where_nobody_has_chosen() -> None:
    assert device_advice() is None
    assert "train.accelerator=gpu" in str(device_advice(ON_CLUSTER))
    for chosen in ("train.accelerator=gpu", "train.accelerator=cpu", "train.ray.use_gpu=true"):
        assert device_advice(ON_CLUSTER, chosen) is None
    assert of_devices(config(ON_CLUSTER), None) is None
