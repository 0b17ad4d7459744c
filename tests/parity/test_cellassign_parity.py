"""CellAssign and scvi-tools' CellAssign: weights, loss, gradients, a step, files; and R's fit."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from scvi_dist.distributions import log_nb_positive
from scvi_dist.model import CellAssign
from scvi_dist.module.cellassign import CellAssignModule

pytestmark = pytest.mark.parity

CASES: dict[str, dict[str, Any]] = {
    "no covariates": {},
    "a batch": {"n_batch": 1},
    "all covariates": {"n_batch": 3, "n_cats_per_cov": [2, 4], "n_continuous_cov": 2},
    "given start": {"n_batch": 2, "random_b_g_0": False},
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
N, G, C = 60, 12, 5


@contextmanager
def quiet() -> Iterator[None]:
    """scvi-tools and its dependencies warn of many things."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def theirs() -> Any:
    with quiet():
        pytest.importorskip("scvi")
        from scvi.external import cellassign

    return cellassign


def new(cls: Callable[..., Any], case: dict[str, Any], moved: bool = True) -> Any:
    """A module of either make; ``moved`` to where means lie among the centres of the basis."""
    torch.manual_seed(0)
    rho = (torch.rand(G, C) < 0.4).float()
    start = torch.linspace(-1, 1, G)
    with quiet():
        module = cls(n_genes=G, rho=rho, basis_means=np.linspace(0, 60, 10), b_g_0=start, **case)
    if moved:
        with torch.no_grad():
            for name in ("log_a", "delta_log_mean", "delta_log_log_scale"):
                getattr(module, name).normal_(0, 0.3)
            module.delta_log.clamp_(-0.5, 0.4)
            if module.beta is not None:
                module.beta.normal_(0, 0.2)
    return module


