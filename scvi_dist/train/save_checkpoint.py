"""What a user says of checkpoints to keep as models."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from scvi_dist.errors import ConfigError, did_you_mean
from scvi_dist.train.checkpoint import Checkpoint

_FIELD = re.compile(r"\{(\w+)(:[^}]*)?\}")


class SaveCheckpoint:
    """Keeps the best models of a training run; takes the place of scvi-tools' callback.

    Give it among the ``callbacks`` of ``train()``, in this process or with workers. Each epoch that
    is among the best is written as a checkpoint of the run, optimizer included, the moment it ends;
    after training the best ones are models, which ``load()`` opens.

    Parameters
    ----------
    dirpath
        Folder of the models; ``models`` in the run's folder where None.
    filename
        Name of a model's folder, in which ``{epoch}``, ``{step}`` and names of metrics are
        replaced; ``{epoch}-{step}-{<monitor>}`` where None.
    monitor
        The metric.
    load_best_on_end
        Whether the model has the best weights after training; otherwise the last.
    check_nan_gradients
        Whether the model has the best weights, and is written, when the loss is no number; the
        error is raised nevertheless.
    mode
        Whether the best metric is the lowest or the highest.
    save_top_k
        How many are kept.

    Attributes
    ----------
    best_model_path
        Folder of the best model; empty before training has ended.
    best_model_score
        Its metric.
    best_k_models
        Folder -> metric, the best first.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        monitor: str = "validation_loss",
        load_best_on_end: bool = False,
        check_nan_gradients: bool = False,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
    ) -> None:
        if save_top_k < 1:
            raise ConfigError(f"SaveCheckpoint: save_top_k must be at least 1, got {save_top_k}.")
        self.dirpath = dirpath
        self.filename = filename
        self.monitor = monitor
        self.load_best_on_end = load_best_on_end
        self.check_nan_gradients = check_nan_gradients
        self.mode = mode
        self.save_top_k = save_top_k
        self.best_k_models: dict[str, float] = {}

    @property
    def best_model_path(self) -> str:
        return next(iter(self.best_k_models), "")

    @property
    def best_model_score(self) -> float | None:
        return next(iter(self.best_k_models.values()), None)

    def folder_of(self, checkpoint: Checkpoint, run_dir: str | Path) -> Path:
        """Where the model of a checkpoint goes.

        Raises
        ------
        ConfigError
            ``filename`` names a metric that there is not.
        """
        values = {
            "epoch": checkpoint.cursor.epoch - 1,
            "step": checkpoint.cursor.global_step,
            **checkpoint.metrics,
        }
        template = self.filename or f"{{epoch}}-{{step}}-{{{self.monitor}}}"
        folder = Path(run_dir) / "models" if self.dirpath is None else Path(self.dirpath)
        return folder / _FIELD.sub(lambda found: _named(found, values), template)


def _named(found: "re.Match[str]", values: Mapping[str, float]) -> str:
    """``epoch=3`` for ``{epoch}``, as Lightning names its files."""
    name, spec = found.group(1), (found.group(2) or ":").removeprefix(":")
    if name not in values:
        raise ConfigError(f"SaveCheckpoint: no metric {name!r}; {did_you_mean(name, values)}")
    return f"{name}={format(values[name], spec)}"
