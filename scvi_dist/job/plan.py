"""What a run would do and what it would need, as data and as text. Starts nothing."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from scvi_dist.config import RunConfig, open_run_store
from scvi_dist.data import Store
from scvi_dist.data.schema import Schema, fit_schema
from scvi_dist.dataloaders.budget import INDEX_BYTES_PER_CELL
from scvi_dist.dataloaders.engine import EngineChoice, choose_engine
from scvi_dist.dataloaders.loader import make_plan, planned_bytes, training_part
from scvi_dist.dataloaders.sampling import sample_rows
from scvi_dist.dataloaders.split import Split, split_rows
from scvi_dist.errors import OutputExists
from scvi_dist.job.models import count_parameters
from scvi_dist.job.output_folder import clash, read_state, run_facts, wanted_stages
from scvi_dist.job.reader_plan import ReaderPlan, plan_readers
from scvi_dist.tracking import redact

LIBRARIES_BYTES = 900 << 20
"""Resident size of a rank with torch, Lightning, Ray and MLflow loaded, before any data."""

ACTIVATIONS = 8
"""Arrays of cells x genes that a training step holds at once, at most: counts, the decoder's
outputs, the likelihood's terms and their gradients."""

FLOAT = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """Bytes that one rank needs, by what for."""

    libraries: int
    reading: int
    """Cells that are read ahead, and the plan of an epoch."""
    index: int
    """What is kept of every cell: row pointer, codes of covariates, place in the split."""
    model: int
    """Weights, gradients and the optimizer's two moments."""
    step: int
    """Arrays of a training step."""

    @property
    def peak(self) -> int:
        """All of it."""
        return self.libraries + self.reading + self.index + self.model + self.step


