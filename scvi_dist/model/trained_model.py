"""What a model tells of itself: its training, where its weights are, what it is."""

from datetime import datetime

import numpy as np
import torch

from scvi_dist.errors import NotTrained
from scvi_dist.model.binding import DataBinding
from scvi_dist.model.data_access import DataAccess
from scvi_dist.model.history import History
from scvi_dist.model.indices import TrainedCells
from scvi_dist.module.base import BaseModule


class TrainedModel(DataAccess):
    """A module, how it was trained, and the data that it was trained on."""

    def __init__(self, binding: DataBinding, module: BaseModule, summary: str) -> None:
        super().__init__(binding)
        self.module = module.eval()
        self.is_trained_ = False
        self.history_: History | None = None
        self.run_name_ = f"run_{datetime.now().strftime('%Y-%m-%d_%H-%M-%S')}"
        self.run_id_ = ""
        self.get_normalized_function_name_ = "get_normalized_expression"
        self._cells = TrainedCells({})
        self._summary = summary

    @property
    def is_trained(self) -> bool:
        """Whether the model has been trained."""
        return self.is_trained_

    @is_trained.setter
    def is_trained(self, value: bool) -> None:
        self.is_trained_ = value

    @property
    def history(self) -> History | None:
        """Metric -> table of one column, indexed by epoch; None before training."""
        return self.history_

    @property
    def train_indices(self) -> np.ndarray | None:
        """Rows of the training cells, which are listed when asked for."""
        return self._cells.rows("train")

    @train_indices.setter
    def train_indices(self, rows: np.ndarray) -> None:
        self._cells = self._cells.with_rows("train", rows)

    @property
    def validation_indices(self) -> np.ndarray | None:
        """Rows of the validation cells."""
        return self._cells.rows("validation")

    @validation_indices.setter
    def validation_indices(self, rows: np.ndarray) -> None:
        self._cells = self._cells.with_rows("validation", rows)

    @property
    def test_indices(self) -> np.ndarray | None:
        """Rows of the cells that took no part in training."""
        return self._cells.rows("test")

    @test_indices.setter
    def test_indices(self, rows: np.ndarray) -> None:
        self._cells = self._cells.with_rows("test", rows)

    @property
    def run_name(self) -> str:
        """Name of the training run."""
        return self.run_name_

    @run_name.setter
    def run_name(self, name: str) -> None:
        self.run_name_ = name

    @property
    def run_id(self) -> str:
        """Id of the training run in MLflow, if it was recorded."""
        return self.run_id_

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self.run_id_ = run_id

    @property
    def get_normalized_function_name(self) -> str:
        """Name of the method that gives expression for differential expression."""
        return self.get_normalized_function_name_

    @get_normalized_function_name.setter
    def get_normalized_function_name(self, name: str) -> None:
        self.get_normalized_function_name_ = name

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.module.device

    def to_device(self, device: int | str | torch.device) -> None:
        """Move the weights to a device."""
        self.module.to(torch.device(device))

    @property
    def summary_string(self) -> str:
        """What the model is, and whether it is trained."""
        return f"{self._summary}\nTraining status: {self._status}"

    @property
    def _status(self) -> str:
        return "Trained" if self.is_trained_ else "Not Trained"

    def __repr__(self) -> str:
        return self.summary_string

    def _check_if_trained(self) -> None:
        if not self.is_trained_:
            raise NotTrained(
                f"this {type(self).__name__} model is not trained, so what it would say of cells "
                "means nothing. Call train() first, or load() a trained one."
            )
