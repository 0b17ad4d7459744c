import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.train.metrics import EpochSums, alone, elbo_metrics

NAMES = ("loss", "reconstruction_loss", "kl_local")


def batches_of(sizes: list[int], seed: int) -> list[dict[str, torch.Tensor]]:
    """Per-cell losses ``[n]`` of minibatches."""
    generator = torch.Generator().manual_seed(seed)
    return [{k: torch.randn(n, generator=generator) * 1e3 for k in NAMES} for n in sizes]


def add(sums: EpochSums, batch: dict[str, torch.Tensor], lo: int, hi: int, kl: float) -> None:
    n = len(batch["loss"])
    per_cell = {k: v[lo:hi].sum() for k, v in batch.items()}
    sums.add(per_cell, {"kl_global": torch.tensor(kl)}, hi - lo, (hi - lo) / n)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5), st.integers(0, 99))
def test_means_do_not_depend_on_how_cells_are_shared_out(
    sizes: list[int], world: int, seed: int
) -> None:
    batches = batches_of(sizes, seed)
    ranks = [EpochSums() for _ in range(world)]
    for kl, batch in enumerate(batches):
        n = len(batch["loss"])
        for rank, sums in enumerate(ranks):
            add(sums, batch, rank * n // world, (rank + 1) * n // world, float(kl))
    vectors: list[torch.Tensor] = []
    for sums in ranks:
        sums.reduced(lambda v: vectors.append(v) or v)
    merged = ranks[0].reduced(lambda _: torch.stack(vectors).sum(0))
    means = merged.means()
    for name in NAMES:
        cells = torch.cat([b[name] for b in batches]).double()
        torch.testing.assert_close(
            means[name], cells.mean().item(), rtol=1e-5, atol=1e-5 * cells.abs().max().item()
        )
    torch.testing.assert_close(means["kl_global"], (len(sizes) - 1) / 2, rtol=1e-6, atol=1e-6)
    assert round(merged.n_batches, 6) == len(sizes)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.data())
def test_an_interrupted_epoch_has_the_means_of_an_undisturbed_one(
    sizes: list[int], data: st.DataObject
) -> None:
    batches = batches_of(sizes, 0)
    cut = data.draw(st.integers(0, len(sizes)))
    whole, first, second = EpochSums(), EpochSums(), EpochSums()
    for index, batch in enumerate(batches):
        for sums in (whole, first if index < cut else second):
            if sums is second and index == cut:
                second.load_state_dict(first.reduced(alone).state_dict())
            add(sums, batch, 0, len(batch["loss"]), 1.0)
    if cut == len(sizes):
        second.load_state_dict(first.state_dict())
    assert second.means() == whole.means()


def test_padding_carries_no_weight() -> None:
    sums = EpochSums()
    sums.add({"loss": torch.tensor(6.0)}, {"kl_global": torch.tensor(2.0)}, 3, 1.0)
    sums.add({"loss": torch.tensor(0.0)}, {"kl_global": torch.tensor(2.0)}, 0, 0.0)
    assert sums.means() == {"loss": 2.0, "kl_global": 2.0}


def test_a_million_small_losses_do_not_drown() -> None:
    sums = EpochSums()
    sums.add({"loss": torch.tensor(2.0**30)}, {}, 1)
    for _ in range(64):
        sums.add({"loss": torch.tensor(1.0)}, {}, 1)
    assert sums.means()["loss"] * 65 == 2.0**30 + 64


def test_nothing_added_has_no_means() -> None:
    assert EpochSums().reduced(alone).means() == {}
    assert elbo_metrics({}, "train", 10) == {}


def test_the_elbo_shares_the_global_kl_among_the_cells() -> None:
    means = {"loss": 9.0, "reconstruction_loss": 5.0, "kl_local": 2.0, "kl_global": 30.0, "x": 1.0}
    assert elbo_metrics(means, "validation", 10) == {
        "validation_loss": 9.0,
        "elbo_validation": 10.0,
        "reconstruction_loss_validation": 5.0,
        "kl_local_validation": 2.0,
        "kl_global_validation": 30.0,
        "x_validation": 1.0,
    }
