"""The marginal likelihood of a TOTALVAE is an integral."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from totalvae_cases import LIBRARY, MEASURED, N, P, build, cells, with_field

from scvi_dist.batch import CellBatch
from scvi_dist.distributions import NegativeBinomialMixture
from scvi_dist.module import TOTALVAE


def grid_estimate(module: TOTALVAE, batch: CellBatch) -> Tensor:
    """``log p(x, y)`` of each cell with one latent dimension, by sums over grids of z and b."""
    z, b = torch.linspace(-7, 7, 141), torch.linspace(-5, 8, 131)
    draw = z.view(-1, 1, 1).expand(-1, N, 1)
    inferred = module.inference(**module._get_inference_input(batch), use_mean=True)
    library = inferred["library_gene"].expand(len(z), N, 1)
    points = {"z": module.encoder.z_transformation(draw), "library_gene": library}
    generated = module.generative(**module._get_generative_input(batch, points), use_mean=True)
    log_joint = generated["px"].log_prob(batch["X"]).sum(-1)
    log_joint += generated["pz"].log_prob(draw).sum(-1)

    proteins = {k: v[..., None] for k, v in generated["py_"].items() if k != "r"}
    rate = generated["per_batch_efficiency"][..., None] * b.exp()
    law = NegativeBinomialMixture(
        mu1=rate,
        mu2=rate * proteins["fore_scale"],
        theta1=generated["py_"]["r"][..., None],
        mixture_logits=proteins["mixing"],
    )
    prior = inferred["back_mean_prior"]
    log_y = law.log_prob(batch["proteins"][..., None])
    log_b = torch.distributions.Normal(prior.loc[..., None], prior.scale[..., None]).log_prob(b)
    per_protein = torch.logsumexp(log_y + log_b, -1) + math.log(13 / 130)
    measured = module.measured(batch)
    per_protein = per_protein if measured is None else per_protein * measured
    return torch.logsumexp(log_joint + per_protein.sum(-1), 0) + math.log(14 / 140)


@pytest.mark.parametrize(
    "args",
    [{}, {"latent_distribution": "ln"}, {"protein_batch_mask": MEASURED}],
    ids=["normal", "ln", "missing proteins"],
)
def test_the_marginal_likelihood_is_the_integral_over_the_latent_space(
    args: dict[str, Any],
) -> None:
    module, batch = build(n_latent=1, **args).eval(), cells()
    batch = with_field(batch, "proteins", batch["proteins"].clamp(max=3))
    with torch.inference_mode():
        # Counts and priors near the proposals: an estimate from far ones would need more draws.
        module.background_pro_alpha.fill_(0.3)
        exact = grid_estimate(module, batch)
    torch.manual_seed(0)
    seen = module.marginal_ll(batch, 12_000, return_mean=False, n_mc_samples_per_pass=4_000)
    torch.testing.assert_close(seen, exact, rtol=0, atol=0.5)
    mean = module.marginal_ll(batch, 12_000, n_mc_samples_per_pass=4_000)
    assert mean == pytest.approx(exact.mean().item(), abs=0.08)


def test_the_marginal_likelihood_knows_a_latent_library() -> None:
    """It is above the bound, of which the penalty for efficiencies and odds is no part."""
    module, batch = build(**LIBRARY).eval(), cells(400)
    torch.manual_seed(0)
    with torch.inference_mode():
        module.encoder.l_gene_mean_encoder.bias.fill_(3.0)
        _, generated, loss = module(batch)
        odds = torch.sigmoid(generated["py_"]["mixing"]).log().sum(-1).mean()
        penalty = P * math.log(2 * math.pi) / 2 - 1e-3 * odds
    bound = -(loss.loss - penalty).item()
    assert bound < module.marginal_ll(batch, 300, n_mc_samples_per_pass=100) < bound + 100
