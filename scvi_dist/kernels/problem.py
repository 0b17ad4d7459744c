"""What the likelihood of a minibatch is computed from, and what comes of it.

Axis suffixes: ``n`` cells, ``g`` genes, ``h`` hidden units, ``t`` kinds of cells that have
dispersions of their own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from scvi_dist.batch import SparseCounts

LAWS = ("nb", "zinb", "poisson")
ACTIVATIONS = ("softmax", "softplus")


@dataclass(frozen=True, slots=True)
class Law:
    """Which likelihood."""

    counts: str
    """One of :data:`LAWS`."""
    scale: str = "softmax"
    """One of :data:`ACTIVATIONS`: from logits to the scales of the genes."""


@dataclass(frozen=True, slots=True)
class Head:
    """A linear layer from some of the hidden units to genes."""

    weight_gh: Tensor
    bias_g: Tensor
    first: int = 0
    """Hidden unit that the first column of the weights is for; those after it follow."""

    @staticmethod
    def of(linear: nn.Linear) -> "Head":
        """The weights of a layer."""
        return Head(linear.weight, linear.bias)

    def detached(self) -> "Head":
        """Without a graph."""
        return Head(self.weight_gh.detach(), self.bias_g.detach(), self.first)

    def seen(self, hidden_nh: Tensor) -> Tensor:
        """The hidden units that the weights are for; a view."""
        return hidden_nh[:, slice(*self.units)]

    @property
    def units(self) -> tuple[int, int]:
        """First hidden unit that the weights are for, and one after the last."""
        return self.first, self.first + self.weight_gh.shape[1]

    def logits(self, hidden_nh: Tensor) -> Tensor:
        """``[n, g]``."""
        return torch.addmm(self.bias_g, self.seen(hidden_nh), self.weight_gh.t())


@dataclass(frozen=True, slots=True)
class CountModel:
    """The last layer of a network, which gives the parameters of a law of counts."""

    law: Law
    scale: Head
    dropout: Head | None
    """Logits of extra zeros; for ``"zinb"``."""
    dispersion: Head | None
    """Logarithms of each cell's dispersions, or ..."""
    log_theta_tg: Tensor | None
    """... of those of each kind of cells. A Poisson law has neither."""
    zeros_are_cut: bool = False
    """Whether hidden units that are zero were cut off there, as by a ReLU: what comes before it has
    no derivative there, so that the one by such a unit need not be known, and may be given as 0."""

    @property
    def heads(self) -> Iterator[tuple[str, Head]]:
        """The heads that there are, by name."""
        for name in ("scale", "dropout", "dispersion"):
            head = getattr(self, name)
            if head is not None:
                yield name, head

    def detached(self) -> Self:
        """Without graphs; of the same memory."""
        heads: dict[str, Any] = {name: head.detached() for name, head in self.heads}
        table = None if self.log_theta_tg is None else self.log_theta_tg.detach()
        return replace(self, log_theta_tg=table, **heads)

    def problem(
        self, counts: SparseCounts, hidden_nh: Tensor, log_size_n: Tensor, group_n: Tensor | None
    ) -> "CountProblem":
        """The likelihood of some cells."""
        return CountProblem(
            law=self.law,
            scale=self.scale,
            dropout=self.dropout,
            dispersion=self.dispersion,
            log_theta_tg=self.log_theta_tg,
            zeros_are_cut=self.zeros_are_cut,
            counts=counts,
            hidden_nh=hidden_nh,
            log_size_n=log_size_n,
            group_n=group_n,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CountProblem(CountModel):
    """Counts, and the network whose last layer gives the parameters of their law."""

    counts: SparseCounts
    hidden_nh: Tensor
    log_size_n: Tensor
    """Logarithm of what the scales are multiplied by."""
    group_n: Tensor | None
    """int64: the kind of each cell; of one kind where None."""

    def detached(self) -> Self:
        # Without arguments it would look for a class that slots have replaced.
        plain = super(CountProblem, self).detached()
        units_nh, log_size_n = self.hidden_nh.detach(), self.log_size_n.detach()
        return replace(plain, hidden_nh=units_nh, log_size_n=log_size_n)

    def groups(self) -> Tensor:
        """int64 ``[n]``."""
        if self.group_n is not None:
            return self.group_n
        return torch.zeros(self.counts.shape[0], dtype=torch.int64, device=self.hidden_nh.device)


@dataclass(frozen=True, slots=True)
class CountResult:
    """Losses, and derivatives of their weighted sum by what was asked for."""

    loss_n: Tensor
    """Minus the log-likelihood of each cell."""
    gradients: dict[str, Tensor]
    """``"hidden_nh"``, ``"log_size_n"``, ``"log_theta_tg"``, and for each head its name with
    ``".weight"`` and ``".bias"``."""
