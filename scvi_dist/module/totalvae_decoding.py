"""From the latent variables of a TOTALVAE to the laws of a cell's genes and proteins.

Axis suffixes: ``n`` cells, ``g`` genes, ``p`` proteins, ``k`` latent, ``s`` samples.
"""

from typing import Any

import torch
from torch import Tensor

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.distributions import NegativeBinomialMixture, Normal
from scvi_dist.errors import FieldNotFound
from scvi_dist.module.base import Tensors
from scvi_dist.module.library import library_prior
from scvi_dist.module.likelihoods import LIKELIHOODS, Decoded
from scvi_dist.module.totalvae_networks import TOTALVAENetworks, covariate_codes, of_group


class TOTALVAEDecoding(TOTALVAENetworks):
    """The networks of a TOTALVAE, with its generative model."""

    def _get_generative_input(
        self, tensors: Tensors, inference_outputs: dict[str, Any]
    ) -> dict[str, Any]:
        size_factor = tensors.get(REGISTRY_KEYS.SIZE_FACTOR_KEY)
        if size_factor is None and self.args.use_size_factor_key:
            raise FieldNotFound(
                "This module was built with use_size_factor_key=True, but the minibatch has no "
                f"{REGISTRY_KEYS.SIZE_FACTOR_KEY!r}: name the obs column as size_factor_key when "
                "the data is set up."
            )
        return {
            "z": inference_outputs["z"],
            "library_gene": inference_outputs["library_gene"],
            "batch_index": tensors[REGISTRY_KEYS.BATCH_KEY],
            "label": tensors.get(REGISTRY_KEYS.LABELS_KEY),
            "cont_covs": tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
            "cat_covs": tensors.get(REGISTRY_KEYS.CAT_COVS_KEY),
            "size_factor": size_factor,
        }

    def generative(
        self,
        z: Tensor,
        library_gene: Tensor,
        batch_index: Tensor,
        label: Tensor | None = None,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        size_factor: Tensor | None = None,
        transform_batch: Tensor | int | None = None,
        use_mean: bool = False,
    ) -> dict[str, Any]:
        """The laws of the counts given the latent variables, and the priors.

        Parameters
        ----------
        z, library_gene
            As :meth:`inference` gives them.
        batch_index, cont_covs, cat_covs
            As for :meth:`inference`.
        label
            Label codes ``[n, 1]``.
        size_factor
            Size factors ``[n, 1]``.
        transform_batch
            Decode all cells as if they were of this batch.
        use_mean
            Whether the mean of each log background rate takes the place of a draw.

        Returns
        -------
        ``px_`` and ``py_``, the dictionaries of :class:`~scvi_dist.nn.DecoderTOTALVI` with the
        inverse dispersions as ``r``; ``py_norm_``, where both rates are multiplied by
        ``per_batch_efficiency [n, p]``; ``log_pro_back_mean``, the log background rate that was
        drawn; ``px`` and ``py``, the laws of the counts (of proteins: with the efficiency); ``pz``;
        ``pl``, which is None where the library size is observed.
        """
        if transform_batch is not None:
            batch_index = torch.ones_like(batch_index) * transform_batch
        size = library_gene
        if self.args.use_size_factor_key:
            assert size_factor is not None, "_get_generative_input has asked for it"
            size = size_factor
        columns, codes = self.decoder_input(z, batch_index, cont_covs, cat_covs)
        px_, py_, log_pro_back_mean = self.decoder(
            columns,
            size,
            *codes,
            zero_inflated=self.args.gene_likelihood == "zinb",
            use_mean=use_mean,
        )
        px_["r"], py_["r"] = self.dispersions(batch_index, label)
        log_efficiency = self.log_efficiency(batch_index)
        efficiency = torch.exp(log_efficiency)
        seen = {name: efficiency * py_[name] for name in ("rate_back", "rate_fore")}
        pl = None
        if not self.args.observes_library:
            pl = library_prior(self.library_log_means, self.library_log_vars, batch_index)
        return {
            "px_": px_,
            "py_": py_,
            "py_norm_": {**py_, **seen},
            "per_batch_efficiency": efficiency,
            "log_per_batch_efficiency": log_efficiency,
            "log_pro_back_mean": log_pro_back_mean,
            "px": LIKELIHOODS[self.args.gene_likelihood](
                Decoded(px_["scale"], px_["rate"], px_["r"], px_["dropout"])
            ),
            "py": NegativeBinomialMixture(
                mu1=seen["rate_back"],
                mu2=seen["rate_fore"],
                theta1=py_["r"],
                mixture_logits=py_["mixing"],
            ),
            "pz": Normal(torch.zeros_like(z), torch.ones_like(z)),
            "pl": pl,
        }

    def get_sample_dispersion(
        self,
        x: Tensor,
        y: Tensor,
        batch_index: Tensor | None = None,
        label: Tensor | None = None,
        n_samples: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Inverse dispersions of genes, ``[g]`` or ``[n, g]``, and of proteins, ``[p]`` or
        ``[n, p]``.

        They depend on the batch and the label of a cell alone, not on its counts ``x`` and ``y``
        nor on the number of draws.
        """
        if batch_index is None:
            batch_index = torch.zeros(len(x), 1, dtype=torch.long, device=x.device)
        return self.dispersions(batch_index, label)

    def log_efficiency(self, batch_index: Tensor) -> Tensor:
        """Log efficiency ``[n, p]`` with which the proteins of a cell's batch are seen."""
        return of_group(self.log_per_batch_efficiency, batch_index)

    def dispersions(self, batch_index: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inverse dispersions of genes, ``[g]`` or ``[n, g]``, and of proteins."""
        found = []
        for what, log_theta in (("gene", self.px_r), ("protein", self.py_r)):
            name = getattr(self.args, f"{what}_dispersion")
            group = label if name.endswith("label") else batch_index
            if group is None:
                raise FieldNotFound(
                    f"{what}_dispersion is {name!r}, but the minibatch has no "
                    f"{REGISTRY_KEYS.LABELS_KEY!r}: name the obs column as labels_key when the "
                    "data is set up."
                )
            found.append(torch.exp(of_group(log_theta, group)))
        return found[0], found[1]

    def decoder_input(
        self, z: Tensor, batch_index: Tensor, cont_covs: Tensor | None, cat_covs: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What the decoder sees: columns, and codes of the categories."""
        if cont_covs is not None:
            z = torch.cat([z, cont_covs.expand(*z.shape[:-1], -1)], dim=-1)
        return z, covariate_codes(batch_index, cat_covs)
