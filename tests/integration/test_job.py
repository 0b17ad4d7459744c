"""The main job from its command: what it makes is there, in the folder and in MLflow."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scvi_dist import cli
from scvi_dist.config import parse_run
from scvi_dist.data import open_store
from scvi_dist.data.simulated.simulate import simulate_atlas
from scvi_dist.job import run_job
from scvi_dist.model import SCVI
from scvi_dist.tracking import download_model

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    # The whole of Lightning, MLflow and Ray runs here: their warnings are not ours to refuse.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _no_server_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OUTSIDE:
        monkeypatch.delenv(name, raising=False)


OUTSIDE = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")
CELLS, GENES, EPOCHS, BATCH = 1_500, 120, 3, 256
LIMIT_S = 300


def scvi_dist(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scvi_dist.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env=environment(),
    )


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in OUTSIDE} | {"OMP_NUM_THREADS": "1"}


def client_of(folder: Path) -> Any:
    from mlflow import MlflowClient

    uri = f"sqlite:///{folder}/mlflow.db"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def only_run(folder: Path) -> Any:
    client = client_of(folder)
    (experiment,) = (e for e in client.search_experiments() if e.name != "Default")
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def steps_of(folder: Path, metric: str) -> list[int]:
    run = only_run(folder)
    return [m.step for m in client_of(folder).get_metric_history(run.info.run_id, metric)]


DEMO = ["demo", "--cells", str(CELLS), "--genes", str(GENES), "--epochs", str(EPOCHS)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A demo with two workers, and what it printed."""
    home = tmp_path_factory.mktemp("demo")
    done = scvi_dist(*DEMO, "--workers", "2", "--dir", str(home / "d"), cwd=home)
    assert done.returncode == 0, done.stderr + done.stdout
    return home / "d", done


def test_the_demo_makes_everything_that_it_says(demo) -> None:
    folder, done = demo
    for made in ("model/model.pt", "latent.zarr", "figures/loss.png", "figures/latent.png"):
        assert (folder / "run" / made).exists()
    for told in ("models:/scvi-dist-demo/1", "alias challenger", "ELBO", str(folder / "run")):
        assert told in done.stdout
    assert f" ui --backend-store-uri sqlite:///{folder}/mlflow.db" in done.stdout
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["metrics"]["evaluation/elbo"] < 0


def test_the_demo_is_quiet_and_leaves_nothing_elsewhere(demo) -> None:
    folder, done = demo
    assert len(done.stderr.splitlines()) < 40, done.stderr
    for noise in ("INFO", "WARNING", "Traceback", "(pid=", "alembic"):
        assert noise not in done.stderr
    assert [p.name for p in folder.parent.iterdir()] == ["d"]


def test_the_demos_run_in_mlflow_is_whole(demo) -> None:
    folder, _ = demo
    run = only_run(folder)
    client = client_of(folder)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.max_epochs"] == str(EPOCHS)
    assert run.data.params["train.workers"] == "2"
    assert run.data.params["plan.n_cells"] == str(CELLS)
    for metric in ("train_loss", "elbo_train", "elbo_validation", "reconstruction_loss_train"):
        assert steps_of(folder, metric) == list(range(EPOCHS)), metric
    assert len(steps_of(folder, "evaluation/elbo")) == 1
    assert "system/cpu_utilization_percentage" in run.data.metrics
    (dataset,) = (d.dataset for d in run.inputs.dataset_inputs)
    with open_store(folder / "atlas" / "atlas.zarr") as store:
        assert dataset.digest == store.digest()
    (model,) = run.outputs.model_outputs
    logged = client.get_logged_model(model.model_id)
    assert {m.key for m in logged.metrics} >= {"evaluation/elbo"}
    figures = {f.path for f in client.list_artifacts(run.info.run_id, "figures")}
    assert figures == {"figures/loss.png", "figures/latent.png"}


def test_the_registered_model_gives_the_latent_that_was_written(demo) -> None:
    folder, _ = demo
    uri = f"sqlite:///{folder}/mlflow.db"
    fetched = download_model("models:/scvi-dist-demo@challenger", uri)
    model = SCVI.load(fetched, folder / "atlas" / "atlas.zarr")
    with open_store(folder / "atlas" / "atlas.zarr") as store:
        rows = np.arange(50)
        expected = model.get_latent_representation(store, indices=rows)
    import zarr

    group = zarr.open_group(folder / "run" / "latent.zarr", mode="r")
    written = np.asarray(group["obsm/X_latent"][:50])
    np.testing.assert_allclose(written, expected, rtol=1e-4, atol=1e-5)


def test_the_demo_again_does_nothing_and_says_the_same(demo, capsys) -> None:
    folder, first = demo
    before = (folder / "run" / "model" / "model.pt").stat().st_mtime_ns
    assert cli.main([*DEMO, "--workers", "2", "--dir", str(folder)]) == cli.DONE
    again = capsys.readouterr()
    assert "nothing is left to do" in again.err
    assert again.out.splitlines()[2:] == first.stdout.splitlines()[2:]
    assert (folder / "run" / "model" / "model.pt").stat().st_mtime_ns == before
    assert "scvi_dist.restarts" not in only_run(folder).data.tags


