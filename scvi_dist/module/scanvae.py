"""The variational autoencoder behind SCANVI: labels of some cells, guessed for the others.

Axis suffixes: ``n`` cells, ``g`` genes, ``k`` latent, ``c`` classes, ``s`` samples.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from scvi_dist.batch import REGISTRY_KEYS, SparseCounts
from scvi_dist.distributions import Normal
from scvi_dist.errors import ConfigError
from scvi_dist.module.base import LossOutput, Tensors, n_real_cells, to_device
from scvi_dist.module.cached_posterior import CachedPosterior
from scvi_dist.module.classes import (
    LabelGroups,
    class_log_probs,
    classification_loss,
    classifier_arguments,
)
from scvi_dist.module.classifier import Classifier
from scvi_dist.module.vae import VAE
from scvi_dist.nn import Decoder, Encoder


class SCANVAE(VAE):
    """A :class:`VAE` whose latent variable ``z1`` follows from a label and a rest ``z2``.

    The label of a cell is inferred from ``z1`` by a classifier, which is also trained on the cells
    whose label is known. With equal arguments and the same torch seed, a new module has the
    weights of scvi-tools' one.

    Parameters
    ----------
    n_labels
        Classes: the labels without the unlabeled category, whose code is ``n_labels``.
    y_prior
        Probability of each class ``[1, c]``; equal where None.
    labels_groups
        Group (0, 1, …) of each class.
    use_labels_groups
        Whether a class is predicted as a group and a class within the group.
    linear_classifier
        Whether the classifier has no hidden layer.
    classifier_parameters
        Further arguments of :class:`~scvi_dist.module.classifier.Classifier`.
    n_input, n_batch, ...
        As for :class:`VAE`. With ``dispersion="gene-label"`` cells without a label have a
        dispersion of their own, in column ``n_labels``.

    Notes
    -----
    With ``latent_distribution="ln"`` the density of ``z1`` is evaluated at the transformed draw,
    as in scvi-tools: the loss is then no bound of the likelihood.

    Source
    ------
    Xu et al. 2021, "Probabilistic harmonization and annotation of single-cell transcriptomics
    data with deep generative models"; Kingma et al. 2014, "Semi-supervised learning with deep
    generative models".
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
        use_observed_lib_size: bool = True,
        y_prior: Tensor | None = None,
        labels_groups: Sequence[int] | None = None,
        use_labels_groups: bool = False,
        linear_classifier: bool = False,
        classifier_parameters: dict[str, Any] | None = None,
        use_batch_norm: str = "both",
        use_layer_norm: str = "none",
        latent_distribution: str = "normal",
        encode_covariates: bool = False,
        deeply_inject_covariates: bool = True,
        batch_representation: str = "one-hot",
        use_size_factor_key: bool = False,
        extra_payload_autotune: bool = False,
        library_log_means: np.ndarray | None = None,
        library_log_vars: np.ndarray | None = None,
        var_activation: Callable[[Tensor], Tensor] | None = None,
        extra_encoder_kwargs: dict[str, Any] | None = None,
        extra_decoder_kwargs: dict[str, Any] | None = None,
        batch_embedding_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if n_labels < 1:
            raise ConfigError(
                f"a module that predicts labels needs at least one class, seen n_labels={n_labels}:"
                " no cell has a label besides the unlabeled category."
            )
        super().__init__(
            n_input=n_input,
            n_batch=n_batch,
            n_labels=n_labels + 1,
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
        self.n_labels = n_labels
        self._own_args: dict[str, Any] = {
            "n_labels": n_labels,
            "y_prior": y_prior,
            "labels_groups": labels_groups,
            "use_labels_groups": use_labels_groups,
            "linear_classifier": linear_classifier,
            "classifier_parameters": classifier_parameters,
        }
        self._build_classes(y_prior)
        self.groups: LabelGroups | None = None
        if use_labels_groups:
            self.groups = LabelGroups(labels_groups, n_labels)
            self.classifier_groups = Classifier(
                n_latent, n_hidden, self.groups.n_groups, n_layers, dropout_rate, noise=self.noise
            )

    def _build_classes(self, y_prior: Tensor | None) -> None:
        """The parts that know of labels, in scvi-tools' order."""
        args, given = self.args, self._own_args
        norms: dict[str, dict[str, Any]] = {
            side: {
                "use_batch_norm": args.use_batch_norm in (side, "both"),
                "use_layer_norm": args.use_layer_norm in (side, "both"),
            }
            for side in ("encoder", "decoder")
        }
        shape: dict[str, Any] = {"n_layers": args.n_layers, "n_hidden": args.n_hidden}
        self.classifier = Classifier(
            args.n_latent,
            n_labels=self.n_labels,
            noise=self.noise,
            **classifier_arguments(
                {**shape, "dropout_rate": args.dropout_rate, **norms["encoder"]},
                given["linear_classifier"],
                given["classifier_parameters"],
            ),
        )
        # The classes of a cell are its samples, and batch norm is over all of them together.
        self.encoder_z2_z1 = Encoder(
            args.n_latent,
            args.n_latent,
            n_cat_list=[self.n_labels],
            dropout_rate=args.dropout_rate,
            return_dist=True,
            noise=self.noise,
            pool_samples=True,
            **shape,
            **norms["encoder"],
        )
        self.decoder_z1_z2 = Decoder(
            args.n_latent,
            args.n_latent,
            n_cat_list=[self.n_labels],
            pool_samples=True,
            **shape,
            **norms["decoder"],
        )
        prior_1c = torch.full((1, self.n_labels), 1 / self.n_labels) if y_prior is None else y_prior
        self.y_prior = nn.Parameter(prior_1c, requires_grad=False)

    @property
    def init_args(self) -> dict[str, Any]:
        """The arguments that build this module anew."""
        return {**super().init_args, **self._own_args}

    def classify(
        self,
        x: Tensor | SparseCounts,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        use_posterior_mean: bool = True,
        cached: CachedPosterior | None = None,
    ) -> Tensor:
        """Logits ``[n, c]`` of the classes of cells.

        They are probabilities where the classifier was built with ``logits=False``, as it is in
        models saved before scvi-tools 1.1.

        Parameters
        ----------
        x, batch_index, cont_covs, cat_covs, cached
            As for :meth:`inference`.
        use_posterior_mean
            Whether the posterior mean is classified, rather than a draw.
        """
        if cached is not None:
            z = cached.qz.loc if use_posterior_mean else self.noise.rsample(cached.qz)
            return self.classify_helper(z)
        seen, codes = self._encoder_input(x, batch_index, cont_covs, cat_covs)
        # Drawn in either case: scvi-tools' generator would be ahead otherwise.
        qz, z = self.z_encoder(seen, *codes)
        return self.classify_helper(qz.loc if use_posterior_mean else z)

    def classify_helper(self, z: Tensor) -> Tensor:
        """Logits (or probabilities, see :meth:`classify`) of latent variables ``[n, k]``."""
        scores_nc = self.classifier(z)
        if self.groups is None:
            return scores_nc
        log_probs_nc = class_log_probs(scores_nc, self.classifier.logits)
        grouped_nc = self.groups.combined(log_probs_nc, self.classifier_groups(z))
        return grouped_nc if self.classifier.logits else grouped_nc.exp()

    def class_probabilities(self, scores_nc: Tensor) -> Tensor:
        """Probabilities ``[n, c]`` of the classes, from what :meth:`classify` gives."""
        return scores_nc.softmax(dim=-1) if self.classifier.logits else scores_nc

    def classification_loss(self, labelled_dataset: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        """Mean cross entropy of labelled cells that count, their labels ``[n, 1]`` and logits."""
        tensors = to_device(labelled_dataset, self.device)
        scores_nc = self.classify(**self._get_inference_input(tensors))[: n_real_cells(tensors)]
        labels_n1 = tensors[REGISTRY_KEYS.LABELS_KEY][: n_real_cells(tensors)]
        loss = classification_loss(scores_nc, labels_n1, self.classifier.logits)
        return loss, labels_n1, scores_nc

    def loss(
        self,
        tensors: Tensors,
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Any],
        kl_weight: Tensor | float = 1.0,
        labelled_tensors: Tensors | None = None,
        classification_ratio: float = 50.0,
    ) -> LossOutput:
        """The mean negative evidence lower bound of the cells that count, and a classification.

        The divergences of ``z2``, of the label and of a latent library size are multiplied by
        ``kl_weight``; what ``z1`` contributes is part of the reconstruction loss.

        Parameters
        ----------
        labelled_tensors
            Cells whose labels are known; their cross entropy times ``classification_ratio`` is
            added.
        """
        inferred, generated, n_real = inference_outputs, generative_outputs, n_real_cells(tensors)
        z1 = inferred["z"]
        rec = self._reconstruction_loss(tensors, generated)
        rec = rec + inferred["qz"].log_prob(z1).sum(dim=-1)
        draws = z1 if z1.dim() == 3 else z1.unsqueeze(0)
        terms = [self._label_terms(z1_nk) for z1_nk in draws]
        z1_loss, kl = (torch.stack(part).view(rec.shape) for part in zip(*terms, strict=True))
        rec = rec + z1_loss
        if not self.use_observed_lib_size:
            kl = kl + kl_divergence(inferred["ql"], generated["pl"]).sum(dim=-1)
        rec, kl = rec[..., :n_real], kl[..., :n_real]
        total = rec + kl_weight * kl
        loss = total.sum() / max(total.numel(), 1)
        extra = {}
        if self.args.extra_payload_autotune:
            extra = {
                "z": z1[..., :n_real, :],
                "batch": tensors[REGISTRY_KEYS.BATCH_KEY][:n_real],
                "labels": tensors[REGISTRY_KEYS.LABELS_KEY][:n_real],
            }
        classified: dict[str, Any] = {}
        if labelled_tensors is not None:
            cross_entropy, labels_n1, scores_nc = self.classification_loss(labelled_tensors)
            loss = loss + cross_entropy * classification_ratio
            classified = {
                "classification_loss": cross_entropy,
                "true_labels": labels_n1,
                "logits": scores_nc,
            }
        return LossOutput(
            loss=loss, reconstruction_loss=rec, kl_local=kl, extra_metrics=extra, **classified
        )

    def _label_terms(self, z1_nk: Tensor) -> tuple[Tensor, Tensor]:
        """What ``z1`` costs given a label, and the divergences of label and rest; ``[n]`` each."""
        qz2, z2_cnk, log_z1_cn = self._given_each_class(z1_nk)
        prior = Normal(torch.zeros_like(z2_cnk), torch.ones_like(z2_cnk))
        kl_z2_cn = kl_divergence(qz2, prior).sum(dim=-1)
        log_probs_nc = class_log_probs(self.classifier(z1_nk), self.classifier.logits)
        probs_nc = log_probs_nc.exp()
        # A class of probability zero adds nothing, however unlikely it is beforehand.
        surprise_nc = torch.where(probs_nc > 0, log_probs_nc - self.y_prior.log(), 0.0)
        z1_loss_n = -(log_z1_cn.t() * probs_nc).sum(dim=-1)
        return z1_loss_n, (kl_z2_cn.t() * probs_nc + surprise_nc * probs_nc).sum(dim=-1)

    def _given_each_class(self, z1_nk: Tensor) -> tuple[Normal, Tensor, Tensor]:
        """For each class: ``q(z2 | z1, c)``, a draw ``[c, n, k]``, and ``log p(z1 | z2, c)``."""
        n_classes, n = self.n_labels, len(z1_nk)
        z1_cnk = z1_nk.expand(n_classes, -1, -1)
        one_hot_cc = torch.eye(n_classes, dtype=z1_nk.dtype, device=z1_nk.device)
        label_cnc = one_hot_cc.unsqueeze(1).expand(-1, n, -1)
        qz2, z2_cnk = self.encoder_z2_z1(z1_cnk, label_cnc)
        mean_cnk, variance_cnk = self.decoder_z1_z2(z2_cnk, label_cnc)
        log_z1_cn = Normal(mean_cnk, variance_cnk.sqrt()).log_prob(z1_cnk).sum(dim=-1)
        return qz2, z2_cnk, log_z1_cn

    def _log_prior(self, draw_snk: Tensor, pz: Normal) -> Tensor:
        """An estimate ``[s, n]`` of ``log p(z1)``, whose exponential is unbiased: a sum over the
        classes, with one draw of ``z2`` for each."""
        if self.latent_distribution != "normal":
            raise ConfigError(
                "the marginal likelihood of a module with labels needs latent_distribution="
                f"'normal', seen {self.latent_distribution!r}: the density of its latent space is "
                "not known."
            )
        priors = []
        for z1_nk in draw_snk:
            qz2, z2_cnk, log_z1_cn = self._given_each_class(z1_nk)
            standard = Normal(torch.zeros_like(z2_cnk), torch.ones_like(z2_cnk))
            log_ratio_cn = (standard.log_prob(z2_cnk) - qz2.log_prob(z2_cnk)).sum(dim=-1)
            joint_cn = self.y_prior.log().view(-1, 1) + log_z1_cn + log_ratio_cn
            priors.append(joint_cn.logsumexp(dim=0))
        return torch.stack(priors)
