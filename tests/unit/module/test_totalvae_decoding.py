"""What a TOTALVAE decodes from its latent variables."""

from typing import Any

import pytest
import torch
from torch import Tensor
from totalvae_cases import SIZES, VARIANTS, G, N, build, cells, each_variant, with_field

from scvi_dist.batch import REGISTRY_KEYS, CellBatch


@each_variant
def test_means_are_decoded_without_a_draw(args: dict[str, Any]) -> None:
    module, batch = build(**args).eval(), cells(**args)
    before = torch.random.get_rng_state()
    px = module.decode_mean(batch)
    inputs = module._get_inference_input(batch)
    inferred = module.inference(**inputs, use_mean=True)
    given = module._get_generative_input(batch, inferred)
    generated = module.generative(**given, use_mean=True)
    assert torch.equal(torch.random.get_rng_state(), before)
    qz, ql = module.posterior(**inputs)
    assert torch.equal(inferred["z"], module.z_encoder.z_transformation(qz.loc))
    if ql is not None:
        assert torch.equal(inferred["library"], ql.loc)
    torch.testing.assert_close(inferred["library"].exp(), inferred["library_gene"])
    assert torch.equal(px.mean, generated["px"].mean)
    back = generated["py_"]["back_alpha"]
    assert torch.equal(generated["log_pro_back_mean"], back)


@pytest.mark.parametrize("args", [v for v in VARIANTS.values() if v.get("n_batch", 3)])
def test_another_batch_is_decoded_from_the_same_latent_space(args: dict[str, Any]) -> None:
    module, batch = build(**args).eval(), cells(**args)
    with torch.no_grad():
        module.log_per_batch_efficiency.normal_()
    moved = with_field(batch, REGISTRY_KEYS.BATCH_KEY, torch.full((N, 1), 2))
    inferred = module.inference(**module._get_inference_input(batch), use_mean=True)

    def laws(cells_: CellBatch, transform_batch: int | None = None) -> list[Tensor]:
        given = module._get_generative_input(cells_, inferred)
        decoded = module.generative(**given, use_mean=True, transform_batch=transform_batch)
        return [decoded["px"].mean, decoded["py"].mean, decoded["py"].variance]

    expected, own = laws(moved), laws(batch)
    for i, seen in enumerate(laws(batch, transform_batch=2)):
        assert torch.equal(seen, expected[i])
        assert not torch.equal(seen, own[i])


@each_variant
def test_draws_are_the_likelihoods(args: dict[str, Any]) -> None:
    """With efficiencies that are not 1, and extra zeros where there are some."""
    module, batch = build(**args).eval(), cells(**args)
    with torch.no_grad():
        module.log_per_batch_efficiency.normal_()
    torch.manual_seed(0)
    n_samples = 600
    drawn = module.sample(batch, n_samples=n_samples)
    _, generated = module(batch, inference_kwargs={"n_samples": n_samples}, compute_loss=False)
    for counts, law in zip(drawn, (generated["px"], generated["py"]), strict=True):
        assert counts.shape == law.mean.shape == (n_samples, N, counts.shape[-1])
        error = (law.variance.mean(0) + law.mean.var(0)).div(n_samples).sqrt()
        assert ((counts.mean(0) - law.mean.mean(0)).abs() <= 9 * error + 1e-2).all()


@each_variant
def test_several_draws_are_the_single_ones_side_by_side(args: dict[str, Any]) -> None:
    module, batch = build(**args).eval(), cells(**args)
    inferred = module.inference(**module._get_inference_input(batch), n_samples=3)
    assert inferred["z"].shape == (3, N, SIZES["n_latent"])
    assert inferred["library_gene"].shape == inferred["library"].shape == (3, N, 1)
    given = module._get_generative_input(batch, inferred)
    together = module.generative(**given, use_mean=True)
    for s in range(3):
        one = {key: inferred[key][s] for key in ("z", "library_gene")}
        alone = module.generative(**module._get_generative_input(batch, one), use_mean=True)
        for law in ("px", "py"):
            torch.testing.assert_close(together[law].mean[s], alone[law].mean)


@pytest.mark.parametrize("dispersion", ["", "-batch", "-label"])
def test_dispersions_are_those_of_a_cells_group(dispersion: str) -> None:
    module = build(gene_dispersion="gene" + dispersion, protein_dispersion="protein" + dispersion)
    batch = cells()
    codes = {"-batch": batch["batch"], "-label": batch["labels"]}
    found = module.get_sample_dispersion(
        batch["X"], batch["proteins"], batch["batch"], batch["labels"], n_samples=5
    )
    for seen, log_theta in zip(found, (module.px_r, module.py_r), strict=True):
        group = codes.get(dispersion)
        expected = log_theta if group is None else log_theta.T[group.squeeze(1)]
        torch.testing.assert_close(seen, expected.exp())
    assert all(map(torch.equal, found, module(batch, compute_loss=False)[1]["px_"]["r"][None]))


@pytest.mark.parametrize("args", [{}, {"latent_distribution": "ln"}])
def test_minified_cells_are_decoded_as_if_their_counts_were_there(args: dict[str, Any]) -> None:
    """The posterior's variance is stored; a draw has its standard deviation."""
    module, batch = build(**args).eval(), cells()
    inputs = module._get_inference_input(batch)
    qz, _ = module.posterior(**inputs)
    minified = {key: batch[key] for key in batch} | {
        REGISTRY_KEYS.X_KEY: torch.zeros(N, G),
        REGISTRY_KEYS.LATENT_QZM_KEY: qz.loc,
        REGISTRY_KEYS.LATENT_QZV_KEY: qz.variance,
        REGISTRY_KEYS.OBSERVED_LIB_SIZE: batch["X"].sum(1, keepdim=True),
    }
    for more in ({"use_mean": True}, {"n_samples": 1}, {"n_samples": 3}):
        found = []
        for given in (inputs, module._get_inference_input(minified)):
            module.noise.at(0, 0, 0, N, N)
            found.append(module.inference(**given, **more))
        module.noise.unbind()
        torch.testing.assert_close(found[1]["qz"].scale, qz.scale)
        for name in ("library_gene", "library"):
            torch.testing.assert_close(found[1][name], found[0][name])
        if more.get("n_samples") != 3:  # from counts it is drawn once before, as at scvi-tools
            torch.testing.assert_close(found[1]["z"], found[0]["z"])
        assert found[1]["z"].shape == found[0]["z"].shape
