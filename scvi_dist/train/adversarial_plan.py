"""The training plan whose latent variable learns to hide the batch of a cell."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from scvi_dist.batch import REGISTRY_KEYS, CellBatch
from scvi_dist.nn.sync_batch_norm import Padding
from scvi_dist.train.adversarial_config import AdversarialPlanConfig
from scvi_dist.train.adversary import Adversary, PairedOptimizers
from scvi_dist.train.configs import World
from scvi_dist.train.training_plan import TrainingPlan


class AdversarialTrainingPlan(TrainingPlan):
    """A :class:`TrainingPlan` with an adversary, where its configuration asks for one.

    Weights after a step are those of scvi-tools' plan, which steps two optimizers by hand. There a
    minibatch counts as two steps, so that a KL warm-up by steps is twice as fast with an adversary
    as without; here it counts as one. Losses are means over the global minibatch, and the
    classifier's batch norm has its statistics: nothing depends on the number of ranks.

    Parameters
    ----------
    module
        Besides what :class:`TrainingPlan` asks for, it has ``n_batch`` and ``n_latent``, and its
        ``inference`` gives ``"z" [n, n_latent]``.
    config
        Optimizer, warm-up, learning-rate rule and adversary.
    n_train, n_validation, seed, world, where, n_recent, padding, fused
        As for :class:`TrainingPlan`.

    Attributes
    ----------
    adversary
        The classifier and its loss; None where there is none.

    Source
    ------
    Gayoso et al. 2021, "Joint probabilistic modeling of single-cell multi-omic data with
    totalVI", methods, on missing proteins.
    """

    config: AdversarialPlanConfig

    def __init__(
        self,
        module: nn.Module,
        config: AdversarialPlanConfig,
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
            n_latent, n_batch = module.n_latent, module.n_batch
            self.adversary = Adversary.of(given, n_latent, n_batch, seed, self._noise)

    @property
    def adversarial_classifier(self) -> nn.Module | bool:
        """The adversary's classifier; False where there is none."""
        return False if self.adversary is None else self.adversary.classifier

    def _training_output(self, batch: CellBatch) -> Any:
        inferred, output = self._forward(batch, self.seed, self.cursor.global_step)
        if self.adversary is not None:
            weight = self.config.adversarial_weight(self.kl_weight)
            codes = batch[REGISTRY_KEYS.BATCH_KEY]
            added = self.adversary.added_loss(inferred["z"], codes, batch.n_real, weight)
            output.loss = output.loss + added
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
        for part in pair:
            self.clip_gradients(part, gradient_clip_val, gradient_clip_algorithm)
