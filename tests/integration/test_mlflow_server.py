"""A real MLflow server: it gets batches, and neither its death nor its absence is felt."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from scvi_dist.tracking import ModelFacts, Tracker, TrackingConfig, download_model

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    # mlflow uses what its own dependencies deprecate.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

START_LIMIT_S = 240
FACTS = ModelFacts(
    model_class="SCVI", n_genes=4, n_outputs=2, var_names_digest="ab" * 16, schema_digest="cd" * 16
)


class Server:
    """An MLflow server on a free port of this machine."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, **quiet},
                cwd=self.folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_LIMIT_S
        while not self._healthy():
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.2)

    def kill(self) -> None:
        """As a power cut would: the server and its children, at once."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def api(self, path: str) -> dict[str, Any]:
        """What the pages of the UI get to show."""
        with urllib.request.urlopen(f"{self.uri}/api/2.0/mlflow/{path}", timeout=30) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("mlflow-server"))
    running.start()
    yield running
    running.kill()


def config_of(server: Server) -> TrackingConfig:
    return TrackingConfig(uri=server.uri, system_metrics_interval_s=0.0)


def history(server: Server, run_id: str, key: str) -> list[tuple[int, float]]:
    found = server.api(
        f"metrics/get-history?run_id={run_id}&metric_key={key}&max_results=25000"
    ).get("metrics", [])
    return [(int(m.get("step", 0)), m["value"]) for m in found]


def test_values_travel_in_batches_and_the_ui_gets_them(server: Server, tmp_path: Path) -> None:
    calls_before = server.log.read_text().count("runs/log-batch")
    tracker = Tracker.start_run(config_of(server), tmp_path / "run")
    tracker.log_params({"train": {"batch_size": 128}})
    for step in range(3_000):
        tracker.log_metrics({"train_loss": 1 / (1 + step), "kl": 0.5}, step)
    assert tracker.flush(60)
    assert len(history(server, tracker.run_id, "train_loss")) == 3_000
    assert server.api(f"runs/get?run_id={tracker.run_id}")["run"]["info"]["status"] == "RUNNING"
    assert tracker.finish()
    run = server.api(f"runs/get?run_id={tracker.run_id}")["run"]
    assert run["info"]["status"] == "FINISHED"
    assert {"key": "train.batch_size", "value": "128"} in run["data"]["params"]
    assert tracker.where_to_look().startswith(f"{server.uri}/#/experiments/")
    calls = server.log.read_text().count("runs/log-batch") - calls_before
    assert calls < 100, "6000 values are not 6000 calls"


def test_a_registered_model_is_fetched_through_the_server(server: Server, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "model.pt").write_bytes(os.urandom(300_000))
    tracker = Tracker.start_run(config_of(server), tmp_path / "run")
    uri = tracker.log_model(saved, name="scvi", facts=FACTS, params={}, metrics={"e": 1.0}, step=1)
    assert tracker.register("scvi", "atlas", "challenger") == "1"
    assert tracker.finish()
    for name in (uri, "models:/atlas@challenger"):
        folder = download_model(name, server.uri, tmp_path / name.replace("/", "-"))
        assert (folder / "model.pt").read_bytes() == (saved / "model.pt").read_bytes()


def test_what_happens_while_no_server_answers_is_there_later(
    server: Server, tmp_path: Path
) -> None:
    """Of a run that was under way when the server was killed, and of one that began after that."""
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "model.pt").write_bytes(b"weights")
    driver = Tracker.start_run(config_of(server), tmp_path / "run")
    rank0 = Tracker.attach(driver.ref)
    for step in range(10):
        rank0.log_metrics({"loss": float(step)}, step)
    assert rank0.flush(60)
    server.kill()
    try:
        began = time.monotonic()
        for step in range(10, 400):
            rank0.log_metrics({"loss": float(step)}, step)
        assert time.monotonic() - began < 1.0, "the training loop must not feel it"
        assert not rank0.flush(60)
        driver.set_tags({"phase": "evaluated"})
        # The worker ends while nobody answers; its values stay on the disk.
        assert not rank0.finish(timeout_s=60)
        assert list((tmp_path / "run" / "tracking").glob("undelivered-rank0-*.jsonl"))
        begin_without_a_server(server, tmp_path / "late", saved)
    finally:
        server.start()
    assert driver.finish(timeout_s=120)
    assert history(server, driver.run_id, "loss") == [(s, float(s)) for s in range(400)]
    tags = server.api(f"runs/get?run_id={driver.run_id}")["run"]["data"]["tags"]
    assert {"key": "phase", "value": "evaluated"} in tags
    assert not list((tmp_path / "run" / "tracking").glob("undelivered-*"))

    again = Tracker.start_run(config_of(server), tmp_path / "late")
    assert again.finish(timeout_s=120)
    assert [step for step, _ in history(server, again.run_id, "loss")] == list(range(50))
    run = server.api(f"runs/get?run_id={again.run_id}")["run"]
    assert {"key": "a", "value": "1"} in run["data"]["params"]
    assert run["info"]["status"] == "FINISHED"
    folder = download_model("models:/late@challenger", server.uri)
    assert (folder / "model.pt").read_bytes() == b"weights"


def begin_without_a_server(absent: Server, run_dir: Path, saved: Path) -> None:
    """A run from its start to its end, with a model, none of which anybody takes."""
    began = time.monotonic()
    driver = Tracker.start_run(config_of(absent), run_dir)
    assert driver.run_id == ""
    driver.log_params({"a": 1})
    rank0 = Tracker.attach(driver.ref)
    for step in range(50):
        rank0.log_metrics({"loss": float(step)}, step)
    assert not rank0.finish(timeout_s=60)
    assert driver.log_model(saved, name="m", facts=FACTS, params={}, metrics={}, step=1) == ""
    assert driver.register("m", "late", "challenger") == ""
    assert not driver.finish(timeout_s=60)
    assert time.monotonic() - began < 45, "an absent server costs seconds"


def test_a_server_that_takes_calls_and_never_answers_costs_seconds(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(16)
        uri = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        config = TrackingConfig(uri=uri, system_metrics_interval_s=0.0)
        began = time.monotonic()
        tracker = Tracker.start_run(config, tmp_path / "run")
        tracker.log_metrics({"loss": 1.0}, 0)
        assert not tracker.finish(timeout_s=10)
        assert time.monotonic() - began < 30
    kept = "".join(p.read_text() for p in (tmp_path / "run" / "tracking").glob("undelivered-*"))
    assert '"loss"' in kept
    assert "FINISHED" in kept
