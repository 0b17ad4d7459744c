"""The networks of a VAE: from the data to latent variables, and from those to a law's parts.

Axis suffixes: ``n`` cells, ``g`` genes, ``k`` latent, ``s`` samples.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scvi_dist.batch import REGISTRY_KEYS, SparseCounts
from scvi_dist.distributions import Normal
from scvi_dist.errors import FieldNotFound
from scvi_dist.kernels.choice import Kernel, default_kernel, kernel_for, usable_name, works_on
from scvi_dist.kernels.problem import CountModel, CountProblem, Head, Law
from scvi_dist.kernels.sparse_linear import SparseColumns, column_major
from scvi_dist.module.base import BaseModule, Tensors
from scvi_dist.module.cached_posterior import CachedPosterior
from scvi_dist.module.fused import has_kernels, takes
from scvi_dist.module.library import observed_library
from scvi_dist.module.likelihoods import Decoded
from scvi_dist.module.vae_args import VAEArgs
from scvi_dist.nn import DecoderSCVI, Embedding, Encoder, one_hot
from scvi_dist.nn.fc_layers import cuts_at_zero


class VAENetworks(BaseModule):
    """Encoders, decoder, dispersions and batch vectors, built from checked arguments."""

    def __init__(self, args: VAEArgs) -> None:
        super().__init__()
        self.args = args
        self._build()
        self._freeze_unused()
        self._asked_kernel: str | None = None
        # Of the encoders, each gene's weights side by side: cells need those of their genes. Of
        # the decoder, each hidden unit's: cells need those of the units that are not zero.
        firsts = [e.encoder.fc_layers[0][0] for e in (self.z_encoder, self.l_encoder)]
        for linear in (*firsts, *self.decoder.gene_heads):
            linear.weight.data = column_major(linear.weight.data)

    def _build(self) -> None:
        """The parts, in scvi-tools' order: a seed then gives the same weights."""
        args = self.args
        if not args.observes_library:
            for name in ("library_log_means", "library_log_vars"):
                value = torch.as_tensor(getattr(args, name), dtype=torch.float32)
                self.register_buffer(name, value.clone())
        if args.px_r_shape is not None:
            self.px_r = nn.Parameter(torch.randn(args.px_r_shape))
        if args.uses_embedding:
            embedding = Embedding(args.n_batch, **args.embedding_args)
            self._embeddings_dict = nn.ModuleDict({REGISTRY_KEYS.BATCH_KEY: embedding})
        encoder_args = {**args.encoder_args, "noise": self.noise}
        extra = args.extra_encoder_kwargs or {}
        self.z_encoder = Encoder(
            n_output=args.n_latent,
            n_layers=args.n_layers,
            distribution=args.latent_distribution,
            **encoder_args,
            **extra,
        )
        self.l_encoder = Encoder(n_output=1, n_layers=1, **encoder_args, **extra)
        self.decoder = DecoderSCVI(**args.decoder_args, **(args.extra_decoder_kwargs or {}))

    def _freeze_unused(self) -> None:
        """Parameters that no loss reaches must not look trainable: DDP waits for each one."""
        args = self.args
        if args.observes_library:
            self.l_encoder.requires_grad_(False)
        if args.dispersion != "gene-cell" or not args.has_dispersion:
            self.decoder.px_r_decoder.requires_grad_(False)
        if args.gene_likelihood != "zinb":
            self.decoder.px_dropout_decoder.requires_grad_(False)
        if args.dispersion != "gene-cell" and not args.has_dispersion:
            self.px_r.requires_grad_(False)

    @property
    def init_args(self) -> dict[str, Any]:
        """The arguments that build this module anew."""
        return self.args.as_dict()

    @property
    def batch_embedding(self) -> Embedding | None:
        """The learned vectors of the batches; None where they are indicators."""
        if not self.args.uses_embedding:
            return None
        return self._embeddings_dict[REGISTRY_KEYS.BATCH_KEY]

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        # Asked for several times a step: the way through all parameters is long.
        return self.z_encoder.mean_encoder.weight.device

    @property
    def kernel(self) -> str:
        """Name of the implementation of the first layer and of the likelihood.

        The fastest one that works on the device and with the arguments; or set one. What it does
        not support, a normal likelihood for instance, is computed by ``"torch"``.
        """
        if not has_kernels(self):
            return "torch"
        if self._asked_kernel is not None and works_on(self._asked_kernel, self.device):
            return self._asked_kernel
        return default_kernel(self.device)

    @kernel.setter
    def kernel(self, name: str | None) -> None:
        self._asked_kernel = None if name is None else usable_name(name, self.device)

    def _counts(self, tensors: Tensors) -> Tensor | SparseCounts:
        """The counts as the encoders take them."""
        if takes(tensors, self.device) and self.kernel != "torch":
            return tensors.x
        return tensors[REGISTRY_KEYS.X_KEY]

    def _get_inference_input(self, tensors: Tensors) -> dict[str, Any]:
        cached = CachedPosterior.of(tensors)
        given = {
            "x": self._counts(tensors),
            "batch_index": tensors[REGISTRY_KEYS.BATCH_KEY],
            "cont_covs": tensors.get(REGISTRY_KEYS.CONT_COVS_KEY),
            "cat_covs": tensors.get(REGISTRY_KEYS.CAT_COVS_KEY),
        }
        return given if cached is None else {**given, "cached": cached}

    def posterior(
        self,
        x: Tensor | SparseCounts,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        cached: CachedPosterior | None = None,
    ) -> tuple[Normal, Normal | None]:
        """The laws ``qz [n, k]`` and ``ql [n, 1]`` (None where observed); nothing is drawn.

        ``qz`` is the law before the transformation that a ``"ln"`` latent space has.
        """
        if cached is not None:
            return cached.qz, None
        seen, codes = self._encoder_input(x, batch_index, cont_covs, cat_covs)
        qz = self.z_encoder.posterior(seen, *codes)
        ql = None if self.args.observes_library else self.l_encoder.posterior(seen, *codes)
        return qz, ql

    def inference(
        self,
        x: Tensor | SparseCounts,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        n_samples: int = 1,
        use_mean: bool = False,
        cached: CachedPosterior | None = None,
    ) -> dict[str, Any]:
        """Posteriors of each cell and draws from them.

        Parameters
        ----------
        x
            Counts ``[n, g]``, dense or sparse.
        batch_index, cont_covs, cat_covs
            Batch codes ``[n, 1]``, continuous covariates and codes of categorical ones ``[n, c]``.
        n_samples
            Draws for each cell.
        use_mean
            Whether the posterior means take the place of the draws, of which there is then one.
        cached
            What was encoded before; then the counts are not looked at.

        Returns
        -------
        ``z [n, k]`` and ``library [n, 1]`` (logarithm), with ``s`` in front for several draws;
        ``qz``, and ``ql``, which is None where the library size is observed.
        """
        ql: Normal | None
        if use_mean:
            qz, ql = self.posterior(x, batch_index, cont_covs, cat_covs, cached)
            z = self.z_encoder.z_transformation(qz.loc)
            library = None if ql is None else ql.loc
        elif cached is not None:
            qz, ql, library = cached.qz, None, None
            z = self.z_encoder.draw(qz)
            if n_samples > 1:
                # The second draw, as where cells are encoded: minified data has the same answers.
                z = self.z_encoder.draw(qz, torch.Size((n_samples,)))
        else:
            seen, codes = self._encoder_input(x, batch_index, cont_covs, cat_covs)
            qz, z, ql, library = self._drawn(seen, codes, n_samples)
        if library is None:
            observed = observed_library(x) if cached is None else cached.log_library
            library = observed.expand(*z.shape[:-1], 1)
        return {"z": z, "library": library, "qz": qz, "ql": ql}

    def _drawn(
        self, seen: Tensor | SparseColumns, codes: tuple[Tensor, ...], n_samples: int
    ) -> tuple[Normal, Tensor, Normal | None, Tensor | None]:
        """``qz``, draws of ``z``, and the same of a latent library size; scvi-tools' order."""
        ql, library = None, None
        qz, z = self.z_encoder(seen, *codes)
        if not self.args.observes_library:
            ql, library = self.l_encoder(seen, *codes)
        if n_samples > 1:
            # scvi-tools has drawn once by now as well: its generator would be behind otherwise.
            samples = torch.Size((n_samples,))
            z = self.z_encoder.draw(qz, samples)
            library = None if ql is None else self.l_encoder.draw(ql, samples)
        return qz, z, ql, library

    def _encoder_input(
        self,
        x: Tensor | SparseCounts,
        batch_index: Tensor,
        cont_covs: Tensor | None,
        cat_covs: Tensor | None,
    ) -> tuple[Tensor | SparseColumns, tuple[Tensor, ...]]:
        """What the encoders see: columns, and codes of the categories."""
        seen: Tensor | SparseColumns
        if isinstance(x, SparseCounts):
            kernel = kernel_for(self.device, self.kernel)
            seen = SparseColumns(kernel.log1p(x) if self.args.log_variational else x, None, kernel)
        else:
            seen = torch.log1p(x) if self.args.log_variational else x
        if not self.args.encode_covariates:
            return seen, ()
        return self._with_columns(seen, batch_index, cont_covs), self._codes(batch_index, cat_covs)

    def decode(
        self,
        z: Tensor,
        log_size: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Decoded:
        """What the law of the counts is made of.

        Parameters
        ----------
        z
            ``[n, k]`` or ``[s, n, k]``.
        log_size
            Logarithm of the library size or size factor, ``[n, 1]`` or ``[s, n, 1]``.
        batch_index, cont_covs, cat_covs, y
            Covariates and label codes of the cells, ``[n, c]`` each.
        """
        args = self.args
        scale, cell_log_theta, rate, zi_logits = self.decoder(
            args.dispersion if args.has_dispersion else "gene",
            self._with_columns(z, batch_index, cont_covs),
            log_size,
            *self._codes(batch_index, cat_covs),
            zero_inflated=args.gene_likelihood == "zinb",
        )
        theta = None
        if args.has_dispersion:
            theta = torch.exp(self._log_theta(cell_log_theta, batch_index, y))
        return Decoded(scale, rate, theta, zi_logits)

    def decode_scale(
        self,
        z: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
    ) -> Tensor:
        """Means as proportions of the cell, ``[n, g]``: :meth:`decode` without all the rest."""
        seen = self._with_columns(z, batch_index, cont_covs)
        return self.decoder.scale(seen, *self._codes(batch_index, cat_covs))

    def decode_units(
        self,
        z: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        kernel: Kernel | None = None,
    ) -> Tensor:
        """Hidden units ``[n, h]`` before the heads of the genes.

        Parameters
        ----------
        z, batch_index, cont_covs, cat_covs
            As for :meth:`decode`.
        kernel
            As for :meth:`FCLayers.forward`.
        """
        seen = self._with_columns(z, batch_index, cont_covs)
        return self.decoder.px_decoder(seen, *self._codes(batch_index, cat_covs), kernel=kernel)

    def _codes(self, batch_index: Tensor, cat_covs: Tensor | None) -> tuple[Tensor, ...]:
        """The covariates that enter as indicators, as codes ``[n, 1]`` each."""
        further = () if cat_covs is None else torch.split(cat_covs, 1, dim=1)
        return further if self.args.uses_embedding else (batch_index, *further)

    def _with_columns(
        self, x: Tensor | SparseColumns, batch_index: Tensor, cont_covs: Tensor | None
    ) -> Any:
        """``x`` with the covariates that enter as columns at its right."""
        columns = [] if cont_covs is None else [cont_covs]
        if self.batch_embedding is not None:
            columns.append(self.batch_embedding(batch_index))
        if isinstance(x, SparseColumns):
            return x.with_columns(*columns) if columns else x
        if x.dim() == 3:
            columns = [column.expand(x.shape[0], -1, -1) for column in columns]
        return torch.cat([x, *columns], dim=-1) if columns else x

    def _log_theta(
        self, cell_log_theta: Tensor | None, batch_index: Tensor, y: Tensor | None
    ) -> Tensor:
        """Log dispersions, ``[g]`` or ``[n, g]``."""
        if cell_log_theta is not None:
            return cell_log_theta
        if self.args.dispersion == "gene":
            return self.px_r
        group = self._group(batch_index, y)
        return F.linear(one_hot(group, self.px_r.shape[1], self.px_r.dtype), self.px_r)

    def _group(self, batch_index: Tensor, y: Tensor | None) -> Tensor:
        """Codes ``[n, 1]`` of what has dispersions of its own."""
        group = batch_index if self.args.dispersion == "gene-batch" else y
        if group is None:
            raise FieldNotFound(
                "The dispersion is 'gene-label', but the minibatch has no "
                f"{REGISTRY_KEYS.LABELS_KEY!r}: name the obs column as labels_key when the data "
                "is set up."
            )
        return group

    def count_problem(
        self,
        counts: SparseCounts,
        hidden_nh: Tensor,
        log_size: Tensor,
        batch_index: Tensor,
        y: Tensor | None = None,
    ) -> CountProblem:
        """The likelihood of counts ``[n, g]``, of which nothing has been computed.

        Parameters
        ----------
        hidden_nh
            As :meth:`decode_units` gives them.
        log_size, batch_index, y
            As for :meth:`decode`, of one sample.
        """
        group = self._group_codes(batch_index, y) if self.args.has_groups else None
        return self.count_model().problem(counts, hidden_nh, log_size.reshape(-1), group)

    def count_model(self) -> CountModel:
        """What is the same for all cells of :meth:`count_problem`."""
        args, decoder = self.args, self.decoder
        by_cell = args.has_dispersion and args.dispersion == "gene-cell"
        log_theta = None
        if args.has_dispersion and not by_cell:
            log_theta = self.px_r.t() if self.px_r.dim() == 2 else self.px_r.unsqueeze(0)
        dropout = decoder.px_dropout_decoder if args.gene_likelihood == "zinb" else None
        return CountModel(
            law=Law(args.gene_likelihood, decoder.scale_activation),
            scale=Head.of(decoder.px_scale_decoder[0]),
            dropout=None if dropout is None else Head.of(dropout),
            dispersion=Head.of(decoder.px_r_decoder) if by_cell else None,
            log_theta_tg=log_theta,
            zeros_are_cut=cuts_at_zero(decoder.px_decoder),
        )

    def _group_codes(self, batch_index: Tensor, y: Tensor | None) -> Tensor:
        """int64 ``[n]``: which dispersions each cell has."""
        return self._group(batch_index, y).reshape(-1).long()
