"""Embeddings grow without forgetting, and what is frozen stays so."""

import copy
import pickle

import pytest
import torch

from scvi_dist.errors import ConfigError
from scvi_dist.nn import Embedding


@pytest.fixture
def embedding() -> Embedding:
    torch.manual_seed(0)
    return Embedding(4, 3)


@pytest.mark.parametrize("init", [2, [3, 0]])
@pytest.mark.parametrize("freeze_prev", [True, False])
def test_new_rows_come_after_the_old(
    embedding: Embedding, init: int | list[int], freeze_prev: bool
) -> None:
    before = embedding.weight.detach().clone()
    extended = Embedding.extend(embedding, init, freeze_prev)
    assert (extended.num_embeddings, extended.embedding_dim) == (6, 3)
    assert torch.equal(extended.weight[:4], before)
    if isinstance(init, list):
        assert torch.equal(extended.weight[4:], before[init])
    with torch.no_grad():
        extended.weight.add_(1)
    assert torch.equal(embedding.weight, before)


@pytest.mark.parametrize(
    "through", [lambda e: e, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]
)
def test_frozen_rows_get_no_gradient_even_in_a_copy(embedding: Embedding, through) -> None:  # type: ignore[no-untyped-def]
    extended = through(Embedding.extend(embedding, 2))
    codes = torch.tensor([[0], [5], [3], [4]])
    extended(codes).sum().backward()
    assert not extended.weight.grad[:4].any()
    assert extended.weight.grad[4:].all()
    assert torch.equal(extended(codes), extended.weight[codes[:, 0]])


def test_without_freezing_all_rows_are_trained(embedding: Embedding) -> None:
    extended = Embedding.extend(embedding, 1, freeze_prev=False)
    extended(torch.arange(5)).sum().backward()
    assert extended.weight.grad.all()


def test_an_extended_state_loads_into_a_module_built_without_it(embedding: Embedding) -> None:
    extended = Embedding.extend(embedding, 3)
    holder = torch.nn.ModuleDict({"batch": Embedding(4, 3), "other": torch.nn.Linear(2, 2)})
    state = {**holder.state_dict(), "batch.weight": extended.weight.detach()}
    holder.load_state_dict(state)
    assert holder["batch"].num_embeddings == 7
    assert torch.equal(holder["batch"].weight, extended.weight)
    assert holder["batch"].weight.requires_grad
    with pytest.raises(RuntimeError, match="size mismatch"):
        holder.load_state_dict({**state, "batch.weight": torch.zeros(4, 5)})


@pytest.mark.parametrize("init", [0, -1, "2"])
def test_growing_by_nothing_is_refused(embedding: Embedding, init: object) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Embedding.extend(embedding, init)  # type: ignore[arg-type]
