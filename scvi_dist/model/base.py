"""What all models share: data, a module, training state, and a place on disk.

A model *has* these things; it is none of them.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from scvi_dist.data.filesystem import normalise_url, redact_url
from scvi_dist.data.manager import AnnDataManager
from scvi_dist.data.schema import Schema
from scvi_dist.errors import ConfigError
from scvi_dist.model.binding import DataBinding, Source
from scvi_dist.model.checkpoint_models import kept_models
from scvi_dist.model.device import resolve_device
from scvi_dist.model.file_format import SavedModel
from scvi_dist.model.history import as_history, continued
from scvi_dist.model.indices import TrainedCells
from scvi_dist.model.progress import is_watched, progress_bar
from scvi_dist.model.saving import (
    check_weights,
    read_directory,
    read_model,
    save_directory,
    saved_cells,
)
from scvi_dist.model.train_arguments import lightning_callbacks, lightning_loggers, savers_of
from scvi_dist.model.train_call import TrainCall
from scvi_dist.model.trained_model import TrainedModel
from scvi_dist.model.training import FitSettings, record_setup, run, tracked
from scvi_dist.module.base import BaseModule
from scvi_dist.train.configs import TrainingPlanConfig

if TYPE_CHECKING:
    from scvi_dist.tracking import Tracker
    from scvi_dist.train.fit_job import FitResult
    from scvi_dist.train.progress import OnProgress

PathLike = str | os.PathLike[str]


class BaseModel(TrainedModel, ABC):
    """A model of cells, as a user holds it.

    Parameters
    ----------
    binding
        The data it was set up with.
    module
        The network.
    init_params
        The constructor's arguments besides the data, as scvi-tools saves them.
    summary
        One line that says what the model is.
    """

    def __init__(
        self,
        binding: DataBinding,
        module: BaseModule,
        init_params: Mapping[str, Any],
        summary: str,
    ) -> None:
        super().__init__(binding, module, summary)
        self.init_params_ = dict(init_params)

    # Training

    @property
    def _checks_counts(self) -> bool:
        """Whether negative counts are an error."""
        return True

    def fit(
        self,
        settings: FitSettings,
        *,
        tracker: "Tracker | None" = None,
        on_progress: "OnProgress | None" = None,
        callbacks: Sequence[Any] = (),
        loggers: Sequence[Any] = (),
    ) -> "FitResult":
        """Train as the configs say; ``train()`` makes them from scvi-tools' arguments.

        Parameters
        ----------
        settings
            How to train.
        tracker
            Records the run; it is left open.
        on_progress
            Called every few steps and after each epoch.
        callbacks, loggers
            Lightning's; only in this process.
        """
        manager = self._binding.manager_for()
        result, split = run(
            self.module,
            manager,
            settings,
            check_counts=self._checks_counts,
            tracker=tracker,
            on_progress=on_progress,
            callbacks=callbacks,
            loggers=loggers,
        )
        if settings.ray is not None:
            # Workers trained copies.
            self.module.load_state_dict(result.state_dict)
        self.module.eval()
        new = as_history(result.history)
        # A resumed run tells its whole history again.
        self.history_ = new if settings.resume else continued(self.history_, new)
        self.is_trained_ = True
        self._cells = TrainedCells.of(split)
        if tracker is not None and tracker.ref is not None:
            self.run_id_ = tracker.run_id
        return result

    def _train(self, call: TrainCall, plan: TrainingPlanConfig) -> None:
        """:meth:`fit`, with what belongs to a call by hand: a record, and a progress bar."""
        settings = self._settings_of(call, plan)
        options, on_progress = call.trainer_options, call.options.get("on_progress")

        def describe(tracker: "Tracker") -> None:
            record_setup(tracker, self._binding.manager_for(), settings, self.init_params_)

        shows = options.get("enable_progress_bar", True) and on_progress is None and is_watched()
        with (
            tracked(call.tracking, self.run_name, settings.run_dir, describe) as tracker,
            progress_bar() if shows else nullcontext(on_progress) as report,
            kept_models(self, savers_of(options), settings.run_dir),
        ):
            self.fit(
                settings,
                tracker=tracker,
                on_progress=report,
                callbacks=lightning_callbacks(options),
                loggers=lightning_loggers(options),
            )
        self.to_device(resolve_device(call.device_after))

    def _settings_of(self, call: TrainCall, plan: TrainingPlanConfig) -> FitSettings:
        """How to train, as a call of ``train()`` says."""
        return call.settings(self._binding.manager_for().store.n_obs, plan, self.run_name)

    # Disk

    def save(
        self,
        dir_path: PathLike,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        save_kwargs: Mapping[str, Any] | None = None,
        legacy_mudata_format: bool = False,
        datamodule: Any = None,
        **anndata_write_kwargs: Any,
    ) -> None:
        """Write the model to a directory, in scvi-tools' format.

        Parameters
        ----------
        dir_path
            Directory; a local path, or for the model alone any fsspec URL.
        prefix
            Put before the names of the files.
        overwrite
            Replace files in an existing directory.
        save_anndata
            Write the cells beside the model.
        save_kwargs, legacy_mudata_format, datamodule
            Of scvi-tools, about how and what torch pickles: files have one format here.
        **anndata_write_kwargs
            For ``AnnData.write_h5ad``, such as ``compression``; with an AnnData in memory.

        Raises
        ------
        OutputExists
            The directory is there and ``overwrite`` is False.
        """
        if save_kwargs or legacy_mudata_format or datamodule is not None:
            raise ConfigError(
                "save_kwargs, legacy_mudata_format and datamodule have no meaning here: model.pt "
                "has the one format that scvi-tools 1.4 reads. Leave them out."
            )
        cells = self._cells_to_save() if save_anndata else None
        save_directory(dir_path, self._to_file(), prefix, overwrite, cells, anndata_write_kwargs)

    def _cells_to_save(self) -> AnnDataManager:
        """The cells that are written beside the model."""
        return self._binding.manager_for()

    def _to_file(self) -> SavedModel:
        attributes = {
            "get_normalized_function_name_": self.get_normalized_function_name_,
            "history_": self.history_,
            "init_params_": self.init_params_,
            "is_trained_": self.is_trained_,
            "registry_": self.registry,
            "run_id_": self.run_id_,
            "run_name_": self.run_name_,
            **self._cells.to_attributes(),
        }
        state_dict, var_names = self.module.state_dict(), self.get_var_names()
        return SavedModel(state_dict=state_dict, var_names=var_names, attributes=attributes)

    @classmethod
    def load(
        cls,
        dir_path: PathLike,
        adata: Source = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        backup_url: str | None = None,
        datamodule: Any = None,
        allowed_classes_names_list: Sequence[str] | None = None,
    ) -> Any:
        """Read a model that scvi_dist or scvi-tools saved. Nothing in the file is run.

        Parameters
        ----------
        dir_path
            Directory that ``save()`` wrote; a local path or an fsspec URL.
        adata
            Its cells: an AnnData, a path, a URL or a store. ``None`` takes those saved beside
            it, ``False`` none.
        accelerator, device
            Where the weights go.
        prefix
            As it was given to ``save()``.
        backup_url
            Where ``model.pt`` is fetched from if it is not there.
        datamodule
            Not taken: give the store that it reads as ``adata``.
        allowed_classes_names_list
            Names of other classes whose files are accepted.

        Raises
        ------
        UnsafeFile
            The file asks for code to be run.
        SchemaMismatch
            The file or the data is of another kind.
        """
        if datamodule is not None:
            raise ConfigError("load() takes the store of the cells as adata=…, not a datamodule.")
        there = resolve_device(accelerator, device)
        allowed = (cls.__name__, *(allowed_classes_names_list or ()))
        saved, schema, arguments = read_model(dir_path, prefix, backup_url, allowed)
        where = redact_url(normalise_url(dir_path))
        model = cls._from_file(schema, arguments, saved, where)
        model._restore(saved.attributes)
        model.to_device(there)
        cells = saved_cells(dir_path, prefix) if adata is None else adata
        if cells is not None and cells is not False:
            model._attach(cells)
        return model

    def _attach(self, cells: Source) -> None:
        """Make some cells, brought into the model's schema, its own."""
        self._binding.attach(cells)

    @classmethod
    @abstractmethod
    def _of_schema(cls, schema: Schema, arguments: Mapping[str, Any]) -> Any:
        """A model without data."""

    @classmethod
    def _from_file(
        cls, schema: Schema, arguments: Mapping[str, Any], saved: SavedModel, where: str
    ) -> Any:
        """A model with a file's weights. Torch's random numbers are left as they were."""
        with torch.device("meta"):
            # No memory for what the file only claims: the weights must be there.
            check_weights(cls._of_schema(schema, arguments).module, saved, where)
        with torch.random.fork_rng(devices=[]):
            model = cls._of_schema(schema, arguments)
        model.module.load_state_dict(dict(saved.state_dict))
        return model

    def _restore(self, attributes: Mapping[str, Any]) -> None:
        self.is_trained_ = bool(attributes.get("is_trained_", False))
        name = attributes.get("get_normalized_function_name_", self.get_normalized_function_name_)
        self.get_normalized_function_name_ = name
        self.history_ = attributes.get("history_")
        self.run_name_ = attributes.get("run_name_", self.run_name_)
        self.run_id_ = attributes.get("run_id_", "")
        self._cells = TrainedCells.from_attributes(attributes)

    @staticmethod
    def load_registry(dir_path: PathLike, prefix: str | None = None) -> dict[str, Any]:
        """The registry of a saved model."""
        return dict(read_directory(dir_path, prefix).attributes["registry_"])

    @staticmethod
    def view_setup_args(dir_path: PathLike, prefix: str | None = None) -> None:
        """Print the arguments of ``setup_anndata`` of a saved model."""
        from rich.pretty import pprint

        pprint(BaseModel.load_registry(dir_path, prefix)["setup_args"])
