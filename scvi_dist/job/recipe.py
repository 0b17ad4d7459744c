"""The main job: from a store to a trained, evaluated and registered model, and pictures of it.

Read :func:`run_job` from top to bottom. Each stage notes that it is done; the same run started
again goes on with the next one.
"""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scvi_dist.config import RunConfig, open_run_store, run_tree
from scvi_dist.console import Display, training_words
from scvi_dist.data import AnnDataManager
from scvi_dist.data.schema import fit_schema
from scvi_dist.job import cluster_advice, results
from scvi_dist.job.models import fit_settings, new_model
from scvi_dist.job.output_folder import OutputFolder
from scvi_dist.job.plan import JobPlan, facts_of, in_bytes, plan_run
from scvi_dist.model.device import resolve_device
from scvi_dist.tracking import ModelFacts, NullTracker, Tracker, log_files
from scvi_dist.tracking.environment import environment_json

MODEL = "model"
"""Name of the logged model."""

MEASURES = {
    "evaluation/elbo": "ELBO",
    "evaluation/reconstruction_loss": "reconstruction error",
    "evaluation/reconst_loss_gene": "reconstruction error of genes",
    "evaluation/reconst_loss_protein": "reconstruction error of proteins",
}
"""Metric -> what a person reads."""


@dataclass(kw_only=True)
class JobResult:
    """What a run made."""

    dir: Path
    interrupted: bool = False
    """Asked to stop; the same command goes on."""
    metrics: dict[str, float] = field(default_factory=dict)
    registered: str = ""
    """``models:/<name>/<version>``."""
    latent: str = ""
    predictions: str = ""
    figures: list[str] = field(default_factory=list)
    where_to_look: str = ""
    """Address of the MLflow run, or the command that shows it."""
    seconds: float = 0.0


@dataclass(kw_only=True)
class _Job:
    """What the stages of one run share."""

    config: RunConfig
    plan: JobPlan
    manager: AnnDataManager
    folder: OutputFolder
    display: Display
    result: JobResult
    tracker: Tracker = field(default_factory=NullTracker)


class _Interrupted(Exception):
    """Training was asked to stop, and did."""


def run_job(config: RunConfig, display: Display | None = None) -> JobResult:
    """Train, evaluate, register, write the latent space and draw, as ``config`` says.

    A run that was interrupted or killed goes on where it stopped; a finished one does nothing.

    Raises
    ------
    ScviDistError
        The config, the store or the output folder does not allow the run; training failed.
    """
    start = time.monotonic()
    display = display or Display(quiet=True)
    with display.step("Store") as step:
        store = open_run_store(config)
        step.say(f"{store.n_obs:,} cells x {store.n_vars:,} genes, {store.locator.redacted_url}")
    with closing(store):
        with display.step("Plan") as step:
            schema = fit_schema(store, config.setup)
            plan = plan_run(config, store, schema)
            step.say(_in_short(plan))
        manager = AnnDataManager(store, schema, config.model.name)
        with closing(OutputFolder.claim(config, plan.store_digest)) as folder:
            result = JobResult(dir=folder.path)
            folder.write_facts(plan.to_json(), environment_json())
            job = _Job(
                config=config,
                plan=plan,
                manager=manager,
                folder=folder,
                display=display,
                result=result,
            )
            with _told(job):
                _run_stages(job)
                result.seconds = time.monotonic() - start
                _summarise(job)
    return result


def _run_stages(job: _Job) -> None:
    try:
        with _recorded(job):
            model = _train(job)
            _evaluate(job, model)
            _register(job, model)
            _write_latent(job, model)
            _write_predictions(job, model)
            _draw(job, model)
    except _Interrupted:
        job.result.interrupted = True


