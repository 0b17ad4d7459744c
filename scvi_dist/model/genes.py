"""Genes and proteins by name."""

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
    return _columns(var_names, gene_list, "gene")


def protein_columns(
    protein_names: Sequence[str], protein_list: Sequence[str] | None
) -> np.ndarray | None:
    """The same of proteins."""
    return _columns(protein_names, protein_list, "protein")


def _columns(names: Sequence[str], listed: Sequence[str] | None, what: str) -> np.ndarray | None:
    if listed is None:
        return None
    wanted = [str(name) for name in ([listed] if isinstance(listed, str) else listed)]
    columns = np.flatnonzero(np.isin(np.asarray(names, dtype=str), wanted))
    unknown = sorted(set(wanted) - set(names))
    if len(columns) == 0:
        hint = did_you_mean(wanted[0], names) if wanted else "the list is empty."
        raise FieldNotFound(f"none of the {what}s in {what}_list is among the model's; {hint}")
    if unknown:
        warnings.warn(
            f"{len(unknown)} of {len(wanted)} {what}s in {what}_list are not among the model's and "
            f"are left out: {', '.join(unknown[:5])}{', …' if len(unknown) > 5 else ''}",
            UserWarning,
            stacklevel=4,
        )
    return columns
