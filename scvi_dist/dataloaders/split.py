"""Which cells train, validate and test: the very cells that scvi-tools would take."""

from dataclasses import dataclass
from math import ceil, floor

import numpy as np

from scvi_dist.dataloaders.rows import ArrayRows, HashedRows, RangeRows, RowSet
from scvi_dist.errors import ConfigError, did_you_mean

DEFAULT_TRAIN_SIZE = 0.9
METHODS = ("auto", "permutation", "hash")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig:
    """How cells are split; the first three fields mean what they mean in scvi-tools."""

    train_size: float | None = None
    """Share of cells that train; ``None`` is 0.9, and 1 or 2 cells more may validate."""
    validation_size: float | None = None
    """Share of cells that validate; ``None`` is all that do not train."""
    shuffle_set_split: bool = True
    """Draw cells at random; otherwise the first cells validate and the next train."""
    seed: int = 0
    method: str = "auto"
    """``permutation`` takes scvi-tools' cells (8 bytes a cell); ``hash`` takes no memory."""
    permutation_limit: int = 10_000_000
    """Cells up to which ``auto`` is ``permutation``."""

    def __post_init__(self) -> None:
        train, validation = self.train_size, self.validation_size
        if train is not None and not 0 < train <= 1:
            raise ConfigError(f"train_size must be in (0, 1], seen {train}.")
        if validation is not None and not 0 <= validation < 1:
            raise ConfigError(f"validation_size must be in [0, 1), seen {validation}.")
        if validation is not None and (train or DEFAULT_TRAIN_SIZE) + validation > 1:
            raise ConfigError(
                f"train_size + validation_size must not exceed 1, seen "
                f"{train or DEFAULT_TRAIN_SIZE} + {validation}."
            )
        if self.method not in METHODS:
            hint = did_you_mean(self.method, METHODS)
            raise ConfigError(f"split method {self.method!r} does not exist; {hint}")
        if self.seed < 0:
            raise ConfigError(f"the seed of a split must not be negative, seen {self.seed}.")


@dataclass(frozen=True, slots=True)
class Split:
    """Three sets of rows that do not overlap."""

    train: RowSet
    validation: RowSet
    test: RowSet
    n_moved: int = 0
    """Cells that left the training set so that its last minibatch is not of 1 or 2 cells."""

    def describe(self) -> str:
        parts = f"train {self.train.n:,} · validation {self.validation.n:,} · test {self.test.n:,}"
        return parts + (f" ({self.n_moved} moved out of train)" if self.n_moved else "")


def split_rows(n: int, config: SplitConfig, batch_size: int | None) -> Split:
    """The split of ``n`` cells.

    Parameters
    ----------
    n
        Cells of the store.
    config
        Sizes, seed and method.
    batch_size
        Global batch size: with ``train_size=None``, 1 or 2 cells that would be a minibatch of
        their own leave the training set, as in scvi-tools. ``None`` leaves them.

    Raises
    ------
    ConfigError
        If no cell would train.
    """
    n_train, n_validation, n_moved = split_sizes(n, config, batch_size)
    if not config.shuffle_set_split:
        end = n_validation + n_train
        bounds = ((n_validation, end), (0, n_validation), (end, n))
        train, validation, test = (RangeRows(start, stop, n) for start, stop in bounds)
        return Split(train, validation, test, n_moved)
    if uses_hash(n, config):
        sizes = {"n_validation": n_validation, "n_train": n_train}
        return Split(
            HashedRows(n, config.seed, "train", **sizes),
            HashedRows(n, config.seed, "validation", **sizes),
            HashedRows(n, config.seed, "test", **sizes),
            n_moved,
        )
    # RandomState, not Generator: only the old stream gives scvi-tools' cells.
    order = np.random.RandomState(config.seed).permutation(n)
    end = n_validation + n_train
    return _from_arrays(order[n_validation:end], order[:n_validation], order[end:], n, n_moved)


