"""A MuData in this process's memory, as a store."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scvi_dist.data.memory import MemoryStore, url_of
from scvi_dist.data.multimodal.modalities import Beside, Modality, choose_modality, rows_by_name
from scvi_dist.data.multimodal.mudata import MuDataStore, base_locator, without_unpaired
from scvi_dist.data.store import Store, StoreLocator
from scvi_dist.errors import UnsupportedStore

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


def open_in_memory(mdata: "MuData", layer: str | None, options: Mapping[str, Any]) -> Store:
    """One modality of a MuData with the others beside it; its locator works in this process only.

    Options are ``modality`` and ``unpaired``. Raises as
    :func:`~scvi_dist.data.multimodal.mudata_disk.open_mudata` does.
    """
    locator = StoreLocator(
        kind="memory", url=url_of(mdata), layer=layer, options=tuple(options.items())
    )
    where = f"MuData in memory ({mdata.n_obs} cells)"
    if mdata.isbacked:
        raise UnsupportedStore(f"{where} is backed: open the file itself, {mdata.filename}.")
    if int(mdata.axis) == 1:
        raise UnsupportedStore(
            f"{where}: its modalities share genes, not cells (axis=1); give a list of them."
        )
    chosen = choose_modality(list(mdata.mod), options.get("modality"), where)
    main = _Held(mdata, mdata.mod[chosen], layer)
    cells = main.obs_names()
    others = [
        Modality(name, _layers_of(adata), _opener(adata), rows_by_name(cells, _names(adata), where))
        for name, adata in mdata.mod.items()
        if name != chosen and _layers_of(adata)
    ]
    shared = _shared(mdata)
    beside = Beside(MemoryStore(shared), rows_by_name(cells, _names(shared), where))
    store = MuDataStore(main, chosen, others, beside, base_locator(locator))
    return without_unpaired(store, options.get("unpaired"))


class _Held(MemoryStore):
    """Keeps the MuData alive too, which the locator refers to."""

    def __init__(self, mdata: "MuData", adata: "AnnData", layer: str | None) -> None:
        super().__init__(adata, layer)
        self._mdata = mdata


def _names(adata: "AnnData") -> np.ndarray:
    return np.asarray(adata.obs_names.astype(str), dtype=object)


def _layers_of(adata: "AnnData") -> tuple[str | None, ...]:
    names = (*sorted(adata.layers), *(["raw"] if adata.raw is not None else []))
    return names if adata.X is None else (None, *names)


def _opener(adata: "AnnData") -> Any:
    return lambda layer: MemoryStore(adata, layer)


def _shared(mdata: "MuData") -> "AnnData":
    """What the modalities have together, as an AnnData without genes."""
    from anndata import AnnData

    obsm = {key: values for key, values in mdata.obsm.items() if key not in mdata.mod}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that repeat: said where it matters
        return AnnData(sparse.csr_matrix((mdata.n_obs, 0)), obs=mdata.obs, obsm=obsm)
