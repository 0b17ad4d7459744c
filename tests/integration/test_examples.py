"""The examples run as they are, from top to bottom."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.integration
@pytest.mark.slow
def test_train_scvi(tmp_path):
    anndata = pytest.importorskip("anndata")
    command = [sys.executable, str(EXAMPLES / "train_scvi.py")]
    options = ["--cells", "600", "--genes", "60", "--epochs", "2", "--folder", str(tmp_path)]
    out = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=False, timeout=240
    )
    assert out.returncode == 0, out.stderr
    latent = anndata.read_zarr(tmp_path / "latent.zarr")
    assert latent.n_obs == 600
    assert (tmp_path / "model" / "model.pt").is_file()
