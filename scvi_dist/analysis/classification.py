"""How probable each label is for each cell.

Axis suffixes: ``n`` cells, ``c`` classes.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import Tensor

from scvi_dist.analysis.output import Layout, Out, stored, write
from scvi_dist.analysis.streaming import CellGroup, Cells, collect
from scvi_dist.module.scanvae import SCANVAE

LABEL_PROBABILITIES = "X_label_probabilities"
"""Key of obsm under which an output holds them."""


def label_probabilities(
    module: SCANVAE,
    cells: Cells,
    classes: Sequence[str],
    *,
    use_posterior_mean: bool = True,
    out: Out = None,
) -> np.ndarray | str:
    """Probability of each class given the counts of each cell.

    Parameters
    ----------
    module
        A trained module.
    cells
        Which cells.
    classes
        Name of each class; an output holds them, and the most probable one of each cell.
    use_posterior_mean
        Classify the mean of the latent posterior; otherwise one draw from it.
    out
        Write to this store instead of returning an array.

    Returns
    -------
    float32 ``[n, c]``; with ``out`` the URL of the store.

    Source
    ------
    Xu et al. 2021, "Probabilistic harmonization and annotation of single-cell transcriptomics
    data with deep generative models".
    """
    compute = partial(_probabilities, module=module, use_posterior_mean=use_posterior_mean)
    if out is not None:
        layout = Layout(
            obsm={LABEL_PROBABILITIES: module.n_labels},
            classes={LABEL_PROBABILITIES: tuple(classes)},
        )
        what = {"labels": module.n_labels, "use_posterior_mean": use_posterior_mean}
        return write(module, stored(cells), compute, out, layout, what)
    return collect(module, cells, compute)[LABEL_PROBABILITIES]


def _probabilities(
    group: CellGroup, module: SCANVAE, use_posterior_mean: bool
) -> dict[str, Tensor]:
    given = module._get_inference_input(group.tensors)
    scores_nc = module.classify(**given, use_posterior_mean=use_posterior_mean)
    return {LABEL_PROBABILITIES: module.class_probabilities(scores_nc)}
