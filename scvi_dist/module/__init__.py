"""Models of cells: inference, generative model, loss."""

from scvi_dist.module.base import BaseModule, LossOutput
from scvi_dist.module.cellassign import CellAssignModule
from scvi_dist.module.classifier import Classifier
from scvi_dist.module.likelihoods import likelihood_parameters
from scvi_dist.module.scanvae import SCANVAE
from scvi_dist.module.totalvae import TOTALVAE
from scvi_dist.module.vae import VAE

__all__ = [
    "SCANVAE",
    "TOTALVAE",
    "VAE",
    "BaseModule",
    "CellAssignModule",
    "Classifier",
    "LossOutput",
    "likelihood_parameters",
]
