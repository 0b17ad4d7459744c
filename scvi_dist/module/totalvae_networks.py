"""The networks of a TOTALVAE, its free parameters, and the posteriors of its latent variables.

Axis suffixes: ``n`` cells, ``g`` genes, ``p`` proteins, ``k`` latent, ``s`` samples.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scvi_dist.batch import REGISTRY_KEYS, SparseCounts
from scvi_dist.distributions import Normal
from scvi_dist.errors import FieldNotFound
from scvi_dist.kernels.choice import default_kernel, kernel_for, usable_name, works_on
from scvi_dist.kernels.sparse_linear import SparseColumns, column_major
from scvi_dist.module.base import BaseModule, Tensors
from scvi_dist.module.cached_posterior import CachedPosterior
from scvi_dist.module.fused import takes
from scvi_dist.module.totalvae_args import TOTALVAEArgs
from scvi_dist.nn import DecoderTOTALVI, EncoderTOTALVI, one_hot
from scvi_dist.nn.noise import NO_SAMPLES

PRIOR_LOG_BACKGROUND = 3.0
"""Where the prior mean of a protein's log background rate starts, if nothing is said."""


class TOTALVAENetworks(BaseModule):
    """Encoder, decoder, dispersions, background priors and efficiencies, from checked arguments."""

    protein_mask: Tensor | None

    def __init__(self, args: TOTALVAEArgs) -> None:
        super().__init__()
        self.args = args
        self._build()
        self._freeze_unused()
        self._asked_kernel: str | None = None
        # Of the encoder: then cells need only the weights of the genes they have. Of the decoder:
        # products of the gradient are half as fast again where rows are the longer side.
        stacks = (self.encoder.encoder, self.encoder.l_gene_encoder)
        first = [layers.fc_layers[0][0] for layers in stacks]
        for linear in (*first, *self.decoder.gene_heads):
            linear.weight.data = column_major(linear.weight.data)

    def _build(self) -> None:
        """The parts, in scvi-tools' order: a seed then gives the same weights."""
        args = self.args
        if not args.observes_library:
            for name in ("library_log_means", "library_log_vars"):
                value = torch.as_tensor(getattr(args, name), dtype=torch.float32)
                self.register_buffer(name, value.clone())
        alpha, log_beta = self._initial_background()
        self.background_pro_alpha = nn.Parameter(alpha)
        self.background_pro_log_beta = nn.Parameter(log_beta)
        self.log_per_batch_efficiency = nn.Parameter(
            torch.zeros(args.n_input_proteins, args.n_batch)
        )
        self.px_r = nn.Parameter(torch.randn(args.dispersion_shape("gene")))
        self.py_r = nn.Parameter(2 * torch.rand(args.dispersion_shape("protein")))
        self.encoder = EncoderTOTALVI(**args.encoder_args, noise=self.noise)
        self.decoder = DecoderTOTALVI(**args.decoder_args, noise=self.noise)
        rows = args.mask_rows
        # Not part of the state: scvi-tools' has no such entry, and it follows from the arguments.
        mask = None if rows is None else torch.from_numpy(rows)
        self.register_buffer("protein_mask", mask, persistent=False)

    def _initial_background(self) -> tuple[Tensor, Tensor]:
        """Prior mean and log standard deviation of the log background rates, [p(, n_panel)]."""
        args = self.args
        mean, scale = args.protein_background_prior_mean, args.protein_background_prior_scale
        if mean is None or scale is None:
            shape = (args.n_input_proteins, args.panels)
            if args.panels == 0:
                return torch.ones(shape[:1]), torch.zeros(shape[:1])
            return PRIOR_LOG_BACKGROUND * torch.ones(shape), torch.zeros(shape)
        if mean.shape[1] == 1 and args.panels != 1:
            mean, scale = mean.ravel(), scale.ravel()
        as_tensors = [torch.from_numpy(np.array(part, dtype=np.float32)) for part in (mean, scale)]
        return as_tensors[0], torch.log(as_tensors[1])

    def _freeze_unused(self) -> None:
        """Parameters that no loss reaches must not look trainable: DDP waits for each one."""
        if self.args.observes_library:
            for part in ("l_gene_encoder", "l_gene_mean_encoder", "l_gene_var_encoder"):
                getattr(self.encoder, part).requires_grad_(False)
        if self.args.n_batch == 0:
            self.log_per_batch_efficiency.requires_grad_(False)
        if self.args.gene_likelihood != "zinb":
            self.decoder.px_dropout_decoder_gene.requires_grad_(False)

    @property
    def init_args(self) -> dict[str, Any]:
        """The arguments that build this module anew."""
        return self.args.as_dict()

    @property
    def z_encoder(self) -> EncoderTOTALVI:
        """The encoder under the name that it has in a VAE."""
        return self.encoder

    @property
    def kernel(self) -> str:
        """Name of the implementation of the first layer, of the likelihoods, and of their slopes.

        The fastest one that works on the device; or set one.
        """
        if self._asked_kernel is not None and works_on(self._asked_kernel, self.device):
            return self._asked_kernel
        return default_kernel(self.device)

    @kernel.setter
    def kernel(self, name: str | None) -> None:
        self._asked_kernel = None if name is None else usable_name(name, self.device)

    def _counts(self, tensors: Tensors) -> Tensor | SparseCounts:
        """The counts as the encoder takes them."""
        if takes(tensors, self.device) and self.kernel != "torch":
            return tensors.x
        return tensors[REGISTRY_KEYS.X_KEY]

    def _get_inference_input(self, tensors: Tensors) -> dict[str, Any]:
        return {
            "x": self._counts(tensors),
            "y": _required(
                tensors,
                REGISTRY_KEYS.PROTEIN_EXP_KEY,
                "the key of obsm, or the modality, with them",
            ),
            "batch_index": tensors[REGISTRY_KEYS.BATCH_KEY],
            "panel_index": self.panel_index(tensors),
            "cont_covs": tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
            "cat_covs": tensors.get(REGISTRY_KEYS.CAT_COVS_KEY),
            "cached": CachedPosterior.of(tensors),
        }

    def panel_index(self, tensors: Tensors) -> Tensor:
        """Codes ``[n, 1]`` of the cells' panels."""
        return _required(tensors, self.args.panel_key, "the obs column with it").long()

    def posterior(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        batch_index: Tensor,
        panel_index: Tensor | None = None,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        cached: CachedPosterior | None = None,
    ) -> tuple[Normal, Normal | None]:
        """The laws ``qz [n, k]`` and ``ql [n, 1]`` (None where observed); nothing is drawn.

        ``qz`` is the law before the transformation that a ``"ln"`` latent space has, ``ql`` that
        of the log library size of the genes.
        """
        if cached is not None:
            return cached.qz, None
        seen, codes = self._encoder_input(x, y, batch_index, cont_covs, cat_covs)
        qz = self.encoder.posterior(seen, *codes)
        if self.args.observes_library:
            return qz, None
        return qz, self.encoder.library_posterior(seen, *codes)

    def inference(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        batch_index: Tensor,
        panel_index: Tensor | None = None,
        label: Tensor | None = None,
        n_samples: int = 1,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        use_mean: bool = False,
        cached: CachedPosterior | None = None,
    ) -> dict[str, Any]:
        """Posteriors of each cell and draws from them.

        Parameters
        ----------
        x, y
            Counts of genes ``[n, g]``, dense or sparse, and of proteins ``[n, p]``.
        batch_index, panel_index, cont_covs, cat_covs
            Batch and panel codes ``[n, 1]``, continuous covariates and codes of categorical ones
            ``[n, c]``. The panel is the batch where None.
        label
            Not used: the dispersions are :meth:`generative`'s.
        n_samples
            Draws for each cell.
        use_mean
            Whether the posterior means take the place of the draws, of which there is then one.
        cached
            What was encoded before; then the counts are not looked at.

        Returns
        -------
        ``z [n, k]`` and ``library_gene [n, 1]``, ``untran_z`` and ``untran_l`` (``z`` before its
        transformation, the log library size), all with ``s`` in front for several draws;
        ``library``, the logarithm of ``library_gene``; ``qz``; ``ql``, which is None where the
        library size is observed; ``back_mean_prior``, the prior ``[n, p]`` (or ``[p]``) of the
        log background rates.
        """
        ql: Normal | None
        if use_mean:
            qz, ql = self.posterior(x, y, batch_index, panel_index, cont_covs, cat_covs, cached)
            z, log_library = qz.loc, None if ql is None else ql.loc
        elif cached is not None:
            samples = torch.Size((n_samples,)) if n_samples > 1 else NO_SAMPLES
            qz, ql, log_library = cached.qz, None, None
            z = self.noise.rsample(qz, samples)
        else:
            seen, codes = self._encoder_input(x, y, batch_index, cont_covs, cat_covs)
            qz, z, ql, log_library = self._drawn(seen, codes, n_samples)
        if log_library is None:
            observed = self._row_sums(x) if cached is None else cached.log_library.exp()
            library_gene = observed.expand(*z.shape[:-1], 1)
            log_library = torch.log(library_gene)
        else:
            library_gene = self.encoder.l_transformation(log_library)
        return {
            "z": self.encoder.z_transformation(z),
            "qz": qz,
            "ql": ql,
            "library_gene": library_gene,
            "library": log_library,
            "untran_z": z,
            "untran_l": log_library,
            "back_mean_prior": self.background_prior(
                batch_index if panel_index is None else panel_index
            ),
        }

    def _drawn(
        self, seen: Tensor | SparseColumns, codes: tuple[Tensor, ...], n_samples: int
    ) -> tuple[Normal, Tensor, Normal | None, Tensor | None]:
        """``qz``, draws of ``z``, and the same of a latent library size; scvi-tools' order."""
        encoder, ql, log_library = self.encoder, None, None
        qz, z = encoder.drawn(seen, *codes)
        if self.args.observes_library:
            encoder.pass_over_library(z)
        else:
            ql = encoder.library_posterior(seen, *codes)
            log_library = self.noise.rsample(ql)
        if n_samples > 1:
            # scvi-tools has drawn once by now as well: its generator would be behind otherwise.
            samples = torch.Size((n_samples,))
            z = self.noise.rsample(qz, samples)
            if ql is None:
                encoder.pass_over_library(qz.loc, samples)
            else:
                log_library = self.noise.rsample(ql, samples)
        return qz, z, ql, log_library

    def _encoder_input(
        self,
        x: Tensor | SparseCounts,
        y: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None,
        cat_covs: Tensor | None,
    ) -> tuple[Tensor | SparseColumns, tuple[Tensor, ...]]:
        """What the encoder sees: columns, and codes of the categories.

        Each kind of counts is divided by 1 plus its mean over the cell.
        """
        dense = [] if isinstance(x, SparseCounts) else [x]
        parts = [counts / (1 + counts.mean(1, keepdim=True)) for counts in (*dense, y)]
        if self.args.log_variational:
            parts = [torch.log1p(part) for part in parts]
        codes: tuple[Tensor, ...] = ()
        if self.args.encode_covariates:
            parts += [] if cont_covs is None else [cont_covs]
            codes = covariate_codes(batch_index, cat_covs)
        columns = torch.cat(parts, dim=-1)
        return (self._sparse_input(x, columns) if isinstance(x, SparseCounts) else columns), codes

    def _sparse_input(self, x: SparseCounts, dense_nc: Tensor) -> SparseColumns:
        """Genes as the encoder sees them, with the other columns at their right."""
        kernel, dtype = kernel_for(self.device, self.kernel), self.px_r.dtype
        divisor_n1 = 1 + self._row_sums(x) / x.n_genes
        lengths_n = x.indptr.diff()
        values = x.data / divisor_n1[:, 0].repeat_interleave(lengths_n, output_size=len(x.data))
        scaled = SparseCounts(x.indptr, x.indices, values.to(dtype), x.n_genes)
        if self.args.log_variational:
            scaled = kernel.log1p(scaled)
        return SparseColumns(scaled, dense_nc.to(dtype), kernel)

    def _row_sums(self, x: Tensor | SparseCounts) -> Tensor:
        """Sum ``[n, 1]`` of the counts of each cell."""
        if isinstance(x, SparseCounts):
            return kernel_for(self.device, self.kernel).row_sums(x).unsqueeze(1)
        return x.sum(1, keepdim=True)

    def background_prior(self, panel_index: Tensor) -> Normal:
        """Prior ``[n, p]`` of the log background rates; ``[p]`` where all panels share it."""
        alpha = of_group(self.background_pro_alpha, panel_index)
        beta = of_group(torch.exp(self.background_pro_log_beta), panel_index)
        return Normal(alpha, beta, validate_args=False)


def _required(tensors: Tensors, key: str, what: str) -> Tensor:
    values = tensors.get(key)
    if values is None:
        raise FieldNotFound(
            f"This module needs {key!r}, which the minibatch does not have: name {what} when the "
            "data is set up."
        )
    return values


def covariate_codes(batch_index: Tensor, cat_covs: Tensor | None) -> tuple[Tensor, ...]:
    """The covariates that enter as indicators, as codes ``[n, 1]`` each."""
    further = () if cat_covs is None else torch.split(cat_covs, 1, dim=1)
    return (batch_index, *further)


def of_group(values: Tensor, codes: Tensor) -> Tensor:
    """Values ``[n, ·]`` of each cell's group from values ``[·, groups]``; one-dimensional ones,
    which all groups share, as they are."""
    if values.dim() == 1:
        return values
    if values.shape[1] == 0:  # a module without batches
        return values.new_zeros(len(codes), len(values))
    # A product with indicators, unlike indexing, adds its gradients in a fixed order on a GPU.
    return F.linear(one_hot(codes, values.shape[1], values.dtype), values)
