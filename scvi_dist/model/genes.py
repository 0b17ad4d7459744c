"""Genes by name."""

import warnings
from collections.abc import Sequence

import numpy as np

from scvi_dist.errors import FieldNotFound, did_you_mean


def gene_columns(var_names: Sequence[str], gene_list: Sequence[str] | None) -> np.ndarray | None:
    """int64: columns of the listed genes, ascending; None for all genes.

    Raises
    ------
    FieldNotFound
        None of them is there.

    Warns
    -----
    UserWarning
        Some are not there, which scvi-tools passes over in silence.
    """
    if gene_list is None:
        return None
    wanted = [str(gene) for gene in ([gene_list] if isinstance(gene_list, str) else gene_list)]
    columns = np.flatnonzero(np.isin(np.asarray(var_names, dtype=str), wanted))
    unknown = sorted(set(wanted) - set(var_names))
    if len(columns) == 0:
        hint = did_you_mean(wanted[0], var_names) if wanted else "the list is empty."
        raise FieldNotFound(f"none of the genes in gene_list is among the model's; {hint}")
    if unknown:
        warnings.warn(
            f"{len(unknown)} of {len(wanted)} genes in gene_list are not among the model's and "
            f"are left out: {', '.join(unknown[:5])}{', …' if len(unknown) > 5 else ''}",
            UserWarning,
            stacklevel=3,
        )
    return columns