def _train(job: _Job) -> Any:
    """The trained model, from this run's training or from its folder."""
    config, folder, display = job.config, job.folder, job.display
    path = folder.path / "model"
    model_class = config.model.model_class
    if folder.is_complete(config):
        display.note("this run is finished: nothing is left to do.")
        return None
    if folder.remembered("model") is not None:
        with display.step("Model") as step:
            step.say(str(path))
            return model_class.load(path, job.manager.store)
    model = new_model(config, job.manager)
    settings = fit_settings(
        config,
        job.manager.schema,
        job.plan.total_steps,
        run_dir=folder.path,
        resume=folder.checkpoints_exist,
    )
    advice = cluster_advice.of_devices(config, settings.ray)
    if advice is not None:
        display.note(advice)
    with display.progress("Training") as (update, step):
        update(0.0, "starting the workers" if settings.ray else "starting")
        fitted = model.fit(
            settings,
            tracker=job.tracker,
            on_progress=lambda told: update(told.fraction, training_words(told)),
        )
        step.say(
            f"{fitted.epochs} epochs, {fitted.steps:,} steps, {fitted.cells_per_s:,.0f} cells/s"
            + (", stopped early" if fitted.stopped_early else "")
            + (", went on from a checkpoint" if settings.resume else "")
        )
    if fitted.interrupted:
        raise _Interrupted
    model.save(path, overwrite=True)
    notes = {
        "epochs": fitted.epochs,
        "steps": fitted.steps,
        "stopped_early": fitted.stopped_early,
        "cells_per_s": fitted.cells_per_s,
        "wait_fraction": fitted.wait_fraction,
    }
    folder.done("model", notes)
    speed = {f"perf/{name}": notes[name] for name in ("cells_per_s", "wait_fraction")}
    job.tracker.log_metrics(speed, step=fitted.steps)
    return model


def _evaluate(job: _Job, model: Any) -> None:
    """ELBO and reconstruction error of validation cells, or of training cells without any."""
    known = job.folder.remembered("evaluation")
    if known is not None:
        job.result.metrics = known
        return
    model.to_device(resolve_device("cpu" if job.config.train.fit.accelerator == "cpu" else "auto"))
    name, rows = "validation", model.validation_indices
    if rows is None or not len(rows):
        name, rows = "training", model.train_indices
    seed = job.config.train.fit.seed
    with job.display.step("Evaluation") as step:
        rows = results.some_of(rows, job.config.output.evaluate_cells, seed)
        found = results.evaluate(model, model.source, rows, seed)
        step.say(f"ELBO {found['elbo']:,.2f} nats per cell, on {len(rows):,} {name} cells")
    job.result.metrics = {f"evaluation/{key}": value for key, value in found.items()}
    # They go to MLflow with the model that they are of.
    job.folder.done("evaluation", job.result.metrics)


def _register(job: _Job, model: Any) -> None:
    """The model's folder in MLflow, and the next version of the registered model."""
    config = job.config.tracking
    known = job.folder.remembered("registration")
    if known is not None or not config.enabled:
        job.result.registered = (known or {}).get("registered", "")
        return
    schema = job.manager.schema
    facts = ModelFacts(
        model_class=job.config.model.name,
        n_genes=schema.n_vars,
        n_outputs=_n_outputs(model),
        var_names_digest=_names_digest(schema.var_names),
        schema_digest=schema.digest(),
    )
    with job.display.step("Registration") as step:
        job.tracker.log_model(
            job.folder.path / "model",
            name=MODEL,
            facts=facts,
            params=job.config.model.to_tree(),
            metrics=job.result.metrics,
            step=_steps(job),
        )
        if config.register_as is not None:
            tags = {"store_digest": job.plan.store_digest, "schema_digest": schema.digest()}
            version = job.tracker.register(MODEL, config.register_as, config.alias, tags)
            job.result.registered = f"models:/{config.register_as}/{version}" if version else ""
            step.say(job.result.registered or "registered once MLflow can be reached")
    job.folder.done(
        "registration",
        {"registered": job.result.registered, "look": job.result.where_to_look},
    )


def _write_latent(job: _Job, model: Any) -> None:
    """The latent space of all cells, as a store beside the model."""
    path = job.folder.path / "latent.zarr"
    if not job.config.makes["latent"]:
        return
    job.result.latent = str(path)
    if job.folder.remembered("latent") is not None:
        return
    with job.display.progress("Latent space") as (update, step):
        results.write_latent(model, model.source, path, lambda part: update(part, ""))
        step.say(f"{job.plan.n_cells:,} x {model.module.n_latent}, {path.name}")
    job.folder.done("latent")


def _write_predictions(job: _Job, model: Any) -> None:
    """Probabilities of labels or types of all cells, as a store beside the model."""
    path = job.folder.path / "predictions.zarr"
    if not job.config.makes["predictions"]:
        return
    job.result.predictions = str(path)
    if job.folder.remembered("predictions") is not None:
        return
    with job.display.step("Predictions") as step:
        results.write_predictions(model, path)
        step.say(f"{job.plan.n_cells:,} cells, {path.name}")
    job.folder.done("predictions")


