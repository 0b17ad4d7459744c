"""Classes of cells from the scores of a classifier.

Axis suffixes: ``n`` cells, ``c`` classes, ``q`` groups of classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from scvi_dist.errors import ConfigError


def classifier_arguments(
    shape: Mapping[str, Any], is_linear: bool, given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Arguments of a :class:`~scvi_dist.module.classifier.Classifier` of this shape.

    Parameters
    ----------
    is_linear
        Whether it has no hidden layer.
    given
        What the user has set; it wins.
    """
    linear = {"n_layers": 0, "n_hidden": 0} if is_linear else {}
    return {**shape, **linear, "logits": True, **(given or {})}


def class_log_probs(scores_nc: Tensor, are_logits: bool) -> Tensor:
    """Log probabilities ``[n, c]`` of scores, which are probabilities unless they are logits."""
    if are_logits:
        return F.log_softmax(scores_nc, dim=-1)
    return scores_nc.clamp_min(torch.finfo(scores_nc.dtype).tiny).log()


def classification_loss(scores_nc: Tensor, labels_n1: Tensor, are_logits: bool) -> Tensor:
    """Mean cross entropy, 0-d; zero for no cells.

    Of probabilities it is minus the mean logarithm of that of the true class, where scvi-tools
    takes the softmax a second time.
    """
    log_probs_nc = class_log_probs(scores_nc, are_logits)
    total = F.nll_loss(log_probs_nc, labels_n1.view(-1).long(), reduction="sum")
    return total / max(len(labels_n1), 1)


class LabelGroups:
    """Classes that are predicted as a group first, and then as a class within it.

    Parameters
    ----------
    groups
        Group of each class: every number from 0 on occurs.

    Raises
    ------
    ConfigError
        There are none, or their numbers have gaps.
    """

    def __init__(self, groups: Sequence[int] | None, n_labels: int) -> None:
        if groups is None:
            raise ConfigError("use_labels_groups needs labels_groups: the group of each class.")
        self.of_class = torch.as_tensor(groups).long()
        found = torch.unique(self.of_class).tolist()
        if len(self.of_class) != n_labels or found != list(range(len(found))):
            raise ConfigError(
                f"labels_groups must give each of {n_labels} classes a group, numbered from 0 "
                f"without gaps; seen {self.of_class.tolist()}."
            )
        self.n_groups = len(found)

    def combined(self, log_probs_nc: Tensor, group_probs_nq: Tensor) -> Tensor:
        """Log probabilities ``[n, c]``: of the group, times of the class within the group."""
        of_class = self.of_class.to(log_probs_nc.device)
        combined_nc = torch.empty_like(log_probs_nc)
        for group in range(self.n_groups):
            inside = of_class == group
            within = F.log_softmax(log_probs_nc[:, inside], dim=-1)
            of_group = class_log_probs(group_probs_nq[:, [group]], are_logits=False)
            combined_nc[:, inside] = within + of_group
        return combined_nc
