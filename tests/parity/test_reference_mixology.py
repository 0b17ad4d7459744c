"""A model that scvi-tools trained on real cells, computed by our VAE."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from scvi_dist.batch import REGISTRY_KEYS, CellBatch, SparseCounts
from scvi_dist.model.file_format import read_model_file
from scvi_dist.module import VAE, likelihood_parameters

pytestmark = pytest.mark.parity

N_DECODED = 64
"""Cells whose likelihood parameters the reference holds."""
RELATIVE = 1e-5


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "scvi_tools_1.4.2_scvi_mixology"


@pytest.fixture(scope="module")
def reference(folder: Path) -> Mapping[str, np.ndarray]:
    with np.load(folder / "reference.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def module(folder: Path) -> VAE:
    saved = read_model_file(folder / "model.pt")
    vae = VAE(n_input=len(saved.var_names), n_batch=5, n_labels=6)
    vae.load_state_dict(saved.state_dict, strict=True)
    return vae.eval()


@pytest.fixture(scope="module")
def cells(folder: Path) -> CellBatch:
    """All cells as one sparse minibatch, with the batch codes that scvi-tools gave them."""
    import h5py

    with h5py.File(folder / "adata.h5ad") as file:
        x = file["X"]
        counts = SparseCounts(
            torch.from_numpy(x["indptr"][:].astype(np.int64)),
            torch.from_numpy(x["indices"][:]),
            torch.from_numpy(x["data"][:]),
            int(x.attrs["shape"][1]),
        )
        codes = file["obs/_scvi_batch"]
        codes = codes if isinstance(codes, h5py.Dataset) else codes["codes"]
        batch = torch.from_numpy(codes[:].astype(np.int64)).unsqueeze(1)
    n = len(batch)
    fields = {REGISTRY_KEYS.BATCH_KEY: batch, REGISTRY_KEYS.LABELS_KEY: torch.zeros_like(batch)}
    return CellBatch(counts, fields, np.arange(n), n_global=n)


def assert_same(seen: Tensor, expected: np.ndarray) -> None:
    """Each entry relative to itself; where signs differ, relative to the largest of all."""
    assert seen.shape == expected.shape
    size = np.abs(expected)
    scale = size if (expected > 0).all() else size.max()
    assert (np.abs(seen.detach().numpy() - expected) <= RELATIVE * scale).all()


def test_posteriors_are_the_references(
    module: VAE, cells: CellBatch, reference: Mapping[str, np.ndarray]
) -> None:
    with torch.inference_mode():
        inferred, generated = module(cells, inference_kwargs={"use_mean": True}, compute_loss=False)
    qz = inferred["qz"]
    assert_same(qz.loc, reference["qz_m"])
    assert_same(qz.variance, reference["qz_v"])
    assert_same(kl_divergence(qz, generated["pz"]).sum(-1), reference["kl_z"])
    assert torch.equal(inferred["z"], qz.loc)


def test_likelihoods_are_the_references(
    module: VAE, cells: CellBatch, reference: Mapping[str, np.ndarray]
) -> None:
    with torch.inference_mode():
        _, _, loss = module(cells, inference_kwargs={"use_mean": True})
        px = module.decode_mean(cells)
    assert_same(loss.reconstruction_loss["reconstruction_loss"], reference["rec"])
    assert loss.n_obs_minibatch == len(reference["rec"])
    parts: dict[str, Any] = {
        "px_scale": px.get_normalized("scale"),
        "px_mu": px.mu,
        "px_theta": px.theta,
        "px_zi_logits": px.zi_logits,
    }
    for name, value in parts.items():
        assert_same(value[:N_DECODED], reference[name])
    parameters = likelihood_parameters(px)
    assert_same(parameters["mean"][:N_DECODED], reference["px_mu"])
    assert_same(parameters["dispersions"][:N_DECODED], reference["px_theta"])


def test_the_sampled_bound_is_near_the_references(
    module: VAE, cells: CellBatch, reference: Mapping[str, np.ndarray]
) -> None:
    """One draw a cell: the mean over 1,408 cells hardly moves with the draws."""
    torch.manual_seed(0)
    with torch.inference_mode():
        loss = module(cells)[2]
    assert loss.loss.item() == pytest.approx(-float(reference["elbo_sampled"]), rel=2e-3)
