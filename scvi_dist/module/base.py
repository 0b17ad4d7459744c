"""What every module gives: the terms of its loss, and one way through the model.

Axis suffixes: ``n`` cells.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from scvi_dist.batch import REGISTRY_KEYS, CellBatch
from scvi_dist.errors import ConfigError
from scvi_dist.nn import NoiseStream

Tensors: TypeAlias = CellBatch | Mapping[str, Tensor]
"""A minibatch: what the loaders give, or a mapping of tensors by registry key."""

LossTerm: TypeAlias = Tensor | dict[str, Tensor]


class LossOutput:
    """The loss of a minibatch and the terms it was made of.

    Terms given as tensors become dictionaries with one entry of the argument's name; absent ones
    become zeros.

    Parameters
    ----------
    loss
        0-d; summed over the entries where it is a dictionary.
    reconstruction_loss
        Minus the log-likelihood of each cell, ``[n]``.
    kl_local
        Divergences of each cell, ``[n]``.
    kl_global
        Divergences of what all cells share, 0-d.
    classification_loss, logits, true_labels
        Of a classifier.
    extra_metrics
        Further values to log.
    n_obs_minibatch
        Cells the terms are over; the length of the reconstruction loss where None.

    Attributes
    ----------
    reconstruction_loss_sum, kl_local_sum, kl_global_sum
        0-d sums over cells and over entries.
    loss_sum
        0-d sum of the loss over the cells; None where nobody has computed it.
    gradients
        Derivatives of a loss without a graph by the parameters; None where it has one.

    Raises
    ------
    ConfigError
        Without both ``reconstruction_loss`` and ``n_obs_minibatch``, or with a
        ``classification_loss`` whose ``logits`` or ``true_labels`` are missing.
    """

    def __init__(
        self,
        loss: LossTerm,
        reconstruction_loss: LossTerm | None = None,
        kl_local: LossTerm | None = None,
        kl_global: LossTerm | None = None,
        classification_loss: LossTerm | None = None,
        logits: Tensor | None = None,
        true_labels: Tensor | None = None,
        extra_metrics: dict[str, Tensor] | None = None,
        n_obs_minibatch: int | None = None,
    ) -> None:
        if n_obs_minibatch is None and reconstruction_loss is None:
            raise ConfigError("A LossOutput needs reconstruction_loss or n_obs_minibatch.")
        if classification_loss is not None and (logits is None or true_labels is None):
            raise ConfigError(
                "A LossOutput with a classification_loss needs its logits and true_labels."
            )
        self.loss: Tensor = self.dict_sum(loss)
        self.reconstruction_loss = self._terms("reconstruction_loss", reconstruction_loss)
        self.kl_local = self._terms("kl_local", kl_local)
        self.kl_global = self._terms("kl_global", kl_global)
        self.classification_loss = classification_loss
        self.logits = logits
        self.true_labels = true_labels
        self.extra_metrics = {} if extra_metrics is None else extra_metrics
        self.reconstruction_loss_sum: Tensor = self.dict_sum(self.reconstruction_loss).sum()
        self.kl_local_sum: Tensor = self.dict_sum(self.kl_local).sum()
        self.kl_global_sum: Tensor = self.dict_sum(self.kl_global)
        if n_obs_minibatch is None:
            n_obs_minibatch = next(iter(self.reconstruction_loss.values())).shape[-1]
        self.n_obs_minibatch: int = n_obs_minibatch
        self.loss_sum: Tensor | None = None
        self.gradients: dict[nn.Parameter, Tensor] | None = None

    @classmethod
    def of_sums(
        cls,
        loss: Tensor,
        reconstruction_n: Tensor,
        kl_local: dict[str, Tensor],
        sums: Sequence[Tensor],
        gradients: dict[nn.Parameter, Tensor] | None,
    ) -> "LossOutput":
        """An output of which the sums over cells are known.

        Parameters
        ----------
        sums
            Of the loss, of the reconstruction loss and of the divergences of each cell; a zero,
            for those that cells share.
        """
        output = cls.__new__(cls)
        output.loss_sum, output.reconstruction_loss_sum, output.kl_local_sum, nothing = sums
        output.kl_global_sum = nothing
        output.loss, output.reconstruction_loss = loss, {"reconstruction_loss": reconstruction_n}
        output.kl_local, output.kl_global = kl_local, {"kl_global": nothing}
        output.classification_loss = output.logits = output.true_labels = None
        output.extra_metrics, output.gradients = {}, gradients
        output.n_obs_minibatch = reconstruction_n.shape[0]
        return output

    def _terms(self, name: str, value: LossTerm | None) -> dict[str, Tensor]:
        if isinstance(value, dict):
            return value
        return {name: 0 * self.loss if value is None else value}

    @staticmethod
    def dict_sum(terms: LossTerm) -> Tensor:
        """The sum over the entries of a dictionary; a tensor as it is."""
        return sum(terms.values()) if isinstance(terms, dict) else terms

    @property
    def extra_metrics_keys(self) -> Iterable[str]:
        """Names of the further values."""
        return self.extra_metrics.keys()


class BaseModule(nn.Module, ABC):
    """A model of cells: inference, generative model, loss.

    Attributes
    ----------
    noise
        The one source of noise of all its parts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.noise = NoiseStream()

    @property
    @abstractmethod
    def init_args(self) -> dict[str, Any]:
        """The arguments that build this module anew: ``type(module)(**module.init_args)``."""

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    @abstractmethod
    def _get_inference_input(self, tensors: Tensors) -> dict[str, Any]:
        """The arguments of :meth:`inference`."""

    @abstractmethod
    def inference(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The posteriors of the latent variables, and draws from them."""

    @abstractmethod
    def _get_generative_input(
        self, tensors: Tensors, inference_outputs: dict[str, Any]
    ) -> dict[str, Any]:
        """The arguments of :meth:`generative`."""

    @abstractmethod
    def generative(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The likelihood of the data and the priors of the latent variables."""

    @abstractmethod
    def loss(
        self,
        tensors: Tensors,
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: Tensor | float = 1.0,
    ) -> LossOutput:
        """The loss over the cells that count: padding at the end of a batch carries none."""

    @abstractmethod
    def sample(self, tensors: Tensors, n_samples: int = 1) -> Tensor | tuple[Tensor, ...]:
        """Draws from the posterior predictive law, on the CPU; of each kind of data in turn."""

    def forward(
        self,
        tensors: Tensors,
        get_inference_input_kwargs: dict[str, Any] | None = None,
        get_generative_input_kwargs: dict[str, Any] | None = None,
        inference_kwargs: dict[str, Any] | None = None,
        generative_kwargs: dict[str, Any] | None = None,
        loss_kwargs: dict[str, Any] | None = None,
        compute_loss: bool = True,
    ) -> tuple[Any, ...]:
        """Inference, then the generative model, then the loss.

        Parameters
        ----------
        tensors
            The minibatch; it is moved to the module's device.
        get_inference_input_kwargs, get_generative_input_kwargs
            Further arguments of ``_get_inference_input`` and ``_get_generative_input``.
        inference_kwargs, generative_kwargs, loss_kwargs
            Further arguments of :meth:`inference`, :meth:`generative` and :meth:`loss`.
        compute_loss
            Whether a :class:`LossOutput` is returned as well.

        Returns
        -------
        ``(inference outputs, generative outputs[, loss])``; the outputs have a row for every
        cell, padding included.
        """
        tensors = to_device(tensors, self.device)
        inference_input = self._get_inference_input(tensors, **(get_inference_input_kwargs or {}))
        inferred = self.inference(**inference_input, **(inference_kwargs or {}))
        generative_input = self._get_generative_input(
            tensors, inferred, **(get_generative_input_kwargs or {})
        )
        generated = self.generative(**generative_input, **(generative_kwargs or {}))
        if not compute_loss:
            return inferred, generated
        return inferred, generated, self.loss(tensors, inferred, generated, **(loss_kwargs or {}))

    def objective(self, tensors: Tensors, **loss_kwargs: Any) -> LossOutput:
        """What training minimises, for who wants no more of a minibatch: less work than a pass.

        Only ``loss`` is sure to have derivatives, and those by the parameters.

        Parameters
        ----------
        tensors
            As for :meth:`forward`.
        loss_kwargs
            Further arguments of :meth:`loss`.
        """
        return self(tensors, loss_kwargs=loss_kwargs)[2]

    def steps_objective(self, with_graph: bool = True) -> Callable[..., LossOutput]:
        """:meth:`objective`, for as long as nobody changes the module but its weights in place.

        Parameters
        ----------
        with_graph
            Whether the loss has to be one that can be differentiated: else it may be without a
            graph, and the output then has the derivatives by the parameters.
        """
        return self.objective


def to_device(tensors: Tensors, device: torch.device) -> Tensors:
    """The minibatch on ``device``; itself where it is there already."""
    if isinstance(tensors, CellBatch):
        x = tensors.x if isinstance(tensors.x, Tensor) else tensors.x.data
        # A batch that is not copied keeps the dense counts it has computed.
        return tensors if x.device == device else tensors.to(device, non_blocking=True)
    return {key: value.to(device, non_blocking=True) for key, value in tensors.items()}


def n_real_cells(tensors: Tensors) -> int:
    """Cells that count: all but those that fill the batch up."""
    if isinstance(tensors, CellBatch):
        return tensors.n_real
    return tensors[REGISTRY_KEYS.X_KEY].shape[0]