@pytest.mark.parametrize(
    ("change", "named"), [(("--epochs", "9"), "max_epochs"), (("--cells", "900"), "cells")]
)
def test_another_demo_in_the_same_folder_is_refused(demo, change, named, capsys) -> None:
    folder, _ = demo
    assert cli.main([*DEMO, *change, "--dir", str(folder)]) == cli.USAGE
    assert named in capsys.readouterr().err


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_atlas(
        tmp_path_factory.mktemp("atlas"), n_cells=3_000, n_genes=200, n_shards=2
    ).zarr


def run_text(atlas: Path, out: Path, epochs: int) -> str:
    return (
        f"data: {{store: {atlas}, batch_key: batch}}\n"
        f"train: {{workers: 0, max_epochs: {epochs}, batch_size: {BATCH}, checkpoint_every_s: 0,\n"
        "        check_val_every_n_epoch: 1, log_every_n_steps: 1}\n"
        f"output: {{dir: {out}, map_cells: 200}}\n"
        "tracking: {register_as: lung, system_metrics_interval_s: 0}\n"
    )


def weights_of(out: Path) -> dict[str, Any]:
    return {k: v.numpy() for k, v in SCVI.load(out / "model", False).module.state_dict().items()}


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    """Until ``condition()`` holds; fails if the process ends or the limit is reached before."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue


RUN_EPOCHS = 25


def run_command(folder: Path, *overrides: str) -> str:
    """What ``scvi-dist run`` tells of the run file in a folder, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "scvi_dist.cli", "run", "run.yaml", *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == cli.DONE, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def undisturbed(atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Weights of a run that nothing happened to."""
    home = tmp_path_factory.mktemp("undisturbed")
    (home / "run.yaml").write_text(run_text(atlas, home / "out", RUN_EPOCHS))
    run_command(home, "tracking.uri=off", "output.figures=false")
    return weights_of(home / "out")


@pytest.mark.fault
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_stopped_goes_on_and_ends_as_if_nothing_had_been(
    atlas: Path, tmp_path: Path, undisturbed: dict[str, Any], how: signal.Signals
) -> None:
    (tmp_path / "run.yaml").write_text(run_text(atlas, tmp_path / "out", RUN_EPOCHS))
    victim = subprocess.Popen(
        [sys.executable, "-m", "scvi_dist.cli", "run", "run.yaml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    checkpoints = tmp_path / "out" / "checkpoints"
    wait_for(lambda: len(list(checkpoints.glob("*/manifest.json"))) >= 2, victim)
    victim.send_signal(how)
    _, told = victim.communicate(timeout=LIMIT_S)
    assert victim.returncode == (130 if how == signal.SIGTERM else -how), told
    status = "KILLED" if how == signal.SIGTERM else "RUNNING"
    assert only_run(tmp_path).info.status == status
    assert not (tmp_path / "out" / "model").exists()

    assert "went on from a checkpoint" in run_command(tmp_path, "output.map_cells=100")
    run = only_run(tmp_path)
    assert run.info.status == "FINISHED"
    assert run.data.tags["scvi_dist.restarts"] == "1"
    for metric in ("elbo_train", "elbo_validation"):
        steps = steps_of(tmp_path, metric)
        assert set(steps) == set(range(RUN_EPOCHS)), metric
        # Who was killed may have told of an epoch whose end no checkpoint had yet.
        assert len(steps) - RUN_EPOCHS <= (how == signal.SIGKILL), metric
    resumed = weights_of(tmp_path / "out")
    assert undisturbed.keys() == resumed.keys()
    for name, value in undisturbed.items():
        np.testing.assert_allclose(resumed[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_stages_that_are_added_later_are_made_without_training_again(atlas, tmp_path) -> None:
    text = run_text(atlas, tmp_path / "out", 1)
    off = ["tracking.uri=off", "output.latent=false", "output.figures=false"]
    first = run_job(parse_run(text, overrides=off))
    assert not first.latent
    assert not (tmp_path / "mlflow.db").exists()
    weights = weights_of(tmp_path / "out")
    second = run_job(parse_run(text, overrides=[f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]))
    assert second.registered == "models:/lung/1"
    assert second.metrics == first.metrics
    assert len(second.figures) == 2
    assert Path(second.latent).exists()
    for name, value in weights_of(tmp_path / "out").items():
        np.testing.assert_array_equal(value, weights[name])


def test_a_failing_run_is_recorded_as_failed_and_told_in_a_line(atlas, tmp_path, capsys) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text(run_text(atlas, tmp_path / "out", 2))
    assert cli.main(["run", str(run_file), "train.plan.lr=1e30"]) == cli.FAILED
    told = capsys.readouterr().err
    assert told.count("error: ") == 1
    assert "Traceback" not in told
    assert only_run(tmp_path).info.status == "FAILED"


def test_an_absent_server_does_not_stop_a_run(atlas, tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run_file = tmp_path / "run.yaml"
    run_file.write_text(run_text(atlas, tmp_path / "out", 1))
    assert cli.main(["run", str(run_file), "tracking.uri=http://127.0.0.1:9"]) == cli.DONE
    assert "cannot be reached" in capsys.readouterr().err
    assert (tmp_path / "out" / "figures" / "latent.png").exists()
    there = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    assert cli.main(["run", str(run_file), there]) == cli.DONE
    assert "nothing is left to do" in capsys.readouterr().err
    assert steps_of(tmp_path, "elbo_train") == [0]
    assert client_of(tmp_path).get_model_version_by_alias("lung", "challenger").version == 1
    assert list((tmp_path / "mlflow-artifacts").rglob("figures/latent.png"))
    assert not list((tmp_path / "elsewhere").iterdir())
