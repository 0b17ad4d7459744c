"""The run file of each model: trained, asked, written and drawn, by the same main job."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

import scvi_dist
from scvi_dist.config import MODELS, RunConfig, parse_run
from scvi_dist.errors import ConfigError, FieldNotFound
from scvi_dist.job import run_job
from scvi_dist.job.plan import plan_job

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    # The whole of Lightning runs here: its warnings are not ours to refuse.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

NEEDED = {
    "SCVI": ["data.labels_key=label"],
    "SCANVI": ["data.labels_key=label", "data.unlabeled_category=Unknown"],
    "TOTALVI": ["data.protein_key=proteins"],
    "CellAssign": ["data.markers=markers.csv"],
}
N, G, P = 240, 30, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that has all that the models want, and a table of markers."""
    home = tmp_path_factory.mktemp("cells")
    rng = np.random.default_rng(0)
    names = [f"cell{i}" for i in range(N)]
    proteins = rng.poisson(8.0, (N, P)).astype(np.float32)
    batch = np.where(np.arange(N) % 2 == 0, "with", "without")
    proteins[batch == "without"] = 0
    kind = rng.integers(3, size=N)
    counts = rng.poisson(2.0, (N, G)).astype(np.float32)
    for i in range(3):
        counts[kind == i, 4 * i : 4 * i + 4] *= 12
    counts[:, -1] += 1
    label = np.where(rng.random(N) < 0.5, np.array(["a", "b", "c"])[kind], "Unknown")
    cells = anndata.AnnData(
        csr_matrix(counts),
        obs=pd.DataFrame(
            {"batch": pd.Categorical(batch), "label": pd.Categorical(label)}, index=names
        ),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(G)]),
        obsm={"proteins": pd.DataFrame(proteins, names, [f"p{i}" for i in range(P)])},
    )
    cells.write_h5ad(home / "cells.h5ad")
    markers = pd.DataFrame(0, index=[f"gene{i}" for i in range(12)], columns=["a", "b", "c"])
    for i in range(12):
        markers.iloc[i, i // 4] = 1
    markers.to_csv(home / "markers.csv")
    return home


@pytest.fixture(autouse=True)
def _in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def _config(name: str, out: Path, *overrides: str) -> RunConfig:
    return parse_run(
        "data: {store: cells.h5ad, batch_key: batch}",
        overrides=[
            f"model.name={name}",
            f"output.dir={out}",
            "output.map_cells=100",
            "train.workers=0",
            "train.max_epochs=2",
            "train.batch_size=60",
            "tracking.uri=off",
            *NEEDED[name],
            *overrides,
        ],
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_job_of_each_model(name: str, folder: Path, tmp_path: Path) -> None:
    config = _config(name, tmp_path / "run")
    plan = plan_job(config)
    result = run_job(config)
    kind = config.model.kind
    model = kind.model_class.load(tmp_path / "run" / "model", adata=folder / "cells.h5ad")
    assert plan.n_parameters == sum(p.numel() for p in model.module.parameters())
    assert result.metrics["evaluation/elbo"] < 0
    assert set(plan.makes) >= {"model/", "figures/"}
    assert bool(result.latent) is kind.has_latent
    assert bool(result.predictions) is kind.predicts
    if kind.has_latent:
        latent = anndata.read_zarr(result.latent)
        np.testing.assert_allclose(
            latent.obsm["X_latent"], model.get_latent_representation(), atol=1e-4
        )
        assert (tmp_path / "run" / "figures" / "latent.png").exists()
    if kind.predicts:
        (table,) = anndata.read_zarr(result.predictions).obsm.values()
        soft = model.predict() if name == "CellAssign" else model.predict(soft=True)
        np.testing.assert_allclose(np.asarray(table), soft, atol=1e-4)
        np.testing.assert_allclose(np.asarray(table).sum(1), 1.0, atol=1e-4)
    again = run_job(config)
    assert not again.interrupted
    assert again.predictions == result.predictions


def test_the_adversary_is_there_where_proteins_lack(folder: Path, tmp_path: Path) -> None:
    from scvi_dist.data.schema import fit_schema
    from scvi_dist.job.models import fit_settings

    given = ("train.plan.adversarial_classifier=false",)
    for overrides, expected in (((), True), (given, False)):
        config = _config("TOTALVI", tmp_path / "run", *overrides)
        with scvi_dist.open_store(folder / "cells.h5ad") as store:
            schema = fit_schema(store, config.setup)
        settings = fit_settings(config, schema, 90, run_dir=tmp_path, resume=False)
        assert settings.plan.adversarial_classifier is expected
        assert settings.plan.n_steps_kl_warmup == 30


def test_tables_of_markers_that_are_none_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "words.csv").write_text("gene,type\ngene1,a\n")
    (tmp_path / "strange.csv").write_text("gene,a\nENSG1,1\n")
    for name, error, message in (
        ("nowhere.csv", ConfigError, "cannot be read"),
        ("empty.csv", ConfigError, "cannot be read"),
        ("words.csv", ConfigError, "not a table of marker genes"),
        ("strange.csv", FieldNotFound, "none of the 1 marker genes"),
    ):
        config = _config("CellAssign", tmp_path / "run", f"data.markers={tmp_path / name}")
        with pytest.raises(error, match=message):
            plan_job(config)