@dataclass(frozen=True, kw_only=True, slots=True)
class JobPlan:
    """A run before it starts."""

    store: str
    store_digest: str
    n_cells: int
    n_genes: int
    n_batches: int
    n_labels: int
    covariates: tuple[str, ...]
    n_train: int
    n_validation: int
    n_test: int
    model: str
    n_parameters: int
    workers: int
    """Ray Train workers, the most of them where it is a range; 0: this process."""
    min_workers: int
    """The fewest workers."""
    batch_size: int
    """Over all ranks."""
    steps_per_epoch: int
    """Of each rank."""
    max_epochs: int | None
    max_steps: int | None
    kl_warmup_fraction: float | None
    """Part of all steps over which the KL divergence gains its weight; ``None``: as the plan has
    it."""
    validate_every: int | None
    n_padding: int
    """Cells an epoch that carry no loss."""
    n_windows: int
    block_rows: int
    engine: str
    engine_reason: str
    read_bytes_per_epoch: int
    """In memory, over all ranks, validation included."""
    memory: MemoryPlan
    checkpoint_bytes: int
    checkpoints: str
    output: str
    output_state: str
    makes: tuple[str, ...]
    tracking: str
    readers: ReaderPlan | None = None
    """Of a run with workers; ``None`` where nothing was measured."""

    def to_json(self) -> str:
        """The plan as JSON text."""
        content = asdict(self)
        content["memory"]["peak"] = self.memory.peak
        return json.dumps(content, indent=1)

    def to_text(self) -> str:
        """The plan for a person."""
        sections = (
            ("data", self._data()),
            ("training", self._training()),
            ("reading", self._reading()),
            ("memory of a rank, at most", self._memory()),
            ("output", self._output()),
        )
        lines = []
        for title, rows in sections:
            lines.append(title)
            lines.extend(f"  {name:<18}{value}" for name, value in rows)
        return "\n".join(lines)

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps, if early stopping does not end the run before."""
        by_epochs = None if self.max_epochs is None else self.max_epochs * self.steps_per_epoch
        limits = [limit for limit in (by_epochs, self.max_steps) if limit is not None]
        return min(limits) if limits else None

    def _data(self) -> Iterator[tuple[str, str]]:
        yield "store", self.store
        yield "cells x genes", f"{self.n_cells:,} x {self.n_genes:,}"
        yield "batches", f"{self.n_batches:,}"
        if self.n_labels > 1:
            yield "labels", f"{self.n_labels:,}"
        if self.covariates:
            yield "covariates", ", ".join(self.covariates)
        yield (
            "split",
            f"{self.n_train:,} train, {self.n_validation:,} validate, {self.n_test:,} are left out",
        )

    def _training(self) -> Iterator[tuple[str, str]]:
        yield "model", f"{self.model}, {self.n_parameters:,} parameters"
        span = f"{self.min_workers} to " if self.min_workers < self.workers else ""
        ranks = f"{span}{self.workers} Ray Train worker{'s' if self.workers != 1 else ''}"
        yield "where", ranks if self.workers else "this process, without Ray"
        world = max(1, self.workers)
        each = "" if world == 1 else f", {-(-self.batch_size // world):,} on each rank"
        yield "batch size", f"{self.batch_size:,} cells{each}"
        yield "steps", f"{self.steps_per_epoch:,} an epoch on every rank"
        total = self.total_steps
        limit = f"{self.max_epochs:,} epochs" if self.max_epochs is not None else "no limit"
        if self.max_steps is not None:
            limit += f", {self.max_steps:,} steps"
        if self.kl_warmup_fraction is not None and total is not None:
            steps = f"{ceil(self.kl_warmup_fraction * total):,} steps"
            yield "KL warm-up", f"{steps} ({self.kl_warmup_fraction:.0%} of all)"
        yield "limit", limit + (f" = {total:,} steps" if total is not None else "")
        padding = (
            f"{self.n_padding:,} cells an epoch, without loss" if self.n_padding else "nothing"
        )
        yield "padded", f"{padding}; nothing is dropped"
        every = self.validate_every
        yield "validation", "never" if every is None else f"every {every} epoch(s)"

    def _reading(self) -> Iterator[tuple[str, str]]:
        yield "engine", f"{self.engine}: {self.engine_reason}"
        if self.readers is not None:
            yield "reading cores", self.readers.to_text()
        yield "an epoch reads", f"{in_bytes(self.read_bytes_per_epoch)} of cells, over all ranks"
        yield (
            "shuffling",
            f"{self.n_windows:,} windows from blocks of {self.block_rows:,} rows",
        )

    def _memory(self) -> Iterator[tuple[str, str]]:
        memory = self.memory
        yield "cells read ahead", in_bytes(memory.reading)
        yield "index of all cells", in_bytes(memory.index)
        yield "model, optimizer", in_bytes(memory.model)
        yield "a training step", in_bytes(memory.step)
        yield "Python, libraries", in_bytes(memory.libraries)
        yield "together", in_bytes(memory.peak)

    def _output(self) -> Iterator[tuple[str, str]]:
        yield "folder", f"{self.output} ({self.output_state})"
        yield "makes", ", ".join(self.makes)
        yield "checkpoints", f"{self.checkpoints}, {in_bytes(self.checkpoint_bytes)} each"
        yield "MLflow", self.tracking


def plan_job(config: RunConfig) -> JobPlan:
    """The plan of a run. Opens the store, reads the columns of obs and some cells; starts nothing.

    Raises
    ------
    ScviDistError
        What would keep the run from starting: the store, the columns, the memory.
    """
    with open_run_store(config) as store:
        plan = plan_run(config, store, fit_schema(store, config.setup))
        if not config.train.uses_ray:
            return plan
        readers = plan_readers(config, store, plan.n_parameters, config.train.world)
        return replace(plan, readers=readers)


def plan_run(config: RunConfig, store: Store, schema: Schema) -> JobPlan:
    """The plan of a run on an open store."""
    fit, loader, world = config.train.fit, config.train.loader, config.train.plan_world
    split = split_rows(store.n_obs, config.data.split, fit.batch_size)
    share = training_part(loader, store.n_obs)
    train_rows = sample_rows(split.train, store, config.train.sampling, fit.seed)
    reading = make_plan(
        train_rows,
        store,
        share,
        batch_size=fit.batch_size,
        world=world,
        seed=fit.seed,
        dense_bytes=schema.dense_bytes_per_cell,
    )
    engine = plan_engine(config, store)
    n_parameters = count_parameters(config, schema)
    validates = _validates_every(config, split)
    n_read = train_rows.n + (split.validation.n if validates else 0)
    per_rank = -(-fit.batch_size // world)
    return JobPlan(
        store=store.locator.redacted_url,
        store_digest=store.digest(),
        n_cells=store.n_obs,
        n_genes=store.n_vars,
        n_batches=schema.n_batch,
        n_labels=schema.n_labels,
        covariates=(
            *(schema.setup.categorical_covariate_keys or ()),
            *schema.continuous_columns,
        ),
        n_train=split.train.n,
        n_validation=split.validation.n,
        n_test=split.test.n,
        model=config.model.name,
        n_parameters=n_parameters,
        workers=config.train.world if config.train.uses_ray else 0,
        min_workers=world if config.train.uses_ray else 0,
        batch_size=fit.batch_size,
        steps_per_epoch=reading.n_steps,
        max_epochs=fit.epochs_for(store.n_obs),
        max_steps=fit.max_steps,
        kl_warmup_fraction=config.train.kl_warmup_fraction,
        validate_every=validates,
        n_padding=reading.n_padding(world),
        n_windows=reading.n_windows,
        block_rows=reading.config.block_rows,
        engine=engine.engine,
        engine_reason=engine.reason,
        read_bytes_per_epoch=int(n_read * (store.bytes_per_cell + schema.dense_bytes_per_cell)),
        memory=MemoryPlan(
            libraries=LIBRARIES_BYTES,
            reading=planned_bytes(reading, store, share, world, schema.dense_bytes_per_cell),
            index=INDEX_BYTES_PER_CELL * store.n_obs,
            model=4 * FLOAT * n_parameters,
            step=ACTIVATIONS * FLOAT * per_rank * store.n_vars,
        ),
        checkpoint_bytes=3 * FLOAT * n_parameters,
        checkpoints=_checkpoints(config),
        output=config.output.dir,
        output_state=output_state(config, store.digest()),
        makes=_makes(config),
        tracking=_tracking(config),
    )


def plan_engine(config: RunConfig, store: Store) -> EngineChoice:
    """What will read the cells; with a cluster's address the cluster is not asked."""
    under_ray = config.train.uses_ray
    choice = choose_engine(
        config.train.loader,
        store.locator,
        under_ray=under_ray,
        n_cpus=os.cpu_count() or 1,
        world=config.train.world,
    )
    if under_ray and config.train.ray.address is not None and config.train.loader.engine == "auto":
        return EngineChoice("auto", "decided by the cluster's CPUs once it is reached.")
    return choice


