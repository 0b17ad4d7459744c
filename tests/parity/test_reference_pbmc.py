"""A TOTALVI that scvi-tools trained on real cells, computed by our TOTALVAE."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scvi_dist.batch import REGISTRY_KEYS, CellBatch, SparseCounts
from scvi_dist.model.file_format import read_model_file
from scvi_dist.module import TOTALVAE

pytestmark = pytest.mark.parity

N_DECODED = 64
"""Cells whose decoded values the reference holds."""
RELATIVE = 1e-5
PROTEINS = {
    "pro_back_alpha": "back_alpha",
    "pro_back_beta": "back_beta",
    "pro_fore_scale": "fore_scale",
    "pro_mixing": "mixing",
}


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "scvi_tools_1.4.2_totalvi_pbmc"


@pytest.fixture(scope="module")
def reference(folder: Path) -> Mapping[str, np.ndarray]:
    with np.load(folder / "reference.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def module(folder: Path) -> TOTALVAE:
    """The weights in a new module; the second batch has no proteins."""
    saved = read_model_file(folder / "model.pt")
    n_proteins = len(saved.state_dict["py_r"])
    built = TOTALVAE(
        n_input_genes=len(saved.var_names),
        n_input_proteins=n_proteins,
        n_batch=2,
        n_latent=10,
        protein_batch_mask={"0": [True] * n_proteins, "1": [False] * n_proteins},
    )
    built.load_state_dict(saved.state_dict, strict=True)
    return built.eval()


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
        table = file["obsm/protein_expression"]
        columns = [table[name][:] for name in table.attrs["column-order"]]
        codes = file["obs/_scvi_batch"]
        codes = codes if isinstance(codes, h5py.Dataset) else codes["codes"]
        batch = torch.from_numpy(codes[:].astype(np.int64)).unsqueeze(1)
    n = len(batch)
    fields = {
        REGISTRY_KEYS.BATCH_KEY: batch,
        REGISTRY_KEYS.LABELS_KEY: torch.zeros_like(batch),
        REGISTRY_KEYS.PROTEIN_EXP_KEY: torch.from_numpy(np.stack(columns, 1)).float(),
    }
    return CellBatch(counts, fields, np.arange(n), n_global=n)


def assert_same(seen: Tensor, expected: np.ndarray) -> None:
    """Each entry relative to itself; where signs differ, relative to the largest of all."""
    assert seen.shape == expected.shape
    size = np.abs(expected)
    scale = size if (expected > 0).all() else size.max()
    assert (np.abs(seen.detach().numpy() - expected) <= RELATIVE * scale).all()


def test_posteriors_are_the_references(
    module: TOTALVAE, cells: CellBatch, reference: Mapping[str, np.ndarray]
) -> None:
    with torch.inference_mode():
        inferred, _, loss = module(cells, inference_kwargs={"use_mean": True})
    assert_same(inferred["qz"].loc, reference["qz_m"])
    assert_same(inferred["qz"].variance, reference["qz_v"])
    assert_same(loss.kl_local["kl_div_z"], reference["kl_z"])
    assert torch.equal(inferred["z"], inferred["qz"].loc)


def test_decoded_values_are_the_references(
    module: TOTALVAE, cells: CellBatch, reference: Mapping[str, np.ndarray]
) -> None:
    """Not the background rates, of which the reference has draws; what their ratio is it does."""
    with torch.inference_mode():
        inferred, generated = module(cells, inference_kwargs={"use_mean": True}, compute_loss=False)
        columns, codes = module.decoder_input(
            inferred["z"], cells[REGISTRY_KEYS.BATCH_KEY], None, None
        )
        decoded, _, _ = module.decoder(columns, inferred["library_gene"], *codes)
    for name in ("scale", "rate"):
        assert_same(generated["px_"][name][:N_DECODED], reference[name])
    # A module without extra zeros does not compute them; the weights are there all the same.
    assert generated["px_"]["dropout"] is None
    assert_same(decoded["dropout"][:N_DECODED], reference["dropout"])
    for name, ours in PROTEINS.items():
        assert_same(generated["py_"][ours][:N_DECODED], reference[name])
    ratio = generated["py_"]["rate_fore"] / generated["py_"]["rate_back"]
    assert_same(
        ratio[:N_DECODED].log(), np.log(reference["pro_rate_fore"] / reference["pro_rate_back"])
    )


def test_the_sampled_bound_is_near_the_references(
    module: TOTALVAE, cells: CellBatch, reference: Mapping[str, np.ndarray]
) -> None:
    """One draw a cell: the mean over 2,000 cells hardly moves with the draws."""
    torch.manual_seed(0)
    with torch.inference_mode():
        loss = module(cells)[2]
    assert loss.loss.item() == pytest.approx(-float(reference["elbo_sampled"]), rel=2e-3)
