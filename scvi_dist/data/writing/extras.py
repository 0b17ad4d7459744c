"""What an AnnData holds beside counts, obs and obsm: columns of var, uns, varm, varp."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from scvi_dist.data.memory import MemoryStore
from scvi_dist.data.on_disk.anndata_store import AnnDataStore
from scvi_dist.data.on_disk.layout import ElementTree
from scvi_dist.data.store import Store
from scvi_dist.data.views.subset import SubsetStore


@dataclass(frozen=True, kw_only=True)
class Extras:
    """Elements that are kept as they are, and what cannot be kept."""

    var: pd.DataFrame
    """One row a gene of the store, in its order."""
    uns: dict[str, Any] = field(default_factory=dict)
    varm: dict[str, Any] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    """What a copy will lack, each in a few words."""


def read_extras(store: Store) -> Extras:
    """The extras of a store; of a kind that has none, the names of genes."""
    if isinstance(store, SubsetStore):
        return _of_subset(store)
    if isinstance(store, AnnDataStore):
        return _of_tree(store, store.tree)
    if isinstance(store, MemoryStore):
        return _of_memory(store)
    kind = store.locator.kind
    return Extras(
        var=pd.DataFrame(index=pd.Index(store.var_names, dtype=object)),
        lost=(f"of a {kind}: columns of var, uns, varm, varp and obsp",),
    )


def _of_tree(store: AnnDataStore, tree: ElementTree) -> Extras:
    of_raw = store.locator.layer == "raw"
    top = "raw/" if of_raw else ""
    obs = tree.attributes("obs").get("column-order", ())
    lost = [
        *(f"obs[{name!r}], of a type that is not read" for name in _not_in(obs, store.obs_columns)),
        *(f"obsm[{key!r}], of a type that is not read" for key in _unread(tree, store.obsm_keys)),
        *(f"obsp[{key!r}]" for key in _children(tree, "obsp")),
        *(f"varp[{key!r}]" for key in _children(tree, "varp")),
    ]
    return Extras(
        var=tree.element(f"{top}var"),
        uns=tree.element("uns") if tree.kind("uns") == "group" else {},
        varm={key: tree.element(f"{top}varm/{key}") for key in _children(tree, f"{top}varm")},
        lost=tuple(lost),
    )


def _of_memory(store: MemoryStore) -> Extras:
    adata = store.adata
    owner = adata.raw if store.locator.layer == "raw" else adata
    lost = [
        *(
            f"obs[{name!r}], of a type that is not read"
            for name in _not_in(adata.obs, store.obs_columns)
        ),
        *(
            f"obsm[{key!r}], of a type that is not read"
            for key in _not_in(adata.obsm, store.obsm_keys)
        ),
        *(f"obsp[{key!r}]" for key in adata.obsp),
        *(f"varp[{key!r}]" for key in adata.varp),
    ]
    return Extras(
        var=owner.var.copy(), uns=dict(adata.uns), varm=dict(owner.varm), lost=tuple(lost)
    )


def _of_subset(store: SubsetStore) -> Extras:
    whole = read_extras(store.base)
    genes = store.genes
    if genes is None:
        return whole
    return Extras(
        var=whole.var.iloc[genes],
        uns=whole.uns,
        varm={key: _rows(value, genes) for key, value in whole.varm.items()},
        lost=whole.lost,
    )


def _rows(value: Any, genes: np.ndarray) -> Any:
    return value.iloc[genes] if isinstance(value, pd.DataFrame) else value[genes]


def _children(tree: ElementTree, path: str) -> list[str]:
    return sorted(tree.children(path)) if tree.kind(path) == "group" else []


def _unread(tree: ElementTree, known: Iterable[str]) -> list[str]:
    return _not_in(_children(tree, "obsm"), known)


def _not_in(names: Iterable[Any], known: Iterable[str]) -> list[str]:
    have = set(known)
    return [str(name) for name in names if str(name) not in have]
