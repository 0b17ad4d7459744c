"""Noise that belongs to cells: standard normal, independent, and a function of the key alone."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Normal

from scvi_dist.analysis.noise import CellNoise, _hash, cell_noise
from scvi_dist.dataloaders.rows import splitmix64
from scvi_dist.module import VAE


def _keys(n: int, seed: int = 0) -> np.ndarray:
    return splitmix64(np.arange(n, dtype=np.uint64) + np.uint64(seed << 32))


def _drawn(keys: np.ndarray, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    noise = CellNoise()
    noise.bind(keys)
    return [noise.normal_like(torch.empty(shape)).numpy() for shape in shapes]


def test_the_hash_is_splitmix64() -> None:
    x = np.random.default_rng(0).integers(0, 2**64, 1_000, dtype=np.uint64)
    x[:3] = [0, 2**63, 2**64 - 1]
    got = _hash(torch.from_numpy(x.view(np.int64))).numpy().view(np.uint64)
    np.testing.assert_array_equal(got, splitmix64(x))


def test_numbers_are_standard_normal() -> None:
    (x,) = _drawn(_keys(2_000), (50, 2_000, 10))
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert stats.kstest(x[::5].ravel(), "norm").pvalue > 1e-4
    n = x.size
    assert abs(x.mean()) < 5 / np.sqrt(n)
    assert abs(x.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs(stats.kurtosis(x.ravel())) < 5 * np.sqrt(24 / n)


def test_cells_draws_samples_and_dimensions_are_independent() -> None:
    a, b = _drawn(_keys(20_000), (3, 20_000, 2), (3, 20_000, 2))
    (c,) = _drawn(_keys(20_000, seed=1), (3, 20_000, 2))
    columns = np.concatenate([np.moveaxis(x, 1, 0).reshape(20_000, -1) for x in (a, b, c)], axis=1)
    neighbours = np.concatenate([columns[:-1], columns[1:]], axis=1)
    for table in (neighbours, neighbours**2):
        correlation = np.corrcoef(table, rowvar=False) - np.eye(table.shape[1])
        assert np.abs(correlation).max() < 5.5 / np.sqrt(20_000)


def test_a_cell_has_its_noise_wherever_it_is() -> None:
    keys = _keys(9)
    whole = _drawn(keys, (4, 9, 5), (9, 5))
    order = [7, 0, 3]
    part = _drawn(keys[order], (4, 3, 5), (3, 5))
    np.testing.assert_array_equal(part[0], whole[0][:, order])
    np.testing.assert_array_equal(part[1], whole[1][order])


def test_draws_from_a_law() -> None:
    law = Normal(torch.full((400, 3), 2.0), torch.full((400, 3), 0.5))
    noise = CellNoise()
    noise.bind(_keys(400))
    x = noise.rsample(law, torch.Size((200,)))
    assert x.shape == (200, 400, 3)
    assert x.mean().item() == pytest.approx(2.0, abs=0.01)
    assert x.std().item() == pytest.approx(0.5, abs=0.01)


def test_every_part_of_a_module_draws_from_it_and_only_within() -> None:
    module = VAE(6, n_latent=2).eval()
    shared = module.noise
    with cell_noise(module) as noise:
        assert module.noise is module.z_encoder.noise is module.l_encoder.noise is noise
        noise.bind(_keys(4))
        x = torch.ones(4, 6)
        first = module.inference(x, torch.zeros(4, 1, dtype=torch.long))["z"]
        noise.bind(_keys(4))
        assert torch.equal(module.inference(x, torch.zeros(4, 1, dtype=torch.long))["z"], first)
    assert module.noise is module.z_encoder.noise is module.l_encoder.noise is shared
    with pytest.raises(ZeroDivisionError), cell_noise(module):
        _ = 1 / 0
    assert module.noise is shared
