"""Performs records with an MLflow client, one method for each kind of record."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scvi_dist.tracking.config import artifact_root
from scvi_dist.tracking.mlflow_connection import Connection, as_global_uri, brief
from scvi_dist.tracking.records import Point, Record, Refused, Unreachable
from scvi_dist.tracking.run_state import RunState

PARAMS_PER_BATCH = 100
"""More parameters or tags in one call are refused by MLflow."""


class MlflowSink:
    """One run on one tracking server or database. Used by one thread at a time.

    Every operation may be repeated without harm: what a killed process had half done is done again.
    """

    def __init__(self, uri: str, state: RunState) -> None:
        self._uri = uri
        self._state = state
        self._connection = Connection(uri)

    def deliver(self, record: Record) -> Any:
        """Record it; returns what the operation made (an id, a version), if anything."""
        try:
            return _OPERATIONS[record.op](self, **record.body)
        except (Unreachable, Refused):
            raise
        except Exception as error:  # whatever an artifact store's client may raise
            raise self._connection.verdict(error, record) from error

    def last_steps(self) -> dict[str, int]:
        """Last step of each metric of the run."""
        try:
            run = self._connection.client().get_run(self._run_id())
        except Exception as error:
            raise Unreachable(brief(error)) from error
        # The values with their steps; the public mapping has the values alone, and asking for
        # each metric's history would fetch every point of a long run.
        return {metric.key: metric.step for metric in run.data._metric_objs}

    # --- operations, one per kind of record -------------------------------------------------

    def nothing(self) -> None:
        """Stands for a line that could not be read."""

    def create(self, experiment: str, run_name: str, tags: dict[str, str]) -> str:
        """Make the run, or open the one that this folder already has."""
        client, state = self._connection.client(may_create=True), self._state
        if state.run_id and self._reopen(client):
            return state.run_id
        state.experiment_id = self._experiment(client, experiment)
        run = client.create_run(state.experiment_id, run_name=run_name, tags=tags)
        state.run_id = run.info.run_id
        state.started_s = run.info.start_time / 1000
        state.restarts, state.finished = 0, False
        state.save()
        return state.run_id

    def _reopen(self, client: Any) -> bool:
        from mlflow.exceptions import MlflowException

        state = self._state
        try:
            run = client.get_run(state.run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        if run.info.lifecycle_stage == "deleted":
            return False
        client.update_run(state.run_id, status="RUNNING")
        client.set_tag(state.run_id, "scvi_dist.restarts", state.restarts + 1)
        state.restarts += 1
        state.finished = False
        state.save()
        return True

    def _experiment(self, client: Any, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                # The tag makes the UI open the experiment as model training, not as GenAI.
                return client.create_experiment(
                    name,
                    artifact_location=artifact_root(self._uri, name),
                    tags={"mlflow.experimentKind": "custom_model_development"},
                )
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = client.get_experiment_by_name(name)  # somebody was faster
        if found.lifecycle_stage == "deleted":
            raise Refused(
                f"the experiment {name!r} was deleted; restore it with 'mlflow experiments restore "
                f"--experiment-id {found.experiment_id}' or choose another tracking.experiment"
            )
        return found.experiment_id

    def metrics(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        if points:
            self._connection.client().log_batch(
                self._run_id(), metrics=[Metric(*p) for p in points]
            )

    def params(self, params: dict[str, str]) -> None:
        """Log what is new. MLflow refuses another value for a parameter: that becomes a tag."""
        from mlflow.entities import Param

        client, run_id = self._connection.client(), self._run_id()
        known = client.get_run(run_id).data.params
        new = [Param(key, value) for key, value in params.items() if key not in known]
        for start in range(0, len(new), PARAMS_PER_BATCH):
            client.log_batch(run_id, params=new[start : start + PARAMS_PER_BATCH])
        changed = {k: v for k, v in params.items() if k in known and known[k] != v}
        self.tags({f"changed.{key}": value for key, value in changed.items()})

    def tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        entries = [RunTag(key, value) for key, value in tags.items()]
        for start in range(0, len(entries), PARAMS_PER_BATCH):
            self._connection.client().log_batch(
                self._run_id(), tags=entries[start : start + PARAMS_PER_BATCH]
            )

    def dataset(
        self, name: str, digest: str, source_type: str, source: str, profile: str, context: str
    ) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, digest, source_type, source, schema="null", profile=profile)
        tags = [InputTag("mlflow.data.context", context)]
        self._connection.client().log_inputs(self._run_id(), [DatasetInput(dataset, tags)])

    def artifact(self, path: str, artifact_path: str | None) -> None:
        client = self._connection.client()
        upload = client.log_artifacts if Path(path).is_dir() else client.log_artifact
        upload(self._run_id(), path, artifact_path)

    def model(
        self,
        token: str,
        folder: str,
        name: str,
        model_type: str,
        shape: list[int],
        flavour: dict[str, Any],
        params: dict[str, str],
        metrics: list[Point],
        dataset: list[str] | None,
        step: int,
    ) -> str:
        """Log a model's folder as it is, beside an ``MLmodel`` file; returns ``models:/<id>``."""
        from mlflow.entities import LoggedModelOutput, Metric

        client, run_id = self._connection.client(), self._run_id()
        if token not in self._state.models:
            made = client.create_logged_model(
                self._state.experiment_id,
                name=name,
                source_run_id=run_id,
                params=params,
                model_type=model_type,
            )
            self._state.models[token] = made.model_id
            self._state.save()
        model = client.get_logged_model(self._state.models[token])
        client.log_model_artifacts(model.model_id, folder)
        with tempfile.TemporaryDirectory() as extra:
            _write_mlmodel(Path(extra) / "MLmodel", model, run_id, shape, flavour)
            client.log_model_artifacts(model.model_id, extra)
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=step)])
        about = {"model_id": model.model_id, "run_id": run_id}
        if dataset:
            about.update(dataset_name=dataset[0], dataset_digest=dataset[1])
        if metrics:
            client.log_batch(run_id, metrics=[Metric(*p, **about) for p in metrics])
        return f"models:/{model.model_id}"

    def register(
        self, token: str, registered_name: str, alias: str | None, tags: dict[str, str]
    ) -> str:
        """Make a version of the registered model from a logged one; returns its number."""
        client, run_id = self._connection.client(), self._run_id()
        if token not in self._state.models:
            raise Refused(f"its model was not logged, so {registered_name!r} has no new version")
        model_id = self._state.models[token]
        self._ensure_registered_model(client, registered_name)
        versions = client.search_model_versions(f"name='{registered_name}'")
        made = [v.version for v in versions if v.source == f"models:/{model_id}"]
        if not made:
            with as_global_uri(self._uri):
                version = client.create_model_version(
                    registered_name,
                    f"models:/{model_id}",
                    run_id=run_id,
                    tags=tags,
                    model_id=model_id,
                )
            made = [version.version]
        if alias is not None:
            client.set_registered_model_alias(registered_name, alias, made[0])
        return str(made[0])

    @staticmethod
    def _ensure_registered_model(client: Any, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def status(self, status: str) -> None:
        self._connection.client().set_terminated(self._run_id(), status)
        self._state.finished = status == "FINISHED"
        self._state.save()

    def _run_id(self) -> str:
        if not self._state.run_id:
            # Another process may have reached the server first.
            known = RunState.load(self._state.folder, self._state.uri)
            if not known.run_id:
                raise Unreachable("the run could not be made yet")
            self._state.run_id, self._state.experiment_id = known.run_id, known.experiment_id
        return self._state.run_id


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "nothing": MlflowSink.nothing,
    "create": MlflowSink.create,
    "metrics": MlflowSink.metrics,
    "params": MlflowSink.params,
    "tags": MlflowSink.tags,
    "dataset": MlflowSink.dataset,
    "artifact": MlflowSink.artifact,
    "model": MlflowSink.model,
    "register": MlflowSink.register,
    "status": MlflowSink.status,
}
"""Kind of record -> method that performs it."""


def _write_mlmodel(
    path: Path, model: Any, run_id: str, shape: list[int], flavour: dict[str, Any]
) -> None:
    """An ``MLmodel`` file: signature (counts in, latent out) and how scvi_dist opens the folder."""
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    n_genes, n_outputs = shape
    counts = TensorSpec(np.dtype("float32"), (-1, n_genes))
    outputs = TensorSpec(np.dtype("float32"), (-1, n_outputs))
    description = Model(
        run_id=run_id,
        model_id=model.model_id,
        artifact_path=model.artifact_location,
        signature=ModelSignature(inputs=Schema([counts]), outputs=Schema([outputs])),
    )
    description.add_flavor("scvi_dist", **flavour)
    description.save(str(path))
