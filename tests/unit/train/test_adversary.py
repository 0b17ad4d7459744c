"""What an adversary adds to a loss, and two optimizers that step as one."""

import copy
import json
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scvi_dist.errors import ConfigError
from scvi_dist.module.classifier import Classifier
from scvi_dist.train.adversarial_config import AdversarialPlanConfig
from scvi_dist.train.adversary import Adversary, PairedOptimizers

N, K = 14, 3


def adversary_of(n_classes: int) -> Adversary:
    made = Adversary.of(True, K, n_classes, seed=1)
    assert made is not None
    for part in made.modules():  # two passes over the same cells shall see the same classifier
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return made


def cells(n_classes: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(N, K, requires_grad=True), torch.randint(0, n_classes, (N, 1))


@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_one_backward_pass_gives_the_gradients_of_two(n_classes: int) -> None:
    """That of the latent variable, for whom the classifier stands still, and the reverse."""
    adversary = adversary_of(n_classes)
    z, codes = cells(n_classes)
    twin, twin_z = copy.deepcopy(adversary.classifier), z.detach().clone().requires_grad_()
    added = adversary.added_loss(z, codes, N, weight=0.3)
    added.backward()

    one_hot = F.one_hot(codes.squeeze(1), n_classes).float()
    wrong = (1 - one_hot) / (n_classes - 1)
    fool_loss = 0.3 * F.cross_entropy(twin(twin_z), wrong)
    (z_gradient,) = torch.autograd.grad(fool_loss, twin_z)
    own_loss = 0.3 * F.cross_entropy(twin(twin_z.detach()), codes.squeeze(1))
    own_gradients = torch.autograd.grad(own_loss, list(twin.parameters()))
    torch.testing.assert_close(added, fool_loss)
    torch.testing.assert_close(z.grad, z_gradient)
    for parameter, expected in zip(adversary.classifier.parameters(), own_gradients, strict=True):
        torch.testing.assert_close(parameter.grad, expected)
    # Running statistics move twice, as they do at scvi-tools.
    torch.testing.assert_close(
        dict(adversary.classifier.named_buffers()), dict(twin.named_buffers())
    )


def batch_distance(weight: float) -> float:
    """Of the means of two batches, in standard deviations, after an encoder was trained on cells
    that differ by batch in one of two features, and has to keep the other."""
    torch.manual_seed(0)
    codes = torch.arange(128).remainder(2).unsqueeze(1)
    features = torch.randn(128, 2) + torch.tensor([0.0, 2.0]) * codes
    encoder, decoder = nn.Linear(2, 2), nn.Linear(2, 1)
    adversary = Adversary.of(True, 2, 2, seed=0)
    assert adversary is not None
    networks = [*encoder.parameters(), *decoder.parameters()]
    optimizer = PairedOptimizers(torch.optim.Adam(networks, lr=1e-2), adversary.optimizer(0, False))
    for _ in range(300):
        z = encoder(features)
        loss = F.mse_loss(decoder(z), features[:, :1])
        loss = loss + adversary.added_loss(z, codes, len(z), weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    z = encoder(features).detach()
    difference = z[codes[:, 0] == 0].mean(0) - z[codes[:, 0] == 1].mean(0)
    return (difference.norm() / z.std(0).norm()).item()


def test_the_latent_variable_learns_to_hide_its_batch() -> None:
    assert batch_distance(weight=3.0) < 0.7 * batch_distance(weight=0.0)


def test_cells_that_fill_a_batch_up_have_no_say() -> None:
    adversary = adversary_of(3).eval()
    z, codes = cells(3)
    whole = adversary.added_loss(z, codes, N - 4, 1.0)
    torch.testing.assert_close(whole, adversary.added_loss(z[:-4], codes[:-4], N - 4, 1.0))
    whole.backward()
    assert not z.grad[-4:].any()
    nothing = adversary.added_loss(z, codes, 0, 1.0)
    assert nothing.item() == 0


def test_without_weight_all_gradients_are_zeros() -> None:
    """They are there: data-parallel training waits for each of them."""
    adversary = adversary_of(3)
    z, codes = cells(3)
    before = copy.deepcopy(dict(adversary.classifier.named_buffers()))
    added = adversary.added_loss(z, codes, N, weight=0.0)
    added.backward()
    assert added.item() == 0
    assert z.grad is None
    assert all(not p.grad.any() for p in adversary.classifier.parameters())
    torch.testing.assert_close(dict(adversary.classifier.named_buffers()), before)


def test_a_seed_decides_its_weights_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(7)
    expected = Classifier(K, n_hidden=32, n_labels=4, n_layers=2, logits=True).state_dict()
    before = torch.random.get_rng_state()
    made = Adversary.of(True, K, 4, seed=7)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert made is not None
    torch.testing.assert_close(made.classifier.state_dict(), expected, rtol=0, atol=0)


def test_one_batch_needs_no_adversary() -> None:
    with pytest.warns(UserWarning, match="fewer than two batches"):
        assert Adversary.of(True, K, 1, seed=0) is None
    assert Adversary.of(False, K, 3, seed=0) is None


def test_a_classifier_can_be_given() -> None:
    given = nn.Linear(K, 2)
    made = Adversary.of(given, K, 2, seed=0)
    assert made is not None
    assert made.classifier is given


def weights_and_pair() -> tuple[list[nn.Parameter], PairedOptimizers]:
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    first = torch.optim.AdamW([weights[0]], lr=0.1)
    return weights, PairedOptimizers(first, torch.optim.Adam([weights[1]], lr=0.01))


def train(weights: list[nn.Parameter], optimizer: PairedOptimizers, steps: int) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum((w.square() * w.exp()).sum() for w in weights)
        loss.backward()
        return loss

    for _ in range(steps):
        assert optimizer.step(closure).item() > 0


def test_a_pair_steps_as_its_parts_do() -> None:
    weights, pair = weights_and_pair()
    train(weights, pair, 5)
    for i, weight in enumerate(weights):
        alone, other = weights_and_pair()
        for _ in range(5):
            other.zero_grad()
            (alone[i].square() * alone[i].exp()).sum().backward()
            other.pair[i].step()
        assert torch.equal(alone[i], weight)
    assert [group["lr"] for group in pair.param_groups] == [0.1, 0.01]
    # A scheduler changes the first one's groups, which are the pair's as well.
    pair.pair[0].param_groups[0]["lr"] = 0.5
    assert pair.param_groups[0]["lr"] == 0.5


def test_a_pair_goes_on_from_its_state() -> None:
    weights, pair = weights_and_pair()
    train(weights, pair, 3)
    state = pickle.loads(pickle.dumps(pair.state_dict()))
    again, other = weights_and_pair()
    with torch.no_grad():
        for weight, saved in zip(again, weights, strict=True):
            weight.copy_(saved)
    other.load_state_dict(state)
    train(weights, pair, 3)
    train(again, other, 3)
    assert all(map(torch.equal, again, weights))
    assert other.param_groups == [g for part in other.pair for g in part.param_groups]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"scale_adversarial_loss": -1.0}, "at least 0, got -1.0"),
        ({"scale_adversarial_loss": "Auto"}, "'auto' or a number"),
        ({"scale_adversarial_loss": True}, "got True"),
        ({"adversarial_classifier": "yes"}, "True, False or a torch module"),
        ({"min_kl_weight": 2.0}, "larger than"),
        ({"optimizer": "adam"}, "did you mean 'Adam'"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(args: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdversarialPlanConfig(**args)


def test_the_weight_is_what_the_divergence_lacks_or_a_number() -> None:
    assert AdversarialPlanConfig().adversarial_weight(0.3) == pytest.approx(0.7)
    assert AdversarialPlanConfig(scale_adversarial_loss=2).adversarial_weight(0.3) == 2


def test_facts_tell_adversaries_apart() -> None:
    plans = [
        AdversarialPlanConfig(),
        AdversarialPlanConfig(adversarial_classifier=True),
        AdversarialPlanConfig(adversarial_classifier=nn.Linear(1, 2)),
        AdversarialPlanConfig(scale_adversarial_loss=1.0),
        AdversarialPlanConfig.from_kwargs({"lr": 4e-3}),
    ]
    facts = [json.dumps(plan.facts()) for plan in plans]
    assert len(set(facts)) == len(plans)
    again = pickle.loads(pickle.dumps(plans[1]))
    assert again == plans[1]
