"""Models of cells: inference, generative model, loss."""

from scvi_dist.module.base import BaseModule, LossOutput
from scvi_dist.module.likelihoods import likelihood_parameters
from scvi_dist.module.vae import VAE

__all__ = ["VAE", "BaseModule", "LossOutput", "likelihood_parameters"]
