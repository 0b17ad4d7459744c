"""From a sampling config and a store to the rows that epochs draw."""

import numpy as np
import pandas as pd

from scvi_dist.data.store import Store
from scvi_dist.dataloaders.rows import RowSet
from scvi_dist.dataloaders.sampled_rows import WEIGHT_STEPS, SampledRows
from scvi_dist.dataloaders.sampling_config import SamplingConfig
from scvi_dist.errors import ConfigError, SchemaMismatch

__all__ = ["SampledRows", "SamplingConfig", "apportion", "sample_rows"]

_OBS_ROWS = 1 << 20


def sample_rows(rows: RowSet, store: Store, config: SamplingConfig, seed: int) -> RowSet:
    """The rows that epochs draw of ``rows``; ``rows`` themselves where nothing is asked for.

    Reads the columns of obs that the config names; keeps 2 to 8 bytes for each row of the store.

    Raises
    ------
    FieldNotFound, SchemaMismatch, ConfigError
        A column is not there, or is not of numbers from 0 on; there are not as many stores as
        shares; a store with a share has no training cells.
    """
    if config.is_plain or rows.n == 0:
        return rows
    stores = _stores_of(store, config.store_shares)
    categories, names = _categories(store, config.category_key)
    weights = _weights(store, config.weight_by)
    n_categories = max(1, len(names))
    n_groups = n_categories * (int(stores.max()) + 1)
    groups = (stores * n_categories + np.maximum(categories, 0)).astype(
        np.int16 if n_groups < 1 << 15 else np.int32
    )
    groups[categories < 0] = -1
    mass, counts = _masses(rows, groups, weights, n_groups)
    shape = (-1, n_categories)
    quotas = _quotas(mass.reshape(shape), counts.reshape(shape), config, rows.n)
    scaled = None if weights is None else _scaled(weights)
    return SampledRows(rows, groups, quotas.reshape(-1), scaled, seed)


def apportion(n: int, shares: np.ndarray) -> np.ndarray:
    """int64: ``n`` in whole parts in proportion to ``shares``, by the largest remainders."""
    total = shares.sum()
    exact = shares / total * n if total > 0 else np.zeros(len(shares))
    whole = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - whole), kind="stable")
    whole[order[: n - int(whole.sum())]] += 1
    return whole


def _quotas(
    mass: np.ndarray, counts: np.ndarray, config: SamplingConfig, n_rows: int
) -> np.ndarray:
    """int64 ``[stores, categories]``: cells that an epoch draws of each.

    Stores share the epoch first, then categories share what falls to their store, then caps cut.
    """
    n = config.epoch_cells or n_rows
    by_store = mass.sum(axis=1)
    if config.store_shares is not None:
        shares = np.asarray(config.store_shares, np.float64)
        empty = np.flatnonzero((shares > 0) & (by_store == 0))
        if len(empty):
            raise ConfigError(
                f"store_shares gives store {empty[0]} (counted from 0) a part of "
                f"{shares[empty[0]]:g}, but none of its cells can be drawn for training."
            )
        by_store = shares
    per_store = apportion(n, by_store)
    quotas = np.stack(
        [
            apportion(int(cells), (row > 0).astype(float) if config.balance_by else row)
            for cells, row in zip(per_store, mass, strict=True)
        ]
    )
    if config.cap is None:
        return quotas
    if config.epoch_cells is None and not config.balance_by and config.weight_by is None:
        # Each cell at most once: what is not capped is drawn as it is.
        quotas = np.minimum(quotas, counts) if config.store_shares else counts
    for category in np.flatnonzero(quotas.sum(axis=0) > config.cap):
        quotas[:, category] = apportion(config.cap, quotas[:, category].astype(float))
    return quotas


def _masses(
    rows: RowSet, groups: np.ndarray, weights: np.ndarray | None, n_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weight and number of the rows of each group."""
    mass, counts = np.zeros(n_groups), np.zeros(n_groups, np.int64)
    for start in range(0, rows.n_store, _OBS_ROWS):
        stop = min(start + _OBS_ROWS, rows.n_store)
        found = rows.members_of(np.array([start]), np.array([stop]))
        found = found[groups[found] >= 0]
        counts += np.bincount(groups[found], minlength=n_groups)
        weight = None if weights is None else weights[found]
        mass += np.bincount(groups[found], weight, n_groups)
    return mass, counts


def _stores_of(store: Store, shares: tuple[float, ...] | None) -> np.ndarray:
    """int32 ``[n_obs]``: which of the stores each row is in."""
    if shares is None:
        return np.zeros(store.n_obs, np.int32)
    sizes = store.part_sizes
    if len(sizes) != len(shares):
        raise ConfigError(
            f"store_shares has {len(shares)} numbers, and {store.locator.redacted_url} is "
            f"{len(sizes)} store{'s' if len(sizes) != 1 else ''}; give one for each."
        )
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)


def _categories(store: Store, key: str | None) -> tuple[np.ndarray, list[str]]:
    """int32 ``[n_obs]``: category of each row, -1 for none; and the names of all categories."""
    if key is None:
        return np.zeros(store.n_obs, np.int32), []
    codes, names = np.empty(store.n_obs, np.int32), pd.Index([], dtype=object)
    for start in range(0, store.n_obs, _OBS_ROWS):
        stop = min(start + _OBS_ROWS, store.n_obs)
        column = store.read_obs([key], start, stop)[key].astype(object)
        text = column.astype(str).where(column.notna(), None)
        found = pd.Index([name for name in text.unique() if name is not None], dtype=object)
        names = names.append(found.difference(names, sort=False))
        codes[start:stop] = names.get_indexer(text)
    # Codes follow the sorted names, not the order in which they were met.
    order = np.argsort(names.to_numpy(dtype=str))
    place = np.empty(len(names) + 1, np.int32)
    place[order], place[-1] = np.arange(len(names)), -1
    return place[codes], [str(name) for name in names[order]]


def _weights(store: Store, key: str | None) -> np.ndarray | None:
    """float32 ``[n_obs]``."""
    if key is None:
        return None
    store.read_obs([key], 0, 0)  # A column that is not there is told with the nearest name.
    if store.obs_columns[key] not in ("number", "bool"):
        raise SchemaMismatch(
            f"{store.locator.redacted_url}: weights are numbers, and column {key!r} is of kind "
            f"{store.obs_columns[key]}. Use balance_by for categories."
        )
    weights = np.empty(store.n_obs, np.float32)
    for start in range(0, store.n_obs, _OBS_ROWS):
        stop = min(start + _OBS_ROWS, store.n_obs)
        weights[start:stop] = store.read_obs([key], start, stop)[key].to_numpy(
            np.float32, na_value=np.nan
        )
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise SchemaMismatch(
            f"{store.locator.redacted_url}: weights are numbers from 0 on; row {bad[0]} has "
            f"{weights[bad[0]]:g} in column {key!r} ({len(bad)} such rows)."
        )
    return weights


def _scaled(weights: np.ndarray) -> np.ndarray:
    """int32: weights as whole numbers; those above 0 stay so."""
    largest = float(weights.max()) or 1.0
    steps = np.rint(weights.astype(np.float64) / largest * WEIGHT_STEPS)
    return np.where(weights > 0, np.maximum(steps, 1), 0).astype(np.int32)
