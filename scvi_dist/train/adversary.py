"""A classifier that learns to tell groups of cells by the latent variable, which learns to fool it.

Axis suffixes: ``n`` cells, ``k`` latent, ``c`` groups.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam, Optimizer

from scvi_dist.module.classifier import Classifier
from scvi_dist.nn import NoiseStream

LR, EPS = 1e-3, 0.01
"""Of the classifier's Adam, whatever the module's optimizer has."""
N_HIDDEN, N_LAYERS = 32, 2


class Adversary(nn.Module):
    """The classifier, and what it adds to the loss.

    Parameters
    ----------
    classifier
        Gives the logits ``[n, c]`` of the groups of cells with latent variables ``[n, k]``.
    n_classes
        Groups, at least 2.
    """

    def __init__(self, classifier: nn.Module, n_classes: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.n_classes = n_classes

    @classmethod
    def of(
        cls,
        given: bool | nn.Module,
        n_latent: int,
        n_classes: int,
        seed: int,
        noise: NoiseStream | None = None,
    ) -> "Adversary | None":
        """The adversary that was asked for; none, with a warning, where there is one group.

        Parameters
        ----------
        given
            A classifier, or whether scvi-tools' shall be made, with two layers of 32 units.
        n_latent, n_classes
            Dimensions of the latent variable, and groups.
        seed
            A classifier that is made here has the weights that it has after
            ``torch.manual_seed(seed)``; torch's own generator is left as it is.
        noise
            Where its dropout masks come from.
        """
        if given is False:
            return None
        if n_classes < 2:
            warnings.warn(
                "The adversarial classifier is left out: with fewer than two batches there is "
                "nothing to tell apart.",
                UserWarning,
                stacklevel=2,
            )
            return None
        if isinstance(given, nn.Module):
            return cls(given, n_classes)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the GPUs' generators too, which are not put back.
            torch.default_generator.manual_seed(seed)
            classifier = Classifier(
                n_latent,
                n_hidden=N_HIDDEN,
                n_labels=n_classes,
                n_layers=N_LAYERS,
                logits=True,
                noise=noise,
            )
        return cls(classifier, n_classes)

    def added_loss(self, z_nk: Tensor, codes_n1: Tensor, n_real: int, weight: float) -> Tensor:
        """What is added to the mean loss of the first ``n_real`` cells, 0-d.

        Its value is ``weight`` times the loss of the latent variable, which wants each wrong group
        to be equally likely. Its gradient is that of this loss for the latent variable, and that of
        ``weight`` times the classifier's own loss for the classifier: with one backward pass both
        have the gradients of two passes and two losses, of which each sees the other as it was
        before the step.

        Parameters
        ----------
        z_nk
            Latent variables, with their graph.
        codes_n1
            Groups, from 0 on.
        n_real
            Cells that count; those after them fill the batch up.
        weight
            0 leaves the adversary alone but for its optimizer's weight decay.
        """
        if weight == 0:
            # All parameters have a gradient in every step: data-parallel training waits for them.
            return sum_of(lambda parameter: 0.0 * parameter.sum(), self.classifier)
        frozen = {name: value.detach() for name, value in self.classifier.named_parameters()}
        fooling = self._log_probs(functional_call(self.classifier, frozen, (z_nk,)), n_real)
        telling = self._log_probs(self.classifier(z_nk.detach()), n_real)
        true_n1 = codes_n1[:n_real].long()
        wrong_n = fooling.sum(-1) - fooling.gather(-1, true_n1).squeeze(-1)
        fool_loss = -wrong_n.sum() / (self.n_classes - 1)
        own_loss = -telling.gather(-1, true_n1).sum()
        own_gradient = own_loss - own_loss.detach()
        return weight * (fool_loss + own_gradient) / max(n_real, 1)

    def _log_probs(self, logits_nc: Tensor, n_real: int) -> Tensor:
        return torch.log_softmax(logits_nc[:n_real].float(), dim=-1)

    def optimizer(self, weight_decay: float, fused: bool) -> Optimizer:
        """Adam over the classifier."""
        trained = [p for p in self.classifier.parameters() if p.requires_grad]
        return Adam(trained, lr=LR, eps=EPS, weight_decay=weight_decay, fused=fused or None)


def sum_of(value: Callable[[Tensor], Tensor], module: nn.Module) -> Tensor:
    """The sum of a value over the parameters of a module that train, 0-d."""
    return torch.stack([value(p) for p in module.parameters() if p.requires_grad]).sum()


class PairedOptimizers(Optimizer):
    """Two optimizers that step as one: a minibatch is one step, whoever counts.

    Parameters
    ----------
    first, second
        Over different parameters. Their parameter groups, the first one's in front, are this one's.
    """

    def __init__(self, first: Optimizer, second: Optimizer) -> None:
        self.pair = (first, second)
        super().__init__([*first.param_groups, *second.param_groups], {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Both step, after the closure has made the gradients; its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.pair:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"pair": [optimizer.state_dict() for optimizer in self.pair]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        for optimizer, state in zip(self.pair, state_dict["pair"], strict=True):
            optimizer.load_state_dict(state)
        # Loading replaces the groups of an optimizer by others.
        self.param_groups = [group for part in self.pair for group in part.param_groups]
