"""The variational autoencoder of counts behind SCVI.

Axis suffixes: ``n`` cells, ``g`` genes, ``k`` latent, ``s`` samples.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from scvi_dist.batch import REGISTRY_KEYS, CellBatch
from scvi_dist.distributions import Normal
from scvi_dist.errors import FieldNotFound
from scvi_dist.kernels.choice import kernel_for
from scvi_dist.kernels.count_loss import Expected, count_loss
from scvi_dist.kernels.problem import Head
from scvi_dist.kernels.scales import scales_of
from scvi_dist.module.base import LossOutput, Tensors, n_real_cells, to_device
from scvi_dist.module.fused import RECONSTRUCTION_LOSS, Generated, divergence, has_kernels, takes
from scvi_dist.module.library import latent_prior, library_prior, observed_library
from scvi_dist.module.likelihoods import LIKELIHOODS, sample_counts
from scvi_dist.module.marginal import importance_estimate
from scvi_dist.module.vae_args import VAEArgs
from scvi_dist.module.vae_networks import VAENetworks
from scvi_dist.module.whole_pass import objective_of
from scvi_dist.nn.precision import full_precision


class VAE(VAENetworks):
    """Variational autoencoder with a count likelihood and a library size.

    :class:`~scvi_dist.module.vae_args.VAEArgs` says what each argument means. With equal
    arguments and the same torch seed, a new module has the weights of scvi-tools' one. Parts that
    the arguments leave without use keep their place in the state, are not computed, and have
    ``requires_grad=False``.

    Source
    ------
    Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics".
    """

    def __init__(
        self,
        n_input: int,
        n_batch: int = 0,
        n_labels: int = 0,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        n_continuous_cov: int = 0,
        n_cats_per_cov: Sequence[int] | None = None,
        dropout_rate: float = 0.1,
        dispersion: str = "gene",
        log_variational: bool = True,
        gene_likelihood: str = "zinb",
        latent_distribution: str = "normal",
        encode_covariates: bool = False,
        deeply_inject_covariates: bool = True,
        batch_representation: str = "one-hot",
        use_batch_norm: str = "both",
        use_layer_norm: str = "none",
        use_size_factor_key: bool = False,
        use_observed_lib_size: bool = True,
        extra_payload_autotune: bool = False,
        library_log_means: np.ndarray | None = None,
        library_log_vars: np.ndarray | None = None,
        var_activation: Callable[[Tensor], Tensor] | None = None,
        extra_encoder_kwargs: dict[str, Any] | None = None,
        extra_decoder_kwargs: dict[str, Any] | None = None,
        batch_embedding_kwargs: dict[str, Any] | None = None,
    ) -> None:
        args = VAEArgs(
            n_input=n_input,
            n_batch=n_batch,
            n_labels=n_labels,
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            n_continuous_cov=n_continuous_cov,
            n_cats_per_cov=n_cats_per_cov,
            dropout_rate=dropout_rate,
            dispersion=dispersion,
            log_variational=log_variational,
            gene_likelihood=gene_likelihood,
            latent_distribution=latent_distribution,
            encode_covariates=encode_covariates,
            deeply_inject_covariates=deeply_inject_covariates,
            batch_representation=batch_representation,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
            use_size_factor_key=use_size_factor_key,
            use_observed_lib_size=use_observed_lib_size,
            extra_payload_autotune=extra_payload_autotune,
            library_log_means=library_log_means,
            library_log_vars=library_log_vars,
            var_activation=var_activation,
            extra_encoder_kwargs=extra_encoder_kwargs,
            extra_decoder_kwargs=extra_decoder_kwargs,
            batch_embedding_kwargs=batch_embedding_kwargs,
        )
        super().__init__(args)
        self.n_input, self.n_latent, self.n_batch = n_input, n_latent, n_batch
        self.dispersion, self.gene_likelihood = dispersion, gene_likelihood
        self.latent_distribution = latent_distribution
        self.use_size_factor_key = use_size_factor_key
        self.use_observed_lib_size = args.observes_library

    def _get_generative_input(
        self, tensors: Tensors, inference_outputs: dict[str, Any]
    ) -> dict[str, Any]:
        size_factor = tensors.get(REGISTRY_KEYS.SIZE_FACTOR_KEY)
        if size_factor is None and self.use_size_factor_key:
            raise FieldNotFound(
                "This module was built with use_size_factor_key=True, but the minibatch has no "
                f"{REGISTRY_KEYS.SIZE_FACTOR_KEY!r}: name the obs column as size_factor_key when "
                "the data is set up."
            )
        return {
            "z": inference_outputs["z"],
            "library": inference_outputs["library"],
            "batch_index": tensors[REGISTRY_KEYS.BATCH_KEY],
            "y": tensors.get(REGISTRY_KEYS.LABELS_KEY),
            "cont_covs": tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
            "cat_covs": tensors.get(REGISTRY_KEYS.CAT_COVS_KEY),
            "size_factor": None if size_factor is None else torch.log(size_factor),
        }

    def generative(
        self,
        z: Tensor,
        library: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        size_factor: Tensor | None = None,
        y: Tensor | None = None,
        transform_batch: Tensor | int | None = None,
    ) -> dict[str, Any]:
        """The law of the counts given the latent variables, and the priors.

        Parameters
        ----------
        z, library
            As :meth:`inference` gives them.
        batch_index, cont_covs, cat_covs
            As for :meth:`inference`.
        size_factor
            Logarithm of the size factors ``[n, 1]``.
        y
            Label codes ``[n, 1]``.
        transform_batch
            Decode all cells as if they were of this batch.

        Returns
        -------
        ``px``, ``pz``, and ``pl``, which is None where the library size is observed.
        """
        if transform_batch is not None:
            batch_index = torch.ones_like(batch_index) * transform_batch
        log_size = size_factor if self.use_size_factor_key else library
        decoded = self.decode(z, log_size, batch_index, cont_covs, cat_covs, y)
        return {
            "px": LIKELIHOODS[self.gene_likelihood](decoded),
            "pl": self._library_prior(batch_index),
            "pz": latent_prior(z),
        }

    def _library_prior(self, batch_index: Tensor) -> Normal | None:
        if self.use_observed_lib_size:
            return None
        return library_prior(self.library_log_means, self.library_log_vars, batch_index)

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
        """As :meth:`BaseModule.forward`; for the loss of sparse counts the law is not built.

        Counts and likelihood then go through :attr:`kernel`, and the generative outputs have
        ``"px"`` only for whoever asks for it.
        """
        own = (get_inference_input_kwargs, get_generative_input_kwargs, generative_kwargs)
        asks_more = any(own) or bool(inference_kwargs) or not compute_loss
        tensors = to_device(tensors, self.device)
        if asks_more or not has_kernels(self) or not takes(tensors, self.device):
            return super().forward(
                tensors, *own[:2], inference_kwargs, generative_kwargs, loss_kwargs, compute_loss
            )
        inferred = self.inference(**self._get_inference_input(tensors))
        generated = self._fused(tensors, self._get_generative_input(tensors, inferred))
        return inferred, generated, self.loss(tensors, inferred, generated, **(loss_kwargs or {}))

    def objective(self, tensors: Tensors, **loss_kwargs: Any) -> LossOutput:
        """As :meth:`BaseModule.objective`; where kernels can, from end to end without a graph."""
        return objective_of(self, VAE, super().objective, True)(tensors, **loss_kwargs)

    def steps_objective(self, with_graph: bool = True) -> Callable[..., LossOutput]:
        is_own = getattr(self.objective, "__func__", None) is not VAE.objective
        return self.objective if is_own else objective_of(self, VAE, super().objective, with_graph)

    def _fused(self, batch: CellBatch, given: dict[str, Any]) -> Generated:
        """Generative outputs with the loss of the counts in place of their law."""
        z, batch_index = given["z"], given["batch_index"]
        kernel = kernel_for(self.device, self.kernel)
        units = self.decode_units(z, batch_index, given["cont_covs"], given["cat_covs"], kernel)
        log_size = given["size_factor" if self.use_size_factor_key else "library"]
        problem = self.count_problem(batch.x, units, log_size, batch_index, given["y"])
        expected = Expected(batch.n_real, 1.0 / max(batch.n_real, 1))
        outputs = {
            RECONSTRUCTION_LOSS: count_loss(problem, kernel.count_loss, expected),
            "pl": self._library_prior(batch_index),
        }
        laws = {"px": lambda: self.generative(**given)["px"], "pz": lambda: latent_prior(z)}
        return Generated(outputs, **laws)

    def _reconstruction_loss(self, tensors: Tensors, generated: dict[str, Any]) -> Tensor:
        """Minus the log-likelihood of each cell, ``[n]`` or ``[s, n]``."""
        if RECONSTRUCTION_LOSS in generated:
            return generated[RECONSTRUCTION_LOSS]
        return -generated["px"].log_prob(tensors[REGISTRY_KEYS.X_KEY]).sum(dim=-1)

    def loss(
        self,
        tensors: Tensors,
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: Tensor | float = 1.0,
    ) -> LossOutput:
        """The mean negative evidence lower bound of the cells that count.

        The divergence of ``z`` is multiplied by ``kl_weight``, that of the library size is not.
        """
        inferred, generated, n_real = inference_outputs, generative_outputs, n_real_cells(tensors)
        rec = self._reconstruction_loss(tensors, generated)
        kl_z = divergence(inferred["qz"], lambda: generated["pz"])
        kl_l = torch.zeros_like(kl_z)
        if not self.use_observed_lib_size:
            kl_l = kl_divergence(inferred["ql"], generated["pl"]).sum(dim=-1)
        if n_real < rec.shape[-1]:
            rec, kl_z, kl_l = (term[..., :n_real] for term in (rec, kl_z, kl_l))
        total = rec + kl_weight * kl_z
        if not self.use_observed_lib_size:
            total = total + kl_l
        extra = {}
        if self.args.extra_payload_autotune:
            extra = {
                "z": inferred["z"][..., :n_real, :],
                "batch": tensors[REGISTRY_KEYS.BATCH_KEY][:n_real],
                "labels": tensors[REGISTRY_KEYS.LABELS_KEY][:n_real],
            }
        return LossOutput(
            # A batch of padding alone has a loss of zero with a gradient of zeros, not NaN.
            loss=total.sum() / max(total.numel(), 1),
            reconstruction_loss=rec,
            kl_local={"kl_divergence_l": kl_l, "kl_divergence_z": kl_z},
            extra_metrics=extra,
        )

    def scales_of(
        self,
        genes_k: Tensor,
        z: Tensor,
        library: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        size_factor: Tensor | None = None,
        y: Tensor | None = None,
        transform_batch: Tensor | int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scales and rates of some genes: what :meth:`generative` gives, without the others.

        Parameters
        ----------
        genes_k
            int64 ``[k]``.
        z, library, batch_index, cont_covs, cat_covs, size_factor, y, transform_batch
            As for :meth:`generative`.

        Returns
        -------
        Two tensors ``[n, k]``, or ``[s, n, k]`` for several draws.
        """
        if transform_batch is not None:
            batch_index = torch.ones_like(batch_index) * transform_batch
        hidden = self.decode_units(z, batch_index, cont_covs, cat_covs)
        head = Head.of(self.decoder.px_scale_decoder[0])
        flat = full_precision(hidden).flatten(0, -2)
        scale = scales_of(flat, head, self.decoder.scale_activation, genes_k)
        scale = scale.unflatten(0, hidden.shape[:-1])
        log_size = size_factor if self.use_size_factor_key else library
        assert log_size is not None
        return scale, torch.exp(log_size) * scale

    def decode_mean(self, tensors: Tensors, transform_batch: int | None = None) -> Distribution:
        """The law of the counts at the posterior mean, as in one batch or in each cell's own."""
        _, generated = self.forward(
            tensors,
            inference_kwargs={"use_mean": True},
            generative_kwargs={"transform_batch": transform_batch},
            compute_loss=False,
        )
        return generated["px"]

    @torch.inference_mode()
    def sample(
        self,
        tensors: Tensors,
        n_samples: int = 1,
        max_poisson_rate: float = 1e8,
        generative_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """Draws from the posterior predictive law of each cell that counts, on the CPU.

        Parameters
        ----------
        n_samples
            Draws for each cell.
        max_poisson_rate
            Rates of a Poisson law are cut here.
        generative_kwargs
            Further arguments of :meth:`generative`.

        Returns
        -------
        ``[n, g]``, or ``[n, g, s]`` for more than one draw.
        """
        _, generated = self.forward(
            tensors,
            inference_kwargs={"n_samples": n_samples},
            generative_kwargs=generative_kwargs,
            compute_loss=False,
        )
        counts = sample_counts(generated["px"], max_poisson_rate)[..., : n_real_cells(tensors), :]
        return (counts.permute(1, 2, 0) if n_samples > 1 else counts).cpu()

    @torch.inference_mode()
    def marginal_ll(
        self,
        tensors: Tensors,
        n_mc_samples: int,
        return_mean: bool = False,
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
        qz, ql = self.posterior(**self._get_inference_input(tensors))
        estimate = importance_estimate(
            lambda n_samples: self._log_weights(tensors, qz, ql, n_samples),
            n_mc_samples,
            n_mc_samples_per_pass,
        )[: n_real_cells(tensors)]
        return estimate.mean().item() if return_mean else estimate.cpu()

    def _log_weights(
        self, tensors: Tensors, qz: Normal, ql: Normal | None, n_samples: int
    ) -> Tensor:
        """Draws ``[s, n]`` of ``log p(x, z, l) - log q(z, l)``."""
        samples = torch.Size((n_samples,))
        x = tensors[REGISTRY_KEYS.X_KEY]
        # The weight is taken before z is transformed: there both densities are known, and their
        # ratio is the same.
        draw = self.noise.rsample(qz, samples)
        library = observed_library(x).expand(n_samples, -1, -1)
        if ql is not None:
            library = self.noise.rsample(ql, samples)
        inferred = {"z": self.z_encoder.z_transformation(draw), "library": library}
        generated = self.generative(**self._get_generative_input(tensors, inferred))
        log_weights = generated["px"].log_prob(x).sum(-1)
        log_weights += self._log_prior(draw, generated["pz"]) - qz.log_prob(draw).sum(-1)
        if ql is not None:
            log_weights += (generated["pl"].log_prob(library) - ql.log_prob(library)).sum(-1)
        return log_weights

    def _log_prior(self, draw_snk: Tensor, pz: Normal) -> Tensor:
        """Log density ``[s, n]`` of draws of the latent variable before its transformation."""
        return pz.log_prob(draw_snk).sum(-1)
