"""Defaults of a session, under the names that scvi-tools' users know.

They are defaults only: whatever takes one also takes it as an argument, and a run that workers or
a run file carry out is told the values, not the settings.
"""

import logging
import random
from typing import TYPE_CHECKING, Literal

from scvi_dist.errors import ConfigError

if TYPE_CHECKING:
    from scvi_dist.tracking import TrackingConfig

_LOGGER = "scvi_dist"
_LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG", "NOTSET")


class Settings:
    """Defaults of this session.

    Examples
    --------
    >>> import scvi_dist
    >>> scvi_dist.settings.seed = 0
    >>> scvi_dist.settings.batch_size = 1024
    """

    def __init__(self) -> None:
        self._seed: int | None = None
        self._batch_size = 128
        self._progress_bar_style: Literal["rich", "tqdm"] = "rich"
        self.logging_dir: str = "./scvi_dist_runs/"
        """Accepted for scvi-tools' sake; a run's folder is ``run_dir`` of ``train()``."""
        self.dl_num_workers: int = 0
        """Threads of a rank that read while it trains; 0: as ``LoaderConfig`` says."""
        self.dl_persistent_workers: bool = False
        """Accepted for scvi-tools' sake, as ``dl_num_workers``."""
        self.warnings_stacklevel: int = 2
        """Accepted for scvi-tools' sake."""
        self.mlflow_set_tracking_uri: str = ""
        """Where ``train()`` records runs unless it is told; the empty string is nowhere."""
        self.mlflow_set_experiment: str = "scvi_dist"
        """The experiment of those runs."""

    @property
    def seed(self) -> int | None:
        """Default seed of ``train()``; setting it also seeds Python, NumPy and torch."""
        return self._seed

    @seed.setter
    def seed(self, seed: int | None) -> None:
        if seed is None:
            self._seed = None
            return
        if isinstance(seed, bool) or not 0 <= int(seed) < 2**32:
            raise ConfigError(f"seed must be a number from 0 to 2**32 - 1, got {seed!r}.")
        import numpy as np
        import torch

        self._seed = int(seed)
        random.seed(self._seed)
        np.random.seed(self._seed)
        torch.manual_seed(self._seed)

    @property
    def batch_size(self) -> int:
        """Cells of a forward pass of the models' methods; that of ``train()`` is its own."""
        return self._batch_size

    @batch_size.setter
    def batch_size(self, batch_size: int) -> None:
        if isinstance(batch_size, bool) or int(batch_size) < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size!r}.")
        self._batch_size = int(batch_size)

    @property
    def verbosity(self) -> int:
        """Level of the logger ``scvi_dist``, as the module ``logging`` counts."""
        return logging.getLogger(_LOGGER).level

    @verbosity.setter
    def verbosity(self, level: int | str) -> None:
        if isinstance(level, str) and level.upper() not in _LEVELS:
            raise ConfigError(f"verbosity is a number or one of {', '.join(_LEVELS)}: {level!r}.")
        logging.getLogger(_LOGGER).setLevel(level.upper() if isinstance(level, str) else level)

    @property
    def num_threads(self) -> int:
        """Threads of torch's operations in this process."""
        import torch

        return torch.get_num_threads()

    @num_threads.setter
    def num_threads(self, num: int) -> None:
        import torch

        torch.set_num_threads(num)

    @property
    def progress_bar_style(self) -> Literal["rich", "tqdm"]:
        """Accepted for scvi-tools' sake; progress is drawn with rich."""
        return self._progress_bar_style

    @progress_bar_style.setter
    def progress_bar_style(self, style: Literal["rich", "tqdm"]) -> None:
        if style not in ("rich", "tqdm"):
            raise ConfigError(f"progress_bar_style is 'rich' or 'tqdm', got {style!r}.")
        self._progress_bar_style = style

    @property
    def tracking(self) -> "TrackingConfig | None":
        """What records a run that is not told; None where no URI is set."""
        if not self.mlflow_set_tracking_uri:
            return None
        from scvi_dist.tracking import TrackingConfig

        return TrackingConfig(
            uri=self.mlflow_set_tracking_uri, experiment=self.mlflow_set_experiment
        )

    def reset_logging_handler(self) -> None:
        """Take the handlers off the logger ``scvi_dist``: it writes where logging writes."""
        logging.getLogger(_LOGGER).handlers.clear()


settings = Settings()
"""The defaults of this session."""
