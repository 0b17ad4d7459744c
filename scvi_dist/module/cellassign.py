"""CellAssign: which of the given cell types each cell is, from a table of marker genes.

Axis suffixes: ``n`` cells, ``g`` genes, ``c`` types, ``p`` columns of the design matrix, ``b``
basis functions.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.distributions import NegativeBinomial
from scvi_dist.errors import ConfigError
from scvi_dist.kernels.cell_types import N_BASIS, TypeParameters, TypeTerms, supports
from scvi_dist.kernels.choice import checked_name
from scvi_dist.module.base import BaseModule, LossOutput, Tensors, n_real_cells, to_device
from scvi_dist.module.cellassign_inputs import (
    check_arguments,
    counts_of,
    design_matrix_of,
    size_factor_of,
)
from scvi_dist.module.cellassign_likelihood import Basis, dispersion, type_log_likelihood
from scvi_dist.module.cellassign_terms import KERNELS
from scvi_dist.module.vae import VAE

MIN_DELTA = 2.0
"""Least over-expression of a marker, as the exponential of its log: see :meth:`constrain`."""
CONCENTRATION = 1e-2
"""Of the Dirichlet prior of the proportions of types."""
LEAST_PROPORTION = 1e-20


class CellAssignModule(BaseModule):
    """A mixture over cell types, each of which over-expresses its markers.

    With equal arguments and the same torch seed, a new module has the weights of scvi-tools' one,
    and its state has the same names. scvi-tools' module is a VAE too, whose networks take no part
    in the loss: they keep their place in the state, are not computed, and have
    ``requires_grad=False``.

    The over-expression must stay above a bound: :meth:`constrain` is called after each step.

    Parameters
    ----------
    n_genes
        Marker genes.
    rho
        ``[g, c]``: 1 where a gene is a marker of a type.
    basis_means
        ``[10]``: equally spaced centres of the basis functions, from the smallest count to the
        largest.
    b_g_0
        ``[g]``: initial log expression; only without ``random_b_g_0``.
    random_b_g_0
        Start at random whatever ``b_g_0`` is; scvi-tools' default.
    n_batch
        Batches; each has a column in the design matrix, also where there is only one.
    n_cats_per_cov
        Categories of each categorical covariate.
    n_continuous_cov
        Continuous covariates.

    Raises
    ------
    ConfigError
        The centres are not apart, or shapes do not fit together.

    Source
    ------
    Zhang et al. 2019, "Probabilistic cell-type assignment of single-cell RNA-seq for tumor
    microenvironment profiling".
    """

    may_compile = False
    """Its work is one function whose gradient is written by hand, over counts of other places in
    each minibatch: ``torch.compile`` would gain nothing and start anew in each step."""

    def __init__(
        self,
        n_genes: int,
        rho: Tensor,
        basis_means: np.ndarray | Tensor,
        b_g_0: Tensor | None = None,
        random_b_g_0: bool = True,
        n_batch: int = 0,
        n_cats_per_cov: Sequence[int] | None = None,
        n_continuous_cov: int = 0,
    ) -> None:
        super().__init__()
        means_b = torch.as_tensor(basis_means, dtype=torch.float32)
        check_arguments(n_genes, rho, means_b, b_g_0)
        self._adopt(VAE(n_genes))
        self.n_genes, self.n_labels = n_genes, rho.shape[1]
        self.n_batch, self.n_cats_per_cov = n_batch, n_cats_per_cov
        self.n_continuous_cov = n_continuous_cov
        self.random_b_g_0 = random_b_g_0
        n_columns = n_batch + n_continuous_cov + sum(n_cats_per_cov or ())
        self.register_buffer("rho", rho.to(torch.float32))
        self.register_buffer("dirichlet_concentration", torch.full((self.n_labels,), CONCENTRATION))
        start_g = None if random_b_g_0 else b_g_0
        self.b_g_0 = nn.Parameter(torch.randn(n_genes) if start_g is None else start_g.clone())
        self.theta_logit = nn.Parameter(torch.randn(self.n_labels))
        self.delta_log = nn.Parameter(torch.empty(n_genes, self.n_labels).uniform_(-2, 2))
        self.delta_log_mean = nn.Parameter(torch.zeros(1))
        self.delta_log_log_scale = nn.Parameter(torch.zeros(1))
        self.log_a = nn.Parameter(torch.zeros(N_BASIS))
        self.beta = nn.Parameter(torch.zeros(n_genes, n_columns)) if n_columns else None
        self.register_buffer("basis_means", means_b.clone())
        self._kernel: str | None = None

    @property
    def kernel(self) -> str:
        """How the loss is computed: ``"numba"``, compiled loops over sparse counts, or ``"torch"``.

        The loops where they can be used, which is on a CPU, unless one of the two is set. Both give
        the same loss and gradients, and :meth:`generative` and :meth:`loss` give them once more.
        """
        return self._kernel or ("numba" if supports(self.basis_means) else "torch")

    @kernel.setter
    def kernel(self, name: str | None) -> None:
        self._kernel = None if name is None else checked_name(name, KERNELS)

    def _adopt(self, unused: VAE) -> None:
        """Take the parts of a VAE as our own, under their names, for the state alone."""
        for name, part in unused.named_children():
            self.add_module(name, part)
        self.px_r = unused.px_r
        self.requires_grad_(False)

    @property
    def init_args(self) -> dict[str, Any]:
        return {
            "n_genes": self.n_genes,
            "rho": self.rho,
            "basis_means": self.basis_means,
            "b_g_0": self.b_g_0.detach(),
            "random_b_g_0": self.random_b_g_0,
            "n_batch": self.n_batch,
            "n_cats_per_cov": self.n_cats_per_cov,
            "n_continuous_cov": self.n_continuous_cov,
        }

    def _get_inference_input(self, tensors: Tensors) -> dict[str, Any]:
        return {}

    def inference(self) -> dict[str, Any]:
        """Nothing: the type of a cell is summed over, not inferred by a network."""
        return {}

    def _get_generative_input(
        self,
        tensors: Tensors,
        inference_outputs: dict[str, Any] | None = None,
        transform_batch: int | None = None,
    ) -> dict[str, Any]:
        batch_index = tensors[REGISTRY_KEYS.BATCH_KEY]
        if transform_batch is not None:
            batch_index = torch.full_like(batch_index, transform_batch)
        return {
            "x": tensors[REGISTRY_KEYS.X_KEY],
            "size_factor": size_factor_of(tensors),
            "design_matrix": self._design_of(tensors),
            "batch_index": batch_index,
        }

    def _design_of(self, tensors: Tensors) -> Tensor | None:
        sizes = self.n_cats_per_cov or ()
        return design_matrix_of(tensors, self.n_batch, sizes, self.b_g_0.dtype)

    def log_base(self, size_factor: Tensor, design_matrix: Tensor | None) -> Tensor:
        """``[n, g]``: log mean of a count in a cell of a type that the gene is no marker of."""
        log_base_ng = torch.log(size_factor.to(self.b_g_0.dtype)) + self.b_g_0
        if design_matrix is not None and self.beta is not None:
            log_base_ng = log_base_ng + F.linear(design_matrix, self.beta)
        return log_base_ng

    def generative(
        self,
        x: Tensor,
        size_factor: Tensor,
        batch_index: Tensor,
        design_matrix: Tensor | None = None,
    ) -> dict[str, Any]:
        """How likely each type is for each cell.

        scvi-tools returns the mean and dispersion of every count under every type as well, which is
        what its memory goes to; :meth:`count_laws` gives them for a few cells.

        Parameters
        ----------
        x
            Counts ``[n, g]``.
        size_factor
            ``[n, 1]``, positive.
        batch_index
            Batch codes ``[n, 1]``; only passed through.
        design_matrix
            ``[n, p]``.

        Returns
        -------
        ``p_x_c [n, c]``: joint log-probability of the counts and the type; ``gamma [n, c]``:
        probability of each type given the counts; ``s``: the size factors; ``batch_index``.
        """
        # Mixed precision would give exponents of eight bits.
        with torch.autocast(x.device.type, enabled=False):
            given = self._parameters_of_types(size_factor, design_matrix)
            log_p_nc = type_log_likelihood(
                x.to(self.b_g_0.dtype),
                given.log_base_ng,
                given.shift_gc,
                given.a_b,
                given.means_b,
            )
            p_x_c = log_p_nc + given.log_proportion_c
        return {
            "p_x_c": p_x_c,
            "gamma": F.softmax(p_x_c, dim=-1),
            "s": size_factor,
            "batch_index": batch_index,
        }

    def _parameters_of_types(
        self, size_factor: Tensor, design_matrix: Tensor | None
    ) -> TypeParameters:
        return TypeParameters(
            log_base_ng=self.log_base(size_factor, design_matrix),
            shift_gc=torch.exp(self.delta_log) * self.rho,
            rho_gc=self.rho,
            a_b=torch.exp(self.log_a),
            means_b=self.basis_means,
            log_proportion_c=F.log_softmax(self.theta_logit, dim=-1),
        )

    def _terms(self, tensors: Tensors, n_real: int) -> TypeTerms:
        """What the minibatch says of its cells' types, by the kernel that is in use."""
        if self.kernel == "numba" and not supports(self.basis_means):
            raise ConfigError(
                "The kernel 'numba' computes on a CPU, with ten equally spaced centres of the "
                f"basis functions; these are {self.basis_means.tolist()} on {self.device}. Set the "
                "kernel 'torch'."
            )
        with torch.autocast(self.device.type, enabled=False):
            given = self._parameters_of_types(size_factor_of(tensors), self._design_of(tensors))
            return KERNELS[self.kernel](counts_of(tensors), given, n_real)

    @torch.inference_mode()
    def type_probabilities(self, tensors: Tensors) -> Tensor:
        """Probability ``[n, c]`` of each type given the counts of each cell."""
        terms = self._terms(to_device(tensors, self.device), 0)
        return F.softmax(terms.log_joint_nc, dim=-1).to(self.b_g_0.dtype)

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
        """As :meth:`BaseModule.forward`, in one pass that makes loss and gradient together.

        The generative outputs have no graph then. Without ``compute_loss``, and with further
        arguments of other parts than the loss, those parts are called one by one.
        """
        others = (
            get_inference_input_kwargs,
            get_generative_input_kwargs,
            inference_kwargs,
            generative_kwargs,
        )
        if any(others) or not compute_loss:
            return super().forward(tensors, *others, loss_kwargs, compute_loss)
        tensors = to_device(tensors, self.device)
        n_real = n_real_cells(tensors)
        terms = self._terms(tensors, n_real)
        dtype, gamma_nc = self.b_g_0.dtype, F.softmax(terms.log_joint_nc, dim=-1)
        expected_n = -(gamma_nc * terms.log_joint_nc).sum(dim=1)[:n_real].to(dtype)
        generated = {
            "p_x_c": terms.log_joint_nc.to(dtype),
            "gamma": gamma_nc.to(dtype),
            "s": size_factor_of(tensors),
            "batch_index": tensors[REGISTRY_KEYS.BATCH_KEY],
        }
        output = self._output(terms.expected, expected_n, **(loss_kwargs or {}))
        return self.inference(), generated, output

    def count_laws(
        self, size_factor: Tensor, design_matrix: Tensor | None = None
    ) -> NegativeBinomial:
        """The law ``[n, g, c]`` of each count under each type: ``4 n g c`` bytes a parameter."""
        given = self._parameters_of_types(size_factor, design_matrix)
        mu_ngc = torch.exp(given.log_base_ng[:, :, None] + given.shift_gc)
        phi_ngc = dispersion(mu_ngc, given.a_b, Basis.of(given.means_b))
        return NegativeBinomial(mu=mu_ngc, theta=phi_ngc)

    def loss(
        self,
        tensors: Tensors,
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        n_obs: float = 1.0,
    ) -> LossOutput:
        """Minus the expected log-likelihood of the cells that count, and the prior.

        Parameters
        ----------
        n_obs
            Cells of the training set, over which the prior is spread; also in validation.
        """
        n_real = n_real_cells(tensors)
        p_nc, gamma_nc = generative_outputs["p_x_c"], generative_outputs["gamma"]
        expected_n = -(gamma_nc * p_nc).sum(dim=1)[:n_real]
        return self._output(expected_n.sum(), expected_n, n_obs)

    def _output(self, expected: Tensor, expected_n: Tensor, n_obs: float = 1.0) -> LossOutput:
        """From minus the expected log-likelihood of the cells that count, summed and of each."""
        prior = self._negative_log_prior()
        return LossOutput(
            # A batch of padding alone weighs nothing, and must not be NaN.
            loss=expected / max(len(expected_n), 1) + prior / n_obs,
            reconstruction_loss=expected_n,
            kl_local=torch.zeros_like(expected_n),
            kl_global=prior,
        )

    def _negative_log_prior(self) -> Tensor:
        """Of the proportions of types (Dirichlet) and of the over-expressions (log-normal)."""
        concentration_c = self.dirichlet_concentration
        proportion_c = F.softmax(self.theta_logit, dim=-1) + LEAST_PROPORTION
        log_dirichlet = (
            torch.xlogy(concentration_c - 1, proportion_c).sum()
            + torch.lgamma(concentration_c.sum())
            - torch.lgamma(concentration_c).sum()
        )
        variance = self.delta_log_log_scale.exp()
        squared_gc = (self.delta_log - self.delta_log_mean).square()
        log_normal_gc = -squared_gc / (2 * variance) - 0.5 * (
            self.delta_log_log_scale + math.log(2 * math.pi)
        )
        # Multiplied, not selected: a selection's size would have to be waited for.
        return -log_dirichlet - (log_normal_gc * (self.rho > 0)).sum()

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep each over-expression at or above its bound; called after each optimizer step."""
        self.delta_log.clamp_(min=math.log(MIN_DELTA))

    def sample(self, tensors: Tensors, n_samples: int = 1) -> Tensor:
        """Not offered: CellAssign is asked for types, not for counts."""
        raise ConfigError(
            "CellAssign has no posterior predictive draws. The law of each count under each type "
            "is given by count_laws()."
        )
