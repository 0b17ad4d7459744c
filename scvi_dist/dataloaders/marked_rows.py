"""A set of rows as one bit for each row of the store."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from scvi_dist.dataloaders.rows import spans
from scvi_dist.errors import PlanError

WORD = 64
"""Rows of a word of bits."""


@dataclass(frozen=True, eq=False)
class MarkedRows:
    """The rows whose bit is set: a quarter of a byte for each row of the store, set or not."""

    words: np.ndarray
    """uint64 ``[ceil(n_store / 64)]``: bit ``k`` of word ``w`` is row ``64 w + k``."""
    n_store: int
    before: np.ndarray = field(init=False, repr=False)
    """int64: members before each word, and in all."""

    def __post_init__(self) -> None:
        n_words = -(-self.n_store // WORD)
        if self.words.shape != (n_words,) or self.words.dtype != np.uint64:
            raise PlanError(
                f"{self.n_store} rows are marked by {n_words} uint64 words; seen "
                f"{self.words.dtype} {self.words.shape}."
            )
        counts = np.bitwise_count(self.words).astype(np.int64)
        object.__setattr__(self, "before", np.concatenate([[0], np.cumsum(counts)]))
        if n_words and self.words[-1] & ~_lowest(np.array([self.n_store - WORD * (n_words - 1)])):
            raise PlanError(f"a row behind the last of {self.n_store} is marked.")

    @staticmethod
    def of(parts: Iterable[np.ndarray], n_store: int) -> "MarkedRows":
        """From booleans for consecutive rows; all parts but the last have a multiple of 64."""
        # The bytes below are in the order of a little-endian word wherever this runs.
        words = np.zeros(-(-n_store // WORD), dtype="<u8")
        start = 0
        for part in parts:
            packed = np.packbits(part, bitorder="little")
            room = words[start // WORD :].view(np.uint8)
            room[: len(packed)] = packed
            start += len(part)
        return MarkedRows(words.astype(np.uint64), n_store)

    @property
    def n(self) -> int:
        return int(self.before[-1])

    @property
    def stratum(self) -> int:
        return 1

    def count_before(self, boundaries: np.ndarray) -> np.ndarray:
        boundaries = np.asarray(boundaries, np.int64)
        word, rest = boundaries // WORD, boundaries % WORD
        # The boundary behind the last word has no word to look into.
        bits = self.words[np.minimum(word, max(len(self.words) - 1, 0))] & _lowest(rest)
        return self.before[word] + np.where(rest > 0, np.bitwise_count(bits).astype(np.int64), 0)

    def members_of(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        starts, stops = np.asarray(starts, np.int64), np.asarray(stops, np.int64)
        stops = np.maximum(starts, stops)
        first, last = starts // WORD, -(-stops // WORD)
        last = np.where(stops > starts, last, first)
        word = spans(first, last)
        bits_wk = (self.words[word, None] >> np.arange(WORD, dtype=np.uint64)) & np.uint64(1)
        rows_wk = word[:, None] * WORD + np.arange(WORD)
        low, high = np.repeat(starts, last - first), np.repeat(stops, last - first)
        inside = (rows_wk >= low[:, None]) & (rows_wk < high[:, None])
        return rows_wk[inside & (bits_wk > 0)]

    def digest(self) -> str:
        state = blake2b(f"marked;{self.n_store};".encode(), digest_size=16)
        state.update(self.words.astype("<u8").tobytes())
        return state.hexdigest()

    def describe(self) -> str:
        return f"{self.n:,} marked rows of {self.n_store:,}"


def _lowest(n_bits: np.ndarray) -> np.ndarray:
    """uint64: words whose lowest bits are set, up to all 64."""
    shift = np.asarray(WORD - n_bits, dtype=np.uint64)
    full = np.uint64(0xFFFFFFFFFFFFFFFF)
    # A shift by 64 bits is not defined.
    return np.where(shift >= WORD, np.uint64(0), full >> np.minimum(shift, np.uint64(WORD - 1)))
