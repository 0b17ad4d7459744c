"""Minified data: posteriors of the latent space in place of, or beside, the counts.

scvi-tools marks an AnnData of that kind in ``uns``; this is read, and written for it to be read.

Axis suffixes: ``n`` cells, ``k`` latent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.data.store import Store, ranges_of
from scvi_dist.errors import ConfigError, FieldNotFound, did_you_mean

if TYPE_CHECKING:
    from anndata import AnnData

UNS_KEY = "_scvi_adata_minify_type"
LIBRARY_COLUMN = "observed_lib_size"
SUM_ROWS = 65_536
"""Rows whose counts are in memory together while they are summed."""


class _Types(NamedTuple):
    LATENT_POSTERIOR: str = "latent_posterior_parameters"
    LATENT_POSTERIOR_WITH_COUNTS: str = "latent_posterior_parameters_with_counts"


ADATA_MINIFY_TYPE = _Types()
"""The kinds of minified data: without the counts, and with them."""

_OF_MODELS = ("SCVI", "SCANVI")
"""Models whose modules take a posterior in place of counts."""


@dataclass(frozen=True, slots=True)
class Minified:
    """Where minified data has the posteriors and the library sizes."""

    kind: str
    """One of :data:`ADATA_MINIFY_TYPE`."""
    prefix: str
    """The model's name in lower case, which the keys of obsm begin with."""
    n_latent: int

    @property
    def mean_key(self) -> str:
        """Key of obsm that holds the posterior means ``[n, k]``."""
        return f"{self.prefix}_{REGISTRY_KEYS.LATENT_QZM_KEY}"

    @property
    def variance_key(self) -> str:
        """Key of obsm that holds the posterior variances ``[n, k]``."""
        return f"{self.prefix}_{REGISTRY_KEYS.LATENT_QZV_KEY}"

    @property
    def has_counts(self) -> bool:
        """Whether the counts are still there."""
        return self.kind == ADATA_MINIFY_TYPE.LATENT_POSTERIOR_WITH_COUNTS

    @property
    def bytes_per_cell(self) -> int:
        """What is read of a cell besides its counts."""
        return 4 * (2 * self.n_latent + 1)

    def registries(self) -> dict[str, dict[str, Any]]:
        """The fields as scvi-tools' registry has them."""
        places = {
            REGISTRY_KEYS.LATENT_QZM_KEY: ("obsm", self.mean_key),
            REGISTRY_KEYS.LATENT_QZV_KEY: ("obsm", self.variance_key),
            REGISTRY_KEYS.OBSERVED_LIB_SIZE: ("obs", LIBRARY_COLUMN),
            REGISTRY_KEYS.MINIFY_TYPE_KEY: ("uns", UNS_KEY),
        }
        return {
            key: {
                "data_registry": {"attr_name": name, "attr_key": place},
                "state_registry": (
                    {"column_names": np.arange(self.n_latent)} if name == "obsm" else {}
                ),
                "summary_stats": {f"n_{key}": self.n_latent} if name == "obsm" else {},
            }
            for key, (name, place) in places.items()
        }


def minified_in(store: Store, adata: "AnnData | None", model_name: str) -> Minified | None:
    """What a model finds in data that was minified; None in data as it is.

    A store, which has no mark, counts as minified if it has the posteriors and not a single count.

    Raises
    ------
    ConfigError
        The data was minified for another model, or in a way that is not known.
    """
    prefix = model_name.lower()
    keys = [f"{prefix}_{key}" for key in ("latent_qzm", "latent_qzv")]
    is_there = all(key in store.obsm_keys for key in keys) and LIBRARY_COLUMN in store.obs_columns
    if adata is None:
        if not is_there or store.storage_facts().n_stored != 0:
            return None
        kind = ADATA_MINIFY_TYPE.LATENT_POSTERIOR
    else:
        kind = adata.uns.get(UNS_KEY)
        if kind is None:
            return None
    if kind not in ADATA_MINIFY_TYPE:
        raise ConfigError(
            f"uns[{UNS_KEY!r}] is {kind!r}; {did_you_mean(str(kind), ADATA_MINIFY_TYPE)}"
        )
    if model_name not in _OF_MODELS or not is_there:
        if kind == ADATA_MINIFY_TYPE.LATENT_POSTERIOR_WITH_COUNTS:
            return None
        raise ConfigError(
            f"this data was minified: its counts were taken out, and what a {model_name} model "
            f"would need instead ({', '.join(keys)} in obsm, {LIBRARY_COLUMN!r} in obs) is not "
            "there. Give the data with its counts."
        )
    return Minified(kind, prefix, store.obsm_keys[keys[0]])


