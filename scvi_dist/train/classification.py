"""How well labels are predicted: sums over the cells of one minibatch of labelled cells.

Axis suffixes: ``n`` cells, ``c`` classes, ``b`` bins of confidence.
"""

import torch
from torch import Tensor

from scvi_dist.train.metrics import Reduce

N_BINS = 15


def classification_sums(
    loss: Tensor, probs_nc: Tensor, labels_n1: Tensor, n_global: int, reduce: Reduce
) -> dict[str, Tensor]:
    """Metrics of a global minibatch, as shares of this rank that add up to them, 0-d each.

    Parameters
    ----------
    loss
        Mean over this rank's cells.
    probs_nc, labels_n1
        Probabilities of the classes, and true classes, of this rank's cells that count.
    n_global
        Cells of all ranks.
    reduce
        The sum over all ranks; all of them have to get here.

    Returns
    -------
    ``classification_loss``; ``accuracy``, which is also the ``f1_score`` averaged over cells;
    ``calibration_error``: how far confidence and accuracy lie apart in 15 bins of confidence,
    averaged over cells.

    Source
    ------
    Naeini, Cooper & Hauskrecht 2015, "Obtaining well calibrated probabilities using Bayesian
    binning", equation 3.
    """
    n = len(labels_n1)
    confidence_n, predicted_n = probs_nc.detach().float().max(dim=-1)
    hits_n = (predicted_n == labels_n1.view(-1)).float()
    gap_b = reduce(_gaps(confidence_n, hits_n))
    accuracy = hits_n.sum() / n_global
    return {
        "classification_loss": loss.detach().float() * (n / n_global),
        "accuracy": accuracy,
        "f1_score": accuracy,
        "calibration_error": gap_b.abs().sum() / n_global * (n / n_global),
    }


def _gaps(confidence_n: Tensor, hits_n: Tensor) -> Tensor:
    """``[b]``: sum of accuracy minus confidence over the cells of each bin."""
    edges = torch.linspace(0, 1, N_BINS + 1, device=confidence_n.device)
    # A confidence of 1 lies behind the last edge, in a bin of its own.
    bin_n = torch.bucketize(confidence_n, edges, right=True) - 1
    gap_b = confidence_n.new_zeros(N_BINS + 1)
    return gap_b.index_add_(0, bin_n, hits_n - confidence_n)
