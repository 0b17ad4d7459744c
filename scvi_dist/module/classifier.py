"""A fully connected classifier."""

from collections.abc import Callable

from torch import Tensor, nn

from scvi_dist.nn import FCLayers
from scvi_dist.nn.noise import NoiseStream


class Classifier(nn.Module):
    """Hidden layers and one linear head with a unit per class.

    The names of its state are scvi-tools': ``classifier.0.fc_layers.Layer 0.0.weight`` … for the
    hidden layers and ``classifier.1`` for the head, or ``classifier.0`` alone where there are none.

    Parameters
    ----------
    n_input
        Width of the input.
    n_hidden, n_layers
        Width and number of the hidden layers; with either 0 the classifier is linear.
    n_labels
        Number of classes.
    dropout_rate
        Probability of dropping a hidden unit.
    logits
        Whether :meth:`forward` returns logits, rather than probabilities.
    use_batch_norm, use_layer_norm, use_activation, bias, activation_fn
        Of the hidden layers, as for :class:`~scvi_dist.nn.FCLayers`; the head has a bias always.
    noise
        Where dropout masks come from; its own where None.
    """

    def __init__(
        self,
        n_input: int,
        n_hidden: int = 128,
        n_labels: int = 5,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        logits: bool = False,
        use_batch_norm: bool = True,
        use_layer_norm: bool = False,
        activation_fn: Callable[[], nn.Module] = nn.ReLU,
        use_activation: bool = True,
        bias: bool = True,
        noise: NoiseStream | None = None,
    ) -> None:
        super().__init__()
        self.logits = logits
        is_linear = n_hidden <= 0 or n_layers <= 0
        parts: list[nn.Module] = []
        if not is_linear:
            parts.append(
                FCLayers(
                    n_in=n_input,
                    n_out=n_hidden,
                    n_layers=n_layers,
                    n_hidden=n_hidden,
                    dropout_rate=dropout_rate,
                    use_batch_norm=use_batch_norm,
                    use_layer_norm=use_layer_norm,
                    use_activation=use_activation,
                    bias=bias,
                    activation_fn=activation_fn,
                    noise=noise,
                )
            )
        parts.append(nn.Linear(n_input if is_linear else n_hidden, n_labels))
        if not logits:
            parts.append(nn.Softmax(dim=-1))
        self.classifier = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """Logits or probabilities ``[n, c]`` of inputs ``[n, n_input]``."""
        scores_nc: Tensor = self.classifier(x)
        return scores_nc
