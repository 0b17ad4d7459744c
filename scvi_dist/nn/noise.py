"""Where a module's random numbers come from.

Axis suffixes: ``n`` cells, ``k`` latent or hidden units, ``s`` samples. Cells are the
second-to-last axis of whatever is drawn.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from scvi_dist.errors import PlanError

NO_SAMPLES = torch.Size()
_FILLED = (torch.float32, torch.float64)
"""What compiled loops write; other types are made from the first."""


class _Binding(NamedTuple):
    """Which cells of which global minibatch are being computed here."""

    seed: int
    step: int
    start: int
    stop: int
    n_global: int

    def mine(self, noise: Tensor) -> Tensor:
        """This rank's items; a padding cell after the last one takes the noise of an early one."""
        if self.start == 0 and self.stop == self.n_global:
            return noise
        rows = torch.arange(self.start, self.stop, device=noise.device) % self.n_global
        return noise.index_select(-2, rows)


class NoiseStream:
    """The one source of noise that all parts of a module share.

    Unbound, as it is at first, it draws from torch's global generator, in the order and the
    amounts in which scvi-tools does. Bound by :meth:`at`, the noise is that of the *whole global
    minibatch*, of which a rank has the rows of its cells: what a cell gets then depends neither on
    the rank that computes it nor on the number of ranks. On a CPU each number is a hash of (seed,
    step, number of the draw in the step, place in the minibatch), and only those of this rank are
    computed. Other devices make all of them by torch's generator, seeded with the first three.

    Source
    ------
    Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators" (the hash); Box &
    Muller 1958, "A note on the generation of random normal deviates".
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

        Raises
        ------
        PlanError
            Where there are no such cells, or seed or step is negative.
        """
        binding = _Binding(seed, step, start, stop, n_global)
        if seed < 0 or step < 0 or not 0 <= start < stop or n_global < 1:
            raise PlanError(
                "Noise is bound to a seed and a step of at least 0 and to items start < stop of "
                f"a minibatch with at least one cell; this was {binding}."
            )
        self._binding = binding
        self._n_draws = 0

    def unbind(self) -> None:
        """Draw from torch's global generator again."""
        self._binding = None

    def normal_like(self, like: Tensor) -> Tensor:
        """Standard normal noise of the shape ``[..., n, k]``, dtype and device of ``like``."""
        if self._binding is None:
            return torch.normal(torch.zeros_like(like), torch.ones_like(like))
        if like.is_cpu:
            from scvi_dist.kernels.noise_rows import fill_normal

            return self._filled(fill_normal, like.shape, like.dtype)
        noise = torch.empty(self._global(like.shape), dtype=like.dtype, device=like.device)
        return self._binding.mine(noise.normal_(generator=self._generator(like.device)))

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
        if where.type == "cpu":
            from scvi_dist.kernels.noise_rows import fill_kept

            return self._filled(fill_kept, shape, dtype, round(p * 2**32))
        mask = torch.empty(self._global(shape), dtype=dtype, device=where)
        return self._binding.mine(mask.bernoulli_(1 - p, generator=self._generator(where)))

    def _filled(
        self, fill: Callable[..., None], shape: Sequence[int], dtype: torch.dtype, *law: int
    ) -> Tensor:
        """What a compiled loop writes for the cells that are bound."""
        binding, (*_, n_cells, width) = self._checked(shape), shape
        is_filled = dtype in _FILLED
        noise = torch.empty(shape, dtype=dtype if is_filled else _FILLED[0])
        seed, step = _word(binding.seed), _word(binding.step)
        rows_snk = noise.numpy().reshape(-1, n_cells, width)
        fill(seed, step, self._next_draw(), binding.start, binding.n_global, *law, rows_snk)
        return noise if is_filled else noise.to(dtype)

    def _global(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the noise of the global minibatch, of which ours has this shape."""
        return (*shape[:-2], self._checked(shape).n_global, shape[-1])

    def _checked(self, shape: Sequence[int]) -> _Binding:
        """What this is bound to, which has to be as many cells as the shape has."""
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
        return binding

    def _next_draw(self) -> int:
        """The number of the next draw of the step."""
        self._n_draws += 1
        return self._n_draws - 1

    def _generator(self, device: torch.device) -> torch.Generator:
        """Of the next draw, equal on all ranks."""
        binding = self._binding
        assert binding is not None
        entropy = [binding.seed, binding.step, self._next_draw()]
        words = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
        return torch.Generator(device).manual_seed(int(words[0]))

    @classmethod
    def keep_out_of_compiled_code(cls) -> None:
        """Draw between compiled pieces: a generator with a seed of its own cannot be compiled.

        Done when something is compiled, since it loads the compiler.
        """
        for name in ("normal_like", "bernoulli_keep"):
            draw = getattr(cls, name)
            if not getattr(draw, "_torchdynamo_disable", False):
                setattr(cls, name, torch.compiler.disable(draw))


def _word(number: int) -> int:
    """63 bits of a number of any size: itself where it has no more."""
    if number < 1 << 63:
        return number
    digest = hashlib.blake2b(str(number).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
