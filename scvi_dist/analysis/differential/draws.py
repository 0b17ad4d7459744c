"""How many draws of which cells describe a population as well as scvi-tools' do, or better.

scvi-tools decodes every cell of a population, ``m = n // N + 1`` times where it asks for ``n``
draws of ``N`` cells, and then takes ``n`` of these with replacement. With the variance ``b``
between cells and ``w`` between the draws of a cell, its mean of anything has the variance
``(b + w) / n + w / (m N)``.

Here every cell is drawn equally often, or as nearly so as the numbers allow, without replacement:

- ``N <= n / 2``: ``d = n m N / (n + m N)`` draws, between half of ``n`` and 0.6 of it. Their
  variance is ``w / d``, which is the part of ``w`` there, and at most ``b / (2 n)``;
- ``n / 2 < N <= n``: one draw of each cell, ``w / N``, which is at most ``w / n + w / (2 N)``;
- ``N > n``: one draw of each of ``n`` cells, ``(b (1 - n / N) + w) / n``.

None is more than there. Pairs are ``n`` as there.

Axis suffixes: ``r`` draws, ``q`` pairs, ``s`` strata.
"""

import numpy as np


def draws_of(n_cells: int, n: int) -> int:
    """Draws that describe a population of so many cells as well as ``n`` draws in scvi-tools."""
    if n_cells > n:
        return n
    decoded_there = (n // n_cells + 1) * n_cells
    return max(n_cells, min(n, -(-n * decoded_there // (n + decoded_there))))


def drawn_rows(rows: np.ndarray, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """``n_draws`` of some rows in random order, so that every beginning of the list has each row
    equally often, or once more."""
    whole, rest = divmod(n_draws, len(rows))
    rounds = [rng.permutation(rows) for _ in range(whole)]
    # In new memory, for that of a part would hold all rows.
    return np.concatenate([*rounds, rng.permutation(rows)[:rest]] if rest else rounds)


def shares(cells_s: np.ndarray, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """int64 ``[s]``: draws of each stratum that make the mixture of all, as many as expected but
    for less than one.

    Source
    ------
    Systematic sampling: Madow & Madow 1944, "On the theory of systematic sampling".
    """
    edges = np.concatenate([[0.0], np.cumsum(cells_s) / cells_s.sum() * n_draws])
    edges[-1] = n_draws
    upto = np.ceil(edges - rng.random()).clip(0, n_draws)
    upto[0], upto[-1] = 0, n_draws
    return np.diff(upto).astype(np.int64)


def repeated(n_draws: int, n_pairs: int, rng: np.random.Generator) -> np.ndarray:
    """int64 ``[q]``: which draw is in each pair; each equally often, or once more."""
    return drawn_rows(np.arange(n_draws), n_pairs, rng)
