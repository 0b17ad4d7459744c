"""From the latent variables of a TOTALVAE to the laws of a cell's genes and proteins.

Axis suffixes: ``n`` cells, ``g`` genes, ``p`` proteins, ``k`` latent, ``s`` samples.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from scvi_dist.batch import REGISTRY_KEYS, CellBatch, SparseCounts
from scvi_dist.distributions import NegativeBinomialMixture, Normal
from scvi_dist.errors import FieldNotFound
from scvi_dist.kernels.choice import kernel_for
from scvi_dist.kernels.count_loss import Expected, count_loss
from scvi_dist.kernels.problem import CountProblem, Head, Law
from scvi_dist.module.base import Tensors
from scvi_dist.module.fused import RECONSTRUCTION_LOSS, Generated
from scvi_dist.module.library import library_prior
from scvi_dist.module.likelihoods import LIKELIHOODS, Decoded
from scvi_dist.module.totalvae_networks import TOTALVAENetworks, covariate_codes, of_group
from scvi_dist.nn.partly_frozen import PartlyFrozenLinear
from scvi_dist.nn.totalvi_decoder import DecodedUnits


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
        return {
            "px_": px_,
            "py_": py_,
            "py_norm_": {**py_, **seen},
            "per_batch_efficiency": efficiency,
            "log_per_batch_efficiency": log_efficiency,
            "log_pro_back_mean": log_pro_back_mean,
            "px": self._law_of_genes(px_),
            "py": _protein_law(py_, efficiency),
            **self._priors(z, batch_index),
        }

    def _priors(self, z: Tensor, batch_index: Tensor) -> dict[str, Any]:
        pl = None
        if not self.args.observes_library:
            pl = library_prior(self.library_log_means, self.library_log_vars, batch_index)
        return {"pz": Normal(torch.zeros_like(z), torch.ones_like(z)), "pl": pl}

    def fused(self, batch: CellBatch, given: dict[str, Any]) -> Generated:
        """What :meth:`loss` needs of :meth:`generative`, whose arguments are given.

        In place of the law of the genes' counts there is what they cost, computed without arrays
        of all cells and genes. Laws are computed for whoever asks for ``"px"`` or ``"py"``.
        """
        z, batch_index = given["z"], given["batch_index"]
        columns, codes = self.decoder_input(z, batch_index, given["cont_covs"], given["cat_covs"])
        kernel = kernel_for(self.device, self.kernel)
        units = self.decoder.units(columns, *codes, kernel=kernel)
        problem = self._count_problem(batch, units, given)
        expected = Expected(batch.n_real, 1.0 / max(batch.n_real, 1))
        py_ = units.proteins
        py_["r"] = torch.exp(
            of_group(self.py_r, self._group("protein", batch_index, given["label"]))
        )
        log_efficiency = self.log_efficiency(batch_index)
        outputs = {
            RECONSTRUCTION_LOSS: count_loss(problem, kernel.count_loss, expected),
            "py_": py_,
            "per_batch_efficiency": torch.exp(log_efficiency),
            "log_per_batch_efficiency": log_efficiency,
            "log_pro_back_mean": units.log_rate_back,
            **self._priors(z, batch_index),
        }
        return Generated(
            outputs,
            px=lambda: self._gene_law(units, given),
            py=lambda: _protein_law(py_, outputs["per_batch_efficiency"]),
        )

    def _gene_law(self, units: DecodedUnits, given: dict[str, Any]) -> Distribution:
        theta, _ = self.dispersions(given["batch_index"], given["label"])
        size = given["size_factor" if self.args.use_size_factor_key else "library_gene"]
        px_ = self.decoder.genes(units, size, self.args.gene_likelihood == "zinb")
        return self._law_of_genes(px_ | {"r": theta})

    def _law_of_genes(self, px_: dict[str, Any]) -> Distribution:
        decoded = Decoded(px_["scale"], px_["rate"], px_["r"], px_["dropout"])
        return LIKELIHOODS[self.args.gene_likelihood](decoded)

    def _count_problem(
        self, batch: CellBatch, units: DecodedUnits, given: dict[str, Any]
    ) -> CountProblem:
        """The likelihood of the genes' counts, of which nothing is computed but the units."""
        assert isinstance(batch.x, SparseCounts), "the caller has looked"
        scale, dropout = self.decoder.gene_heads
        law = Law(self.args.gene_likelihood, self.decoder.scale_activation)
        size = given["size_factor" if self.args.use_size_factor_key else "library_gene"]
        log_theta_tg, group_n = self.px_r.unsqueeze(0), None
        if self.px_r.dim() == 2:
            log_theta_tg = self.px_r.t()
            group_n = self._group("gene", given["batch_index"], given["label"]).reshape(-1).long()
        hidden_nh, dropout_head = units.genes, None
        if law.counts == "zinb":
            hidden_nh = torch.cat([units.genes, units.dropout], dim=1)
            dropout_head = replace(_head(dropout), first=units.genes.shape[1])
        return CountProblem(
            law=law,
            counts=batch.x,
            hidden_nh=hidden_nh,
            # The logarithm of a float32 would not give back what it was taken of.
            log_size_n=size.reshape(-1).double().log(),
            scale=_head(scale),
            dropout=dropout_head,
            dispersion=None,
            log_theta_tg=log_theta_tg,
            group_n=group_n,
        )

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
        genes, proteins = (
            torch.exp(of_group(log_theta, self._group(what, batch_index, label)))
            for what, log_theta in (("gene", self.px_r), ("protein", self.py_r))
        )
        return genes, proteins

    def _group(self, what: str, batch_index: Tensor, label: Tensor | None) -> Tensor:
        """Codes ``[n, 1]`` of that by which the dispersions of genes or proteins differ."""
        name = getattr(self.args, f"{what}_dispersion")
        group = label if name.endswith("label") else batch_index
        if group is None:
            raise FieldNotFound(
                f"{what}_dispersion is {name!r}, but the minibatch has no "
                f"{REGISTRY_KEYS.LABELS_KEY!r}: name the obs column as labels_key when the "
                "data is set up."
            )
        return group

    def decoder_input(
        self, z: Tensor, batch_index: Tensor, cont_covs: Tensor | None, cat_covs: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What the decoder sees: columns, and codes of the categories."""
        if cont_covs is not None:
            z = torch.cat([z, cont_covs.expand(*z.shape[:-1], -1)], dim=-1)
        return z, covariate_codes(batch_index, cat_covs)


def _protein_law(py_: dict[str, Tensor], efficiency: Tensor) -> NegativeBinomialMixture:
    """Of the counts that are seen, at the efficiency of the cell's batch."""
    return NegativeBinomialMixture(
        mu1=efficiency * py_["rate_back"],
        mu2=efficiency * py_["rate_fore"],
        theta1=py_["r"],
        mixture_logits=py_["mixing"],
    )


def _head(linear: nn.Linear) -> Head:
    """The weights of a layer, of which only some may be trained."""
    weight_gh, bias_g = linear.weight, linear.bias
    if isinstance(linear, PartlyFrozenLinear):
        fixed, trained = weight_gh[:, : -linear.n_trained], weight_gh[:, -linear.n_trained :]
        weight_gh = torch.cat([fixed.detach(), trained], dim=1)
    return Head(weight_gh, bias_g)