class MinifiedReader:
    """Reads posteriors and library sizes of any rows."""

    def __init__(self, store: Store, minified: Minified) -> None:
        self._store, self._minified = store, minified
        size = store.read_obs([LIBRARY_COLUMN])[LIBRARY_COLUMN]
        self._library_n1 = size.to_numpy(np.float32).reshape(-1, 1)

    def read_at(self, rows: np.ndarray) -> Mapping[str, np.ndarray]:
        """Registry key -> float32 ``[n, k]``, in the order of the rows; repeats allowed."""
        wanted, back = np.unique(rows, return_inverse=True)
        ranges = ranges_of(wanted)
        return {
            REGISTRY_KEYS.LATENT_QZM_KEY: self._store.read_obsm(self._minified.mean_key, ranges)[
                back
            ],
            REGISTRY_KEYS.LATENT_QZV_KEY: self._store.read_obsm(
                self._minified.variance_key, ranges
            )[back],
            REGISTRY_KEYS.OBSERVED_LIB_SIZE: self._library_n1[rows],
        }


def minified_adata(
    adata: "AnnData", store: Store, minified: Minified, mean_key: str, variance_key: str
) -> "AnnData":
    """The AnnData with posteriors in place of its counts; it is left as it is itself.

    Parameters
    ----------
    adata
        Holds the posteriors' means and variances in obsm.
    store
        Its counts, as the model reads them.
    minified
        Of which kind, for which model.
    mean_key, variance_key
        Where the posteriors are in obsm.

    Raises
    ------
    FieldNotFound
        They are not there.
    """
    import anndata
    from scipy.sparse import csr_matrix

    for key in (mean_key, variance_key):
        if key not in adata.obsm:
            raise FieldNotFound(
                f"obsm has no {key!r}; {did_you_mean(key, adata.obsm)} Put the posteriors there: "
                f"adata.obsm[{mean_key!r}], adata.obsm[{variance_key!r}] = "
                "model.get_latent_representation(return_dist=True)"
            )
    if minified.has_counts:
        small = adata.copy()
    else:
        small = anndata.AnnData(
            X=csr_matrix(adata.shape, dtype=np.float32),
            obs=adata.obs.copy(),
            var=adata.var.copy(),
            obsm={key: adata.obsm[key].copy() for key in adata.obsm},
            varm={key: adata.varm[key].copy() for key in adata.varm},
            uns=dict(adata.uns),
            layers={name: csr_matrix(adata.shape, dtype=np.float32) for name in adata.layers},
        )
    small.uns[UNS_KEY] = minified.kind
    small.obsm[minified.mean_key] = np.asarray(adata.obsm[mean_key])
    small.obsm[minified.variance_key] = np.asarray(adata.obsm[variance_key])
    small.obs[LIBRARY_COLUMN] = _library_sizes(store)
    return small


def _library_sizes(store: Store) -> np.ndarray:
    """float32 ``[n]``: the sum of counts of each cell."""
    sums = []
    for start in range(0, store.n_obs, SUM_ROWS):
        block = store.read_rows([(start, min(start + SUM_ROWS, store.n_obs))])
        sums.append(np.asarray(block.to_scipy().sum(axis=1), dtype=np.float32).ravel())
    return np.concatenate(sums)
