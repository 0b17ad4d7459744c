"""Compiled loops of a hidden layer: batch norm, ReLU and dropout, forward and backward.

Axis suffixes: ``n`` cells, ``h`` hidden units.
"""

from typing import Any, NamedTuple

import numpy as np

from scvi_dist.kernels.compiled import SUMS, compiled, part


class Norm(NamedTuple):
    """What a batch norm has, ``[h]`` each, and how many minibatches it has seen."""

    weight: np.ndarray
    bias: np.ndarray
    running_mean: np.ndarray
    running_var: np.ndarray
    n_batches: np.ndarray
    """int64 ``[1]``."""


class Moments(NamedTuple):
    """Mean of the minibatch and one over its standard deviation; float64 ``[h]``."""

    mean: np.ndarray
    inverse: np.ndarray


@part(SUMS)
def _add(row: np.ndarray, total: np.ndarray) -> None:
    for k in range(row.size):
        total[k] += row[k]


@part(SUMS)
def _add_squares(row: np.ndarray, mean: np.ndarray, total: np.ndarray) -> None:
    for k in range(row.size):
        d = row[k] - mean[k]
        total[k] += d * d


@part()
def _activate(row: np.ndarray, slope: np.ndarray, offset: np.ndarray, out: np.ndarray) -> None:
    zero = row.dtype.type(0.0)
    for k in range(row.size):
        value = row[k] * slope[k] + offset[k]
        # Not the other way round: a NaN is to be seen.
        out[k] = zero if value <= zero else value


@part()
def _drop(keep: np.ndarray, factor: Any, out: np.ndarray) -> None:
    for k in range(keep.size):
        out[k] *= factor * keep[k]


@compiled()
def activate(
    units_nh: np.ndarray,
    bias_h: np.ndarray,
    norm: Norm,
    keep_nh: np.ndarray,
    numbers: tuple[float, float, float],
    moments: Moments,
    out_nh: np.ndarray,
) -> None:
    """Normalise units over the cells, cut them at zero and drop some.

    Parameters
    ----------
    units_nh
        Before a bias is added, which the norm takes out again.
    bias_h
        This bias: the running mean knows of it.
    keep_nh
        1 where a unit is kept, else 0; ``[0, 0]`` where none is dropped.
    numbers
        Epsilon and momentum of the norm; what kept units are multiplied by.
    moments, out_nh
        Filled.
    """
    eps, momentum, factor = numbers
    n, h = units_nh.shape
    real = out_nh.dtype.type
    mean, inverse = moments
    mean[:] = 0.0
    inverse[:] = 0.0
    norm.n_batches[0] += 1
    for i in range(n):
        _add(units_nh[i], mean)
    mean /= n
    for i in range(n):
        _add_squares(units_nh[i], mean, inverse)
    slope, offset = np.empty(h, out_nh.dtype), np.empty(h, out_nh.dtype)
    for k in range(h):
        variance = inverse[k] / n
        inverse[k] = 1.0 / np.sqrt(variance + eps)
        slope[k] = real(norm.weight[k] * inverse[k])
        offset[k] = real(norm.bias[k] - norm.weight[k] * inverse[k] * mean[k])
        old_mean, old_var = norm.running_mean[k], norm.running_var[k]
        unbiased = variance * n / (n - 1)
        norm.running_mean[k] = real((1 - momentum) * old_mean + momentum * (mean[k] + bias_h[k]))
        norm.running_var[k] = real((1 - momentum) * old_var + momentum * unbiased)
    for i in range(n):
        _activate(units_nh[i], slope, offset, out_nh[i])
        if keep_nh.size:
            _drop(keep_nh[i], real(factor), out_nh[i])


@part(SUMS)
def _gate(
    slope: np.ndarray,
    out: np.ndarray,
    units: np.ndarray,
    mean: np.ndarray,
    inverse: np.ndarray,
    factor: Any,
    gated: np.ndarray,
    total: np.ndarray,
    total_along: np.ndarray,
) -> None:
    zero = slope.dtype.type(0.0)
    for k in range(slope.size):
        value = zero if out[k] == zero else slope[k] * factor
        gated[k] = value
        total[k] += value
        total_along[k] += value * ((units[k] - mean[k]) * inverse[k])


@part(SUMS)
def _centre(
    units: np.ndarray,
    gated: np.ndarray,
    mean: np.ndarray,
    along: np.ndarray,
    offset: np.ndarray,
    scale: np.ndarray,
    total: np.ndarray,
) -> None:
    for k in range(units.size):
        value = scale[k] * gated[k] - (along[k] * (units[k] - mean[k]) + offset[k])
        gated[k] = value
        total[k] += value


@compiled()
def deactivate(
    slope_nh: np.ndarray,
    units_nh: np.ndarray,
    out_nh: np.ndarray,
    weight_h: np.ndarray,
    factor: float,
    moments: Moments,
    gradient_nh: np.ndarray,
    sums_3h: np.ndarray,
) -> None:
    """Derivatives by the units, from those by the output.

    Parameters
    ----------
    slope_nh
        Derivatives by ``out_nh``.
    units_nh, out_nh, weight_h, factor, moments
        As :func:`activate` had or made them.
    gradient_nh
        Filled.
    sums_3h
        Filled with the derivatives by the bias of the units, by the norm's weight and by its bias.

    Source
    ------
    Ioffe & Szegedy 2015, "Batch normalization", section 3.
    """
    n = len(units_nh)
    real = gradient_nh.dtype.type
    mean, inverse = moments
    sums = np.zeros((3, weight_h.size))
    for i in range(n):
        _gate(
            slope_nh[i],
            out_nh[i],
            units_nh[i],
            mean,
            inverse,
            real(factor),
            gradient_nh[i],
            sums[2],
            sums[1],
        )
    scale = weight_h * inverse
    offset = scale * sums[2] / n
    along = scale * inverse * sums[1] / n
    for i in range(n):
        _centre(units_nh[i], gradient_nh[i], mean, along, offset, scale, sums[0])
    for j in range(3):
        for k in range(weight_h.size):
            sums_3h[j, k] = real(sums[j, k])


@compiled()
def rectify(units_nh: np.ndarray, slope_h: np.ndarray, offset_h: np.ndarray) -> None:
    """Multiply units by slopes, add offsets and cut them at zero, in place."""
    zero = units_nh.dtype.type(0.0)
    for n in range(len(units_nh)):
        row = units_nh[n]
        for k in range(row.size):
            value = row[k] * slope_h[k] + offset_h[k]
            # Not the other way round: a NaN is to be seen.
            row[k] = zero if value <= zero else value
