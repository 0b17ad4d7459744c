"""``scvi-dist de``, ``da`` and ``ppc``: tables, pictures, what is refused and what goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from scvi_dist import cli
from scvi_dist.analysis import result_figures
from scvi_dist.data.simulated.simulate import simulate_atlas
from scvi_dist.errors import OutputExists
from scvi_dist.job.analysis_folder import AnalysisFolder
from scvi_dist.job.analysis_jobs import mean_enrichment
from scvi_dist.model import SCVI


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small atlas, and a model of it."""
    folder = tmp_path_factory.mktemp("place")
    simulate_atlas(folder, n_cells=240, n_genes=30, n_shards=1, n_cell_types=3)
    SCVI.setup_anndata(folder / "atlas_0.h5ad", batch_key="batch", labels_key="cell_type")
    torch.manual_seed(0)
    model = SCVI(folder / "atlas_0.h5ad", n_hidden=16, n_latent=3)
    model.is_trained = True
    model.save(folder / "model")
    return folder


def run(place: Path, command: str, *arguments: object) -> int:
    where = (place / "model", place / "atlas_0.h5ad", *arguments)
    return cli.main([command, *map(str, where)])


DE = ("--groupby", "cell_type", "--delta", "0.1")


def test_de_writes_a_table_and_pictures_once(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "de"
    assert run(place, "de", *DE, "--out", out) == cli.DONE
    told = capsys.readouterr()
    assert "genes called" in told.out
    table = pd.read_parquet(out / "de.parquet")
    assert table.index.name == "feature"
    assert len(table) == 3 * 30
    assert set(table["comparison"]) == {f"cell_type_{i} vs Rest" for i in range(3)}
    pictures = [out / "figures" / name for name in ("volcano.png", "dots.png")]
    assert all(path.stat().st_size > 5_000 for path in pictures)
    assert not (out / ".partial").exists()
    written = (out / "de.parquet").stat().st_mtime_ns
    assert run(place, "de", *DE, "--out", out) == cli.DONE
    assert "nothing is left to do" in capsys.readouterr().err
    assert (out / "de.parquet").stat().st_mtime_ns == written


def test_what_is_missing_is_made_again(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "de"
    assert run(place, "de", *DE, "--out", out) == cli.DONE
    state = json.loads((out / "analysis.json").read_text())
    del state["stages"]["figures"]
    (out / "analysis.json").write_text(json.dumps(state))
    shutil.rmtree(out / "figures")
    written = (out / "de.parquet").stat().st_mtime_ns
    assert run(place, "de", *DE, "--out", out) == cli.DONE
    assert (out / "figures" / "dots.png").exists()
    assert (out / "de.parquet").stat().st_mtime_ns == written


def test_vanilla_of_two_groups(place: Path, tmp_path: Path) -> None:
    pair = ("--group1", "cell_type_0", "--group2", "cell_type_2", "--mode", "vanilla")
    assert run(place, "de", *DE, *pair, "--out", tmp_path / "de", "--dask", "sync") == cli.DONE
    table = pd.read_parquet(tmp_path / "de" / "de.parquet")
    assert set(table["comparison"]) == {"cell_type_0 vs cell_type_2"}
    assert "proba_m1" in table


def test_da_writes_densities_of_cells(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "da"
    options = ("--sample-key", "batch", "--groupby", "cell_type")
    assert run(place, "da", *options, "--out", out) == cli.DONE
    assert pd.read_parquet(out / "da.parquet").shape == (240, 3)
    assert pd.read_parquet(out / "da_means.parquet").shape == (3, 3)
    assert (out / "figures" / "abundance.png").stat().st_size > 5_000


def test_ppc_writes_a_table_for_each_metric(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ppc"
    metrics = "cv_cell,cv_gene,zero_fraction,calibration,diff_exp"
    options = ("--metrics", metrics, "--n-samples", 3, "--cells", 90, "--groupby", "cell_type")
    assert run(place, "ppc", *options, "--out", out) == cli.DONE
    assert "calibration error" in capsys.readouterr().out
    assert "Raw" in pd.read_parquet(out / "cv_cell.parquet")
    assert "Calibration" in (out / "report.html").read_text()
    assert len(pd.read_parquet(out / "cv_cell.parquet")) == 90
    assert len(pd.read_parquet(out / "cv_gene.parquet")) == 30
    for name in ("zero_fraction", "calibration", "coverage", "diff_exp"):
        assert len(pd.read_parquet(out / f"{name}.parquet"))
    assert (out / "figures" / "cv_gene.png").stat().st_size > 5_000
    assert (out / "figures" / "calibration.png").stat().st_size > 5_000


# What is refused

REFUSED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "a column": ("de", ("--groupby", "celltype"), "did you mean 'cell_type'"),
    "a delta": ("de", ("--groupby", "cell_type", "--delta", "x"), "a number or 'auto'"),
    "a rate": ("de", ("--groupby", "cell_type", "--fdr", "2"), "between 0 and 1"),
    "a sample": ("da", ("--sample-key", "donors"), "did you mean 'donor'"),
    "a metric": ("ppc", ("--metrics", "cv_genes"), "did you mean 'cv_gene'"),
    "no cells": ("ppc", ("--cells", "0"), "are positive"),
    "an engine": ("ppc", ("--dask", "cluster"), "Possible are"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_is_said(
    place: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, options, message = REFUSED[what]
    assert run(place, command, *options, "--out", tmp_path / "out") == cli.USAGE
    assert message in capsys.readouterr().err


def test_no_model_is_said(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["de", tmp_path, place / "atlas_0.h5ad", *DE, "--out", tmp_path / "out"]
    assert cli.main([str(value) for value in arguments]) == cli.USAGE
    assert "holds no model" in capsys.readouterr().err


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputExists, match="holds something else"):
        AnalysisFolder(str(tmp_path), {"command": "de"})
    with pytest.raises(OutputExists, match="is a file"):
        AnalysisFolder(str(tmp_path / "mine.txt"), {"command": "de"})
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_another_analysis_is_left_alone(tmp_path: Path) -> None:
    folder = AnalysisFolder(str(tmp_path / "a"), {"command": "de", "delta": 0.25})
    folder.done("tables", {"names": []})
    with pytest.raises(OutputExists, match=r"delta 0\.25; now delta 0\.5"):
        AnalysisFolder(str(tmp_path / "a"), {"command": "de", "delta": 0.5})
    again = AnalysisFolder(str(tmp_path / "a"), {"command": "de", "delta": 0.25})
    assert again.remembered("tables") == {"names": []}


# Tables and pictures


def test_enrichment_is_what_a_label_has_beyond_cell_and_sample() -> None:
    table = pd.DataFrame(
        [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], columns=["a", "b"]
    ) + np.array([[5.0, 2.0]])
    found = mean_enrichment(table, np.array(["x", "x", "y", "y"]))
    np.testing.assert_allclose(found.loc["x"], [0.5, -0.5])
    np.testing.assert_allclose(found.loc["y"], [-0.5, 0.5])


def expression(n_groups: int, **columns: Any) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    parts = []
    for group in range(n_groups):
        lfc = rng.normal(size=40)
        part = {
            "proba_not_de": np.exp(-np.abs(lfc)),
            "lfc_mean": lfc,
            "non_zeros_proportion1": rng.uniform(size=40),
            "is_de_fdr_0.05": np.abs(lfc) > 1.5,
            "comparison": f"group {group} vs Rest",
            **columns,
        }
        parts.append(pd.DataFrame(part, index=[f"g{i}" for i in range(40)]))
    return pd.concat(parts)


@pytest.mark.parametrize("n_groups", [1, 14])
def test_pictures_of_expression_fit_a_screen(tmp_path: Path, n_groups: int) -> None:
    from matplotlib.image import imread

    table = expression(n_groups)
    for draw in (result_figures.volcanoes, result_figures.dots):
        height, width = imread(draw(table, tmp_path / "x.png", "A title")).shape[:2]
        assert 300 < width < 6_000
        assert 200 < height < 2_500


def test_leading_genes_are_called_ones_that_go_up() -> None:
    table = pd.DataFrame(
        {
            "lfc_mean": [3.0, 1.0, 2.0, -4.0],
            "is_de_fdr_0.05": [False, True, True, True],
            "comparison": "a",
        },
        index=["loud", "one", "two", "down"],
    )
    assert result_figures.leading_genes(table, ["a"], 3) == ["two", "one", "loud"]
    assert result_figures.called_genes(table).tolist() == [False, True, True, True]


def test_vanilla_tables_can_be_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "proba_m1": 0.5,
            "bayes_factor": rng.normal(size=30) * 4,
            "scale1": rng.uniform(size=30),
            "scale2": rng.uniform(size=30),
            "comparison": "a vs b",
        },
        index=[f"g{i}" for i in range(30)],
    )
    assert result_figures.volcanoes(table, tmp_path / "v.png").stat().st_size > 5_000
    assert result_figures.dots(table, tmp_path / "d.png").stat().st_size > 5_000
