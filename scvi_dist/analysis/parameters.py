"""Parameters of the likelihood, and library sizes.

Axis suffixes: ``n`` cells, ``g`` genes, ``s`` samples.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.distributions import LogNormal

from scvi_dist.analysis.expression import decoded
from scvi_dist.analysis.output import Layout, Out, stored, write
from scvi_dist.analysis.streaming import CellGroup, Cells, collect
from scvi_dist.errors import ConfigError
from scvi_dist.module.base import BaseModule
from scvi_dist.module.likelihoods import likelihood_parameters as parameters_of
from scvi_dist.module.vae import VAE

LIBRARY = "library_size"
"""Key of obsm under which an output holds library sizes."""


def likelihood_parameters(
    module: BaseModule, cells: Cells, *, n_samples: int = 1, give_mean: bool = False
) -> dict[str, np.ndarray]:
    """Parameters of the law of each count.

    Parameters
    ----------
    module
        A trained module.
    cells
        Which cells.
    n_samples
        Draws of the latent variables for each cell.
    give_mean
        The mean over draws instead of all of them.

    Returns
    -------
    ``"mean"``, and where the law has them ``"dropout"`` (probability of an extra zero) and
    ``"dispersions"`` (inverse dispersion; standard deviation of a normal law): float32
    ``[n, g]``, or ``[s, n, g]`` where every draw is kept.
    """
    if n_samples < 1:
        raise ConfigError(f"n_samples must be at least 1, seen {n_samples}.")

    def compute(group: CellGroup) -> dict[str, Tensor]:
        (law,) = decoded(module, group.tensors, n_samples, (None,))
        values = parameters_of(law)
        if n_samples == 1:
            return values
        return {k: v.mean(0) if give_mean else v.movedim(1, 0) for k, v in values.items()}

    results = collect(module, cells, compute)
    if n_samples == 1 or give_mean:
        return results
    return {name: np.moveaxis(value, 1, 0) for name, value in results.items()}


def latent_library_size(
    module: VAE, cells: Cells, *, give_mean: bool = True, out: Out = None
) -> np.ndarray | str:
    """Library size of each cell.

    Parameters
    ----------
    module
        A trained module.
    cells
        Which cells.
    give_mean
        The mean of its posterior; otherwise a draw, which is the observed library size for
        modules that do not infer one.
    out
        Write to this store instead of returning an array.

    Returns
    -------
    float32 ``[n, 1]``, or the URL of the store.

    Raises
    ------
    ConfigError
        If a posterior mean is asked for and the module has no posterior of the library size.
    """
    if give_mean and module.use_observed_lib_size:
        raise ConfigError(
            "this module does not infer library sizes, so they have no posterior mean. Set "
            "give_mean=False to get the observed ones."
        )
    compute = partial(_library, module=module, give_mean=give_mean)
    if out is not None:
        what = {"library_size": give_mean}
        return write(module, stored(cells), compute, out, Layout(obsm={LIBRARY: 1}), what)
    return collect(module, cells, compute)[LIBRARY]


def _library(group: CellGroup, module: VAE, give_mean: bool) -> dict[str, Tensor]:
    inferred = module.inference(**module._get_inference_input(group.tensors))
    if not give_mean:
        return {LIBRARY: torch.exp(inferred["library"])}
    ql = inferred["ql"]
    return {LIBRARY: LogNormal(ql.loc, ql.scale).mean}
