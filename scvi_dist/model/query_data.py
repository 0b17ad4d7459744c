"""Data for a query: brought to a reference's features, with zeros for those that it lacks."""

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_dist.data.joined.padded import PaddedStore
from scvi_dist.data.open import is_anndata, open_store
from scvi_dist.data.schema import Schema
from scvi_dist.data.store import Store
from scvi_dist.errors import ConfigError
from scvi_dist.model.binding import Source
from scvi_dist.model.saving import read_directory

if TYPE_CHECKING:
    from anndata import AnnData

    from scvi_dist.model.base import BaseModel

MIN_SHARED_GENES = 0.8
"""Share of the reference's genes below which a query is warned of."""


def reference_genes(reference: "BaseModel | str | os.PathLike[str]") -> pd.Index:
    """Genes of a reference, a model or the folder of one, in its order."""
    if not isinstance(reference, str | os.PathLike):
        return pd.Index(reference.schema.var_names)
    saved = read_directory(reference)
    if isinstance(saved.var_names, Mapping):
        return pd.Index(Schema.from_registry(saved.attributes["registry_"]).var_names)
    return pd.Index(saved.var_names)


def prepared(source: Source, genes: pd.Index, inplace: bool) -> "AnnData | Store | None":
    """A query with a reference's genes in its order; missing ones are zeros.

    An AnnData in memory becomes another one, or is changed in place (then None is returned); what
    lies in a store becomes a view of it, whatever ``inplace`` says.

    Raises
    ------
    ConfigError
        No gene is shared.

    Warns
    -----
    UserWarning
        Less than 80 % of the genes are there.
    """
    if is_anndata(source) and not source.isbacked:
        _check_shared(pd.Index(source.var_names), genes, "the AnnData")
        padded = _padded(source, genes)
        if not inplace:
            return padded
        if padded is not source:
            source._init_as_actual(padded)
        return None
    store = open_store(source)
    _check_shared(pd.Index(store.var_names), genes, store.locator.redacted_url)
    return PaddedStore(store, genes.tolist())


def prepared_mudata(
    mdata: Any, reference: "BaseModel | str | os.PathLike[str]", inplace: bool
) -> Any:
    """A MuData whose modalities have a reference's features in their order; see :func:`prepared`.

    Raises
    ------
    ConfigError
        The reference was not trained on modalities, or one of them is not there.
    """
    from mudata import MuData

    named = reference_features(reference)
    lacking = [name for name in named if name not in mdata.mod]
    if lacking:
        raise ConfigError(
            "Query MuData does not contain same modalities as reference: expected "
            f"{', '.join(named)}; seen {', '.join(mdata.mod)}."
        )
    modalities = {}
    for name, features in named.items():
        _check_shared(pd.Index(mdata[name].var_names), features, f"modality {name!r}")
        modalities[name] = _padded(mdata[name], features)
    with warnings.catch_warnings():
        # Of a default of mudata that is to change; columns stay with their modalities.
        warnings.filterwarnings("ignore", "From 0.4", FutureWarning)
        made = MuData(modalities)
    made.obs, made.uns = mdata.obs.copy(), dict(mdata.uns)
    if not inplace:
        return made
    mdata._init_as_actual(made)
    return None


def reference_features(reference: "BaseModel | str | os.PathLike[str]") -> dict[str, pd.Index]:
    """Features of each modality of a reference, in their order."""
    names: Any
    if isinstance(reference, str | os.PathLike):
        names = read_directory(reference).var_names
    else:
        names = reference.get_var_names()
    if not isinstance(names, Mapping):
        raise ConfigError(
            "the reference was not trained on a MuData: prepare its query with "
            "prepare_query_anndata."
        )
    return {name: pd.Index(features) for name, features in names.items()}


def _check_shared(have: pd.Index, genes: pd.Index, where: str) -> None:
    n_shared = int(genes.isin(have).sum())
    if n_shared == 0:
        raise ConfigError(
            f"No reference var names found in query data: {where} has none of the reference's "
            f"{len(genes)} genes, such as {genes[0]!r}; its own are such as "
            f"{have[0] if len(have) else None!r}. prepare_query_anndata(..., "
            "return_reference_var_names=True) lists the reference's."
        )
    if n_shared < MIN_SHARED_GENES * len(genes):
        warnings.warn(
            f"Query data contains less than {MIN_SHARED_GENES:.0%} of reference var names: "
            f"{n_shared} of {len(genes)}. This may result in poor performance.",
            UserWarning,
            stacklevel=4,
        )


def _padded(adata: "AnnData", genes: pd.Index) -> "AnnData":
    """The AnnData with these genes; itself if it has them. What else it holds of cells is kept."""
    import anndata

    if genes.equals(pd.Index(adata.var_names)):
        return adata
    if adata.var_names.has_duplicates:
        twice = adata.var_names[adata.var_names.duplicated()][0]
        raise ConfigError(f"more than one gene of the AnnData is named {twice!r}.")
    column = adata.var_names.get_indexer(genes)
    return anndata.AnnData(
        X=_columns(adata.X, column),
        obs=adata.obs.copy(),
        var=adata.var.reindex(genes),
        obsm=dict(adata.obsm),
        obsp=dict(adata.obsp),
        uns=dict(adata.uns),
        layers={name: _columns(layer, column) for name, layer in adata.layers.items()},
    )


def _columns(matrix: Any, column: np.ndarray) -> Any:
    """Columns of a matrix, in its own format; zeros where ``column`` is -1."""
    from scipy.sparse import csr_matrix, issparse

    place = np.flatnonzero(column >= 0)
    if not issparse(matrix):
        out = np.zeros((matrix.shape[0], len(column)), dtype=matrix.dtype)
        out[:, place] = np.asarray(matrix)[:, column[place]]
        return out
    ones = np.ones(len(place), dtype=matrix.dtype)
    select = csr_matrix((ones, (column[place], place)), shape=(matrix.shape[1], len(column)))
    return (matrix @ select).asformat(matrix.format)
