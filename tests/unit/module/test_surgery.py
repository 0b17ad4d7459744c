"""Query mapping's surgery: which weights come from the reference, and which are trained."""

import pickle
from typing import Any

import pytest
import torch

from scvi_dist.errors import SchemaMismatch
from scvi_dist.module import VAE
from scvi_dist.module.surgery import FreezeOptions, freeze, transplant

G = 6


def make_vae(n_batch: int, cats: tuple[int, ...] = (), seed: int = 0, **arguments: Any) -> VAE:
    torch.manual_seed(seed)
    return VAE(G, n_batch, n_cats_per_cov=list(cats), n_hidden=5, n_latent=3, **arguments)


def tensors(n_batch: int, n_cats: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    data = {
        "X": torch.poisson(torch.full((20, G), 4.0)),
        "batch": torch.randint(n_batch, (20, 1)),
        "labels": torch.zeros(20, 1, dtype=torch.long),
    }
    if n_cats:
        data["extra_categorical_covs"] = torch.randint(n_cats, (20, 1))
    return data


def decoded(module: VAE, data: dict[str, torch.Tensor]) -> torch.Tensor:
    module.eval()
    with torch.no_grad():
        return module.decode_mean(data).mean


@pytest.mark.parametrize("encode_covariates", [False, True])
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("more", [(3, 3), (4, 3), (3, 5), (5, 4)])
def test_known_categories_are_decoded_as_before(
    encode_covariates: bool, n_layers: int, more: tuple[int, int]
) -> None:
    shape: dict[str, Any] = {"encode_covariates": encode_covariates, "n_layers": n_layers}
    reference = make_vae(3, (3,), seed=0, **shape)
    query = make_vae(more[0], (more[1],), seed=5, **shape)
    new = {name: value.clone() for name, value in query.state_dict().items()}
    transplant(reference, query)
    data = tensors(3, 3)
    torch.testing.assert_close(decoded(query, data), decoded(reference, data))
    # What the reference does not know is as it was made.
    before, after = new["decoder.px_decoder.fc_layers.Layer 0.0.weight"], query.decoder.px_decoder
    weight = after.fc_layers[0][0].weight.detach()
    torch.testing.assert_close(weight[:, 3 + 3 : 3 + more[0]], before[:, 3 + 3 : 3 + more[0]])


@pytest.mark.parametrize("dispersion", ["gene-batch", "gene"])
def test_a_reference_of_one_batch_gains_batches(dispersion: str) -> None:
    reference = make_vae(1, dispersion=dispersion)
    query = make_vae(2, seed=3, dispersion=dispersion)
    transplant(reference, query)
    px_r = query.px_r.detach()
    torch.testing.assert_close(px_r[:, :1] if px_r.dim() == 2 else px_r, reference.px_r.detach())


def test_another_model_is_refused() -> None:
    with pytest.raises(SchemaMismatch, match="other parts"):
        transplant(make_vae(2), make_vae(2, n_layers=2))
    with pytest.raises(SchemaMismatch, match="categories of the reference are missing"):
        transplant(make_vae(3, dispersion="gene-batch"), make_vae(2, dispersion="gene-batch"))


def _moved(module: VAE, n_steps: int = 3) -> dict[str, torch.Tensor]:
    """State -> where a few optimizer steps changed it."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.1)
    module.train()
    for step in range(n_steps):
        optimizer.zero_grad()
        torch.manual_seed(step)
        module(tensors(3))[-1].loss.backward()
        optimizer.step()
    return {name: value != before[name] for name, value in module.state_dict().items()}


WEIGHT = "decoder.px_decoder.fc_layers.Layer 0.0.weight"
ENCODER = "z_encoder.encoder.fc_layers.Layer 0.0.weight"


def test_only_the_weights_of_covariates_move() -> None:
    module = make_vae(3)
    freeze(module, FreezeOptions())
    # As it reaches a worker.
    moved = _moved(pickle.loads(pickle.dumps(module)))
    assert moved[WEIGHT][:, 3:].all()
    assert not moved[WEIGHT][:, :3].any()
    norms = ".1."
    for name, where in moved.items():
        if name == WEIGHT or ("decoder" in name and norms in name):
            continue
        if not name.endswith("num_batches_tracked"):
            assert not where.any(), name
    assert moved["decoder.px_decoder.fc_layers.Layer 0.1.weight"].all()
    assert moved["decoder.px_decoder.fc_layers.Layer 0.1.running_mean"].all()


@pytest.mark.parametrize(
    ("options", "name", "moves"),
    [
        ({"freeze_expression": False}, ENCODER, True),
        ({"freeze_decoder_first_layer": False}, WEIGHT, True),
        ({"freeze_batchnorm_encoder": False}, ENCODER.replace(".0.w", ".1.w"), True),
        ({"freeze_batchnorm_encoder": False}, ENCODER.replace(".0.w", ".1.running_w"), True),
        ({"freeze_batchnorm_decoder": True}, WEIGHT.replace(".0.w", ".1.w"), False),
        ({"unfrozen": True}, "z_encoder.mean_encoder.weight", True),
        ({}, "z_encoder.mean_encoder.weight", False),
    ],
)
def test_each_option_frees_or_freezes_its_part(
    options: dict[str, bool], name: str, moves: bool
) -> None:
    module = make_vae(3)
    freeze(module, FreezeOptions(**options))
    moved = _moved(module)[name.replace("running_weight", "running_mean")]
    assert bool(moved.all() if moves else moved.any()) is moves


def test_dropout_can_be_frozen() -> None:
    module = make_vae(3)
    freeze(module, FreezeOptions(freeze_dropout=True))
    module.train()
    x = tensors(3)["X"]
    one, two = (module.z_encoder.encoder(x) for _ in range(2))
    torch.testing.assert_close(one, two)


def test_vectors_of_new_batches_are_trained() -> None:
    module = make_vae(3, batch_representation="embedding")
    freeze(module, FreezeOptions(), n_known_batches=2)
    moved = _moved(module)["_embeddings_dict.batch.weight"]
    assert moved[2].all()
    assert not moved[:2].any()


def test_unused_parts_stay_without_gradient() -> None:
    module = make_vae(3)
    unused = {name for name, p in module.named_parameters() if not p.requires_grad}
    assert any(name.startswith("l_encoder") for name in unused)
    for free in ({}, {"freeze_batchnorm_encoder": False, "freeze_expression": False}):
        freeze(module, FreezeOptions(**free))
        for name, parameter in module.named_parameters():
            assert not (name in unused and parameter.requires_grad), name
