"""The criticism report: complete, readable by programs, and without a trace in the data."""

import json
import re
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from scvi_dist.criticism import create_criticism_report
from scvi_dist.criticism.report_tables import fit_of
from scvi_dist.criticism.report_text import Document, Section, html, markdown, shown
from scvi_dist.errors import ConfigError
from scvi_dist.model import SCVI

N, G = 80, 20


@pytest.fixture(scope="module")
def model() -> SCVI:
    rng = np.random.default_rng(0)
    group = rng.integers(3, size=N)
    counts = rng.poisson(rng.lognormal(0, 1, (3, G))[group]).astype(np.float32)
    obs = pd.DataFrame(
        {"kind": pd.Categorical.from_codes(group, ["a|b", "<c>", "d"])},
        index=[f"cell{i}" for i in range(N)],
    )
    cells = anndata.AnnData(csr_matrix(counts), obs=obs)
    SCVI.setup_anndata(cells, labels_key="kind")
    torch.manual_seed(0)
    model = SCVI(cells, n_hidden=8, n_latent=3)
    model.is_trained = True
    model.train_indices, model.validation_indices = np.arange(60), np.arange(60, N)
    return model


def test_all_files_are_written_and_agree(model: SCVI, tmp_path: Path) -> None:
    before = repr(model.adata), list(model.adata.obs.columns)
    report = create_criticism_report(model, save_folder=tmp_path / "report", seed=1)
    assert report.folder is not None
    names = {str(p.relative_to(report.folder)) for p in report.folder.rglob("*") if p.is_file()}
    figures = {"cv_gene", "cv_cell", "zero_fraction", "calibration", "agreement", "fold_changes"}
    assert names == {"report.html", "report.md", "metrics.json"} | {
        f"figures/{name}.png" for name in figures
    }
    text = (report.folder / "report.md").read_text(encoding="utf-8")
    assert text == report.markdown
    assert set(re.findall(r"\((figures/.*?)\)", text)) <= names
    page = (report.folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(figures)
    assert "&lt;c&gt;" in page
    assert "<c>" not in page
    assert "http" not in page
    metrics = json.loads((report.folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == report.metrics
    assert set(metrics) >= {"cell_wise_cv", "gene_wise_cv", "diff_exp", "numbers"}
    assert "| Metric | training | validation |" in metrics["cell_wise_cv"]
    assert r"a\|b" in metrics["diff_exp"]
    error = report.check.metrics["calibration"].loc["features", "model"]
    assert metrics["numbers"]["calibration_error"] == error
    assert (repr(model.adata), list(model.adata.obs.columns)) == before


def test_what_is_skipped_is_not_there(model: SCVI) -> None:
    skipped = ("cv_cell", "diff_exp", "calibration")
    report = create_criticism_report(model, skip_metrics=skipped, indices=np.arange(50), seed=1)
    assert report.folder is None
    assert set(report.check.metrics) == {"cv_gene", "zero_fraction"}
    assert report.metrics["cell_wise_cv"] == report.metrics["diff_exp"] == ""
    assert "Calibration" not in report.markdown
    with pytest.raises(ConfigError, match="cv_gene"):
        create_criticism_report(model, skip_metrics=["cv_genes"])
    everything = ("cv_cell", "cv_gene", "zero_fraction", "calibration", "diff_exp")
    with pytest.raises(ConfigError, match="nothing is left"):
        create_criticism_report(model, skip_metrics=everything)


def test_without_groups_the_report_says_what_is_left_out(model: SCVI) -> None:
    cells = model.adata.copy()
    SCVI.setup_anndata(cells)
    other = SCVI(cells, n_hidden=8)
    other.is_trained = True
    report = create_criticism_report(other, seed=1, n_samples=2)
    assert "diff_exp" not in report.check.metrics
    assert "label_key" in report.markdown
    report = create_criticism_report(other, label_key="kind", seed=1, n_samples=2)
    assert len(report.check.metrics["diff_exp"]["summary"]) == 3


def test_fit_counts_what_the_model_explains() -> None:
    rng = np.random.default_rng(0)
    raw = rng.normal(size=200)
    perfect = fit_of(raw, raw)
    assert perfect == pytest.approx(dict(zip(perfect, (0.0, 1.0, 1.0, 1.0), strict=True)))
    model = np.append(2 * raw, np.nan)
    fit = fit_of(model, np.append(raw, 0.0))
    assert fit["R² (R-Squared)"] == pytest.approx(
        1 - (raw**2).sum() / ((raw - raw.mean()) ** 2).sum()
    )
    assert all(np.isnan(v) for k, v in fit_of(np.ones(3), np.ones(3)).items() if "Abs" not in k)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345, "12,345"),
        (0.12345, "0.123"),
        (1.5e-7, "1.5e-07"),
        (float("nan"), "n/a"),
        (0.0, "0.000"),
    ],
)
def test_values_are_short(value: Any, text: str) -> None:
    assert shown(value) == text


def test_a_document_is_escaped(tmp_path: Path) -> None:
    table = pd.DataFrame({"<v>": [1.0]}, index=pd.Index(["a|b"], name="n"))
    document = Document(
        title="T & U", lead="x < y", sections=[Section(title="<s>", text="t", table=table)]
    )
    page, text = html(document, tmp_path), markdown(document)
    assert "T &amp; U" in page
    assert "x &lt; y" in page
    assert "<v>" not in page
    assert "| a\\|b | 1.000 |" in text
