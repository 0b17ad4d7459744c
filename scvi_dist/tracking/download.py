"""Fetches a model that a run logged or registered."""

import os
import tempfile
from pathlib import Path
from typing import Any

from scvi_dist.errors import TrackingError
from scvi_dist.tracking.mlflow_connection import Connection, brief


def download_model(
    model_uri: str,
    tracking_uri: str | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Path:
    """The folder of a model, as it was saved, on this disk; ``SCVI.load`` opens it.

    Parameters
    ----------
    model_uri
        ``models:/<name>@<alias>``, ``models:/<name>/<version>`` or ``models:/<model id>``.
    tracking_uri
        Server or database; ``None``: the environment's MLFLOW_TRACKING_URI.
    folder
        Where to put it; ``None``: a new temporary folder.

    Raises
    ------
    TrackingError
        There is no such model, or the server cannot be reached.
    """
    tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not tracking_uri:
        raise TrackingError(
            f"{model_uri}: which MLflow? Expected tracking_uri= or MLFLOW_TRACKING_URI to be set."
        )
    try:
        client = Connection(tracking_uri).client()
        source = _artifact_location(client, model_uri)
        from mlflow.artifacts import download_artifacts

        target = Path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="scvi-dist-"))
        target.mkdir(parents=True, exist_ok=True)
        return Path(
            download_artifacts(artifact_uri=source, dst_path=str(target), tracking_uri=tracking_uri)
        )
    except Exception as error:  # any client of an artifact store raises its own
        raise TrackingError(f"{model_uri} cannot be fetched: {brief(error)}") from error


def _artifact_location(client: Any, model_uri: str) -> str:
    name = model_uri.removeprefix("models:/").strip("/")
    if "@" in name:
        version = client.get_model_version_by_alias(*name.rsplit("@", 1))
    elif "/" in name:
        version = client.get_model_version(*name.rsplit("/", 1))
    else:
        return client.get_logged_model(name).artifact_location
    if version.source.startswith("models:/m-"):
        model_id = version.source.removeprefix("models:/")
        return client.get_logged_model(model_id).artifact_location
    return version.source
