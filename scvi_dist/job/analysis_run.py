"""How an analysis runs: claim the folder, compute, draw, record; each only if not done yet."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from scvi_dist.console import Display, Update
from scvi_dist.errors import ConfigError
from scvi_dist.job.analysis_folder import AnalysisFolder
from scvi_dist.job.analysis_model import FoundModel, find_model
from scvi_dist.job.store_jobs import StoreSource
from scvi_dist.tracking import NullTracker, Tracker, TrackingConfig
from scvi_dist.tracking.parents import PARENT_TAG, experiment_of_run

if TYPE_CHECKING:
    from scvi_dist.analysis.passes.engines import Executor
    from scvi_dist.data import Store

TABLES, FIGURES = "tables", "figures"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What all analyses are asked with."""

    model: str
    stores: tuple[str, ...]
    out: str
    dask: str | None = None
    obs_filter: str | None = None
    seed: int = 0
    tracking: str = "auto"
    options: tuple[str, ...] = ()

    @property
    def source(self) -> StoreSource:
        """The cells."""
        return StoreSource(urls=self.stores, obs_filter=self.obs_filter, options=self.options)


@dataclass(kw_only=True)
class Found:
    """What an analysis computed."""

    tables: dict[str, pd.DataFrame]
    """Name of a Parquet file -> what it holds."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Numbers that MLflow shows."""
    rows: dict[str, str] = field(default_factory=dict)
    """What a person reads."""
    files: list[str] = field(default_factory=list)
    """Names of further files in the folder."""


Compute = Callable[[Any, "Store", "Executor"], Found]
"""From a model, its cells, and who computes."""
Draw = Callable[[Mapping[str, pd.DataFrame], Path], list[Path]]
"""Pictures of the tables, in a folder."""


def run_analysis(
    name: str, asked: Asked, options: Any, compute: Compute, draw: Draw, display: Display
) -> Path:
    """Run an analysis, or what is left of it; the folder with the results.

    Parameters
    ----------
    name
        Of the command.
    options
        Dataclass of the arguments that are this analysis's own.

    Raises
    ------
    OutputExists
        The folder holds something else.
    """
    with display.step("Store") as step:
        store = asked.source.open()
        step.say(f"{store.n_obs:,} cells x {store.n_vars:,} genes, {store.locator.redacted_url}")
    with closing(store):
        with display.step("Model") as step:
            model = find_model(asked.model, asked.tracking)
            step.say(f"{model.class_name}, {model.name}")
        facts = {
            "command": name,
            "model": model.digest,
            "store": store.digest(),
            "seed": asked.seed,
            **asdict(options),
        }
        folder = AnalysisFolder(asked.out, facts)
        if folder.remembered(FIGURES) is not None:
            display.note("this analysis is finished: nothing is left to do.")
            _say(folder, display, "")
            return folder.path
        with _recorded(name, asked, model, facts, folder, display) as tracker:
            if folder.remembered(TABLES) is None:
                _compute(asked, model, store, folder, compute, display)
            _draw(folder, draw, display)
            _log(folder, tracker)
        _say(folder, display, tracker.where_to_look())
    return folder.path


def _compute(
    asked: Asked,
    model: FoundModel,
    store: "Store",
    folder: AnalysisFolder,
    compute: Compute,
    display: Display,
) -> None:
    from scvi_dist.analysis.passes.engines import EngineConfig, resolve_executor

    loaded = model.load(store)
    with display.progress("Computing") as (update, step):
        update(0.0, "starting")
        config = EngineConfig(checkpoint_dir=folder.sums)
        with resolve_executor(asked.dask, config) as executor:
            found = compute(loaded, store, _watched(executor, update))
        step.say(f"{', '.join(found.tables)}, by {asked.dask or 'threads'}")
    for table_name, table in found.tables.items():
        part = folder.path / f".{table_name}.parquet.part"
        table.to_parquet(part)
        part.replace(folder.path / f"{table_name}.parquet")
    folder.done(
        TABLES,
        {
            "names": list(found.tables),
            "metrics": found.metrics,
            "rows": found.rows,
            "files": found.files,
        },
    )
    folder.forget_sums()


