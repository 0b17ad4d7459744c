"""The sections of a run file: the owners' configs side by side, and what only a run has."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import ceil
from pathlib import Path
from typing import Any, Literal

import torch

from scvi_dist.config.build import INLINE, convert, hidden
from scvi_dist.config.model_kinds import DEFAULT_MODEL, MODELS, ModelKind
from scvi_dist.config.run_file import RunFile
from scvi_dist.data.remote.remote_config import RemoteConfig
from scvi_dist.data.setup import SetupArgs
from scvi_dist.data.soma.options import SomaOptions
from scvi_dist.dataloaders.labelled_cells import LabelledConfig
from scvi_dist.dataloaders.loader_config import LoaderConfig
from scvi_dist.dataloaders.sampling_config import SamplingConfig
from scvi_dist.dataloaders.split import SplitConfig
from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.tracking import TrackingConfig
from scvi_dist.train.configs import RayConfig, TrainConfig, TrainingPlanConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which cells and genes, and which columns describe them."""

    store: str | tuple[str, ...]
    """Path or URL of a store; or many of them, read as one: a list, a pattern such as
    ``shards/*.h5ad`` (sorted by name), or a folder of stores."""
    kind: str | None = None
    """``h5ad``, ``h5mu``, ``zarr`` or ``soma``, where the name does not tell."""
    join: Literal["inner", "outer"] | None = None
    """Of many stores: the genes that all have (inner) or that any has (outer; 0 in the others);
    without it, stores whose genes differ are refused."""
    modality: str | None = None
    """Of a MuData: which modality the counts are of; rna or gex if there is one."""
    unpaired: Literal["refuse", "drop", "zeros"] = "refuse"
    """Of a MuData whose modalities hold different cells: what becomes of those that one lacks."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """For remote stores; credentials belong in the environment."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    """How remote stores are read: attempts, waits, a cache on a local disk."""
    obs_filter: str | None = None
    """Keep the cells for which this expression over obs columns holds, as pandas writes it."""
    soma: SomaOptions = field(default_factory=SomaOptions)
    """For TileDB-SOMA: measurement, value filters, timestamp, release of the Census."""
    genes: tuple[str, ...] | None = None
    """Keep these genes, in this order."""
    genes_file: str | None = None
    """The same, one name a line."""
    setup: SetupArgs = field(
        default_factory=SetupArgs, metadata=INLINE | hidden("protein_names_uns_key", "modalities")
    )
    markers: str | None = None
    """Path of a table of marker genes (CSV): a row for each gene, by name, and a column for each
    cell type, 1 for its markers and 0 for all other genes. For CellAssign."""
    split: SplitConfig = field(default_factory=SplitConfig)

    def __post_init__(self) -> None:
        if not self.store:
            raise ConfigError("store: expected a path, a URL or a list of them, seen nothing.")
        if self.genes is not None and self.genes_file is not None:
            raise ConfigError("genes and genes_file say the same thing; give one of them.")

    def gene_list(self) -> tuple[str, ...] | None:
        """The genes to keep; None for all."""
        if self.genes_file is None:
            return self.genes
        try:
            lines = Path(self.genes_file).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(
                f"data.genes_file: {self.genes_file} cannot be read: {error.strerror}."
            ) from error
        names = tuple(line.strip() for line in lines if line.strip())
        if not names:
            raise ConfigError(f"data.genes_file: {self.genes_file} names no gene.")
        return names


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which model, with which arguments; the arguments stand beside the name."""

    name: str = DEFAULT_MODEL
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """As scvi-tools names them, such as ``n_latent``."""

    @property
    def kind(self) -> ModelKind:
        """What there is to know of the class of model."""
        return MODELS[self.name]

    @property
    def model_class(self) -> Any:
        """The class that a user holds."""
        return self.kind.model_class

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], source: RunFile, path: str) -> "ModelConfig":
        """From the section's keys, checked against the model's arguments."""
        name = tree.get("name", cls().name)
        if name not in MODELS:
            raise ConfigError(
                f"{source.where(f'{path}.name')}: there is no model {name!r}; "
                f"{did_you_mean(str(name), MODELS)}"
            )
        hints, choices = MODELS[name].arguments(), MODELS[name].valid_values
        arguments = {}
        for key, value in tree.items():
            if key == "name":
                continue
            dotted = f"{path}.{key}"
            if key not in hints:
                raise ConfigError(
                    f"{source.where(dotted)}: {name} has no argument {key!r}; "
                    f"{did_you_mean(str(key), [*hints, 'name'])}"
                )
            arguments[key] = convert(hints[key], value, source, dotted)
            if key in choices and arguments[key] not in choices[key]:
                raise ConfigError(
                    f"{source.where(dotted)}: expected one of {', '.join(choices[key])}, seen "
                    f"{value!r}; {did_you_mean(str(value), choices[key])}"
                )
        return cls(name=name, arguments=arguments)

    def to_tree(self) -> dict[str, Any]:
        """The section's keys."""
        return {"name": self.name, **self.arguments}

    @classmethod
    def keys(cls) -> list[str]:
        """Keys that the section may have, whatever the model."""
        return ["name", *dict.fromkeys(key for kind in MODELS.values() for key in kind.arguments())]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSection:
    """How long, with what, and by how many workers."""

    workers: int | tuple[int, ...] = 1
    """Ray Train workers, one device each; 0: train in this process, without Ray. ``[2, 8]``: as
    many as can be had, at least 2 and at most 8, while nodes come and go."""
    fit: TrainConfig = field(default_factory=TrainConfig, metadata=INLINE)
    labelled: LabelledConfig = field(default_factory=LabelledConfig, metadata=INLINE)
    kl_warmup_fraction: float | None = 1 / 3
    """Part of all steps over which the weight of the KL divergence rises to its maximum. None: as
    the plan says, which is also so where ``plan.n_epochs_kl_warmup`` or ``plan.n_steps_kl_warmup``
    is given and this is not."""
    adversary_where_proteins_lack: bool = False
    """Set ``plan.adversarial_classifier`` if some batch lacks proteins. True for TOTALVI, unless
    the plan says whether."""
    plan: TrainingPlanConfig = field(default_factory=TrainingPlanConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    ray: RayConfig = field(default_factory=RayConfig, metadata=hidden("num_workers", "shutdown"))

    def __post_init__(self) -> None:
        bounds = self.workers if isinstance(self.workers, tuple) else (self.workers,) * 2
        least = 1 if isinstance(self.workers, tuple) else 0
        if len(bounds) != 2 or not least <= bounds[0] <= bounds[1]:
            raise ConfigError(
                "workers: expected 0 or more, or the fewest (1 or more) and the most, seen "
                f"{self.workers}."
            )
        if self.kl_warmup_fraction is None:
            return
        if not 0 < self.kl_warmup_fraction <= 1:
            raise ConfigError(
                "kl_warmup_fraction: expected a part of training, more than 0 and at most 1 (or "
                f"null), seen {self.kl_warmup_fraction}."
            )
        usual = TrainingPlanConfig()
        for name in ("n_epochs_kl_warmup", "n_steps_kl_warmup"):
            if getattr(self.plan, name) != getattr(usual, name):
                raise ConfigError(
                    f"kl_warmup_fraction and plan.{name} say the same thing; give one of them."
                )

    def plan_for(self, total_steps: int | None) -> TrainingPlanConfig:
        """The plan of a run of so many steps, if that is known."""
        if self.kl_warmup_fraction is None or total_steps is None:
            return self.plan
        steps = max(1, ceil(self.kl_warmup_fraction * total_steps))
        return replace(self.plan, n_epochs_kl_warmup=None, n_steps_kl_warmup=steps)

    @property
    def uses_ray(self) -> bool:
        """Whether Ray Train's workers train, and not this process."""
        return self.workers != 0

    @property
    def world(self) -> int:
        """Number of ranks; the most where it is a range."""
        return max(1, *self.workers) if isinstance(self.workers, tuple) else max(1, self.workers)

    @property
    def plan_world(self) -> int:
        """Number of ranks that reading is planned for; the fewest where it is a range."""
        return self.workers[0] if isinstance(self.workers, tuple) else self.world

    @property
    def ray_config(self) -> RayConfig:
        """Where the workers run; on GPUs if that is asked for, or if this host has one for each."""
        on_gpu = self.ray.use_gpu or self.fit.accelerator in ("gpu", "cuda")
        if self.fit.accelerator == "auto" and self.ray.address is None:
            on_gpu = on_gpu or torch.cuda.device_count() >= self.world
        # What comes after training needs the memory and the cores.
        num_workers = (self.plan_world, self.world) if self.plan_world < self.world else self.world
        return replace(self.ray, num_workers=num_workers, use_gpu=on_gpu, shutdown=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputConfig:
    """What is written, and where."""

    dir: str
    """Folder of everything that the run makes."""
    overwrite: bool = False
    """Replace what an earlier run made there; otherwise an unfinished run is continued, and
    nothing is ever replaced."""
    latent: bool = True
    """Write the latent space, as ``latent.zarr``, where the model has one."""
    predictions: bool = True
    """Write each cell's probabilities of labels or types, as ``predictions.zarr``, where the model
    gives them."""
    figures: bool = True
    """Draw loss curves and a map of the latent space."""
    colour_by: tuple[str, ...] | None = None
    """Columns of obs that colour the map; None: the batch and labels keys."""
    map_cells: int = 4_000
    """Cells in the map, drawn at random."""
    evaluate_cells: int = 100_000
    """Validation cells that the final figures are of, at most; drawn at random."""

    def __post_init__(self) -> None:
        if not self.dir.strip():
            raise ConfigError("dir: expected the path of a folder, seen an empty one.")
        for name in ("map_cells", "evaluate_cells"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, seen {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that decides a run."""

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainSection = field(default_factory=TrainSection)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    output: OutputConfig

    def __post_init__(self) -> None:
        name, kind = self.model.name, self.model.kind
        usual = SetupArgs()
        given = [f.name for f in fields(usual) if getattr(self.setup, f.name) is not None]
        given += [] if self.data.markers is None else ["markers"]
        for key in given:
            if key not in (*kind.setup, *kind.required):
                raise ConfigError(
                    f"data.{key}: {name} has no use for it; "
                    f"{did_you_mean(key, (*kind.setup, *kind.required))}"
                )
        for key in kind.required:
            if key not in given:
                raise ConfigError(f"data.{key}: {name} needs it, seen nothing. {_WHAT[key]}")
        if self.train.labelled.n_samples_per_label is not None and not kind.learns_labels:
            raise ConfigError(f"train.n_samples_per_label: {name} learns from no labels.")
        if self.train.adversary_where_proteins_lack and "protein_key" not in kind.required:
            raise ConfigError(f"train.adversary_where_proteins_lack: {name} has no proteins.")

    @property
    def setup(self) -> SetupArgs:
        """Which columns describe the cells."""
        return self.data.setup

    @property
    def makes(self) -> dict[str, bool]:
        """Result beside the model -> whether it is written."""
        kind, output = self.model.kind, self.output
        return {
            "latent": output.latent and kind.has_latent,
            "predictions": output.predictions and kind.predicts,
            "figures": output.figures,
        }


_WHAT = {
    "labels_key": "Give the column of obs that holds the labels.",
    "unlabeled_category": "Give the value of that column that means 'not labelled'.",
    "protein_key": "Give the key of obsm that holds the counts of proteins.",
    "markers": "Give the path of the table of marker genes.",
}
"""Key of ``data`` -> what a person is to do where it is missing."""
