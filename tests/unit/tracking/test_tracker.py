"""A run in a SQLite file: what was said is there, once, however often the run went on."""

import json
import math
import os
import pickle
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from scvi_dist.errors import TrackingError
from scvi_dist.tracking import ModelFacts, NullTracker, Tracker, TrackingConfig, download_model

# mlflow uses what its own dependencies deprecate.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FACTS = ModelFacts(
    model_class="SCVI", n_genes=7, n_outputs=3, var_names_digest="ab" * 16, schema_digest="cd" * 16
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose database exists; making the tables takes seconds."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def config(home: Path) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{home}/mlflow.db", system_metrics_interval_s=0.0)


@pytest.fixture
def client(home: Path) -> Any:
    from mlflow import MlflowClient

    uri = f"sqlite:///{home}/mlflow.db"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def save_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"weights")
    (folder / "attr.json").write_text("{}")
    return folder


def test_a_run_says_what_it_did(home: Path, config: TrackingConfig, client: Any) -> None:
    tracker = Tracker.start_run(config, home / "first", tags={"kind": "test"})
    tracker.log_params({"train": {"batch_size": 128}, "uri": "https://u:hunter2@h"})
    tracker.log_metrics({"loss": 2.5, "elbo[train]": 1.0, "text": "no number"}, step=3)  # type: ignore[dict-item]
    tracker.log_metrics({"loss": math.inf, "kl": math.nan}, step=4)
    tracker.log_dataset("atlas", "s3://k:hunter2@bucket/a.zarr?sig=hunter2", "e" * 64, {"n": 5})
    tracker.set_tags({"batches": 3})
    picture = home / "curve.png"
    picture.write_bytes(b"png")
    tracker.log_figure(picture)
    assert tracker.finish()

    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert run.data.params == {"train.batch_size": "128", "uri": "https://***@h"}
    assert run.data.metrics["elbo_train_"] == 1.0
    assert "text" not in run.data.metrics
    first_loss = client.get_metric_history(tracker.run_id, "loss")[0]
    assert (first_loss.step, first_loss.value) == (3, 2.5)
    assert math.isnan(run.data.metrics["loss"])
    assert math.isnan(run.data.metrics["kl"])
    assert run.data.tags["infinite.loss"] == "inf at step 4"
    assert run.data.tags["kind"] == "test"
    assert run.data.tags["batches"] == "3"
    assert "version.torch" in run.data.tags
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("atlas", "e" * 36)
    assert json.loads(dataset.source) == {"uri": "s3://***@bucket/a.zarr?***"}
    assert [f.path for f in client.list_artifacts(tracker.run_id)] == [
        "environment.json",
        "figures",
    ]
    experiment = client.get_experiment_by_name("scvi_dist")
    assert experiment.artifact_location.startswith((home / "mlflow-artifacts").as_uri())


def test_a_model_comes_back_by_its_alias_as_it_was_saved(home, config, client) -> None:
    from mlflow.models import Model

    tracker = Tracker.start_run(config, home / "model")
    saved = save_model(home / "model" / "saved")
    tracker.log_dataset("atlas", "/data/a.zarr", "d" * 32, {})
    uri = tracker.log_model(
        saved, name="scvi", facts=FACTS, params={"n_hidden": 128}, metrics={"elbo": 9.0}, step=5
    )
    assert uri.startswith("models:/m-")
    assert tracker.register("scvi", "lung", "challenger", {"cells": 10}) == "1"
    # Said again, as after a restart: no second version of the same model.
    assert tracker.register("scvi", "lung", "challenger") == "1"
    assert tracker.finish()

    version = client.get_model_version_by_alias("lung", "challenger")
    assert (version.version, version.run_id) == (1, tracker.run_id)
    for name in ("lung@challenger", "lung/1", uri.removeprefix("models:/")):
        folder = download_model(f"models:/{name}", config.uri)
        assert (folder / "model.pt").read_bytes() == b"weights"
    assert (folder / "model.pt").read_bytes() == b"weights"
    described = Model.load(folder / "MLmodel")
    assert described.flavors["scvi_dist"]["var_names_digest"] == FACTS.var_names_digest
    assert described.signature.inputs.to_dict()[0]["tensor-spec"]["shape"] == (-1, 7)
    logged = client.get_logged_model(uri.removeprefix("models:/"))
    assert logged.params == {"n_hidden": "128"}
    metric = logged.metrics[0]
    assert (metric.key, metric.value, metric.step, metric.dataset_name) == ("elbo", 9.0, 5, "atlas")
    assert not list(saved.glob("MLmodel")), "the user's folder is left as it is"


