"""The demo: simulates an atlas, writes a run file for it, and runs the main job on it."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from scvi_dist.config import parse_run
from scvi_dist.console import Display
from scvi_dist.errors import ConfigError, OutputExists
from scvi_dist.job.recipe import JobResult, run_job

RUN_FILE = """\
# What 'scvi-dist demo' runs. Change it and start it with: scvi-dist run {path}
data:
  store: {store}
  batch_key: batch
train:
  workers: {workers}
  max_epochs: {epochs}
  batch_size: 256
  check_val_every_n_epoch: 1
  seed: {seed}
  plan:
    # The KL divergence has its full weight from the middle of so short a training on.
    n_epochs_kl_warmup: {warmup}
tracking:
  uri: {tracking}
  experiment: scvi-dist demo
  run_name: demo
  register_as: scvi-dist-demo
  system_metrics_interval_s: 2
output:
  dir: {output}
  colour_by: [batch, cell_type]
  map_cells: 2000
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoOptions:
    """What the demo simulates and how it trains."""

    dir: str
    """Folder for atlas, run and MLflow's file."""
    n_cells: int
    n_genes: int
    n_batches: int
    n_cell_types: int
    epochs: int
    workers: int
    """0: train in this process."""
    seed: int
    tracking: str
    """As ``tracking.uri`` of a run file."""
    n_shards: int = 4

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("workers", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"--{name}: expected {least} or more, seen {getattr(self, name)}."
                )


def run_demo(options: DemoOptions, display: Display) -> JobResult:
    """Simulate, then run the job; both go on where an earlier demo in the folder stopped."""
    folder = Path(options.dir).absolute()
    run_file = folder / "run.yaml"
    text = RUN_FILE.format(
        path=shlex.quote(str(run_file)),
        store=json.dumps(str(folder / "atlas" / "atlas.zarr")),
        output=json.dumps(str(folder / "run")),
        tracking=json.dumps(options.tracking),
        workers=options.workers,
        epochs=options.epochs,
        seed=options.seed,
        warmup=max(1, options.epochs // 2),
    )
    config = parse_run(text, str(run_file))
    simulate(options, folder / "atlas", display)
    run_file.write_text(text, encoding="utf-8")
    return run_job(config, display)


def simulate(options: DemoOptions, folder: Path, display: Display) -> None:
    """The atlas as h5ad shards and as a Zarr store; left as it is if it is there already.

    Raises
    ------
    OutputExists
        The folder holds an atlas of other sizes.
    """
    from scvi_dist.data.simulated.simulate import simulate_atlas

    names = ("n_cells", "n_genes", "n_batches", "n_cell_types", "n_shards", "seed")
    sizes = {name: getattr(options, name) for name in names}
    marker = folder / "atlas.json"
    if marker.exists():
        found = json.loads(marker.read_text(encoding="utf-8"))
        if found != sizes:
            differ = ", ".join(
                f"{k.removeprefix('n_')}: {found.get(k)}, now {v}"
                for k, v in sizes.items()
                if found.get(k) != v
            )
            raise OutputExists(
                f"{folder} holds a demo's atlas of other sizes ({differ}). "
                "Choose another folder with --dir."
            )
        display.note(f"the atlas in {folder} is used again.")
        return
    with display.progress("Atlas") as (update, step):
        made = simulate_atlas(
            folder,
            **sizes,
            on_progress=lambda done, total: update(done / total, f"{done // 2:,} cells"),
            # What an interrupted demo left is only part of an atlas.
            overwrite=True,
        )
        marker.write_text(json.dumps(sizes), encoding="utf-8")
        step.say(
            f"{options.n_cells:,} cells x {options.n_genes:,} genes, {options.n_batches} batches, "
            f"{options.n_cell_types} cell types; {len(made.h5ad)} h5ad shards and {made.zarr.name}"
        )
