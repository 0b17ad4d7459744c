"""``scvi-dist de`` after a run: it finds the run's model, and is recorded below the run."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from scvi_dist import cli
from scvi_dist.data.simulated.simulate import simulate_atlas
from scvi_dist.tracking.parents import PARENT_TAG

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    # The whole of Lightning and MLflow runs here: their warnings are not ours to refuse.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _no_server_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "DASK_SCHEDULER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas, and a run on it with an MLflow file beside."""
    folder = tmp_path_factory.mktemp("place")
    simulate_atlas(folder, n_cells=300, n_genes=40, n_shards=1, n_cell_types=3)
    (folder / "run.yaml").write_text(
        f"data: {{store: {folder}/atlas.zarr, batch_key: batch}}\n"
        "train: {workers: 0, max_epochs: 1, batch_size: 64}\n"
        "tracking: {experiment: atlas, register_as: atlas, system_metrics_interval_s: 0}\n"
        f"output: {{dir: {folder}/run, figures: false, latent: false}}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert cli.main(["run", str(folder / "run.yaml")]) == cli.DONE
    return folder


def runs_of(place: Path) -> tuple[Any, list[Any]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    return client, client.search_runs([client.get_experiment_by_name("atlas").experiment_id])


def test_an_analysis_is_recorded_below_the_run_of_its_model(place: Path, tmp_path: Path) -> None:
    store, out = str(place / "atlas.zarr"), str(tmp_path / "de")
    asked = ["de", str(place / "run"), store, "--groupby", "cell_type", "--out", out]
    assert cli.main(asked) == cli.DONE
    client, runs = runs_of(place)
    (child,) = [run for run in runs if PARENT_TAG in run.data.tags]
    (parent,) = [run for run in runs if PARENT_TAG not in run.data.tags]
    assert child.data.tags[PARENT_TAG] == parent.info.run_id
    assert child.info.status == "FINISHED"
    assert child.data.metrics["de/comparisons"] == 3
    assert child.data.params["groupby"] == "cell_type"
    listed = {
        file.path
        for folder in ("tables", "figures")
        for file in client.list_artifacts(child.info.run_id, folder)
    }
    assert listed == {"tables/de.parquet", "figures/dots.png", "figures/volcano.png"}
    # Finished: the same command records nothing more.
    assert cli.main(asked) == cli.DONE
    assert len(runs_of(place)[1]) == 2


def test_a_registered_model_gives_the_same_table(place: Path, tmp_path: Path) -> None:
    how = ["--groupby", "cell_type", "--out"]
    tables = []
    for number, model in enumerate([str(place / "run" / "model"), "models:/atlas/1"]):
        out = tmp_path / str(number)
        uri = ["--tracking", f"sqlite:///{place}/mlflow.db"]
        store = str(place / "atlas.zarr")
        assert cli.main(["de", model, store, *how, str(out), *uri]) == cli.DONE
        tables.append(pd.read_parquet(out / "de.parquet"))
    pd.testing.assert_frame_equal(*tables)
    off = tmp_path / "off"
    asked = ["de", str(place / "run"), str(place / "atlas.zarr"), *how, str(off)]
    assert cli.main([*asked, "--tracking", "off"]) == cli.DONE
    assert not (off / "tracking").exists()
