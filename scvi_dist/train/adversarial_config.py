"""What a training run with an adversary is asked to do."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from scvi_dist.errors import ConfigError
from scvi_dist.train.configs import TrainingPlanConfig

AUTO = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdversarialPlanConfig(TrainingPlanConfig):
    """scvi-tools' arguments of ``AdversarialTrainingPlan``, with its defaults."""

    plan_class: ClassVar[str] = "scvi_dist.train.adversarial_plan:AdversarialTrainingPlan"

    adversarial_classifier: bool | nn.Module = False
    """Whether a classifier learns to tell batches by the latent variable, which learns to fool it.
    A module is that classifier: it gives logits ``[n, n_batch]`` and is trained in place."""
    scale_adversarial_loss: float | str = AUTO
    """Weight of both; ``"auto"``: 1 minus the weight of the KL divergence."""

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that the word means.
        TrainingPlanConfig.__post_init__(self)
        check_adversary(self.adversarial_classifier, self.scale_adversarial_loss)

    def adversarial_weight(self, kl_weight: float) -> float:
        """Weight of the adversary where the KL divergence has that weight."""
        return adversarial_weight(self.scale_adversarial_loss, kl_weight)

    def facts(self) -> dict[str, Any]:
        """JSON values; equal for two runs whose steps follow the same rule."""
        values = TrainingPlanConfig.facts(self)
        return values | {"adversarial_classifier": classifier_fact(self.adversarial_classifier)}


def check_adversary(classifier: Any, scale: Any) -> None:
    """Refuse arguments of an adversary that mean nothing.

    Raises
    ------
    ConfigError
        Says which of them.
    """
    if not isinstance(classifier, bool | nn.Module):
        raise ConfigError(
            "plan.adversarial_classifier is True, False or a torch module that gives the logits of "
            f"the batches, got {classifier!r}."
        )
    is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if scale != AUTO and not (is_number and scale >= 0):
        raise ConfigError(
            f"plan.scale_adversarial_loss is {AUTO!r} or a number of at least 0, got {scale!r}."
        )


def adversarial_weight(scale: float | str, kl_weight: float) -> float:
    """Weight of the adversary: the given one, or 1 minus that of the KL divergence."""
    return 1.0 - kl_weight if isinstance(scale, str) else float(scale)


def classifier_fact(classifier: bool | nn.Module) -> bool | str:
    """The classifier as a JSON value."""
    return classifier if isinstance(classifier, bool) else type(classifier).__qualname__
