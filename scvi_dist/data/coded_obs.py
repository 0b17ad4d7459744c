"""The codes of every cell of a store, in memory: a byte or two a column instead of a table.

Axis suffixes: ``n`` cells, ``k`` columns.
"""

from hashlib import blake2b

import numpy as np

from scvi_dist.data.schema import Schema
from scvi_dist.data.store import Store


class CodedObs:
    """What a model gets of obs, for any rows, without reading the store again.

    Built by one streaming pass over the columns that the schema names.

    Parameters
    ----------
    schema
        Says which columns, and the code of each category.
    store
        Where the cells are.
    chunk_rows
        Rows of obs in memory at a time while building.

    Raises
    ------
    SchemaMismatch
        A category is unknown, or a value is missing or not finite.
    """

    def __init__(self, schema: Schema, store: Store, chunk_rows: int = 200_000) -> None:
        self.n_obs = store.n_obs
        self._fields = [f for f in schema.setup.obs_fields if not f.is_empty]
        self._values: dict[str, np.ndarray] = {}
        """Registry key -> ``[n, k]``; a constant field takes no memory and is not here."""
        columns = schema.setup.obs_columns
        for start in range(0, store.n_obs if columns else 0, chunk_rows):
            stop = min(start + chunk_rows, store.n_obs)
            obs = store.read_obs(columns, start, stop)
            for key, values_nk in schema.encode(obs, store.locator.redacted_url, start).items():
                self._put(key, start, values_nk)

    def _put(self, key: str, start: int, values_nk: np.ndarray) -> None:
        if not any(f.registry_key == key and f.columns for f in self._fields):
            return
        if key not in self._values:
            shape = (self.n_obs, values_nk.shape[1])
            self._values[key] = np.empty(shape, dtype=values_nk.dtype)
        self._values[key][start : start + len(values_nk)] = values_nk

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The inputs of the given rows, in the order given; repeats allowed.

        Returns
        -------
        dict
            Registry key -> ``[n, k]``: int64 for codes, float32 for numbers; always ``batch`` and
            ``labels``, the others where the schema has them.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.n_obs:
            raise IndexError(
                f"rows 0 to {self.n_obs - 1} exist; asked for {rows.min()} to {rows.max()}."
            )
        taken = {}
        for field in self._fields:
            values_nk = self._values.get(field.registry_key)
            dtype = np.int64 if field.is_categorical else np.float32
            if values_nk is None:
                taken[field.registry_key] = np.zeros((len(rows), 1), dtype=dtype)
            else:
                taken[field.registry_key] = values_nk[rows].astype(dtype, copy=False)
        return taken

    def digest(self) -> str:
        """32 hex digits of the codes and numbers of all cells."""
        found = blake2b(digest_size=16)
        for key, values_nk in sorted(self._values.items()):
            found.update(f"{key} {values_nk.dtype} {values_nk.shape}".encode())
            found.update(np.ascontiguousarray(values_nk).tobytes())
        return found.hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(values_nk.nbytes for values_nk in self._values.values())

    @staticmethod
    def estimate_nbytes(schema: Schema, n_obs: int) -> int:
        """:attr:`nbytes` before anything is read."""
        fields = schema.setup.obs_fields
        return n_obs * sum(f.row_nbytes(schema.categories_of(f)) for f in fields)
