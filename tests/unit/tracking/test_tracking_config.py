"""A tracking section is right, or refused before anything starts."""

from pathlib import Path

import pytest

from scvi_dist.errors import ConfigError
from scvi_dist.tracking import TrackingConfig
from scvi_dist.tracking.config import artifact_root


def test_auto_is_sqlite_beside_the_run_directory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert TrackingConfig().resolve_uri(tmp_path / "run") == f"sqlite:///{tmp_path}/mlflow.db"


def test_auto_follows_the_environment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert TrackingConfig().resolve_uri(tmp_path) == "http://tracker:5000"


def test_an_explicit_uri_wins_over_the_environment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert TrackingConfig(uri="http://other").resolve_uri(tmp_path) == "http://other"


def test_a_relative_database_means_the_same_from_every_directory(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = TrackingConfig(uri="sqlite:///runs.db").resolve_uri(tmp_path)
    assert uri == f"sqlite:///{tmp_path}/runs.db"


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "./mlruns", "mlruns", ""])
def test_plain_folders_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:///"):
        TrackingConfig(uri=uri)


def test_a_plain_folder_in_the_environment_is_refused_by_name(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///tmp/mlruns")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        TrackingConfig().resolve_uri(tmp_path)


@pytest.mark.parametrize("alias", ["latest", "v3", "V12", "a b", "a/b", ""])
def test_aliases_that_mlflow_keeps_for_itself_are_refused(alias: str) -> None:
    with pytest.raises(ConfigError, match="alias"):
        TrackingConfig(alias=alias)


@pytest.mark.parametrize("field", [{"experiment": ""}, {"system_metrics_interval_s": -1.0}])
def test_other_bad_values_are_refused_by_name(field: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(field))):
        TrackingConfig(**field)


def test_only_a_database_file_decides_where_artifacts_go(tmp_path: Path) -> None:
    assert artifact_root("http://host", "a") is None
    root = artifact_root(f"sqlite:///{tmp_path}/mlflow.db", "atlas/lung [1]")
    assert root == (tmp_path / "mlflow-artifacts" / "atlas-lung _1_").as_uri()
