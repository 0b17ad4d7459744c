"""What a training run that learns from labels is asked to do."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.errors import ConfigError
from scvi_dist.train.adversarial_config import (
    AUTO,
    adversarial_weight,
    check_adversary,
    classifier_fact,
)
from scvi_dist.train.configs import TrainingPlanConfig

PANEL_KEY = "panel"
"""The key under which a minibatch has the panel of its cells."""

GROUPS = {REGISTRY_KEYS.BATCH_KEY: "n_batch", PANEL_KEY: "n_panel"}
"""Key of a minibatch -> attribute of a module that says how many of them there are."""

CLIPPED_NORM = 50.0
"""Largest norm of the module's gradient in a step with an adversary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SemiSupervisedPlanConfig(TrainingPlanConfig):
    """scvi-tools' arguments of ``SemiSupervisedTrainingPlan``, with its defaults."""

    plan_class: ClassVar[str] = "scvi_dist.train.semi_supervised_plan:SemiSupervisedTrainingPlan"

    classification_ratio: float = 50
    """Weight of the cross entropy of the labelled cells."""

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that the word means.
        TrainingPlanConfig.__post_init__(self)
        if not self.classification_ratio >= 0:
            raise ConfigError(
                "plan.classification_ratio is a number of at least 0, got "
                f"{self.classification_ratio!r}."
            )
        if "classification_ratio" in self.loss_kwargs:
            raise ConfigError("give classification_ratio to the plan, not among its loss_kwargs.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SemiSupervisedAdversarialPlanConfig(SemiSupervisedPlanConfig):
    """scvi-tools' arguments of ``SemiSupervisedAdversarialTrainingPlan``, with its defaults."""

    plan_class: ClassVar[str] = (
        "scvi_dist.train.semi_supervised_plan:SemiSupervisedAdversarialTrainingPlan"
    )

    key_adversarial: str = REGISTRY_KEYS.BATCH_KEY
    """Of what the latent variable learns to tell nothing: ``"batch"`` or ``"panel"``."""
    adversarial_classifier: bool | nn.Module = False
    """Whether a classifier learns to tell groups by the latent variable, which learns to fool it.
    A module is that classifier: it gives logits and is trained in place."""
    scale_adversarial_loss: float | str = AUTO
    """Weight of both; ``"auto"``: 1 minus the weight of the KL divergence."""

    def __post_init__(self) -> None:
        SemiSupervisedPlanConfig.__post_init__(self)
        if self.key_adversarial not in GROUPS:
            raise ConfigError(
                f"plan.key_adversarial is one of {', '.join(map(repr, GROUPS))}, got "
                f"{self.key_adversarial!r}."
            )
        check_adversary(self.adversarial_classifier, self.scale_adversarial_loss)

    def adversarial_weight(self, kl_weight: float) -> float:
        """Weight of the adversary where the KL divergence has that weight."""
        return adversarial_weight(self.scale_adversarial_loss, kl_weight)

    def facts(self) -> dict[str, Any]:
        """JSON values; equal for two runs whose steps follow the same rule."""
        values = TrainingPlanConfig.facts(self)
        return values | {"adversarial_classifier": classifier_fact(self.adversarial_classifier)}
