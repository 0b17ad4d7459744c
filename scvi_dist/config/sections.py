"""The sections of a run file: the owners' configs side by side, and what only a run has."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import torch

from scvi_dist.config.build import INLINE, convert, hidden, is_code
from scvi_dist.config.run_file import RunFile
from scvi_dist.data.setup import SetupArgs
from scvi_dist.dataloaders.loader_config import LoaderConfig
from scvi_dist.dataloaders.split import SplitConfig
from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.tracking import TrackingConfig
from scvi_dist.train.configs import RayConfig, TrainConfig, TrainingPlanConfig

MODELS = {
    "SCVI": ("scvi_dist.model:SCVI", "scvi_dist.module:VAE", "scvi_dist.module.vae_args:CHOICES"),
}
"""Name -> class that a user holds, module whose arguments it takes, values that some may have."""

_FROM_DATA = (
    "n_input",
    "n_batch",
    "n_labels",
    "n_continuous_cov",
    "n_cats_per_cov",
    "use_size_factor_key",
    "library_log_means",
    "library_log_vars",
)
"""Arguments of modules that follow from the data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which cells and genes, and which columns describe them."""

    store: str | tuple[str, ...]
    """Path or URL of an h5ad file or a Zarr store; or a list of them, read as one."""
    kind: str | None = None
    """``h5ad`` or ``zarr``, where the name does not tell."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """For remote stores; credentials belong in the environment."""
    obs_filter: str | None = None
    """Keep the cells for which this expression over obs columns holds, as pandas writes it."""
    genes: tuple[str, ...] | None = None
    """Keep these genes, in this order."""
    genes_file: str | None = None
    """The same, one name a line."""
    setup: SetupArgs = field(
        default_factory=SetupArgs, metadata=INLINE | hidden("unlabeled_category")
    )
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

    name: str = "SCVI"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """As scvi-tools names them, such as ``n_latent``."""

    @property
    def model_class(self) -> Any:
        """The class that a user holds."""
        return _load(MODELS[self.name][0])

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], source: RunFile, path: str) -> "ModelConfig":
        """From the section's keys, checked against the model's arguments."""
        name = tree.get("name", cls().name)
        if name not in MODELS:
            raise ConfigError(
                f"{source.where(f'{path}.name')}: there is no model {name!r}; "
                f"{did_you_mean(str(name), MODELS)}"
            )
        hints, choices = model_arguments(name), _load(MODELS[name][2])
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
        return ["name", *dict.fromkeys(key for name in MODELS for key in model_arguments(name))]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSection:
    """How long, with what, and by how many workers."""

    workers: int = 1
    """Ray Train workers, one device each; 0: train in this process, without Ray."""
    fit: TrainConfig = field(default_factory=TrainConfig, metadata=INLINE)
    plan: TrainingPlanConfig = field(default_factory=TrainingPlanConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    ray: RayConfig = field(default_factory=RayConfig, metadata=hidden("num_workers", "shutdown"))

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"workers: expected 0 or more, seen {self.workers}.")

    @property
    def world(self) -> int:
        """Number of ranks."""
        return max(1, self.workers)

    @property
    def ray_config(self) -> RayConfig:
        """Where the workers run; on GPUs if that is asked for, or if this host has one for each."""
        on_gpu = self.ray.use_gpu or self.fit.accelerator in ("gpu", "cuda")
        if self.fit.accelerator == "auto" and self.ray.address is None:
            on_gpu = on_gpu or torch.cuda.device_count() >= self.world
        # What comes after training needs the memory and the cores.
        return replace(self.ray, num_workers=self.world, use_gpu=on_gpu, shutdown=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputConfig:
    """What is written, and where."""

    dir: str
    """Folder of everything that the run makes."""
    overwrite: bool = False
    """Replace what an earlier run made there; otherwise an unfinished run is continued, and
    nothing is ever replaced."""
    latent: bool = True
    """Write the latent space, as ``latent.zarr``."""
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

    @property
    def setup(self) -> SetupArgs:
        """Which columns describe the cells."""
        return self.data.setup


@cache
def model_arguments(name: str) -> dict[str, Any]:
    """Argument -> type, of those that a run file may give."""
    module = _load(MODELS[name][1])
    hints = get_type_hints(module.__init__)
    return {
        argument: hints[argument]
        for argument in inspect.signature(module.__init__).parameters
        if argument in hints and argument not in _FROM_DATA and not is_code(hints[argument])
    }


def _load(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(module), name)
