"""The examples run as they are, from top to bottom, and find what was put into the data."""

import re
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from scvi_dist import cli

anndata = pytest.importorskip("anndata")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    # All of Lightning and anndata run here: their warnings are not ours to refuse.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CELLS, GENES, TYPES = 600, 120, 5


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *options: object) -> None:
    """The script as ``python examples/NAME`` runs it, but in this process: imports take seconds."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@dataclass(frozen=True, kw_only=True)
class Script:
    name: str
    genes: int
    epochs: int
    figure: str
    """Of what it prints: the figure that says how good the model is."""
    at_least: float
    """Above what a guess reaches."""
    files: tuple[str, ...] = ()


SCRIPTS = [
    Script(
        name="train_scvi.py",
        genes=60,
        epochs=2,
        figure=r"latent space \(\d+, (\d+)\)",
        at_least=10,
        files=("latent.zarr",),
    ),
    # 8 types: a guess is right for some 13 to 20 of 100 cells.
    Script(
        name="train_scanvi.py",
        genes=150,
        epochs=10,
        figure=r"([\d.]+)% of the others are right",
        at_least=30,
        files=("predictions.zarr",),
    ),
    Script(
        name="train_totalvi.py",
        genes=60,
        epochs=15,
        figure=r"mean correlation (-?[\d.]+)",
        at_least=0.3,
    ),
    # 3 types.
    Script(
        name="train_cellassign.py",
        genes=60,
        epochs=100,
        figure=r"([\d.]+)% of the cells are given their type",
        at_least=80,
    ),
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_finds_what_was_simulated(
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--cells", CELLS, "--genes", script.genes, "--epochs", script.epochs)
    run_script(monkeypatch, script.name, *options, "--folder", tmp_path)
    printed = capsys.readouterr().out
    found = re.search(script.figure, printed)
    assert found is not None, printed
    assert float(found[1]) >= script.at_least, printed
    assert (tmp_path / "model" / "model.pt").is_file()
    for name in script.files:
        assert anndata.read_zarr(tmp_path / name).n_obs == CELLS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What make_cells.py leaves."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        run_script(patch, "make_cells.py", "--cells", CELLS, "--genes", GENES, "--folder", folder)
    return folder


def test_made_cells_have_what_their_words_promise(data: Path) -> None:
    cells = anndata.read_h5ad(data / "cells.h5ad")
    truth, label = (cells.obs[name].astype(str).to_numpy() for name in ("cell_type", "label"))
    is_known = label != "Unknown"
    assert (label[is_known] == truth[is_known]).all()
    assert 0.25 < is_known.mean() < 0.42
    assert set(label[is_known]) == set(truth)
    proteins = cells.obsm["protein_expression"]
    mean_tp = proteins.groupby(truth).mean()
    stands_out_p = (mean_tp > 40).sum()
    assert set(stands_out_p) == {1, 2}
    # The background is in all types.
    assert (mean_tp > 1).all(axis=None)


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells and markers that train_cellassign.py leaves."""
    folder = tmp_path_factory.mktemp("marked")
    with pytest.MonkeyPatch.context() as patch:
        options = ("--cells", CELLS, "--genes", 60, "--epochs", 1, "--folder", folder)
        run_script(patch, "train_cellassign.py", *options)
    return folder


@dataclass(frozen=True, kw_only=True)
class RunFile:
    model: str
    overrides: tuple[str, ...]
    latent: int | None
    """Dimensions of the latent space."""
    predicts: int | None
    """Labels or types that it gives probabilities of."""
    store: str = "data"
    """Fixture of the folder that holds the cells."""
    truth: str = "cell_type"
    accuracy: float = 0.0
    """Of the predictions of cells whose label is hidden, at least; above what a guess reaches."""
    order: tuple[int, ...] = tuple(range(TYPES))
    """Type of each column of the predictions."""


RUN_FILES = [
    RunFile(
        model="scanvi",
        overrides=("train.max_epochs=12", "train.batch_size=32"),
        latent=10,
        predicts=TYPES,
        accuracy=0.45,
        # "Unknown", first by name, changes places with the last label, as in scvi-tools.
        order=(4, 0, 1, 2, 3),
    ),
    RunFile(model="totalvi", overrides=("train.max_epochs=3",), latent=20, predicts=None),
    RunFile(
        model="cellassign",
        overrides=("train.max_epochs=100",),
        latent=None,
        predicts=3,
        store="marked",
        truth="truth",
        accuracy=0.9,
        order=(0, 1, 2),
    ),
]


@pytest.mark.parametrize("file", RUN_FILES, ids=lambda file: file.model)
def test_run_file_makes_what_it_says(
    file: RunFile,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, out = request.getfixturevalue(file.store), tmp_path / "out"
    markers = [f"data.markers={data / 'markers.csv'}"] if file.store == "marked" else []
    overrides = [
        f"data.store={data / 'cells.h5ad'}",
        *markers,
        *file.overrides,
        "train.workers=0",
        "tracking.uri=off",
        f"output.dir={out}",
        "output.map_cells=100",
    ]
    run_file = EXAMPLES / f"run_{file.model}.yaml"
    assert cli.main(["run", str(run_file), *overrides]) == cli.DONE, capsys.readouterr().err
    assert (out / "model" / "model.pt").is_file()
    assert (out / "figures" / "loss.png").is_file()
    assert (out / "figures" / "latent.png").is_file() == (file.latent is not None)
    assert (out / "latent.zarr").exists() == (file.latent is not None)
    assert (out / "predictions.zarr").exists() == (file.predicts is not None)
    if file.latent is not None:
        latent = anndata.read_zarr(out / "latent.zarr")
        assert latent.obsm["X_latent"].shape == (CELLS, file.latent)
    if file.predicts is not None:
        _assert_predictions(out / "predictions.zarr", file, data)


def _assert_predictions(path: Path, file: RunFile, data: Path) -> None:
    """Probabilities that add up to one, and are mostly right."""
    predictions = anndata.read_zarr(path)
    (probability_nt,) = (np.asarray(values) for values in predictions.obsm.values())
    assert probability_nt.shape == (CELLS, file.predicts)
    np.testing.assert_allclose(probability_nt.sum(axis=1), 1, atol=1e-4)
    cells = anndata.read_h5ad(data / "cells.h5ad", backed="r")
    names = cells.obs[file.truth].cat.categories.to_numpy()[list(file.order)]
    predicted = names[probability_nt.argmax(axis=1)]
    is_hidden = (
        (cells.obs["label"] == "Unknown").to_numpy() if "label" in cells.obs else slice(None)
    )
    truth = cells.obs[file.truth].astype(str).to_numpy()
    cells.file.close()
    assert (predicted == truth)[is_hidden].mean() > file.accuracy


def test_query_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--cells", CELLS, "--genes", 60, "--epochs", 2, "--folder", tmp_path)
    run_script(monkeypatch, "map_query.py", *options)
    assert (tmp_path / "reference" / "model.pt").is_file()
    assert (tmp_path / "query" / "model.pt").is_file()
