"""Means of an epoch, as sums that merge.

Sums stay on the device as tensors, so that no step waits for it; weights are known to the host.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from scvi_dist.errors import CheckpointError

Reduce = Callable[[Tensor], Tensor]
"""The sum of a tensor over all ranks."""

VERSION = 1
HELD_STEPS = 32
"""Minibatches whose values wait to be added: together they cost what one of them would."""

MODE_FIRST = ("classification_loss", "accuracy", "f1_score", "calibration_error")
"""Metrics whose names begin with the mode, where those of the others end with it."""
TRAINING_ONLY = ("adversarial_loss",)
"""Metrics whose names say no mode."""


def alone(tensor: Tensor) -> Tensor:
    """The sum over one rank."""
    return tensor


def without_graph(x: Tensor) -> Tensor:
    """A tensor that keeps nothing else in memory. To ask takes a tenth of what detaching does."""
    return x.detach() if x.requires_grad else x


class EpochSums:
    """Sums over the cells and over the minibatches of one epoch.

    Two of them that saw different cells merge by addition, and the mean does not depend on how the
    cells were shared out. float64, so that sums over millions of cells stay exact enough.
    """

    def __init__(self) -> None:
        self._cell_names: tuple[str, ...] = ()
        self._batch_names: tuple[str, ...] = ()
        # One vector for all sums: an epoch costs one collective.
        self._sums: Tensor | None = None
        self._held: list[tuple[list[Tensor], float]] = []
        self.n_cells = 0.0
        """Cells summed over."""
        self.n_batches = 0.0
        """Global minibatches summed over; a rank's share of one counts as its share of cells."""

    def add(
        self,
        per_cell: Mapping[str, Tensor],
        per_batch: Mapping[str, Tensor],
        n_cells: int,
        share: float = 1.0,
    ) -> None:
        """Add a minibatch; the names are those of the first one.

        Parameters
        ----------
        per_cell
            Name -> sum over the batch's cells; tensors that nobody writes into later.
        per_batch
            Name -> value of the global minibatch, the same on every rank; as for ``per_cell``.
        n_cells
            Cells of this rank, padding left out.
        share
            Part of the global minibatch's cells that this rank has.
        """
        if self._sums is None and not self._held:
            self._cell_names, self._batch_names = tuple(per_cell), tuple(per_batch)
        values = [without_graph(per_cell[k]) for k in self._cell_names]
        values += [without_graph(per_batch[k]) for k in self._batch_names]
        self._held.append((values, share))
        if len(self._held) == HELD_STEPS:
            self._fold()
        self.n_cells += n_cells
        self.n_batches += share

    def _fold(self) -> None:
        """Add what is held: minibatch by minibatch, so that it does not matter when."""
        if not self._held:
            return
        n_cell_names, n_names = len(self._cell_names), len(self._held[0][0])
        values = torch.stack([value for values, _ in self._held for value in values])
        rows = values.to(_wide(values.device)).view(-1, n_names).unbind()
        for row, (_, share) in zip(rows, self._held, strict=True):
            if share != 1.0:
                row[n_cell_names:] *= share
            self._sums = row.clone() if self._sums is None else self._sums.add_(row)
        self._held = []

    def reduced(self, reduce: Reduce) -> "EpochSums":
        """The sums over all ranks; one call of ``reduce``, which all ranks have to make."""
        self._fold()
        sums = torch.zeros(0, dtype=torch.float64) if self._sums is None else self._sums
        counts = sums.new_tensor([self.n_cells, self.n_batches])
        total = reduce(torch.cat([sums, counts]))
        merged = EpochSums()
        merged._cell_names, merged._batch_names = self._cell_names, self._batch_names
        merged._sums = None if self._sums is None else total[:-2]
        merged.n_cells, merged.n_batches = total[-2:].tolist()
        return merged

    def means(self) -> dict[str, float]:
        """Name -> mean over cells, or over minibatches. Empty before anything was added."""
        self._fold()
        if self._sums is None or self.n_cells == 0:
            return {}
        names = self._cell_names + self._batch_names
        weights = [self.n_cells] * len(self._cell_names) + [self.n_batches] * len(self._batch_names)
        return {k: s / w for k, s, w in zip(names, self._sums.tolist(), weights, strict=True)}

    def to(self, device: torch.device) -> None:
        """Move the sums to where the losses are."""
        if self._sums is not None:
            self._sums = self._sums.to(_wide(device)).to(device)

    def reset(self) -> None:
        """Back to nothing."""
        self._sums, self._held = None, []
        self.n_cells = self.n_batches = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        self._fold()
        return {
            "version": VERSION,
            "cell_names": list(self._cell_names),
            "batch_names": list(self._batch_names),
            "sums": None if self._sums is None else self._sums.tolist(),
            "n_cells": self.n_cells,
            "n_batches": self.n_batches,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, on the CPU; before anything is added."""
        if state["version"] != VERSION:
            raise CheckpointError(
                f"Sums of an epoch have version {state['version']}, this version reads {VERSION}."
            )
        self._cell_names = tuple(state["cell_names"])
        self._batch_names = tuple(state["batch_names"])
        sums = state["sums"]
        self._sums = None if sums is None else torch.tensor(sums, dtype=torch.float64)
        self.n_cells, self.n_batches = state["n_cells"], state["n_batches"]


def elbo_metrics(means: Mapping[str, float], mode: str, n_obs: int) -> dict[str, float]:
    """An epoch's means under scvi-tools' names, with the negative ELBO per cell.

    Parameters
    ----------
    means
        Means by ``loss``, ``reconstruction_loss``, ``kl_local``, ``kl_global`` and extra names.
    mode
        ``train`` or ``validation``.
    n_obs
        Cells of that split; a global KL divergence is shared among them.
    """
    if not means:
        return {}
    parts = {k: means[k] for k in ("reconstruction_loss", "kl_local", "kl_global")}
    elbo = parts["reconstruction_loss"] + parts["kl_local"] + parts["kl_global"] / max(n_obs, 1)
    rest = {k: v for k, v in means.items() if k not in parts and k != "loss"}
    named = {f"{mode}_loss": means["loss"], f"elbo_{mode}": elbo}
    return named | {_full_name(k, mode): v for k, v in (parts | rest).items()}


def _full_name(name: str, mode: str) -> str:
    """What scvi-tools calls a metric of a mode."""
    if name in MODE_FIRST:
        return f"{mode}_{name}"
    return name if name in TRAINING_ONLY else f"{name}_{mode}"


def _wide(device: torch.device) -> torch.dtype:
    """The widest float of a device; Apple's has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