def minibatch(case: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    batch = {
        "X": torch.poisson(torch.rand(N, G) ** 2 * 20),
        "batch": torch.randint(0, max(case.get("n_batch", 1), 1), (N, 1)),
        "size_factor": torch.rand(N, 1) + 0.5,
    }
    if "n_cats_per_cov" in case:
        codes = [torch.randint(0, n, (N, 1)) for n in case["n_cats_per_cov"]]
        batch["extra_categorical_covs"] = torch.cat(codes, 1)
        batch["extra_continuous_covs"] = torch.randn(N, case["n_continuous_cov"])
    return batch


def as_float64(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


@contextmanager
def in_float64() -> Iterator[None]:
    """scvi-tools makes float32 tensors on the way; here they are float64."""
    plain, default = Tensor.float, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    Tensor.float = Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.float = plain  # type: ignore[method-assign]
        torch.set_default_dtype(default)


def results(module: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs, loss terms and gradients."""
    module.zero_grad()
    _, generated, output = module(batch, loss_kwargs={"n_obs": 430})
    output.loss.backward()
    return {
        "p_x_c": generated["p_x_c"].detach(),
        "gamma": generated["gamma"].detach(),
        "loss": output.loss.detach(),
        "per cell": output.reconstruction_loss["reconstruction_loss"].detach(),
        "prior": output.kl_global_sum.detach(),
        **{k: p.grad.clone() for k, p in module.named_parameters() if p.grad is not None},
    }


def assert_near(seen: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        error = (seen[name].double() - value.double()).abs().max() / value.abs().max()
        assert error <= rtol, (name, float(error))


@each_case
def test_initial_weights_are_theirs_bit_for_bit(theirs: Any, case: dict[str, Any]) -> None:
    ours = new(CellAssignModule, case, moved=False).state_dict()
    there = new(theirs.CellAssignModule, case, moved=False).state_dict()
    assert list(ours) == list(there)
    assert all(torch.equal(ours[name], value) for name, value in there.items())


@each_case
def test_loss_and_gradients_are_theirs(theirs: Any, case: dict[str, Any]) -> None:
    """Theirs in float64: their float32 is as far from it as 6e-5."""
    batch = minibatch(case)
    there = new(theirs.CellAssignModule, case).double()
    with quiet(), in_float64():
        exact = results(there, as_float64(batch))
    assert_near(results(new(CellAssignModule, case), batch), exact, 1e-5)
    assert_near(results(new(CellAssignModule, case).double(), as_float64(batch)), exact, 1e-10)
    with quiet():
        in_float32 = results(new(theirs.CellAssignModule, case), batch)
    assert_near(results(new(CellAssignModule, case), batch), in_float32, 1e-4)


def test_from_the_start_float32_is_nearer_to_float64_than_theirs(theirs: Any) -> None:
    """Random weights put means between the centres, where scvi-tools' float32 loses digits."""
    case = CASES["all covariates"]
    batch = minibatch(case)
    there = new(theirs.CellAssignModule, case, moved=False).double()
    with quiet(), in_float64():
        exact = results(there, as_float64(batch))
    with quiet():
        their_results = results(new(theirs.CellAssignModule, case, moved=False), batch)
    ours = results(new(CellAssignModule, case, moved=False), batch)
    assert_near(ours, exact, 2e-5)
    for name in ("delta_log", "b_g_0"):
        errors = [(r[name].double() - exact[name]).abs().max() for r in (ours, their_results)]
        assert errors[0] < errors[1]


@each_case
def test_a_step_with_the_constraint_is_theirs(theirs: Any, case: dict[str, Any]) -> None:
    batch = minibatch(case)
    ours, there = new(CellAssignModule, case), new(theirs.CellAssignModule, case).double()
    results(ours, batch)
    with quiet(), in_float64():
        results(there, as_float64(batch))
    states = []
    for module in (ours, there):
        trained = {k: p for k, p in module.named_parameters() if p.grad is not None}
        torch.optim.Adam(trained.values(), lr=3e-3, eps=0.01, weight_decay=1e-10).step()
        states.append({k: p.detach() for k, p in trained.items()})
    ours.constrain()
    plan = type("Plan", (), {"module": there})
    theirs._model.ClampCallback().on_train_batch_end(None, plan, None, None, 0)
    assert_near(*states, 1e-5)


# The model


@pytest.fixture(scope="module")
def example(shared_data: Path) -> tuple[anndata.AnnData, pd.DataFrame]:
    """The R package's example and its table of markers."""
    adata = anndata.read_h5ad(shared_data / "cellassign_example.h5ad")
    markers = pd.read_csv(shared_data / "cellassign_example_markers.csv", index_col=0)
    return adata, markers


def trained_theirs(theirs: Any, adata: anndata.AnnData, markers: pd.DataFrame) -> Any:
    with quiet():
        theirs.CellAssign.setup_anndata(adata, size_factor_key="size_factor", batch_key="plate")
        torch.manual_seed(0)
        model = theirs.CellAssign(adata, markers)
        model.train(3, accelerator="cpu", enable_progress_bar=False)
    return model


@pytest.fixture
def with_plates(example: Any) -> tuple[anndata.AnnData, pd.DataFrame]:
    adata, markers = example
    cells = adata[:120, markers.index].copy()
    cells.obs["plate"] = pd.Categorical(np.where(np.arange(120) % 3, "p1", "p2"))
    return cells, markers


def test_a_new_model_starts_where_theirs_does(theirs: Any, with_plates: Any) -> None:
    """Basis, columns of the design, initial weights: from one pass over the cells."""
    adata, markers = with_plates
    with quiet():
        theirs.CellAssign.setup_anndata(adata, size_factor_key="size_factor", batch_key="plate")
        torch.manual_seed(0)
        there = theirs.CellAssign(adata, markers, random_b_g_0=False).module.state_dict()
    CellAssign.setup_anndata(adata, size_factor_key="size_factor", batch_key="plate")
    torch.manual_seed(0)
    ours = CellAssign(adata, markers, random_b_g_0=False).module.state_dict()
    assert list(ours) == list(there)
    for name, value in there.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert torch.equal(ours["basis_means"], there["basis_means"])


def test_their_files_open_here_and_ours_there(
    theirs: Any, with_plates: Any, tmp_path: Path
) -> None:
    adata, markers = with_plates
    there = trained_theirs(theirs, adata, markers)
    with quiet():
        there.save(str(tmp_path / "theirs"), save_anndata=True)
        expected = there.predict()
    ours = CellAssign.load(tmp_path / "theirs", accelerator="cpu")
    np.testing.assert_allclose(ours.predict(), expected, rtol=1e-4, atol=1e-5)
    without = CellAssign.load(tmp_path / "theirs", adata=False, accelerator="cpu")
    pd.testing.assert_frame_equal(without.predict(adata), ours.predict())
    ours.save(tmp_path / "ours", save_anndata=True)
    with quiet():
        back = theirs.CellAssign.load(str(tmp_path / "ours"), accelerator="cpu")
        np.testing.assert_array_equal(back.predict(), expected)
        with_data = theirs.CellAssign.load(str(tmp_path / "ours"), adata, accelerator="cpu")
        np.testing.assert_array_equal(with_data.predict(), expected)
    assert back.cell_type_markers.equals(there.cell_type_markers)


def test_computed_size_factors_travel_with_the_cells(
    theirs: Any, with_plates: Any, tmp_path: Path
) -> None:
    adata, markers = with_plates
    CellAssign.setup_anndata(adata, batch_key="plate")
    model = CellAssign(adata, markers)
    model.train(2, accelerator="cpu", enable_progress_bar=False)
    model.save(tmp_path / "model", save_anndata=True)
    with quiet():
        there = theirs.CellAssign.load(str(tmp_path / "model"), accelerator="cpu")
        np.testing.assert_allclose(there.predict(), model.predict(), rtol=1e-4, atol=1e-5)
    totals = np.asarray(adata.X.sum(1)).ravel()
    column = there.adata.obs["scvi_dist_size_factor"]
    np.testing.assert_allclose(column, totals / totals.mean(), rtol=1e-6)


def test_the_registry_is_theirs(theirs: Any, with_plates: Any) -> None:
    adata, markers = with_plates
    with quiet():
        theirs.CellAssign.setup_anndata(adata, size_factor_key="size_factor", batch_key="plate")
        there = theirs.CellAssign(adata, markers).registry
    CellAssign.setup_anndata(adata, size_factor_key="size_factor", batch_key="plate")
    ours = CellAssign(adata, markers).registry
    assert list(ours["field_registries"]) == list(there["field_registries"])
    assert ours["setup_args"].keys() == there["setup_args"].keys()
    for key, field in there["field_registries"].items():
        assert ours["field_registries"][key]["summary_stats"] == field["summary_stats"]
        assert ours["field_registries"][key]["data_registry"] == field["data_registry"]


# R's fit


def test_gamma_from_rs_parameters(example: Any, shared_data: Path) -> None:
    """R's weights in our module give R's means; its dispersions then R's probabilities."""
    adata, markers = example
    fit = np.load(shared_data / "cellassign_example_Rfit.npz")
    module = CellAssignModule(
        10, torch.as_tensor(markers.to_numpy(np.float32)), np.linspace(0, 2233, 10), n_batch=0
    ).double()
    rho = markers.to_numpy()
    with torch.no_grad():
        # Where a gene is no marker R's over-expression is 0, and ours does not count.
        module.delta_log.copy_(torch.from_numpy(np.log(np.where(rho > 0, fit["delta"], 1.0))))
        module.b_g_0.copy_(torch.from_numpy(fit["beta"][:, 0]))
        module.theta_logit.zero_()
    size_n1 = torch.from_numpy(adata.obs["size_factor"].to_numpy(np.float64))[:, None]
    mu_ngc = module.count_laws(size_n1).mu.detach()
    torch.testing.assert_close(mu_ngc, torch.from_numpy(fit["mu"]), rtol=1e-12, atol=0)
    x_ng = torch.from_numpy(adata[:, markers.index].X.toarray().astype(np.float64))
    phi_ngc = torch.from_numpy(fit["phi"])
    log_p_nc = log_nb_positive(x_ng[:, :, None], mu_ngc, phi_ngc, eps=0.0).sum(1)
    torch.testing.assert_close(
        log_p_nc.softmax(1), torch.from_numpy(fit["gamma"]), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("seed", [0, 2])
def test_every_cell_of_the_example_is_as_in_r(example: Any, seed: int) -> None:
    """Also from starts from which scvi-tools' 400 steps are too few."""
    adata, markers = example
    CellAssign.setup_anndata(adata, size_factor_key="size_factor")
    torch.manual_seed(seed)
    model = CellAssign(adata, markers)
    model.train(
        80, lr=3e-2, batch_size=64, early_stopping=False, accelerator="cpu",
        enable_progress_bar=False,
    )  # fmt: skip
    probabilities = model.predict()
    assert probabilities.index.tolist() == adata.obs_names.tolist()
    assert (probabilities.idxmax(axis=1) == adata.obs["R_cell_type"]).all()
    np.testing.assert_allclose(probabilities, adata.obsm["R_gamma"], atol=1e-3)
