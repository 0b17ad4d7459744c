"""Noise that belongs to a cell, not to the minibatch that it happens to be in.

Every number is a hash of (key of the cell, number of the draw, place in the draw). A cell's draws
therefore do not depend on the batch size, on the order of reading, on the other cells or on a
restart.

Axis suffixes: ``n`` cells, ``k`` latent, ``s`` samples.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from scvi_dist.dataloaders.rows import splitmix64
from scvi_dist.nn.noise import NO_SAMPLES, NoiseStream

_MIX = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_LOW = (1 << 32) - 1


class CellNoise(NoiseStream):
    """A noise stream whose draws follow from one key for each cell."""

    def __init__(self) -> None:
        super().__init__()
        self._keys = np.empty(0, dtype=np.uint64)
        self._draw = 0

    def bind(self, keys: np.ndarray) -> None:
        """The next draws are for the cells with these keys (uint64 ``[n]``), counted from 0."""
        self._keys = keys
        self._draw = 0

    def normal_like(self, like: Tensor) -> Tensor:
        """Standard normal noise of the shape ``[..., n, k]``, dtype and device of ``like``."""
        n, k = like.shape[-2:]
        assert n == len(self._keys), "noise is bound to the cells of each forward pass"
        samples = like.shape[:-2].numel()
        start = splitmix64(self._keys + np.uint64(self._draw))
        self._draw += 1
        start_n = torch.from_numpy(start.view(np.int64)).to(like.device)
        place_sk = torch.arange(samples * k, device=like.device).view(samples, 1, k)
        noise_snk = _normal(start_n.view(1, n, 1) + place_sk)
        return noise_snk.view(like.shape).to(like.dtype)

    def rsample(self, law: Normal, sample_shape: torch.Size = NO_SAMPLES) -> Tensor:
        """A draw ``[*sample_shape, n, k]`` from a normal law."""
        loc = law.loc.expand(*sample_shape, *law.loc.shape)
        return loc + law.scale * self.normal_like(loc)


def _normal(counters: Tensor) -> Tensor:
    """float64: a standard normal number for each int64, by Box and Muller's transform.

    Source: Box & Muller, "A note on the generation of random normal deviates", 1958.
    """
    bits = _hash(counters)
    # Two halves of 32 bits, shifted off zero, whose logarithm is infinite.
    u = ((_shifted(bits, 32)).double() + 0.5) / 2**32
    v = (bits & _LOW).double() / 2**32
    return torch.sqrt(-2 * torch.log(u)) * torch.cos(2 * torch.pi * v)


def _hash(x: Tensor) -> Tensor:
    """:func:`splitmix64` on the tensor's device; int64 wraps as uint64 does."""
    z = x + _GAMMA
    z = (z ^ _shifted(z, 30)) * _MIX[0]
    z = (z ^ _shifted(z, 27)) * _MIX[1]
    return z ^ _shifted(z, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """``x >> bits`` of the unsigned number: torch's own shift copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


@contextmanager
def cell_noise(module: nn.Module) -> Iterator[CellNoise]:
    """Within it, all parts of the module that share its noise stream draw from a CellNoise."""
    shared = module.noise
    parts = [part for part in module.modules() if getattr(part, "noise", None) is shared]
    noise = CellNoise()
    try:
        for part in parts:
            part.noise = noise
        yield noise
    finally:
        for part in parts:
            part.noise = shared