def test_a_run_that_goes_on_is_the_same_run(home, config, client) -> None:
    first = Tracker.start_run(config, home / "resumed")
    first.log_params({"lr": 0.1, "epochs": 5})
    first.log_metrics({"loss": 1.0}, step=7)
    assert first.finish("FAILED")
    assert client.get_run(first.run_id).info.status == "FAILED"

    second = Tracker.start_run(config, home / "resumed")
    assert second.flush(30)
    assert client.get_run(first.run_id).info.status == "RUNNING"
    second.log_params({"lr": 0.1, "epochs": 9, "new": True})
    second.log_metrics({"loss": 1.0}, step=7)
    second.log_metrics({"loss": 0.5}, step=8)
    assert second.finish()

    assert (second.run_id, second.restarts) == (first.run_id, 1)
    run = client.get_run(first.run_id)
    assert run.data.params == {"lr": "0.1", "epochs": "5", "new": "True"}
    assert run.data.tags["changed.epochs"] == "9"
    assert run.data.tags["scvi_dist.restarts"] == "1"
    assert [m.step for m in client.get_metric_history(first.run_id, "loss")] == [7, 8]


def test_rank_zero_attaches_and_leaves_the_end_to_the_driver(home, config, client) -> None:
    driver = Tracker.start_run(config, home / "attached")
    ref = pickle.loads(pickle.dumps(driver.ref))
    rank0 = Tracker.attach(ref)
    rank0.log_metrics({"train_loss": 4.0}, step=0)
    assert rank0.finish()
    assert client.get_run(driver.run_id).info.status == "RUNNING"
    assert client.get_run(driver.run_id).data.metrics == {"train_loss": 4.0}
    assert driver.finish()


def test_a_run_deleted_by_somebody_is_made_anew(home, config, client) -> None:
    first = Tracker.start_run(config, home / "deleted")
    assert first.finish()
    client.delete_run(first.run_id)
    second = Tracker.start_run(config, home / "deleted")
    assert second.finish()
    assert second.run_id not in ("", first.run_id)


def test_system_metrics_go_under_the_names_of_mlflows_page(home, client) -> None:
    import threading

    config = TrackingConfig(uri=f"sqlite:///{home}/mlflow.db", system_metrics_interval_s=0.05)
    tracker = Tracker.start_run(config, home / "system")
    sampled = threading.Event()
    report = tracker._system._report  # type: ignore[union-attr]

    def report_and_tell(values: dict[str, float]) -> None:
        report(values)
        sampled.set()

    tracker._system._report = report_and_tell  # type: ignore[union-attr]
    assert sampled.wait(30)
    assert tracker.finish()
    metrics = client.get_run(tracker.run_id).data.metrics
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    assert metrics["system/system_memory_usage_megabytes"] > 0


def test_off_has_the_same_surface_and_writes_nothing(tmp_path: Path) -> None:
    tracker = Tracker.start_run(TrackingConfig(uri="off"), tmp_path / "run")
    assert isinstance(tracker, NullTracker)
    assert isinstance(Tracker.attach(tracker.ref), NullTracker)
    tracker.log_params({"a": 1})
    tracker.log_metrics({"a": 1.0}, 0)
    tracker.log_dataset("a", "b", "c", {})
    saved = save_model(tmp_path / "saved")
    assert tracker.log_model(saved, name="m", facts=FACTS, params={}, metrics={}, step=0) == ""
    assert tracker.register("m", "m", None) == ""
    assert tracker.where_to_look() == ""
    tracker.secure()
    assert tracker.flush()
    assert tracker.finish()
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_the_database_is_not_made_by_a_worker_on_another_disk(tmp_path: Path, config) -> None:
    ref = Tracker.start_run(config, tmp_path / "here").ref
    assert ref is not None
    moved = pickle.loads(pickle.dumps(ref))
    object.__setattr__(moved, "uri", f"sqlite:///{tmp_path}/elsewhere/mlflow.db")
    object.__setattr__(moved, "spool_dir", str(tmp_path / "spool"))
    worker = Tracker.attach(moved)
    worker.log_metrics({"loss": 1.0}, 0)
    assert not worker.finish()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("is_active", [True, False], ids=["activated", "not activated"])
def test_it_tells_where_to_look(
    home: Path, config: TrackingConfig, monkeypatch: pytest.MonkeyPatch, is_active: bool
) -> None:
    scripts = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", f"{scripts}:{os.defpath}" if is_active else os.defpath)
    tracker = Tracker.start_run(config, home / "look")
    program, rest = tracker.where_to_look().split(" ui ")
    assert rest == f"--backend-store-uri sqlite:///{home}/mlflow.db"
    assert shutil.which(shlex.split(program)[0]) is not None
    assert (program == "mlflow") == is_active
    assert tracker.finish()


@pytest.mark.parametrize("uri", ["models:/nobody@champion", "models:/nobody/3", "models:/m-0"])
def test_a_model_that_is_not_there_is_named(config: TrackingConfig, uri: str) -> None:
    with pytest.raises(TrackingError, match=uri):
        download_model(uri, config.uri)


def test_a_download_needs_to_know_where_from(monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI"):
        download_model("models:/a@b")
