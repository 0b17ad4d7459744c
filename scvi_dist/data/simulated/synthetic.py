"""scvi-tools' synthetic cells: independent counts, for trying things out and for tests."""

import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scvi_dist.errors import ConfigError, MissingDependency, did_you_mean

if TYPE_CHECKING:
    from anndata import AnnData

_FORMATS = ("csr_matrix", "csc_matrix", "csr_array", "csc_array", "coo_matrix")
_SUCCESSES, _PROBABILITY = 5, 0.3
"""Of the negative binomial law of all counts."""


def synthetic_iid(
    batch_size: int = 200,
    n_genes: int = 100,
    n_proteins: int = 100,
    n_regions: int = 100,
    n_batches: int = 2,
    n_labels: int = 3,
    dropout_ratio: float = 0.7,
    sparse_format: str | None = None,
    generate_coordinates: bool = False,
    return_mudata: bool = False,
    *,
    batch_key: str = "batch",
    labels_key: str = "labels",
    rna_key: str = "rna",
    gene_names_prefix: str = "gene",
    protein_expression_key: str = "protein_expression",
    protein_names_key: str = "protein_names",
    protein_names_prefix: str = "protein",
    accessibility_key: str = "accessibility",
    region_names_prefix: str = "region",
    coordinates_key: str = "coordinates",
    rna_dist: Literal["nb", "normal"] = "nb",
) -> Any:
    """Cells whose counts say nothing: every value is drawn independently of all others.

    Numbers come from NumPy's global generator, so that ``numpy.random.seed`` or
    ``scvi_dist.settings.seed`` fixes them; they are then those that scvi-tools draws.

    Parameters
    ----------
    batch_size
        Cells of each batch.
    n_genes, n_proteins, n_regions
        Features; proteins and regions of accessible chromatin are left out where 0.
    n_batches
        Batches.
    n_labels
        Labels, drawn uniformly; none where 0.
    dropout_ratio
        Probability that a count of a gene or a region is *kept*; the others are set to zero.
    sparse_format
        Class of ``scipy.sparse`` that all counts are stored as, such as ``"csr_matrix"``; dense
        arrays where None.
    generate_coordinates
        Add coordinates in a plane.
    return_mudata
        A ``MuData`` with the modalities side by side; needs the package mudata.
    batch_key, labels_key, coordinates_key, ...
        Names of what is generated.
    rna_dist
        Law of the genes' values.

    Returns
    -------
    ``AnnData`` (or ``MuData``) of ``batch_size * n_batches`` cells: counts of genes in X, batches
    and labels in obs, proteins and regions in obsm, names of the proteins in uns.

    Raises
    ------
    ConfigError
        For a format or a law that there is not.
    """
    if sparse_format is not None and sparse_format not in _FORMATS:
        raise ConfigError(
            f"sparse_format={sparse_format!r}; {did_you_mean(sparse_format, _FORMATS)}"
        )
    if rna_dist not in ("nb", "normal"):
        raise ConfigError(f"Unknown RNA distribution: rna_dist is 'nb' or 'normal': {rna_dist!r}.")
    n_obs = batch_size * n_batches
    draw = _Draw(n_obs, dropout_ratio, sparse_format)
    rna = draw.kept(draw.normal(n_genes) if rna_dist == "normal" else draw.counts(n_genes))
    proteins = draw.stored(draw.counts(n_proteins)) if n_proteins > 0 else None
    regions = draw.kept(draw.counts(n_regions)) if n_regions > 0 else None
    labels = np.random.randint(0, n_labels, size=n_obs) if n_labels > 0 else None
    coordinates = np.random.normal(size=(n_obs, 2)) if generate_coordinates else None

    named = {rna_key: _annotated(rna, gene_names_prefix)}
    if return_mudata:
        if regions is not None:
            named[accessibility_key] = _annotated(regions, region_names_prefix)
        if proteins is not None:
            named[protein_expression_key] = _annotated(proteins, protein_names_prefix)
        cells = _mudata(named)
    else:
        cells = named[rna_key]
        if regions is not None:
            cells.obsm[accessibility_key] = regions
        if proteins is not None:
            cells.obsm[protein_expression_key] = proteins
            cells.uns[protein_names_key] = _names(protein_names_prefix, n_proteins)
    batch = np.repeat(_names("batch", n_batches), batch_size)
    cells.obs[batch_key] = pd.Categorical(batch)
    if labels is not None:
        cells.obs[labels_key] = pd.Categorical(_names("label", n_labels)[labels])
    if coordinates is not None:
        cells.obsm[coordinates_key] = coordinates
    return cells


class _Draw:
    """Draws for all cells, in the order in which they are asked for."""

    def __init__(self, n_obs: int, share_kept: float, sparse_format: str | None) -> None:
        self._n_obs, self._share, self._format = n_obs, share_kept, sparse_format

    def counts(self, n: int) -> np.ndarray:
        return np.random.negative_binomial(_SUCCESSES, _PROBABILITY, size=(self._n_obs, n))

    def normal(self, n: int) -> np.ndarray:
        return np.random.normal(loc=5.0, scale=2.0, size=(self._n_obs, n))

    def kept(self, values: np.ndarray) -> Any:
        """The values with some of them set to zero, as they are stored."""
        return self.stored(values * np.random.binomial(n=1, p=self._share, size=values.shape))

    def stored(self, values: np.ndarray) -> Any:
        if self._format is None:
            return values
        from scipy import sparse

        return getattr(sparse, self._format)(values)


def _names(prefix: str, n: int) -> np.ndarray:
    return np.array([f"{prefix}_{i}" for i in range(n)])


def _annotated(values: Any, prefix: str) -> "AnnData":
    import anndata

    adata = anndata.AnnData(values)
    adata.var_names = _names(prefix, values.shape[1])
    return adata


def _mudata(modalities: dict[str, "AnnData"]) -> Any:
    try:
        from mudata import MuData
    except ImportError as error:
        raise MissingDependency(
            "return_mudata=True needs the package mudata: pip install mudata."
        ) from error
    with warnings.catch_warnings():
        # Of a default of mudata that is to change; the modalities have no columns to pull.
        warnings.filterwarnings("ignore", "From 0.4", FutureWarning)
        return MuData(modalities)
