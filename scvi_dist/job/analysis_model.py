"""The model that an analysis asks: a saved folder, the folder of a run, or one of a registry."""

import os
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from scvi_dist.config import load_run
from scvi_dist.errors import ConfigError, ScviDistError, StoreNotFound
from scvi_dist.tracking import download_model

MODEL_FILE = "model.pt"
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundModel:
    """A saved model, and where its training was recorded."""

    folder: str
    """Of ``model.pt``; a local path or a URL."""
    name: str
    """As the user gave it."""
    class_name: str
    digest: str
    run_id: str
    """Of its training in MLflow; empty if that was not recorded."""
    tracking_uri: str
    """MLflow that the run is in; empty where it is not known."""

    def load(self, store: Any) -> Any:
        """The model, with these cells as its own."""
        import scvi_dist.model as models

        return getattr(models, self.class_name).load(self.folder, store)


def find_model(given: str, tracking: str) -> FoundModel:
    """The model that a command names.

    Parameters
    ----------
    given
        A folder that ``save()`` wrote, the folder of a run, or ``models:/…``.
    tracking
        As ``--tracking`` has it: ``auto``, ``off`` or a URI.

    Raises
    ------
    StoreNotFound
        There is no model.
    ConfigError
        It is not a model that can be asked.
    """
    uri = "" if tracking in ("auto", "off") else tracking
    if given.startswith("models:/"):
        folder = str(download_model(given, tracking_uri=uri or None))
        return _found(folder, given, uri or _environment())
    path = Path(given)
    if "://" not in given and not (path / MODEL_FILE).exists() and (path / "model").is_dir():
        return _found(str(path / "model"), given, uri or _uri_of_run(path))
    if "://" not in given and not (path / MODEL_FILE).exists():
        raise StoreNotFound(
            f"{given} holds no model: expected {MODEL_FILE} in it, or the folder of a run with a "
            "finished model, or models:/<name>/<version>."
        )
    beside = _uri_of_run(path.parent) if "://" not in given else ""
    return _found(given, given, uri or beside or _environment())


def _found(folder: str, given: str, uri: str) -> FoundModel:
    from scvi_dist.model.saving import read_directory

    attributes = read_directory(folder).attributes
    class_name = str(attributes.get("registry_", {}).get("model_name"))
    if class_name not in ("SCVI", "SCANVI", "TOTALVI"):
        raise ConfigError(
            f"{given} is a model of class {class_name}; these analyses ask SCVI, SCANVI and "
            "TOTALVI models."
        )
    return FoundModel(
        folder=folder,
        name=given,
        class_name=class_name,
        digest=_digest(folder),
        run_id=str(attributes.get("run_id_") or ""),
        tracking_uri=uri,
    )


def _digest(folder: str) -> str:
    from scvi_dist.data.filesystem import join_url, open_file

    state = blake2b(digest_size=16)
    with open_file(join_url(folder, MODEL_FILE)) as file:
        while block := file.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


def _uri_of_run(folder: Path) -> str:
    """The MLflow that a run's folder records to; empty where it records to none."""
    file = folder / "run.yaml"
    if not file.exists():
        return ""
    try:
        config = load_run(str(file))
        return config.tracking.resolve_uri(folder) if config.tracking.enabled else ""
    except (ScviDistError, OSError):
        # A run of another version; its model can be used all the same.
        return ""


def _environment() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI", "")