def output_state(config: RunConfig, store_digest: str) -> str:
    """What 'run' would find in the output folder."""
    path = Path(config.output.dir).absolute()
    try:
        found = read_state(path)
    except OutputExists as error:
        return f"cannot be used: {error}"
    problem = clash(path, found, run_facts(config), store_digest)
    if problem is not None:
        replaces = config.output.overwrite and found is not None
        return "replaces another run" if replaces else f"cannot be used: {problem}"
    if found is None:
        return "new"
    left = [stage for stage in wanted_stages(config) if stage not in found.stages]
    return "continues a run" if left else "the run is finished"


def in_bytes(n: float) -> str:
    """A number of bytes, in the unit that suits it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit in ("B", "KiB", "MiB") else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


def _validates_every(config: RunConfig, split: Split) -> int | None:
    fit = config.train.fit
    wants = fit.early_stopping is not None or config.train.plan.reduce_lr_on_plateau
    if split.validation.n == 0:
        return None
    return fit.check_val_every_n_epoch or (1 if wants else None)


def _checkpoints(config: RunConfig) -> str:
    fit = config.train.fit
    inside = fit.checkpoint_every_n_steps
    steps = f"every {inside:,} steps and " if inside else ""
    return (
        f"{steps}at ends of epochs at least {fit.checkpoint_every_s:g} s apart; the newest "
        f"{fit.keep_checkpoints} and the best stay"
    )


def _makes(config: RunConfig) -> tuple[str, ...]:
    made = ["model/"]
    files = {"latent": "latent.zarr", "predictions": "predictions.zarr", "figures": "figures/"}
    made += [files[name] for name, wanted in config.makes.items() if wanted]
    return (*made, "summary.json", "run.yaml")


def _tracking(config: RunConfig) -> str:
    if not config.tracking.enabled:
        return "off"
    uri = redact(config.tracking.resolve_uri(config.output.dir))
    name = config.tracking.register_as
    registered = f", registers {name}@{config.tracking.alias}" if name else ", registers nothing"
    return f"{uri}, experiment {config.tracking.experiment!r}{registered}"


def facts_of(plan: JobPlan) -> dict[str, Any]:
    """What MLflow records of the plan."""
    names = ("n_cells", "n_genes", "n_batches", "n_train", "n_validation", "n_parameters")
    return {name: getattr(plan, name) for name in names} | {
        "steps_per_epoch": plan.steps_per_epoch,
        "n_padding": plan.n_padding,
        "engine": plan.engine,
    }
