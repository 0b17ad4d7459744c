"""What the laws of counts share: optional parameters, the check of values, normalised means."""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from scvi_dist.errors import ConfigError, did_you_mean


class Optional(constraints.Constraint):
    """The constraint of a parameter that may be left out."""

    def __init__(self, constraint: constraints.Constraint) -> None:
        self.constraint = constraint

    def check(self, value: Tensor | None) -> Tensor:
        if value is None:
            return torch.ones((), dtype=torch.bool)
        return self.constraint.check(value)

    def __repr__(self) -> str:
        return f"Optional({self.constraint})"


NONNEGATIVE = constraints.greater_than_eq(0)
OPTIONAL_NONNEGATIVE = Optional(NONNEGATIVE)
ONE_DRAW = torch.Size()


class CountLaw(Distribution):
    """A law on 0, 1, 2, ..., some of whose parameters may be absent."""

    support = constraints.nonnegative_integer

    def warn_outside_support(self, value: Tensor) -> None:
        """Where arguments are validated: warn of anything but whole numbers of at least 0."""
        if not self._validate_args:
            return
        inside = self.support.check(value)
        if not bool(inside.all()):
            first = value[~inside].flatten()[0].item()
            warnings.warn(
                f"{type(self).__name__} expects counts (0, 1, 2, ...); {int((~inside).sum())} of "
                f"{value.numel()} values are not, the first is {first}. Their log-probability "
                "is extrapolated: give raw counts, or choose the normal likelihood.",
                UserWarning,
                stacklevel=3,
            )

    def __repr__(self) -> str:
        shapes = (
            f"{name}: {list(value.shape)}"
            for name in self.arg_constraints
            if (value := getattr(self, name)) is not None
        )
        return f"{type(self).__name__}({', '.join(shapes)})"


def normalized(means: Mapping[str, Tensor | None], key: str) -> Tensor | None:
    """The mean called ``key``: ``"mu"`` (counts) or ``"scale"`` (proportions)."""
    if key not in means:
        raise ConfigError(f"There is no normalised mean {key!r}; {did_you_mean(key, means)}")
    return means[key]
