"""What the rest of scvi_dist calls to have a run recorded. Nothing here raises into training."""

import json
import logging
import math
import os
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scvi_dist.tracking.config import ModelFacts, TrackingConfig, TrackingRef
from scvi_dist.tracking.environment import environment_json, run_tags
from scvi_dist.tracking.last_steps import LastSteps
from scvi_dist.tracking.mlflow_sink import MlflowSink
from scvi_dist.tracking.outbox import Outbox
from scvi_dist.tracking.records import Point, Record
from scvi_dist.tracking.run_state import RunState
from scvi_dist.tracking.spool import Spool
from scvi_dist.tracking.system_metrics import SystemMetrics
from scvi_dist.tracking.values import (
    MAX_DIGEST_LENGTH,
    chart_number,
    clean_key,
    flatten,
    number_or_none,
    redact,
    tag_texts,
)

logger = logging.getLogger(__name__)

FOLDER = "tracking"
"""Folder in the run directory with the run's identity and what could not be delivered."""

START_LIMIT_S = {"http": 20.0, "sqlite": 120.0}
"""How long the start of a run waits for MLflow, per kind of URI; a first SQLite start makes
some fifty tables. A run that is not made by then is made later."""


class Tracker:
    """Records one run in MLflow, in the background and in batches.

    Made by :meth:`start_run` on the driver, which owns the run, and by :meth:`attach` on rank 0.
    """

    def __init__(
        self,
        ref: TrackingRef | None,
        outbox: "Outbox | _NoOutbox",
        *,
        owner: bool,
        state: RunState,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ref = ref
        self._outbox = outbox
        self._owner = owner
        self._state = state
        self._clock = clock
        self._system: SystemMetrics | None = None
        self._dataset: list[str] | None = None
        self._tokens: dict[str, str] = {}

    @classmethod
    def start_run(
        cls,
        config: TrackingConfig,
        run_dir: str | os.PathLike[str],
        tags: Mapping[str, str] | None = None,
    ) -> "Tracker":
        """Make the run of ``run_dir``, or go on with the one it already has.

        Where MLflow does not answer, everything is kept in the run directory until it does.
        """
        if not config.enabled:
            return NullTracker()
        uri = config.resolve_uri(run_dir)
        folder = Path(run_dir).absolute() / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        state = RunState.load(folder, redact(uri))
        outbox = _open_outbox(uri, state, folder, role="driver")
        create = Record(
            "create",
            {
                "experiment": config.experiment,
                "run_name": config.run_name or Path(run_dir).absolute().name,
                "tags": tag_texts({**run_tags(Path.cwd()), **(tags or {}), **config.tags}),
            },
        )
        outbox.call(create, START_LIMIT_S["sqlite" if uri.startswith("sqlite") else "http"])
        ref = TrackingRef(
            uri=uri,
            run_id=state.run_id,
            experiment_id=state.experiment_id,
            spool_dir=str(folder),
        )
        tracker = cls(ref, outbox, owner=True, state=state)
        (folder / "environment.json").write_text(environment_json())
        tracker.log_file(folder / "environment.json")
        tracker._watch_system(config.system_metrics_interval_s)
        return tracker

    @classmethod
    def attach(cls, ref: TrackingRef | None) -> "Tracker":
        """Record into a run that another process started; returns at once.

        Delivers what earlier workers of this run left undelivered on this disk, and drops values
        of steps that they already recorded. ``None`` gives a tracker that records nothing.
        """
        if ref is None:
            return NullTracker()
        folder = Path(ref.spool_dir)
        state = RunState.load(folder, redact(ref.uri))
        state.run_id = state.run_id or ref.run_id
        state.experiment_id = state.experiment_id or ref.experiment_id
        outbox = _open_outbox(ref.uri, state, folder, role="rank0")
        return cls(ref, outbox, owner=False, state=state)

    @property
    def ref(self) -> TrackingRef | None:
        """What another process needs for :meth:`attach`; None if nothing is recorded."""
        return self._ref

    @property
    def run_id(self) -> str:
        """The run's id in MLflow; empty while it could not be made."""
        return self._state.run_id

    @property
    def restarts(self) -> int:
        """How often this run went on after it had ended or died."""
        return self._state.restarts

    def where_to_look(self) -> str:
        """The address of the run, or the command that opens the MLflow pages."""
        if self._ref is None:
            return ""
        if self._ref.uri.startswith("http"):
            page = f"#/experiments/{self._state.experiment_id}/runs/{self._state.run_id}"
            return f"{redact(self._ref.uri).rstrip('/')}/{page if self._state.run_id else ''}"
        return f"{_mlflow_program()} ui --backend-store-uri {shlex.quote(redact(self._ref.uri))}"

    def log_params(self, params: Any) -> None:
        """Record settings: nested mappings and dataclasses, under dotted names, secrets hidden.

        After a restart only what is new is recorded; a changed value becomes a tag
        ``changed.<name>``, as MLflow does not allow a parameter to change.
        """
        self._outbox.put(Record("params", {"params": flatten(params)}))

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers at a step; takes microseconds."""
        self._outbox.put(Record("metrics", {"points": self._points(values, step)}))

    def log_dataset(
        self,
        name: str,
        url: str,
        digest: str,
        profile: Mapping[str, Any],
        context: str = "training",
    ) -> None:
        """Record which data the run reads. Of ``url`` no secret is kept."""
        kind = url.split("://", 1)[0] if "://" in url else "local"
        self._dataset = [name[:500], digest[:MAX_DIGEST_LENGTH]]
        body = {
            "name": self._dataset[0],
            "digest": self._dataset[1],
            # Kinds that mlflow itself can resolve; it names the others by their scheme too.
            "source_type": {"https": "http", "file": "local", "gcs": "gs"}.get(kind, kind),
            "source": json.dumps({"url" if kind.startswith("http") else "uri": redact(url)}),
            "profile": json.dumps(dict(profile), default=str),
            "context": context,
        }
        self._outbox.put(Record("dataset", body))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Record facts that may change during a run."""
        self._outbox.put(Record("tags", {"tags": tag_texts(tags)}))

    def log_file(self, path: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """Record a file or folder; it has to stay where it is until the run has finished."""
        body = {"path": str(Path(path).absolute()), "artifact_path": artifact_path}
        self._outbox.put(Record("artifact", body))

    def log_figure(self, path: str | os.PathLike[str]) -> None:
        """Record a picture."""
        self.log_file(path, "figures")

    def log_model(
        self,
        folder: str | os.PathLike[str],
        *,
        name: str,
        facts: ModelFacts,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        step: int,
    ) -> str:
        """Record a saved model's folder as it is; its URI ``models:/<id>``.

        The URI is empty where MLflow does not answer in time; the model is recorded later.
        """
        size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
        self._tokens[name] = uuid.uuid4().hex
        body = {
            "token": self._tokens[name],
            "folder": str(Path(folder).absolute()),
            "name": name,
            "model_type": facts.model_class,
            "shape": [facts.n_genes, facts.n_outputs],
            "flavour": asdict(facts),
            "params": flatten(params) if params else {},
            "metrics": self._points(metrics, step),
            "dataset": self._dataset,
            "step": step,
        }
        # At 5 MB/s, a slow line.
        return self._outbox.call(Record("model", body), timeout_s=30 + size / 5e6) or ""

    def register(
        self,
        name: str,
        registered_name: str,
        alias: str | None,
        tags: Mapping[str, Any] | None = None,
    ) -> str:
        """Make the model logged as ``name`` the next version of ``registered_name``.

        Returns the version's number; empty where MLflow does not answer in time.
        """
        body = {
            "token": self._tokens.get(name, ""),
            "registered_name": registered_name,
            "alias": alias,
            "tags": tag_texts(tags or {}),
        }
        return self._outbox.call(Record("register", body), timeout_s=30) or ""

    def secure(self) -> None:
        """Put what is in memory only on the disk, from where it is delivered; takes milliseconds.

        For the moment of a checkpoint: what was recorded before it is not recorded again after it.
        """
        self._outbox.secure()

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until nothing is in memory only; True if MLflow has it all."""
        return self._outbox.flush(timeout_s)

    def finish(self, status: str = "FINISHED", timeout_s: float = 60.0) -> bool:
        """Deliver what waits; True if MLflow has it all. The owner also ends the run.

        ``status`` is one of ``FINISHED FAILED KILLED``.
        """
        if self._system is not None:
            self._system.stop()
        if self._owner:
            self._outbox.put(Record("status", {"status": status}))
        delivered = self._outbox.close(timeout_s)
        if not delivered and self._ref is not None:
            logger.warning(
                "not everything reached MLflow; it is kept in %s and delivered when the run is "
                "started again.",
                self._ref.spool_dir,
            )
        return delivered

    def _points(self, values: Mapping[str, float], step: int) -> list[Point]:
        now_ms = int(self._clock() * 1000)
        points = []
        for name, value in values.items():
            number = number_or_none(value)
            if number is None:
                logger.warning("metric %r is no number and is not recorded: %r", name, value)
                continue
            if math.isinf(number):
                self.set_tags({f"infinite.{name}": f"{number} at step {step}"})
            points.append((clean_key(name), chart_number(number), now_ms, int(step)))
        return points

    def _watch_system(self, interval_s: float) -> None:
        started_s = self._state.started_s or self._clock()

        def report(values: dict[str, float]) -> None:
            # Seconds since the run began: goes on growing over restarts.
            self.log_metrics(values, step=int(self._clock() - started_s))

        if interval_s > 0:
            self._system = SystemMetrics(report, interval_s)


class _NoOutbox:
    """Takes everything and keeps nothing."""

    def put(self, record: Record) -> None:
        """Forget it."""

    def call(self, record: Record, timeout_s: float) -> None:
        """Forget it; there is no answer."""

    def secure(self) -> None:
        """Nothing is kept."""

    def flush(self, timeout_s: float) -> bool:
        return True

    def close(self, timeout_s: float) -> bool:
        return True


class NullTracker(Tracker):
    """A tracker that records nothing."""

    def __init__(self) -> None:
        super().__init__(None, _NoOutbox(), owner=False, state=RunState(Path()))


def _open_outbox(uri: str, state: RunState, folder: Path, role: str) -> Outbox:
    spool = Spool(folder, role)
    spool.adopt()
    last_steps = LastSteps(folder / f"last-steps-{role}.json")
    return Outbox(MlflowSink(uri, state), spool, last_steps)


def _mlflow_program() -> str:
    """How a shell calls this environment's MLflow; its name alone only where that finds it."""
    beside = Path(sys.executable).with_name("mlflow")
    if shutil.which("mlflow") == str(beside):
        return "mlflow"
    return (
        shlex.quote(str(beside)) if beside.exists() else f"{shlex.quote(sys.executable)} -m mlflow"
    )
