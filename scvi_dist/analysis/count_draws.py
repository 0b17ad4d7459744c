"""Draws from laws of counts that belong to cells, not to the minibatch they happen to be in.

Axis suffixes: ``n`` cells, ``f`` features, ``s`` samples.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from scvi_dist.analysis.laws import parameters_of
from scvi_dist.dataloaders.rows import splitmix64
from scvi_dist.distributions import (
    NegativeBinomial,
    NegativeBinomialMixture,
    Poisson,
    ZeroInflatedNegativeBinomial,
)

_COUNTS_TAG = np.uint64(0xA24BAED4963EE407)
"""Keeps these draws apart from those of the latent variables, which follow from the same keys."""


def draw_by_cell(law: Distribution, keys: np.ndarray) -> Tensor:
    """One draw ``[..., n, f]`` from a law of counts; a cell's follows from its key alone.

    Laws of counts are drawn on the CPU by compiled code, so every device draws the same. A normal
    law is drawn by torch.
    """
    parameters = parameters_of(law)
    if type(law) not in _COUNTED:
        kind = type(law)
        return drawn_by_cell(lambda given: kind(**given).sample(), parameters, keys)
    first = next(iter(parameters.values()))
    whole = {name: _three_axes(value) for name, value in parameters.items()}
    starts = splitmix64(keys ^ _COUNTS_TAG)
    out_snf = np.empty(whole[next(iter(whole))].shape, dtype=np.float32)
    _COUNTED[type(law)](starts, whole, out_snf)
    return torch.from_numpy(out_snf).view(first.shape).to(first.device)


def _three_axes(value: Tensor) -> Tensor:
    """``[s, n, f]`` float32 on the CPU."""
    return (value if value.ndim == 3 else value.reshape(1, *value.shape)).float().cpu()


def _array(value: Tensor) -> np.ndarray:
    return value.detach().contiguous().numpy()


def _shared(value: Tensor) -> np.ndarray:
    """The values once: an axis along which they were only expanded has length 1."""
    for axis, stride in enumerate(value.stride()):
        if stride == 0:
            value = value.narrow(axis, 0, 1)
    return _array(value)


_NO_LOGITS = np.empty((0, 0, 0), dtype=np.float32)
_NO_DISPERSION = np.full((1, 1, 1), np.inf, dtype=np.float32)


def _draw_nb(starts: np.ndarray, given: Mapping[str, Tensor], out_snf: np.ndarray) -> None:
    from scvi_dist.analysis.count_kernels import draw_counts

    logits = _array(given["zi_logits"]) if "zi_logits" in given else _NO_LOGITS
    draw_counts(starts, _array(given["mu"]), _shared(given["theta"]), logits, out_snf)


def _draw_poisson(starts: np.ndarray, given: Mapping[str, Tensor], out_snf: np.ndarray) -> None:
    from scvi_dist.analysis.count_kernels import draw_counts

    draw_counts(starts, _array(given["rate"]), _NO_DISPERSION, _NO_LOGITS, out_snf)


def _draw_mixture(starts: np.ndarray, given: Mapping[str, Tensor], out_snf: np.ndarray) -> None:
    from scvi_dist.analysis.count_kernels import draw_mixtures

    theta1 = given["theta1"]
    parts = (given["mu1"], given["mu2"], theta1, given.get("theta2", theta1))
    logits = given["mixture_logits"]
    draw_mixtures(starts, *(_array(part) for part in (*parts, logits)), out_snf)


_COUNTED: dict[type, Callable[[np.ndarray, Mapping[str, Tensor], np.ndarray], None]] = {
    NegativeBinomial: _draw_nb,
    ZeroInflatedNegativeBinomial: _draw_nb,
    Poisson: _draw_poisson,
    NegativeBinomialMixture: _draw_mixture,
}
"""Law -> what draws from it; numba is loaded by the first draw."""


def gamma_by_cell(concentration: Tensor, mean: Tensor, keys: np.ndarray) -> Tensor:
    """One draw ``[..., n, g]`` from gamma laws; a cell's follows from its key alone."""

    def draw(given: Mapping[str, Tensor]) -> Tensor:
        shape = given["concentration"]
        return torch.distributions.Gamma(shape, torch.ones_like(shape)).sample() / shape

    return mean * drawn_by_cell(draw, {"concentration": concentration}, keys)


def drawn_by_cell(
    draw: Callable[[Mapping[str, Tensor]], Tensor],
    parameters: Mapping[str, Tensor],
    keys: np.ndarray,
) -> Tensor:
    """What ``draw`` makes of the parameters ``[..., n, g]`` of each cell, with its own generator.

    Rejection sampling uses up a generator by amounts that depend on the parameters, so each cell
    has a generator of its own. Torch's global one is left as it was.
    """
    first = next(iter(parameters.values()))
    drawn = torch.empty_like(first)
    seeds = (splitmix64(keys) >> np.uint64(1)).tolist()
    # torch.manual_seed would seed every device, and format a stack trace for each one it cannot.
    on_gpu = first.device.index if first.is_cuda else None
    generator = torch.default_generator if on_gpu is None else torch.cuda.default_generators[on_gpu]
    with torch.random.fork_rng(devices=[] if on_gpu is None else [on_gpu]):
        for cell, seed in enumerate(seeds):
            generator.manual_seed(seed)
            drawn[..., cell, :] = draw({k: v[..., cell, :] for k, v in parameters.items()})
    return drawn
