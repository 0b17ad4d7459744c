"""Fully connected layers: which columns enter where, and what the state is called."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scvi_dist.errors import ConfigError
from scvi_dist.nn import FCLayers, one_hot
from scvi_dist.nn.fc_layers import cuts_at_zero

N = 11


def codes(n_categories: int) -> torch.Tensor:
    return torch.arange(N).remainder(n_categories).unsqueeze(1)


@pytest.mark.parametrize("inject", [True, False])
def test_covariates_are_appended_in_order(inject: bool) -> None:
    """Input, continuous columns, then indicators; categories with fewer than two levels vanish."""
    torch.manual_seed(0)
    layers = FCLayers(
        4,
        6,
        n_cat_list=[3, 1, 0, 2],
        n_cont=2,
        n_layers=2,
        n_hidden=5,
        dropout_rate=0,
        use_batch_norm=False,
        inject_covariates=inject,
    )
    x, cont = torch.randn(N, 4), torch.randn(N, 2)
    cats = [codes(3), codes(1), None, codes(2)]
    covariates = torch.cat([cont, F.one_hot(cats[0][:, 0], 3), F.one_hot(cats[3][:, 0], 2)], 1)
    first, second = (part[0] for part in layers.fc_layers)
    hidden = F.relu(first(torch.cat([x, covariates], 1)))
    hidden = torch.cat([hidden, covariates], 1) if inject else hidden
    expected = F.relu(second(hidden))
    torch.testing.assert_close(layers(x, *cats, cont=cont), expected)
    encoded = [one_hot(cats[0], 3), None, None, one_hot(cats[3], 2)]
    torch.testing.assert_close(layers(x, *encoded, cont=cont), expected)


def test_state_names_do_not_depend_on_the_parts_in_use() -> None:
    def names(**parts: bool) -> set[str]:
        return {key.removeprefix("fc_layers.") for key in FCLayers(2, 3, **parts).state_dict()}

    linear = {"Layer 0.0.weight", "Layer 0.0.bias"}
    norm = {
        f"Layer 0.1.{name}"
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert names() == linear | norm
    assert names(use_layer_norm=True, use_activation=False) == linear | norm
    assert names(use_batch_norm=False) == linear
    assert names(use_batch_norm=False, bias=False) == {"Layer 0.0.weight"}
    full = FCLayers(2, 3, use_layer_norm=True, dropout_rate=0.1).fc_layers[0]
    assert [name for name, _ in full.named_children()] == ["0", "1", "2", "3", "4"]
    norm_layer = full[1]
    assert (norm_layer.momentum, norm_layer.eps) == (0.01, 0.001)


@pytest.mark.parametrize("training", [True, False])
def test_samples_of_a_cell_are_normalised_apart(training: bool) -> None:
    torch.manual_seed(0)
    layers = FCLayers(4, 6, n_cat_list=[3], dropout_rate=0)
    twin = FCLayers(4, 6, n_cat_list=[3], dropout_rate=0)
    twin.load_state_dict(layers.state_dict())
    layers.train(training)
    twin.train(training)
    x, cat = torch.randn(5, N, 4), codes(3)
    expected = torch.stack([twin(x_nk, cat) for x_nk in x])
    torch.testing.assert_close(layers(x, cat), expected)
    for ours, theirs in zip(layers.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_missing_covariates_are_named() -> None:
    layers = FCLayers(4, 6, n_cat_list=[3, 2])
    with pytest.raises(ConfigError, match="built for 2 categorical covariates; 1 were given"):
        layers(torch.zeros(N, 4), codes(3))
    with pytest.raises(ConfigError, match="covariate 1 has 2 categories"):
        layers(torch.zeros(N, 4), codes(3), None)


def test_covariates_that_are_not_used_are_ignored() -> None:
    layers = FCLayers(4, 6).eval()
    x = torch.randn(N, 4)
    assert torch.equal(layers(x, codes(3)), layers(x))


def test_an_activation_class_is_taken() -> None:
    layers = FCLayers(4, 6, activation_fn=nn.Tanh, use_batch_norm=False)
    assert isinstance(layers.fc_layers[0][1], nn.Tanh)


@pytest.mark.parametrize("n_categories", [2, 5])
def test_indicators_are_torchs(n_categories: int) -> None:
    expected = F.one_hot(codes(n_categories)[:, 0], n_categories)
    for given in (codes(n_categories), codes(n_categories)[:, 0], codes(n_categories).int()):
        encoded = one_hot(given, n_categories, torch.float64)
        assert encoded.dtype == torch.float64
        assert torch.equal(encoded, expected.double())
    with pytest.raises((RuntimeError, IndexError)):
        one_hot(torch.tensor([[n_categories]]), n_categories)


@pytest.mark.parametrize("dropout_rate", [0.0, 0.3])
@pytest.mark.parametrize("training", [True, False])
def test_derivatives_by_units_that_were_cut_do_not_matter(
    dropout_rate: float, training: bool
) -> None:
    torch.manual_seed(0)
    layers = FCLayers(4, 6, n_layers=2, dropout_rate=dropout_rate).train(training)
    assert cuts_at_zero(layers)
    units, slopes = layers(torch.randn(N, 4)), torch.randn(N, 6)
    assert (units == 0).any()
    found = [
        torch.autograd.grad(units, list(layers.parameters()), slope, retain_graph=True)
        for slope in (slopes, slopes * (units != 0))
    ]
    assert all(map(torch.equal, *found))


def test_it_is_known_which_units_are_cut() -> None:
    assert not cuts_at_zero(FCLayers(4, 6, activation_fn=nn.Tanh))
    assert not cuts_at_zero(FCLayers(4, 6, use_activation=False))
    assert not cuts_at_zero(nn.Linear(4, 6))
    for place in ("", "fc_layers.Layer 0", "fc_layers.Layer 0.3"):
        layers = FCLayers(4, 6)
        layers.get_submodule(place).register_forward_hook(lambda module, x, units: units - 1)
        assert not cuts_at_zero(layers)
