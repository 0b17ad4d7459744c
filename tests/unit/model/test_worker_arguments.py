"""What ``train()`` is told of workers and of reading becomes the configs of a run file."""

from dataclasses import fields, replace
from typing import Any

import pytest

from scvi_dist.dataloaders.loader_config import LoaderConfig
from scvi_dist.errors import ConfigError
from scvi_dist.model.train_call import TrainCall
from scvi_dist.model.worker_arguments import (
    lightning_accelerator,
    loader_config,
    n_devices,
    ray_config,
)
from scvi_dist.train.configs import RayConfig, TrainingPlanConfig


@pytest.mark.parametrize(
    ("devices", "expected"),
    [("auto", 1), (1, 1), ("1", 1), (3, 3), ([0, 2], 2), ("0,1,3", 3), (0, 1)],
)
def test_devices(devices: Any, expected: int) -> None:
    assert n_devices(devices, "gpu") == expected


CALLS: list[tuple[dict[str, Any], RayConfig | None]] = [
    ({}, None),
    ({"num_workers": 2}, RayConfig(num_workers=2)),
    ({"num_workers": [1, 4]}, RayConfig(num_workers=(1, 4))),
    ({"devices": 2}, RayConfig(num_workers=2)),
    ({"address": "auto"}, RayConfig(address="auto")),
    ({"num_workers": 2, "accelerator": "gpu"}, RayConfig(num_workers=2, use_gpu=True)),
    ({"use_gpu": False}, None),
    ({"ray": {}}, RayConfig()),
    (
        {"ray": {"num_workers": [1, 3], "max_failures": 9}},
        RayConfig(num_workers=(1, 3), max_failures=9),
    ),
    ({"ray": {"max_failures": 9}, "devices": 2}, RayConfig(num_workers=2, max_failures=9)),
    ({"ray": RayConfig(num_workers=3), "accelerator": "gpu"}, RayConfig(num_workers=3)),
    ({"ray": RayConfig(num_workers=3), "num_workers": 2}, RayConfig(num_workers=2)),
    ({"ray": {"use_gpu": False}, "accelerator": "gpu"}, RayConfig()),
    ({"ray": {"address": "auto"}, "address": "ray://h:1"}, RayConfig(address="ray://h:1")),
]


@pytest.mark.parametrize(("call", "expected"), CALLS, ids=str)
def test_workers(call: dict[str, Any], expected: RayConfig | None) -> None:
    given = dict(call)
    assert ray_config(given.pop("ray", None), **{"accelerator": "cpu", **given}) == expected


def test_what_lightning_is_told() -> None:
    assert lightning_accelerator("cpu", None) == "cpu"
    assert lightning_accelerator("cpu", RayConfig(use_gpu=True)) == "gpu"
    assert lightning_accelerator("auto", RayConfig()) == "cpu"


def test_reading() -> None:
    usual = LoaderConfig()
    assert loader_config(None, n_threads=None, engine=None) == usual
    assert loader_config(None, n_threads=5) == replace(usual, n_threads=5)
    assert loader_config({"n_threads": 3}, n_threads=5) == replace(usual, n_threads=3)
    assert loader_config(LoaderConfig(), n_threads=5) == usual
    named = loader_config({"engine": "local", "readers": 4}, n_threads=None, engine="ray")
    assert named == replace(usual, engine="ray", readers=4)


def test_fields_that_do_not_exist_are_named() -> None:
    with pytest.raises(
        ConfigError, match="ray has no 'worker_label'; did you mean 'worker_labels'"
    ):
        ray_config({"worker_label": {}}, accelerator="cpu")
    with pytest.raises(ConfigError, match="loader has no 'reader'; did you mean 'readers'"):
        loader_config({"reader": 2}, n_threads=None)
    with pytest.raises(ConfigError, match="ray must be a mapping or a config, got list"):
        ray_config([2], accelerator="cpu")  # type: ignore[arg-type]


def test_a_call_reaches_every_field_of_a_run_file() -> None:
    ray = RayConfig(
        num_workers=2,
        address="ray://head:10001",
        resources_per_worker={"CPU": 1},
        worker_labels={"role": "trainer"},
        reader_cpus=2.0,
        max_failures=5,
        placement_strategy="SPREAD",
        collective_timeout_s=60.0,
        start_timeout_s=30.0,
        resize_interval_s=5.0,
        gradient_compression="bf16",
        env_vars={"GLOO_SOCKET_IFNAME": "eth0"},
    )
    loader = LoaderConfig(readers=3, reader_labels={"role": "reader"}, object_store_bytes=1 << 28)
    asked = {
        "ray": {field.name: getattr(ray, field.name) for field in fields(ray)},
        "loader": {
            "readers": 3,
            "reader_labels": {"role": "reader"},
            "object_store_bytes": 1 << 28,
        },
    }
    call = TrainCall(max_epochs=1, batch_size=4, accelerator="cpu", options=asked)  # type: ignore[typeddict-item]
    settings = call.settings(100, TrainingPlanConfig(), "run")
    assert (settings.ray, settings.loader) == (ray, loader)
