"""Where a module's random numbers come from.

Axis suffixes: ``n`` cells, ``k`` latent or hidden units, ``s`` samples. Cells are the
second-to-last axis of whatever is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from scvi_dist.errors import PlanError

NO_SAMPLES = torch.Size()


@dataclass(frozen=True, slots=True)
class _Binding:
    """Which cells of which global minibatch are being computed here."""

    seed: int
    step: int
    start: int
    stop: int
    n_global: int

    def __post_init__(self) -> None:
        if min(self.seed, self.step) < 0 or not 0 <= self.start < self.stop or self.n_global < 1:
            raise PlanError(
                "Noise is bound to a seed and a step of at least 0 and to items start < stop of "
                f"a minibatch with at least one cell; this was {self}."
            )

    def entropy(self, draw: int) -> list[int]:
        """What the ``draw``-th draw of this step depends on, equal on all ranks."""
        return [self.seed, self.step, draw]

    def mine(self, noise: Tensor) -> Tensor:
        """This rank's items; a padding cell after the last one takes the noise of an early one."""
        if self.start == 0 and self.stop == self.n_global:
            return noise
        rows = torch.arange(self.start, self.stop, device=noise.device) % self.n_global
        return noise.index_select(-2, rows)


class NoiseStream:
    """The one source of noise that all parts of a module share.

    Unbound, as it is at first, it draws from torch's global generator, in the order and the
    amounts in which scvi-tools does. Bound by :meth:`at`, each draw makes the noise of the
    *whole global minibatch* from (seed, step, number of the draw in the step) and returns the
    rows of this rank's cells: what a cell gets then depends neither on the rank that computes
    it nor on the number of ranks.
    """

    def __init__(self) -> None:
        self._binding: _Binding | None = None
        self._n_draws = 0

    @property
    def is_bound(self) -> bool:
        return self._binding is not None

    def at(self, seed: int, step: int, start: int, stop: int, n_global: int) -> None:
        """Bind to items ``start … stop`` of the ``n_global`` cells of global minibatch ``step``.

        The draws of the step are counted from 0 again.
        """
        self._binding = _Binding(seed, step, start, stop, n_global)
        self._n_draws = 0

    def unbind(self) -> None:
        """Draw from torch's global generator again."""
        self._binding = None

    def normal_like(self, like: Tensor) -> Tensor:
        """Standard normal noise of the shape ``[..., n, k]``, dtype and device of ``like``."""
        if self._binding is None:
            return torch.normal(torch.zeros_like(like), torch.ones_like(like))
        noise = torch.empty(self._global(like.shape), dtype=like.dtype, device=like.device)
        generator = _torch_generator(self._next_entropy(), like.device)
        return self._binding.mine(noise.normal_(generator=generator))

    def rsample(self, law: Normal, sample_shape: torch.Size = NO_SAMPLES) -> Tensor:
        """A reparameterised draw ``[*sample_shape, n, k]`` from a normal law."""
        if self._binding is None:
            return law.rsample(sample_shape)
        loc = law.loc.expand(*sample_shape, *law.loc.shape)
        return loc + law.scale * self.normal_like(loc)

    def bernoulli_keep(
        self, shape: Sequence[int], p: float, device: Any = None, dtype: Any = torch.float32
    ) -> Tensor:
        """A mask ``[..., n, k]``: 0 with probability ``p`` (dropped), 1 otherwise (kept)."""
        where = torch.device("cpu" if device is None else device)
        if self._binding is None:
            return torch.empty(shape, dtype=dtype, device=where).bernoulli_(1 - p)
        whole, entropy = self._global(shape), self._next_entropy()
        if where.type == "cpu":
            return self._binding.mine(_keep_on_cpu(entropy, whole, p).to(dtype))
        mask = torch.empty(whole, dtype=dtype, device=where)
        generator = _torch_generator(entropy, where)
        return self._binding.mine(mask.bernoulli_(1 - p, generator=generator))

    def _global(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the noise of the global minibatch, of which ours has this shape."""
        binding = self._binding
        assert binding is not None
        n_cells = shape[-2] if len(shape) > 1 else -1
        if n_cells != binding.stop - binding.start:
            raise PlanError(
                f"The noise is bound to items {binding.start} to {binding.stop} of global "
                f"minibatch {binding.step}, which is {binding.stop - binding.start} cells, but "
                f"noise of shape {list(shape)} was asked for. Bind it with at() to the cells of "
                "each batch, or unbind() it."
            )
        return (*shape[:-2], binding.n_global, shape[-1])

    @classmethod
    def keep_out_of_compiled_code(cls) -> None:
        """Draw between compiled pieces: a generator with a seed of its own cannot be compiled.

        Done when something is compiled, since it loads the compiler.
        """
        for name in ("normal_like", "bernoulli_keep"):
            draw = getattr(cls, name)
            if not getattr(draw, "_torchdynamo_disable", False):
                setattr(cls, name, torch.compiler.disable(draw))

    def _next_entropy(self) -> list[int]:
        binding = self._binding
        assert binding is not None
        draw, self._n_draws = self._n_draws, self._n_draws + 1
        return binding.entropy(draw)


def _torch_generator(entropy: list[int], device: torch.device) -> torch.Generator:
    words = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(words[0]))


def _keep_on_cpu(entropy: list[int], shape: tuple[int, ...], p: float) -> Tensor:
    """float32: 0 with probability ``p`` to 32 bits, else 1; four times as fast as torch's own."""
    least, n = round(p * 2**32), prod(shape)
    if least == 2**32:
        return torch.zeros(shape)
    bits = np.random.SFC64(entropy).random_raw(-(-n // 2)).view(np.uint32)[:n]
    return torch.from_numpy((bits >= least).astype(np.float32).reshape(shape))