def uses_hash(n: int, config: SplitConfig) -> bool:
    """Whether ``n`` cells are split by a keyed hash, without a list of them."""
    is_large = config.method == "auto" and n > config.permutation_limit
    return config.shuffle_set_split and (config.method == "hash" or is_large)


def split_by_label(is_labelled: np.ndarray, config: SplitConfig, batch_size: int | None) -> Split:
    """The split of cells of which some have a label: both kinds are split alike.

    Parameters
    ----------
    is_labelled
        Whether each cell of the store has a label.
    config, batch_size
        As for :func:`split_rows`; a list of all cells is made in any case.
    """
    parts: list[list[np.ndarray]] = [[], [], []]
    n_moved = 0
    for group in (np.flatnonzero(is_labelled), np.flatnonzero(~is_labelled)):
        if not len(group):
            continue
        n_train, n_validation, moved = split_sizes(len(group), config, batch_size)
        n_moved += moved
        if config.shuffle_set_split:
            group = group[np.random.RandomState(config.seed).permutation(len(group))]
        end = n_validation + n_train
        for part, rows in zip(
            parts, (group[n_validation:end], group[:n_validation], group[end:]), strict=True
        ):
            part.append(rows)
    joined = [np.concatenate(part) for part in parts]
    return _from_arrays(joined[0], joined[1], joined[2], len(is_labelled), n_moved)


def split_sizes(n: int, config: SplitConfig, batch_size: int | None) -> tuple[int, int, int]:
    """Cells that train, cells that validate, cells moved out of the training set."""
    n_train = ceil((config.train_size or DEFAULT_TRAIN_SIZE) * n)
    if config.validation_size is None:
        n_validation = n - n_train
    else:
        n_validation = floor(n * config.validation_size)
    n_moved = 0
    left_over = n_train % batch_size if batch_size else 0
    # Where scvi-tools would be left without a training cell, nothing is moved.
    if config.train_size is None and left_over in (1, 2) and n_train > left_over:
        n_moved = left_over
        n_train -= n_moved
        if n_validation > 0:
            n_validation += n_moved
    # Rounding both sizes can claim one cell twice; scvi-tools then cuts the training set short.
    n_train = min(n_train, n - n_validation)
    if n_train < 1:
        raise ConfigError(
            f"no cell would train: {n} cells with train_size={config.train_size}, "
            f"validation_size={config.validation_size} and batch size {batch_size}; "
            f"give a larger train_size."
        )
    return n_train, n_validation, n_moved


def split_from_indices(
    n: int,
    train: np.ndarray,
    validation: np.ndarray | None = None,
    test: np.ndarray | None = None,
) -> Split:
    """A split into the cells that the caller lists, in any order.

    Raises
    ------
    ConfigError
        If a cell is listed twice, or does not exist.
    """
    none = np.empty(0, np.int64)
    lists = [none if part is None else np.asarray(part) for part in (train, validation, test)]
    listed = np.concatenate([part.astype(np.int64, casting="unsafe") for part in lists])
    if len(listed) and not (listed.min() >= 0 and listed.max() < n):
        raise ConfigError(
            f"a split lists rows {listed.min()} … {listed.max()} of a store of {n} rows."
        )
    twice = np.flatnonzero(np.bincount(listed, minlength=1) > 1)
    if len(twice):
        raise ConfigError(f"a split lists {len(twice)} rows twice, the first is row {twice[0]}.")
    if len(lists[0]) == 0:
        raise ConfigError("a split lists no training rows.")
    return _from_arrays(lists[0], lists[1], lists[2], n)


def _from_arrays(
    train: np.ndarray, validation: np.ndarray, test: np.ndarray, n: int, n_moved: int = 0
) -> Split:
    sets = [ArrayRows(np.sort(part).astype(np.int64), n) for part in (train, validation, test)]
    return Split(sets[0], sets[1], sets[2], n_moved)
