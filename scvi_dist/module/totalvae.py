"""The variational autoencoder of genes and proteins behind TOTALVI.

Axis suffixes: ``n`` cells, ``g`` genes, ``p`` proteins, ``k`` latent, ``s`` samples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.module.base import LossOutput, Tensors, n_real_cells, to_device
from scvi_dist.module.fused import RECONSTRUCTION_LOSS, takes
from scvi_dist.module.marginal import importance_estimate
from scvi_dist.module.totalvae_args import ProteinBatchMask, TOTALVAEArgs
from scvi_dist.module.totalvae_decoding import TOTALVAEDecoding
from scvi_dist.module.totalvae_terms import (
    PROTEIN_LOSSES,
    log_importance_weights,
    loss_terms,
    own_terms,
    protein_parameters,
)


class TOTALVAE(TOTALVAEDecoding):
    """Variational autoencoder of the counts of genes and of surface proteins.

    A protein's count comes from its background or, at a rate that is at least as high, from the
    foreground; the background rate is a latent variable of each cell and protein.
    :class:`~scvi_dist.module.totalvae_args.TOTALVAEArgs` says what each argument means. With equal
    arguments and the same torch seed, a new module has the weights of scvi-tools' one. Parts that
    the arguments leave without use keep their place in the state, are not computed, and have
    ``requires_grad=False``.

    Notes
    -----
    Differences from scvi-tools 1.4.2, which

    - computes the library encoder also where the library size is observed, and so moves the
      running statistics of batch norms that nothing reads;
    - fails with dispersions of labels, with ``n_panel=None`` and no background prior, with one
      background prior for several panels, and in :meth:`get_sample_dispersion`;
    - leaves the efficiencies of the batches, and the extra zeros of ``"zinb"``, out of
      :meth:`sample`;
    - cuts a latent log library size at 15 only where a single draw is made;
    - takes the variances of minified data for standard deviations;
    - has in :meth:`marginal_ll` the background rates of proteins that were not measured, which
      adds noise but no information, a transformed ``z`` where the densities are those of the
      untransformed one, and no way to get the values of the cells.

    Source
    ------
    Gayoso et al. 2021, "Joint probabilistic modeling of single-cell multi-omic data with totalVI".
    """

    def __init__(
        self,
        n_input_genes: int,
        n_input_proteins: int,
        n_batch: int = 0,
        n_labels: int = 0,
        n_hidden: int = 256,
        n_latent: int = 20,
        n_layers_encoder: int = 2,
        n_layers_decoder: int = 1,
        n_continuous_cov: int = 0,
        n_cats_per_cov: Sequence[int] | None = None,
        dropout_rate_decoder: float = 0.2,
        dropout_rate_encoder: float = 0.2,
        gene_dispersion: str = "gene",
        protein_dispersion: str = "protein",
        log_variational: bool = True,
        gene_likelihood: str = "nb",
        latent_distribution: str = "normal",
        protein_batch_mask: ProteinBatchMask | None = None,
        encode_covariates: bool = True,
        protein_background_prior_mean: np.ndarray | None = None,
        protein_background_prior_scale: np.ndarray | None = None,
        use_size_factor_key: bool = False,
        use_observed_lib_size: bool = True,
        extra_payload_autotune: bool = False,
        library_log_means: np.ndarray | None = None,
        library_log_vars: np.ndarray | None = None,
        n_panel: int | None = None,
        panel_key: str = REGISTRY_KEYS.BATCH_KEY,
        use_batch_norm: str = "both",
        use_layer_norm: str = "none",
        extra_encoder_kwargs: dict[str, Any] | None = None,
        extra_decoder_kwargs: dict[str, Any] | None = None,
    ) -> None:
        args = TOTALVAEArgs(
            n_input_genes=n_input_genes,
            n_input_proteins=n_input_proteins,
            n_batch=n_batch,
            n_labels=n_labels,
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers_encoder=n_layers_encoder,
            n_layers_decoder=n_layers_decoder,
            n_continuous_cov=n_continuous_cov,
            n_cats_per_cov=n_cats_per_cov,
            dropout_rate_decoder=dropout_rate_decoder,
            dropout_rate_encoder=dropout_rate_encoder,
            gene_dispersion=gene_dispersion,
            protein_dispersion=protein_dispersion,
            log_variational=log_variational,
            gene_likelihood=gene_likelihood,
            latent_distribution=latent_distribution,
            protein_batch_mask=protein_batch_mask,
            encode_covariates=encode_covariates,
            protein_background_prior_mean=protein_background_prior_mean,
            protein_background_prior_scale=protein_background_prior_scale,
            use_size_factor_key=use_size_factor_key,
            use_observed_lib_size=use_observed_lib_size,
            extra_payload_autotune=extra_payload_autotune,
            library_log_means=library_log_means,
            library_log_vars=library_log_vars,
            n_panel=n_panel,
            panel_key=panel_key,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
            extra_encoder_kwargs=extra_encoder_kwargs,
            extra_decoder_kwargs=extra_decoder_kwargs,
        )
        super().__init__(args)
        self.n_input_genes, self.n_input_proteins = n_input_genes, n_input_proteins
        self.n_input, self.n_latent = n_input_genes, n_latent
        self.n_batch, self.n_labels, self.n_panel = n_batch, n_labels, args.panels
        self.panel_key = panel_key
        self.gene_dispersion, self.protein_dispersion = gene_dispersion, protein_dispersion
        self.gene_likelihood, self.latent_distribution = gene_likelihood, latent_distribution
        self.protein_batch_mask = protein_batch_mask
        self.use_size_factor_key = use_size_factor_key
        self.use_observed_lib_size = args.observes_library

    def measured(self, tensors: Tensors) -> Tensor | None:
        """bool ``[n, p]``: which proteins were measured in each cell; None where all were."""
        if self.protein_mask is None:
            return None
        return self.protein_mask[self.panel_index(tensors).squeeze(-1)]

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
        """As :meth:`BaseModule.forward`; for the loss of sparse counts no laws are built.

        Counts and likelihoods then go through :attr:`kernel`, and the generative outputs are those
        of :meth:`fused`.
        """
        others = (
            get_inference_input_kwargs,
            get_generative_input_kwargs,
            inference_kwargs,
            generative_kwargs,
        )
        tensors = to_device(tensors, self.device)
        if any(others) or not compute_loss or not takes(tensors, self.device):
            return super().forward(tensors, *others, loss_kwargs, compute_loss)
        inferred = self.inference(**self._get_inference_input(tensors))
        generated = self.fused(tensors, self._get_generative_input(tensors, inferred))
        return inferred, generated, self.loss(tensors, inferred, generated, **(loss_kwargs or {}))

    def loss(
        self,
        tensors: Tensors,
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: Tensor | float = 1.0,
        pro_recons_weight: float = 1.0,
    ) -> LossOutput:
        """The mean negative evidence lower bound of the cells that count.

        ``kl_weight`` multiplies all but the genes' reconstruction and the divergence of the
        library size: also the proteins' reconstruction, together with ``pro_recons_weight``.
        """
        inferred, generated, n_real = inference_outputs, generative_outputs, n_real_cells(tensors)
        y, measured = tensors[REGISTRY_KEYS.PROTEIN_EXP_KEY], self.measured(tensors)
        weights = float(kl_weight * pro_recons_weight), float(kl_weight)
        if RECONSTRUCTION_LOSS in generated:
            terms = own_terms(inferred, generated)
            given = protein_parameters(inferred, generated)
            proteins = PROTEIN_LOSSES[self.kernel](y, measured, given, n_real, weights)
            terms["reconst_loss_protein"] = proteins.reconstruction_n
            terms["kl_div_back_pro"] = proteins.penalty_n
            of_proteins = proteins.objective
        else:
            x = tensors[REGISTRY_KEYS.X_KEY]
            terms = loss_terms(inferred, generated, x, y, measured)
            of_proteins = weights[0] * terms["reconst_loss_protein"][..., :n_real].sum()
            of_proteins = of_proteins + weights[1] * terms["kl_div_back_pro"][..., :n_real].sum()
        terms = {name: term[..., :n_real] for name, term in terms.items()}
        own = terms["reconst_loss_gene"] + kl_weight * terms["kl_div_z"] + terms["kl_div_l_gene"]
        return LossOutput(
            # A batch of padding alone has a loss of zero with a gradient of zeros, not NaN.
            loss=(own.sum() + of_proteins) / max(own.numel(), 1),
            reconstruction_loss={k: v for k, v in terms.items() if k.startswith("reconst")},
            kl_local={k: v for k, v in terms.items() if k.startswith("kl")},
            extra_metrics=self._payload(tensors, inferred["z"], n_real),
        )

    def _payload(self, tensors: Tensors, z: Tensor, n_real: int) -> dict[str, Tensor]:
        if not self.args.extra_payload_autotune:
            return {}
        return {
            "z": z[..., :n_real, :],
            "batch": tensors[REGISTRY_KEYS.BATCH_KEY][:n_real],
            "labels": tensors[REGISTRY_KEYS.LABELS_KEY][:n_real],
        }

    def decode_mean(self, tensors: Tensors, transform_batch: int | None = None) -> Distribution:
        """The law of the genes' counts at the posterior mean: nothing is drawn.

        Parameters
        ----------
        transform_batch
            Decode all cells as if they were of this batch; their own where None.
        """
        _, generated = self.forward(
            tensors,
            inference_kwargs={"use_mean": True},
            generative_kwargs={"transform_batch": transform_batch, "use_mean": True},
            compute_loss=False,
        )
        return generated["px"]

    @torch.inference_mode()
    def sample(
        self,
        tensors: Tensors,
        n_samples: int = 1,
        generative_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws from the posterior predictive laws of each cell that counts, on the CPU.

        Parameters
        ----------
        n_samples
            Draws for each cell.
        generative_kwargs
            Further arguments of :meth:`generative`.

        Returns
        -------
        Counts of genes ``[n, g]`` and of proteins ``[n, p]``, with ``s`` in front for more than
        one draw.
        """
        _, generated = self.forward(
            tensors,
            inference_kwargs={"n_samples": n_samples},
            generative_kwargs=generative_kwargs,
            compute_loss=False,
        )
        n_real = n_real_cells(tensors)
        genes, proteins = (generated[law].sample()[..., :n_real, :].cpu() for law in ("px", "py"))
        return genes, proteins

    @torch.inference_mode()
    def marginal_ll(
        self,
        tensors: Tensors,
        n_mc_samples: int,
        return_mean: bool = True,
        n_mc_samples_per_pass: int = 1,
    ) -> Tensor | float:
        """Importance-sampled log-likelihood of each cell that counts.

        Parameters
        ----------
        n_mc_samples
            Draws for each cell; the estimate approaches the truth from below as they grow.
        return_mean
            Whether the mean over cells is returned.
        n_mc_samples_per_pass
            Draws decoded at once: memory grows with it.

        Returns
        -------
        ``[n]`` on the CPU, or a float.
        """
        tensors = to_device(tensors, self.device)
        given = self._get_inference_input(tensors)
        qz, ql = self.posterior(**given)
        laws = {"qz": qz, "ql": ql, "back_mean_prior": self.background_prior(given["panel_index"])}
        estimate = importance_estimate(
            lambda n_samples: self._log_weights(tensors, laws, n_samples),
            n_mc_samples,
            n_mc_samples_per_pass,
        )[: n_real_cells(tensors)]
        return estimate.mean().item() if return_mean else estimate.cpu()

    def _log_weights(self, tensors: Tensors, laws: dict[str, Any], n_samples: int) -> Tensor:
        """Draws ``[s, n]`` of the log importance weight of each cell."""
        samples = torch.Size((n_samples,))
        x, y = tensors[REGISTRY_KEYS.X_KEY], tensors[REGISTRY_KEYS.PROTEIN_EXP_KEY]
        z = self.noise.rsample(laws["qz"], samples)
        if laws["ql"] is None:
            self.encoder.pass_over_library(y, samples)
            log_library = None
            library = x.sum(1, keepdim=True).expand(n_samples, -1, -1)
        else:
            log_library = self.noise.rsample(laws["ql"], samples)
            library = self.encoder.l_transformation(log_library)
        inferred = {"z": self.encoder.z_transformation(z), "library_gene": library}
        generated = self.generative(**self._get_generative_input(tensors, inferred))
        drawn = {**laws, "untran_z": z, "untran_l": log_library}
        return log_importance_weights(drawn, generated, x, y, self.measured(tensors))
