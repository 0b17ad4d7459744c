"""The training plans that also learn from the labels of some cells."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scvi_dist.batch import CellBatch
from scvi_dist.errors import FieldNotFound
from scvi_dist.nn.sync_batch_norm import Padding
from scvi_dist.train.adversary import Adversary, PairedOptimizers
from scvi_dist.train.classification import classification_sums
from scvi_dist.train.configs import World
from scvi_dist.train.semi_supervised_config import (
    CLIPPED_NORM,
    GROUPS,
    SemiSupervisedAdversarialPlanConfig,
    SemiSupervisedPlanConfig,
)
from scvi_dist.train.training_plan import TrainingPlan

LABELLED_STREAM = 0x1ABE1
"""Added to the seed, so that labelled cells never share noise with the others."""
ADVERSARY_STREAM = 0xADD
"""Added to the seed for the noise of an adversary."""


class SemiSupervisedTrainingPlan(TrainingPlan):
    """A :class:`TrainingPlan` that adds the cross entropy of labelled cells to the loss.

    A step learns from a minibatch of all cells and from one of labelled cells, ``batch.labelled``;
    where there is none, from all cells alone. The cross entropy is the mean over the labelled
    cells of all ranks, and the metrics are those of the global minibatch: neither depends on the
    number of ranks.

    Parameters
    ----------
    module
        Besides what :class:`TrainingPlan` asks for, it has ``classification_loss(batch)``, which
        gives the mean cross entropy, the labels ``[n, 1]`` and the scores ``[n, c]`` of the cells
        that count, and ``class_probabilities(scores)``.
    config
        Optimizer, warm-up, learning-rate rule and weight of the labels.
    n_train, n_validation, seed, world, where, n_recent, padding, fused
        As for :class:`TrainingPlan`.

    Source
    ------
    Xu et al. 2021, "Probabilistic harmonization and annotation of single-cell transcriptomics
    data with deep generative models".
    """

    config: SemiSupervisedPlanConfig

    def _run(self, batch: CellBatch, seed: int, step: int) -> Any:
        return self._forward(batch, seed, step)[1]

    def _forward(self, batch: CellBatch, seed: int, step: int) -> tuple[Any, Any]:
        inferred, output = super()._forward(batch, seed, step)
        if batch.labelled is not None:
            # After all cells, as in scvi-tools: batch norms see both, in this order.
            self._bind(batch.labelled, seed + LABELLED_STREAM, step)
            found = self.module.classification_loss(batch.labelled)
            output.classification_loss, output.true_labels, output.logits = found
        return inferred, output

    def _objective(self, output: Any, batch: CellBatch) -> Tensor:
        objective = super()._objective(output, batch)
        if batch.labelled is None:
            return objective
        weight = self.config.classification_ratio * batch.labelled.loss_scale
        return objective + output.classification_loss * weight

    def _cell_sums(self, output: Any, batch: CellBatch) -> dict[str, Tensor]:
        sums = super()._cell_sums(output, batch)
        if batch.labelled is None:
            return sums
        shares = classification_sums(
            output.classification_loss,
            self.module.class_probabilities(output.logits),
            output.true_labels,
            batch.labelled.n_global,
            self.reduce,
        )
        # A minibatch weighs what its cells weigh, those of both streams together, as in scvi-tools.
        labelled = {name: share * batch.n_global for name, share in shares.items()}
        ratio = self.config.classification_ratio
        sums["loss"] = sums["loss"] + ratio * labelled["classification_loss"]
        return sums | labelled


class SemiSupervisedAdversarialTrainingPlan(SemiSupervisedTrainingPlan):
    """A :class:`SemiSupervisedTrainingPlan` with an adversary, where one is asked for.

    The module's gradient is cut to a norm of 50, as in scvi-tools, unless the run has a limit of
    its own. Where scvi-tools steps two optimizers by hand and counts two steps a minibatch, this
    counts one.

    Parameters
    ----------
    module
        Also has ``n_latent`` and ``n_batch`` (``n_panel``), and its ``inference`` gives ``"z"``.
    config
        Also has what the adversary is to tell apart.
    n_train, n_validation, seed, world, where, n_recent, padding, fused
        As for :class:`TrainingPlan`.

    Attributes
    ----------
    adversary
        The classifier and its loss; None where there is none.
    """

    config: SemiSupervisedAdversarialPlanConfig

    def __init__(
        self,
        module: nn.Module,
        config: SemiSupervisedAdversarialPlanConfig,
        *,
        n_train: int,
        n_validation: int = 0,
        seed: int = 0,
        world: World | None = None,
        where: str = "the store",
        n_recent: int = 10,
        padding: Padding | None = None,
        fused: bool = True,
    ) -> None:
        super().__init__(
            module,
            config,
            n_train=n_train,
            n_validation=n_validation,
            seed=seed,
            world=world,
            where=where,
            n_recent=n_recent,
            padding=padding,
            fused=fused,
        )
        given = config.adversarial_classifier
        self.adversary: Adversary | None = None
        if given is not False:
            n_groups = getattr(module, GROUPS[config.key_adversarial])
            self.adversary = Adversary.of(given, module.n_latent, n_groups, seed, self._noise)

    def _training_output(self, batch: CellBatch) -> Any:
        step = self.cursor.global_step
        inferred, output = self._forward(batch, self.seed, step)
        if self.adversary is None:
            return output
        if self.config.key_adversarial not in batch:
            raise FieldNotFound(
                f"the adversary tells {self.config.key_adversarial!r} apart, which the minibatch "
                f"does not have; it has {', '.join(batch.keys())}."
            )
        # The labelled cells came in between.
        self._bind(batch, self.seed + ADVERSARY_STREAM, step)
        weight = self.config.adversarial_weight(self.kl_weight)
        codes = batch[self.config.key_adversarial]
        added = self.adversary.added_loss(inferred["z"], codes, batch.n_real, weight)
        output.loss = output.loss + added
        # Without weight nothing is computed, and nothing is to be told.
        fooled = added.detach() / weight if weight else torch.zeros_like(added)
        output.extra_metrics = {**output.extra_metrics, "adversarial_loss": fooled}
        return output

    def configure_optimizers(self) -> Optimizer:
        optimizer = super().configure_optimizers()
        if self.adversary is None:
            return optimizer
        second = self.adversary.optimizer(self.config.weight_decay, self._may_fuse)
        return PairedOptimizers(optimizer, second)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of module and classifier, each by its own norm."""
        pair = optimizer.pair if isinstance(optimizer, PairedOptimizers) else (optimizer,)
        limits = [gradient_clip_val or CLIPPED_NORM, gradient_clip_val]
        for part, limit in zip(pair, limits, strict=False):
            self.clip_gradients(part, limit, gradient_clip_algorithm)
