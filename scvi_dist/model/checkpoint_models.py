"""Checkpoints of a run as models on disk."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scvi_dist.errors import TrainingFailed
from scvi_dist.train.checkpoint import list_checkpoints, ranked_checkpoints
from scvi_dist.train.save_checkpoint import SaveCheckpoint

if TYPE_CHECKING:
    from scvi_dist.model.base import BaseModel


@contextmanager
def kept_models(
    model: "BaseModel", savers: Sequence[SaveCheckpoint], run_dir: str | None
) -> Iterator[None]:
    """Training happens inside; then the best checkpoints are written as models.

    Raises
    ------
    TrainingFailed
        As training did; the model has its best weights then, where that was asked for.
    """
    try:
        yield
    except TrainingFailed as error:
        for saver in savers:
            if saver.check_nan_gradients and _write(model, saver, run_dir, take_best=True):
                model.is_trained = True
                error.add_note(
                    f"As was asked for, it then took those of {saver.best_model_path}, the best "
                    "so far."
                )
        raise
    for saver in savers:
        _write(model, saver, run_dir, take_best=saver.load_best_on_end)


def _write(model: "BaseModel", saver: SaveCheckpoint, run_dir: str | None, take_best: bool) -> bool:
    """Write the best models; whether there is any. ``take_best`` leaves the best one's weights."""
    assert run_dir is not None, "a run that keeps models has a folder"
    present = ranked_checkpoints(list_checkpoints(run_dir), saver.monitor, saver.mode)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    was_trained, saver.best_k_models = model.is_trained, {}
    model.is_trained = True
    for checkpoint in present[: saver.save_top_k]:
        model.module.load_state_dict(checkpoint.load()["module"])
        folder = saver.folder_of(checkpoint, run_dir)
        model.save(folder, overwrite=True)
        saver.best_k_models[str(folder)] = checkpoint.metrics[saver.monitor]
    model.is_trained = was_trained
    best = present[0].load()["module"] if present and take_best else before
    model.module.load_state_dict(best)
    return bool(present)