def _watched(executor: "Executor", update: Update) -> "Executor":
    """The executor, which tells of each pass how far it is."""

    def run(cell_pass: Any, module: Any, cells: Any, parts: Any = None) -> Any:
        def tell(done: int, n_cells: int) -> None:
            update(done / n_cells, f"{done:,} of {n_cells:,} cells")

        config = replace(cells.config, on_progress=tell)
        there = type(cells)(cells.source, cells.selection, config)
        return executor(cell_pass, module, there, parts)

    return run


def _draw(folder: AnalysisFolder, draw: Draw, display: Display) -> None:
    names = folder.remembered(TABLES)["names"]
    tables = {name: pd.read_parquet(folder.path / f"{name}.parquet") for name in names}
    with display.step("Figures") as step:
        paths = draw(tables, folder.path / "figures")
        step.say(", ".join(path.name for path in paths))
    folder.done(FIGURES, [str(path) for path in paths])


@contextmanager
def _recorded(
    name: str,
    asked: Asked,
    model: FoundModel,
    facts: Mapping[str, Any],
    folder: AnalysisFolder,
    display: Display,
) -> Iterator[Tracker]:
    """A run in MLflow meanwhile, below that of the model, if there is any to record to."""
    config, tags = _place(name, asked, model)
    if config is None:
        yield NullTracker()
        return
    with display.step("MLflow run") as step:
        tracker = Tracker.start_run(config, folder.path, tags)
        below = f", below {model.run_id[:8]}" if tags else ""
        step.say(f"{tracker.run_id[:8]}{below}")
    tracker.log_params({**facts, "model_name": model.name, "dask": asked.dask or "threads"})
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)


def _place(
    name: str, asked: Asked, model: FoundModel
) -> tuple[TrackingConfig | None, dict[str, str]]:
    if asked.tracking == "off" or not model.tracking_uri:
        return None, {}
    uri, title = model.tracking_uri, f"{name} {Path(asked.out).name}"
    parent = experiment_of_run(uri, model.run_id) if model.run_id else None
    if parent is None and asked.tracking == "auto":
        return None, {}
    config = TrackingConfig(uri=uri, run_name=title, system_metrics_interval_s=0)
    if parent is not None:
        config = replace(config, experiment=parent)
    return config, {} if parent is None else {PARENT_TAG: model.run_id}


def _log(folder: AnalysisFolder, tracker: Tracker) -> None:
    known = folder.remembered(TABLES)
    for name in known["names"]:
        tracker.log_file(folder.path / f"{name}.parquet", "tables")
    for name in known["files"]:
        tracker.log_file(folder.path / name, "report")
    for path in folder.remembered(FIGURES):
        tracker.log_figure(path)
    if known["metrics"]:
        tracker.log_metrics(known["metrics"], step=0)


def _say(folder: AnalysisFolder, display: Display, look: str) -> None:
    known = folder.remembered(TABLES)
    tables = [str(folder.path / f"{name}.parquet") for name in known["names"]]
    rows = {**known["rows"], "tables": "\n".join(tables)}
    if known["files"]:
        rows["report"] = str(folder.path / known["files"][0])
    if folder.remembered(FIGURES):
        rows["figures"] = "\n".join(folder.remembered(FIGURES))
    then = f"See the run in MLflow:\n  {look}" if look else ""
    display.result("Done", rows, then=then)


def checked_column(store: "Store", column: str, option: str) -> str:
    """A column of obs that is there. Raises :class:`ConfigError`."""
    if column not in store.obs_columns:
        from scvi_dist.errors import did_you_mean

        raise ConfigError(
            f"{option} {column}: {store.locator.redacted_url} has no such column of obs; "
            f"{did_you_mean(column, store.obs_columns)}"
        )
    return column
