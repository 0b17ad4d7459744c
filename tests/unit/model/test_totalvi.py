"""TOTALVI as a user holds it: genes and proteins in, both denoised out."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.data import synthetic_iid
from scvi_dist.errors import ConfigError, FieldNotFound, ScviDistError
from scvi_dist.model import TOTALVI

N, G, P, LATENT = 60, 40, 12, 4
KEY = "protein_expression"
QUICK: dict[str, Any] = {
    "max_epochs": 1,
    "accelerator": "cpu",
    "batch_size": 20,
    "enable_progress_bar": False,
}
ORDER = [50, 3, 3, 17]
BATCHES = ["batch_0", "batch_1"]


def make_cells(seed: int = 0) -> anndata.AnnData:
    np.random.seed(seed)
    cells = synthetic_iid(batch_size=N // 2, n_genes=G, n_proteins=P, n_regions=0)
    cells.obs_names = [f"cell{i}" for i in range(N)]
    names = [f"CD{i}" for i in range(P)]
    cells.obsm[KEY] = pd.DataFrame(cells.obsm[KEY], index=cells.obs_names, columns=names)
    return cells


def without_proteins(cells: anndata.AnnData, batch: str, names: list[str]) -> anndata.AnnData:
    """The cells, where no cell of a batch has a count of these proteins."""
    lacking = cells.copy()
    lacking.obsm[KEY].loc[(lacking.obs["batch"] == batch).to_numpy(), names] = 0
    return lacking


def new_model(data: Any, setup: dict[str, Any] | None = None, **arguments: Any) -> TOTALVI:
    """A model that counts as trained, with the weights of a seed."""
    TOTALVI.setup_anndata(data, **{"protein_expression_obsm_key": KEY, **(setup or {})})
    return seeded(data, **arguments)


def seeded(data: Any, prior: bool | None = False, **arguments: Any) -> TOTALVI:
    """The same of data that is set up; fitting a prior takes a second, so few ask for it."""
    torch.manual_seed(0)
    np.random.seed(0)
    arguments["empirical_protein_background_prior"] = prior
    model = TOTALVI(data, n_latent=LATENT, n_hidden=8, **arguments)
    model.is_trained = True
    return model


def assert_same_weights(one: TOTALVI, other: TOTALVI) -> None:
    expected = other.module.state_dict()
    assert set(one.module.state_dict()) == set(expected)
    for name, value in one.module.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)


def answers(model: TOTALVI, **which: Any) -> dict[str, np.ndarray]:
    """What each method says of each cell, as arrays whose first axis is the cells."""
    which = {"seed": 7, **which}
    genes, proteins = model.get_normalized_expression(**which, n_samples=2)
    many = model.get_normalized_expression(
        **which,
        n_samples=2,
        return_mean=False,
        transform_batch=["batch_1", "batch_0"],
        sample_protein_mixing=True,
        include_protein_background=True,
    )
    counts = model.posterior_predictive_sample(**which)
    parameters = model.get_likelihood_parameters(**which)
    return {
        "z": model.get_latent_representation(**which),
        "drawn z": model.get_latent_representation(give_mean=False, **which),
        "library": model.get_latent_library_size(**which),
        "genes": genes.to_numpy(),
        "proteins": proteins.to_numpy(),
        "draws of genes": np.moveaxis(many[0], 1, 0),
        "draws of proteins": np.moveaxis(many[1], 1, 0),
        "foreground": model.get_protein_foreground_probability(**which).to_numpy(),
        "background": model.get_protein_background_mean(**which),
        "elbo": model.get_elbo(return_mean=False, **which).numpy(),
        **{f"counts of {name}": value for name, value in counts.items()},
        **parameters,
    }


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    return make_cells()


@pytest.fixture(scope="module")
def model(cells: anndata.AnnData) -> TOTALVI:
    trained = new_model(cells, {"batch_key": "batch"})
    trained.train(**QUICK)
    return trained


def test_every_answer_has_the_shape_and_the_names_of_what_was_asked(
    model: TOTALVI, cells: anndata.AnnData
) -> None:
    genes, proteins = model.get_normalized_expression(
        indices=ORDER, gene_list=["gene_9", "gene_2"], protein_list=["CD7", "CD1"]
    )
    named = [cells.obs_names[i] for i in ORDER]
    assert genes.index.tolist() == proteins.index.tolist() == named
    assert genes.columns.tolist() == ["gene_2", "gene_9"]
    assert proteins.columns.tolist() == ["CD1", "CD7"]
    foreground = model.get_protein_foreground_probability(indices=ORDER, protein_list=["CD7"])
    assert (foreground.index.tolist(), foreground.columns.tolist()) == (named, ["CD7"])
    assert foreground.to_numpy().min() > 0
    assert foreground.to_numpy().max() < 1
    drawn = model.get_normalized_expression(indices=ORDER, n_samples_overall=9)
    assert [table.shape for table in drawn] == [(9, G), (9, P)]
    assert set(drawn[0].index) <= set(named)
    shapes = {name: value.shape for name, value in answers(model, indices=ORDER).items()}
    n = len(ORDER)
    assert shapes["z"] == shapes["drawn z"] == (n, LATENT)
    assert shapes["library"] == (n, 1)
    assert (shapes["elbo"], shapes["background"]) == ((n,), (n, P))
    assert (shapes["draws of genes"], shapes["draws of proteins"]) == ((n, 2, G), (n, 2, P))
    assert (shapes["counts of rna"], shapes["counts of protein"]) == ((n, G), (n, P))
    several = model.posterior_predictive_sample(indices=ORDER, n_samples=3, protein_list=["CD3"])
    assert (several["rna"].shape, several["protein"].shape) == ((n, G, 3), (n, 1, 3))
    every = model.get_likelihood_parameters(indices=ORDER, n_samples=3)
    assert {value.shape[:2] for value in every.values()} == {(3, n)}
    errors = model.get_reconstruction_error()
    assert set(errors) == {"reconst_loss_gene", "reconst_loss_protein"}
    assert np.isfinite(model.get_marginal_ll(n_mc_samples=2, indices=ORDER))
    features = [*cells.var_names, *cells.obsm[KEY].columns]
    correlation = model.get_feature_correlation_matrix(n_samples=2)
    assert correlation.index.tolist() == correlation.columns.tolist() == features
    np.testing.assert_allclose(correlation, correlation.T, atol=1e-6)
    np.testing.assert_allclose(np.diag(correlation), 1, atol=1e-6)


def test_answers_come_in_the_order_asked_and_no_batch_size_changes_them(model: TOTALVI) -> None:
    whole = answers(model)
    small = answers(model, batch_size=7)
    for name, value in answers(model, indices=np.arange(N)[::-1], batch_size=11).items():
        np.testing.assert_allclose(small[name], whole[name], rtol=1e-4, atol=1e-5, err_msg=name)
        if name in ("z", "library"):
            np.testing.assert_allclose(value[::-1], whole[name], rtol=1e-4, atol=1e-6)
    again = answers(model, indices=ORDER, batch_size=3)
    for name, value in answers(model, indices=ORDER, batch_size=2).items():
        np.testing.assert_allclose(value, again[name], rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(again["z"], whole["z"][ORDER], rtol=1e-4, atol=1e-6)


def test_what_expression_is_made_of(model: TOTALVI) -> None:
    same: dict[str, Any] = {"seed": 3, "return_numpy": True}
    genes, fore = model.get_normalized_expression(**same)
    np.testing.assert_allclose(genes.sum(1), 1, rtol=1e-4)
    scaled, shares = model.get_normalized_expression(library_size=1e4, scale_protein=True, **same)
    np.testing.assert_allclose(scaled, 1e4 * genes, rtol=1e-4)
    np.testing.assert_allclose(shares, fore / fore.sum(1, keepdims=True), rtol=1e-4)
    both = model.get_normalized_expression(include_protein_background=True, **same)[1]
    foreground = model.get_protein_foreground_probability(**same)
    background = model.get_protein_background_mean(seed=3)
    np.testing.assert_allclose(both - fore, background * (1 - foreground), rtol=1e-3, atol=1e-4)
    latent = model.get_normalized_expression(library_size="latent", **same)[0]
    sizes = model.get_latent_library_size(give_mean=False, seed=3)
    np.testing.assert_allclose(latent, genes * sizes, rtol=1e-4)
    mean = model.get_normalized_expression(n_samples=3, **same)
    each = model.get_normalized_expression(n_samples=3, return_mean=False, **same)
    for k in (0, 1):
        np.testing.assert_allclose(each[k].mean(0), mean[k], rtol=1e-4)

    def as_of(batches: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """What is decoded from z alone; the background rate is drawn again for each batch."""
        which = {"transform_batch": batches, **same}
        fore = model.get_protein_foreground_probability(**which)
        return model.get_normalized_expression(**which)[0], fore

    one, other, both_of = (as_of(names) for names in (["batch_0"], ["batch_1"], BATCHES))
    for k in (0, 1):
        np.testing.assert_allclose((one[k] + other[k]) / 2, both_of[k], rtol=1e-4)
        assert not np.allclose(one[k], other[k], rtol=1e-4)


def test_a_store_holds_what_is_returned(model: TOTALVI, tmp_path: Path) -> None:
    genes, proteins = model.get_normalized_expression(indices=[50, 3, 17], seed=1)
    url = model.get_normalized_expression(indices=[50, 3, 17], seed=1, out=tmp_path / "x.zarr")
    written = anndata.read_zarr(url)
    assert written.obs_names.tolist() == genes.index.tolist()
    assert written.var_names.tolist() == genes.columns.tolist()
    np.testing.assert_allclose(written.X, genes, rtol=1e-5)
    np.testing.assert_allclose(written.obsm["proteins"], proteins, rtol=1e-5)
    foreground = model.get_protein_foreground_probability(seed=1)
    url = model.get_protein_foreground_probability(seed=1, out=tmp_path / "f.zarr")
    np.testing.assert_allclose(anndata.read_zarr(url).obsm["proteins"], foreground, rtol=1e-5)
    drawn = model.posterior_predictive_sample(seed=1)
    url = model.posterior_predictive_sample(seed=1, out=tmp_path / "p.zarr")
    np.testing.assert_array_equal(anndata.read_zarr(url).obsm["proteins"], drawn["protein"])
    url = model.get_latent_library_size(out=tmp_path / "l.zarr")
    sizes = anndata.read_zarr(url).obsm["library_size"]
    np.testing.assert_array_equal(sizes, model.get_latent_library_size())
    with pytest.raises(ConfigError, match="return_mean"):
        model.get_normalized_expression(n_samples=2, return_mean=False, out=tmp_path / "y.zarr")
    with pytest.raises(ConfigError, match="one draw"):
        model.posterior_predictive_sample(n_samples=2, out=tmp_path / "y.zarr")


def test_arguments_that_make_no_sense(model: TOTALVI) -> None:
    with pytest.raises(FieldNotFound, match=r"none of the proteins.*CD1"):
        model.get_normalized_expression(protein_list=["CD1x"])
    with pytest.warns(UserWarning, match="1 of 2 proteins.*nothere"):
        table = model.get_protein_foreground_probability(protein_list=["CD3", "nothere"])
    assert table.columns.tolist() == ["CD3"]
    with pytest.raises(ConfigError, match="did you mean 'batch_1'"):
        model.get_protein_foreground_probability(transform_batch="batch_11")
    with pytest.raises(ConfigError, match="'latent'"):
        model.get_normalized_expression(library_size="observed")
    with pytest.raises(ConfigError, match="n_samples_overall"):
        model.get_normalized_expression(n_samples_overall=0)


def test_data_without_these_proteins_is_refused(cells: anndata.AnnData) -> None:
    with pytest.raises(FieldNotFound, match=KEY):
        TOTALVI.setup_anndata(cells.copy(), "protein_expresion")
    bare = cells.copy()
    del bare.obsm[KEY]
    with pytest.raises(ScviDistError, match=KEY):
        TOTALVI.setup_anndata(bare, KEY)


def test_missing_proteins_are_masked_unless_overridden(cells: anndata.AnnData) -> None:
    lacking = without_proteins(cells, "batch_1", ["CD2", "CD5"])
    setup = {"batch_key": "batch"}
    with pytest.warns(UserWarning, match="override_missing_proteins=True"):
        masked = new_model(lacking, setup)
    expected = [name not in ("CD2", "CD5") for name in lacking.obsm[KEY].columns]
    assert masked.module.protein_batch_mask is not None
    of_batch = {code: list(mask) for code, mask in masked.module.protein_batch_mask.items()}
    assert of_batch == {"0": [True] * P, "1": expected}
    plain = new_model(lacking, setup, override_missing_proteins=True)
    assert plain.module.protein_batch_mask is None
    assert_same_weights(plain, masked)
    assert new_model(cells, setup).module.protein_batch_mask is None

    def error(model: TOTALVI) -> float:
        found = model.get_reconstruction_error(seed=0)
        return float(found["reconst_loss_protein"])

    # Zeros that were not measured are not explained, which would cost something.
    assert error(masked) < error(plain)


@pytest.mark.parametrize("lacks", [False, True])
def test_the_adversary_trains_where_proteins_are_missing(
    cells: anndata.AnnData, lacks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = without_proteins(cells, "batch_1", ["CD2"]) if lacks else cells.copy()
    TOTALVI.setup_anndata(data, KEY, batch_key="batch")
    if lacks:
        with pytest.warns(UserWarning, match="override"):
            model = seeded(data)
    else:
        model = seeded(data)
    seen: list[Any] = []
    monkeypatch.setattr(model, "_train", lambda call, plan: seen.append((call, plan)))
    model.train(**QUICK)
    model.train(**QUICK, adversarial_classifier=not lacks, n_epochs_kl_warmup=3, lr=1e-2)
    plans = [plan for _, plan in seen]
    assert [plan.adversarial_classifier for plan in plans] == [lacks, not lacks]
    assert [plan.n_steps_kl_warmup for plan in plans] == [int(0.75 * N)] * 2
    assert [plan.lr for plan in plans] == [4e-3, 1e-2]


def test_panels_say_which_proteins_are_missing_together(cells: anndata.AnnData) -> None:
    lacking = cells.copy()
    lacking.obs["panel"] = np.where(np.arange(N) % 3 == 0, "small", "large")
    is_small = (lacking.obs["panel"] == "small").to_numpy()
    lacking.obsm[KEY].loc[is_small, ["CD4"]] = 0
    with pytest.warns(UserWarning, match="override"):
        model = new_model(lacking, {"batch_key": "batch", "panel_key": "panel"})
    codes = {name: str(i) for i, name in enumerate(["large", "small"])}
    assert model.module.protein_batch_mask is not None
    assert all(model.module.protein_batch_mask[codes["large"]])
    small = list(model.module.protein_batch_mask[codes["small"]])
    assert small == [name != "CD4" for name in lacking.obsm[KEY].columns]
    assert model.summary_stats.n_panel == 2
    assert np.isfinite(model.get_elbo(seed=0).item())
    assert model.get_normalized_expression()[1].shape == (N, P)


def test_names_of_proteins_that_come_without(cells: anndata.AnnData) -> None:
    bare = cells.copy()
    bare.obsm[KEY] = cells.obsm[KEY].to_numpy()
    named = [f"prot{i}" for i in range(P)]
    bare.uns["names"] = np.array(named)
    of_uns = new_model(bare, {"protein_names_uns_key": "names"})
    assert of_uns.get_protein_foreground_probability(indices=[0]).columns.tolist() == named
    given = new_model(bare, {"protein_names": named})
    assert given.schema.protein_names == of_uns.schema.protein_names == tuple(named)
    counted = new_model(bare)
    assert counted.schema.protein_names == tuple(str(i) for i in range(P))
    with pytest.raises(FieldNotFound, match="did you mean 'names'"):
        new_model(bare, {"protein_names_uns_key": "namse"})
    with pytest.raises(ScviDistError):
        new_model(bare, {"protein_names": named[:-1]})


def test_a_file_and_an_object_give_the_same_model(
    model: TOTALVI, cells: anndata.AnnData, tmp_path: Path
) -> None:
    path = tmp_path / "cite.h5ad"
    cells.write_h5ad(path)
    setup = {"batch_key": "batch"}
    in_memory, on_disk = (new_model(data, setup, prior=None) for data in (cells.copy(), path))
    assert_same_weights(on_disk, in_memory)
    expected = answers(in_memory, indices=ORDER)
    for name, value in answers(on_disk, indices=ORDER).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    for data in (cells.copy(), path):
        z = model.get_latent_representation(data)
        np.testing.assert_array_equal(z, model.get_latent_representation())
    of_file, of_object = (
        new_model(data, {"protein_names_uns_key": "protein_names"}) for data in (path, cells.copy())
    )
    assert of_file.schema.protein_names == of_object.schema.protein_names
    assert of_file.registry["setup_args"] == of_object.registry["setup_args"]


def test_a_mudata_gives_the_same_model(cells: anndata.AnnData) -> None:
    mudata = pytest.importorskip("mudata")
    rna = anndata.AnnData(cells.X, obs=cells.obs[["batch"]], var=cells.var)
    proteins = anndata.AnnData(
        cells.obsm[KEY].to_numpy(),
        obs=cells.obs[[]],
        var=pd.DataFrame(index=cells.obsm[KEY].columns),
    )
    with mudata.set_options(pull_on_update=False):
        both = mudata.MuData({"rna": rna, "prot": proteins})
    within = {"rna_layer": "rna", "protein_layer": "prot", "batch_key": "rna"}
    TOTALVI.setup_mudata(both, batch_key="batch", modalities=within)
    of_mudata = seeded(both)
    of_anndata = new_model(cells.copy(), {"batch_key": "batch"})
    assert_same_weights(of_mudata, of_anndata)
    assert of_mudata.modalities == {"rna_layer": "rna", "protein_layer": "prot"}
    expected = answers(of_anndata, indices=ORDER)
    expected["counts of prot"] = expected.pop("counts of protein")
    got = answers(of_mudata, indices=ORDER)
    assert set(got) == set(expected)
    for name, value in got.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    with pytest.raises(ConfigError, match="protein_layer"):
        TOTALVI.setup_mudata(both, modalities={"rna_layer": "rna"})


def test_a_saved_model_is_the_same_model(
    model: TOTALVI, cells: anndata.AnnData, tmp_path: Path
) -> None:
    model.save(tmp_path / "bare")
    model.save(tmp_path / "whole", save_anndata=True)
    expected = answers(model, indices=ORDER)
    for back in (TOTALVI.load(tmp_path / "bare", cells), TOTALVI.load(tmp_path / "whole")):
        assert back.is_trained
        assert back.init_params_ == model.init_params_
        assert_same_weights(back, model)
        for name, value in answers(back, indices=ORDER).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
    alone = TOTALVI.load(tmp_path / "bare", adata=False)
    assert_same_weights(alone, model)
    assert alone.schema.protein_names == model.schema.protein_names


def test_a_model_of_masked_proteins_survives_saving(cells: anndata.AnnData, tmp_path: Path) -> None:
    lacking = without_proteins(cells, "batch_0", ["CD0"])
    with pytest.warns(UserWarning, match="override"):
        model = new_model(lacking, {"batch_key": "batch"})
    model.save(tmp_path / "masked")
    # Whoever made the model was told.
    back = TOTALVI.load(tmp_path / "masked", lacking)
    assert back.module.protein_batch_mask == model.module.protein_batch_mask
    assert_same_weights(back, model)
    assert back.get_elbo(seed=0) == model.get_elbo(seed=0)


def test_few_proteins_need_no_prior_of_the_data(cells: anndata.AnnData) -> None:
    few = cells.copy()
    few.obsm[KEY] = few.obsm[KEY].iloc[:, :10]
    looked = new_model(few, prior=True)
    default = new_model(few, prior=None)
    never = new_model(few, prior=False)
    assert_same_weights(default, never)
    name = "background_pro_alpha"
    assert not torch.equal(looked.module.state_dict()[name], default.module.state_dict()[name])
    assert REGISTRY_KEYS.PROTEIN_EXP_KEY in looked.registry["field_registries"]
