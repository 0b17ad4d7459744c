"""Whether, where and under which names a run is recorded."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scvi_dist.errors import ConfigError
from scvi_dist.tracking.values import clean_key, redact

_ALIAS = re.compile(r"[\w-]{1,255}")
_VERSION_LIKE = re.compile(r"[vV]\d+|latest")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Where MLflow records a run."""

    uri: str = "auto"
    """``off``; ``auto`` (MLFLOW_TRACKING_URI, else SQLite beside the output folder); or a URI such
    as ``http://host:5000`` or ``sqlite:////absolute/path/mlflow.db``."""
    experiment: str = "scvi_dist"
    """Runs are grouped by experiment."""
    run_name: str | None = None
    """``None``: the name of the output folder."""
    register_as: str | None = None
    """Name in the model registry; ``None``: the model is recorded but not registered."""
    alias: str | None = "challenger"
    """Points at the version registered last; ``champion`` is left to you."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Put on the run as they are."""
    system_metrics_interval_s: float = 10.0
    """Seconds between two samples of CPU, memory, disk, network and GPU; 0: none."""

    def __post_init__(self) -> None:
        if not self.experiment:
            raise ConfigError("tracking.experiment: expected a name, seen an empty one.")
        if self.alias is not None and (
            not _ALIAS.fullmatch(self.alias) or _VERSION_LIKE.fullmatch(self.alias)
        ):
            raise ConfigError(
                f"tracking.alias: expected letters, digits, '_' or '-', and neither 'latest' nor "
                f"'v<number>' (MLflow keeps those); seen {self.alias!r}."
            )
        if self.system_metrics_interval_s < 0:
            raise ConfigError(
                "tracking.system_metrics_interval_s: expected 0 or more, "
                f"seen {self.system_metrics_interval_s}."
            )
        if self.uri not in ("off", "auto"):
            _check_uri(self.uri, "tracking.uri")

    @property
    def enabled(self) -> bool:
        return self.uri != "off"

    def resolve_uri(self, run_dir: str | os.PathLike[str]) -> str:
        """The MLflow URI that a run in ``run_dir`` is recorded at; means the same everywhere.

        A relative SQLite path is made absolute: workers have other working directories.
        """
        uri = self.uri
        if uri == "auto":
            uri = os.environ.get("MLFLOW_TRACKING_URI", "")
            if not uri:
                return f"sqlite:///{Path(run_dir).absolute().parent / 'mlflow.db'}"
            _check_uri(uri, "the environment's MLFLOW_TRACKING_URI")
        if uri.startswith("sqlite:///"):
            return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
        return uri


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingRef:
    """How another process finds a run that was started; picklable.

    Credentials belong in the environment (MLFLOW_TRACKING_USERNAME, …), not in the URI.
    """

    uri: str = field(repr=False)
    run_id: str
    """Empty while no server has been reached: the run is made once one answers."""
    experiment_id: str
    spool_dir: str
    """Folder that keeps what could not be delivered, and the state of the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What a registered model says of itself."""

    model_class: str
    """Such as ``SCVI``."""
    n_genes: int
    n_outputs: int
    """Numbers that it gives of a cell: dimensions of the latent space, or cell types."""
    var_names_digest: str
    """Tells genes in another order from the right ones; a signature only has their number."""
    schema_digest: str


def artifact_root(uri: str, experiment: str) -> str | None:
    """Where a SQLite file's experiment keeps files: beside it. A server decides for itself."""
    if not uri.startswith("sqlite:///"):
        return None
    folder = Path(uri.removeprefix("sqlite:///")).parent / "mlflow-artifacts"
    return (folder / clean_key(experiment).replace("/", "-")).as_uri()


def _check_uri(uri: str, where: str) -> None:
    if uri.startswith("file:") or ("://" not in uri and uri != "databricks"):
        raise ConfigError(
            f"{where}: expected 'off', 'auto', a server such as http://host:5000 or a database "
            f"such as sqlite:////absolute/path/mlflow.db, seen {redact(uri)!r}. MLflow no longer "
            "records to plain folders ('mlflow migrate-filestore' converts an old one)."
        )
