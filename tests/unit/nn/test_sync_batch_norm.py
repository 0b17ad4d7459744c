import copy
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from scvi_dist.nn.sync_batch_norm import Padding, SyncedBatchNorm1d, convert_batch_norm

SHARES = {"equal": (6, 6), "unequal": (9, 3), "one cell": (11, 1), "nothing but padding": (12, 0)}
WORLD = 2
SAMPLES = (1, 3)
"""Samples of each cell."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(5, momentum=0.01, eps=1e-3)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    first = nn.Linear(4, 5)
    # A mean far from 0 makes a variance from a sum of squares lose its digits.
    nn.init.constant_(first.bias, 100.0)
    return nn.Sequential(first, norm, nn.ReLU(), nn.Linear(5, 1))


def cells() -> torch.Tensor:
    return torch.randn(12, 4, generator=torch.Generator().manual_seed(1))


def targets() -> torch.Tensor:
    return torch.linspace(-1, 1, 12)[:, None]


def samples_of(x: torch.Tensor, n_samples: int) -> torch.Tensor:
    """The cells, or ``[s, n, 4]``: different samples of each."""
    return x if n_samples == 1 else torch.stack([x * (k + 1) for k in range(n_samples)])


def rank_steps(rank: int, folder: str) -> None:
    """Three training steps of one rank for each share; what it ends with goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    for (name, share), n_samples in product(SHARES.items(), SAMPLES):
        net = network()
        padding = convert_batch_norm(net)
        n = share[rank]
        padding.n_cells = int(n == 0)
        rows = slice(share[0] * rank, share[0] * rank + n) if n else slice(0, 1)
        x, y = cells()[rows].requires_grad_(), targets()[rows]
        for _ in range(3):
            net.zero_grad()
            x.grad = None
            seen = net(samples_of(x, n_samples))
            (((seen - y) ** 2).sum() / 12 * (n > 0)).backward()
            for parameter in net.parameters():
                dist.all_reduce(parameter.grad)
        result = {
            "grads": [p.grad for p in net.parameters()],
            "buffers": dict(net.state_dict()),
            "x_grad": x.grad[:n],
        }
        torch.save(result, f"{folder}/{name}-{n_samples}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what both ranks ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_steps, args=(str(folder),), nprocs=WORLD)
    return folder


@pytest.mark.parametrize("n_samples", SAMPLES)
@pytest.mark.parametrize("share", SHARES)
def test_ranks_together_compute_what_one_batch_norm_computes(
    results: Path, share: str, n_samples: int
) -> None:
    """Several samples of a cell count as cells."""
    net, x = network(), cells().requires_grad_()
    for _ in range(3):
        net.zero_grad()
        x.grad = None
        pooled = net(samples_of(x, n_samples).reshape(-1, 4))
        ((pooled - targets().repeat(n_samples, 1)) ** 2).sum().div(12).backward()
    ranks = [torch.load(results / f"{share}-{n_samples}-{rank}.pt") for rank in range(WORLD)]
    close = {"rtol": 1e-4, "atol": 5e-5}
    for result in ranks:
        for grad, parameter in zip(result["grads"], net.parameters(), strict=True):
            torch.testing.assert_close(grad, parameter.grad, **close)
        torch.testing.assert_close(result["buffers"], dict(net.state_dict()), **close)
    torch.testing.assert_close(torch.cat([r["x_grad"] for r in ranks]), x.grad, **close)


def test_conversion_keeps_parameters_and_names() -> None:
    net = network()
    before = dict(net.named_parameters())
    keys = list(net.state_dict())
    padding = convert_batch_norm(net)
    assert isinstance(net[1], SyncedBatchNorm1d)
    assert {k: id(v) for k, v in net.named_parameters()} == {k: id(v) for k, v in before.items()}
    assert list(net.state_dict()) == keys
    assert net[1].padding is padding
    assert convert_batch_norm(net) is net[1].padding


@pytest.mark.parametrize("training", [True, False])
def test_alone_it_is_batch_norm(training: bool) -> None:
    plain = network().train(training)
    synced = copy.deepcopy(plain)
    convert_batch_norm(synced)
    assert torch.equal(synced(cells()), plain(cells()))
    torch.testing.assert_close(synced.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_four_dimensions_are_refused() -> None:
    layer = SyncedBatchNorm1d.of(nn.BatchNorm1d(2), Padding())
    with pytest.raises(ValueError, match="4 dimensions"):
        layer(torch.zeros(2, 2, 2, 2))