def _draw(job: _Job, model: Any) -> None:
    """Loss curves and, where there is one, a map of the latent space."""
    if not job.config.output.figures:
        return
    known = job.folder.remembered("figures")
    if known is not None:
        job.result.figures = known["paths"]
        for path in known["paths"]:
            job.tracker.log_figure(path)
        return
    folder = job.folder.path / "figures"
    title = f"{job.config.model.name} on {_store_name(job.config)}"
    with job.display.step("Figures") as step:
        paths = [results.draw_loss(model.history, folder / "loss.png", title)]
        if job.config.model.kind.has_latent:
            paths.append(results.draw_map(model, model.source, job.config, folder / "latent.png"))
        drawn = [str(path) for path in paths if path is not None]
        step.say(", ".join(Path(path).name for path in drawn))
    for path in drawn:
        job.tracker.log_figure(path)
    job.result.figures = drawn
    job.folder.done("figures", {"paths": drawn})


@contextmanager
def _told(job: _Job) -> Iterator[None]:
    """What is shown, and what libraries say in this process, is kept in the folder's logs."""
    logs = job.folder.path / log_files.FOLDER
    with job.display.kept_in(logs / "run.log"), log_files.library_log(logs / "libraries.log"):
        yield


@contextmanager
def _recorded(job: _Job) -> Iterator[None]:
    """The job has a tracker meanwhile; its run ends with the status that the job ends with."""
    config, plan, folder, display = job.config, job.plan, job.folder, job.display
    if folder.is_complete(config) and not folder.has_undelivered:
        job.result.where_to_look = (folder.remembered("registration") or {}).get("look", "")
        yield
        return
    with display.step("MLflow run") as step:
        job.tracker = tracker = Tracker.start_run(config.tracking, folder.path)
        step.say(tracker.run_id[:8] if tracker.ref else "not at all: tracking is off")
    advice = cluster_advice.of_tracking(config, plan.tracking)
    if advice is not None:
        display.warn(advice)
    job.result.where_to_look = tracker.where_to_look()
    tracker.log_params(run_tree(config))
    tracker.log_params({"plan": facts_of(plan)})
    tracker.log_dataset(_store_name(config), plan.store, plan.store_digest, facts_of(plan))
    tracker.log_file(folder.path / "run.yaml")
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, _Interrupted):
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)


def _summarise(job: _Job) -> None:
    """Say what was made, and keep it as ``summary.json``."""
    result, display = job.result, job.display
    if result.interrupted:
        display.warn("stopped as asked, after a checkpoint. The same command goes on from there.")
        return
    rows = {"folder": str(result.dir), "model": str(result.dir / "model")}
    if result.registered:
        alias = job.config.tracking.alias
        rows["registered"] = result.registered + (f" (alias {alias})" if alias else "")
    for name, value in result.metrics.items():
        rows[MEASURES.get(name, name)] = f"{value:,.2f} nats per cell"
    if result.latent:
        rows["latent space"] = result.latent
    if result.predictions:
        rows["predictions"] = result.predictions
    if result.figures:
        rows["figures"] = "\n".join(result.figures)
    job.folder.write_summary({**vars(result), "plan": facts_of(job.plan)})
    look = f"See the run in MLflow:\n  {result.where_to_look}" if result.where_to_look else ""
    display.result(f"Done in {result.seconds:.0f} s", rows, then=look)


def _steps(job: _Job) -> int:
    return int((job.folder.remembered("model") or {}).get("steps", 0))


def _n_outputs(model: Any) -> int:
    """Numbers that a model gives of a cell: dimensions of its latent space, or types."""
    module = model.module
    return int(module.n_latent if hasattr(module, "n_latent") else module.n_labels)


def _in_short(plan: JobPlan) -> str:
    steps = plan.total_steps
    return (
        f"{plan.model}, {plan.steps_per_epoch:,} steps an epoch"
        + (f", {steps:,} in all" if steps is not None else "")
        + f", {plan.engine} engine, up to {in_bytes(plan.memory.peak)} a rank"
    )


def _store_name(config: RunConfig) -> str:
    """A short name of the data, from its URL."""
    store = config.data.store
    first = store if isinstance(store, str) else store[0]
    name = first.rstrip("/").rpartition("/")[2].partition("?")[0]
    more = "" if isinstance(store, str) or len(store) == 1 else f" and {len(store) - 1} more"
    return name + more


def _names_digest(names: tuple[str, ...]) -> str:
    from hashlib import blake2b

    return blake2b("\n".join(names).encode(), digest_size=16).hexdigest()
