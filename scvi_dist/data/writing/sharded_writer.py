"""Results of many cells, written in shards of rows; a killed run goes on where it stopped.

While it grows, the output holds a folder ``.scvi_dist`` with the plan and one marker for each
shard that is written. The marker comes after the shard's data, so a shard counts only when it is
whole. :meth:`ShardedWriter.finish` makes the output an AnnData and removes the folder.

Axis suffixes: ``n`` cells, ``g`` genes, ``k`` columns.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import pandas as pd

from scvi_dist.batch import CsrRows
from scvi_dist.data.filesystem import (
    exists,
    filesystem_of,
    join_url,
    normalise_url,
    open_file,
    redact_url,
)
from scvi_dist.data.store import Range
from scvi_dist.data.writing.anndata_writer import (
    CsrWriter,
    finish_anndata,
    pieces,
    plain_layout,
    rows_in_chunk,
    start_anndata,
    write_frame,
    write_names,
)
from scvi_dist.data.writing.containers import ZarrContainer
from scvi_dist.data.writing.output import STATE, is_empty_folder, make_way, put_whole, remove_state
from scvi_dist.errors import OutputExists, PlanError

_ATTRIBUTE = "scvi_dist_plan"
_VERSION = 1
_MIN_CHUNK_ENTRIES = 1 << 12
_CHUNK_ROWS = 64


class ShardedWriter:
    """A table of results ``[n, k]`` and/or a matrix ``[n, g]`` in an AnnData Zarr v3 store.

    Shards may be written in any order, by any process, and more than once; making a writer again
    for the same output continues it. Writers can be pickled.

    Parameters
    ----------
    url
        Local path or fsspec URL of the output.
    n_obs
        Cells.
    fingerprint
        Names what is computed (model, data, arguments). An output is continued only by a writer
        with the same fingerprint and the same sizes.
    obsm
        Key -> columns of each float32 table.
    columns
        Key -> names of the columns of a table, kept as ``uns["<key>_columns"]``.
    x
        What X is: ``"dense"`` float32, ``"csr"`` float32, or None for no X.
    var_names
        Genes of X.
    shard_rows
        Cells in a shard; one shard is in memory at a time.
    overwrite
        Replace the output of another fingerprint. The same fingerprint is always continued.
    storage_options
        fsspec options that are not secrets.

    Raises
    ------
    OutputExists
        Something else is at ``url``; names both fingerprints where there are two.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        n_obs: int,
        fingerprint: str,
        obsm: Mapping[str, int] | None = None,
        columns: Mapping[str, Sequence[str]] | None = None,
        x: Literal["dense", "csr"] | None = None,
        var_names: Sequence[str] | np.ndarray = (),
        shard_rows: int = 65_536,
        overwrite: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if x is not None and not len(var_names):
            raise PlanError(f"x={x!r} needs var_names, the genes of its columns.")
        if shard_rows < 1:
            raise PlanError(f"shard_rows must be at least 1; seen {shard_rows}.")
        self.url = normalise_url(url)
        self.n_obs = n_obs
        self.shard_rows = shard_rows
        self._obsm = dict(obsm or {})
        self._columns = {key: [str(name) for name in v] for key, v in (columns or {}).items()}
        for key, names in self._columns.items():
            if self._obsm.get(key) != len(names):
                raise PlanError(
                    f"obsm[{key!r}] has {self._obsm.get(key)} columns, seen {len(names)} names."
                )
        self._x = x
        self._var_names = [str(name) for name in var_names]
        self._options = dict(storage_options) if storage_options else None
        self._opened: ZarrContainer | None = None
        self._plan = {
            "version": _VERSION,
            "fingerprint": fingerprint,
            "n_obs": n_obs,
            "shard_rows": shard_rows,
            "obsm": self._obsm,
            "x": x,
            "n_vars": len(self._var_names),
            "var_names": blake2b("\n".join(self._var_names).encode(), digest_size=16).hexdigest(),
        }
        self._is_finished = False
        self._start(overwrite)

    def _start(self, overwrite: bool) -> None:
        """Continue what is there, or begin."""
        if exists(self.url, self._options):
            found, self._is_finished = self._read_plan()
            if found != self._plan:
                if not overwrite and (found or not is_empty_folder(self.url, self._options)):
                    raise OutputExists(self._clash(found))
                make_way(self.url, overwrite, self._options)
                self._is_finished = False
        if not self._is_finished and not self._has("plan.json"):
            self._put("plan.json", _json_bytes(self._plan))
        if not self._is_finished and not self._has("layout.json"):
            self._lay_out()
            self._put("layout.json", b"{}")

    def _read_plan(self) -> tuple[dict[str, Any] | None, bool]:
        """The plan of what is there, if it is ours, and whether it is finished."""
        if self._has("plan.json"):
            with open_file(join_url(self.url, STATE, "plan.json"), "rb", self._options) as file:
                return json.loads(file.read()), self._finished_plan() is not None
        plan = self._finished_plan()
        return plan, plan is not None

    def _finished_plan(self) -> dict[str, Any] | None:
        if not exists(join_url(self.url, "zarr.json"), self._options):
            return None
        with open_file(join_url(self.url, "zarr.json"), "rb", self._options) as file:
            return json.loads(file.read()).get("attributes", {}).get(_ATTRIBUTE)

    def _clash(self, found: Mapping[str, Any] | None) -> str:
        shown = redact_url(self.url)
        if found is None:
            return f"{shown} exists and is not a result of this program. Choose another URL."
        differ = [key for key, value in self._plan.items() if found.get(key) != value]
        facts = "; ".join(f"{k}: there {found.get(k)!r}, here {self._plan[k]!r}" for k in differ)
        return (
            f"{shown} holds the result with fingerprint {found.get('fingerprint')!r}, but "
            f"{self._plan['fingerprint']!r} was to be written ({facts}). "
            "Choose another URL, or pass overwrite=True to replace it."
        )

    def _lay_out(self) -> None:
        """Make the arrays. Each shard has chunks of its own, so writers never share one."""
        container = self._container
        start_anndata(container)
        for key, width in self._obsm.items():
            rows = rows_in_chunk(4 * width, self.shard_rows)
            container.numbers(f"obsm/{key}", (self.n_obs, width), np.float32, (rows, width))
        if self._x == "dense":
            width = len(self._var_names)
            rows = rows_in_chunk(4 * width, self.shard_rows)
            container.numbers("X", (self.n_obs, width), np.float32, (rows, width))

    @property
    def shards(self) -> list[Range]:
        """Rows of every shard."""
        return pieces(self.n_obs, self.shard_rows)

    def pending(self) -> list[Range]:
        """Rows of the shards that are not written yet, ascending."""
        if self._is_finished:
            return []
        fs, path = filesystem_of(join_url(self.url, STATE, "done"), self._options)
        fs.invalidate_cache()
        names = fs.ls(path, detail=False) if fs.exists(path) else []
        done = {os.path.basename(name) for name in names}
        return [shard for shard in self.shards if _marker(shard) not in done]

    def write(
        self,
        start: int,
        stop: int,
        *,
        obsm: Mapping[str, np.ndarray] | None = None,
        x: np.ndarray | CsrRows | None = None,
    ) -> None:
        """Write one shard, whole.

        Parameters
        ----------
        start, stop
            One of :attr:`shards`.
        obsm
            Key -> ``[stop - start, k]``, for every key that was announced.
        x
            ``[stop - start, g]``: an array if X is dense, else rows of CSR.

        Raises
        ------
        PlanError
            The rows are not a shard, or a shape is not what was announced.
        """
        tables = dict(obsm or {})
        self._check(start, stop, tables, x)
        for key, table_nk in tables.items():
            self._container.root[f"obsm/{key}"][start:stop] = table_nk
        n_entries = 0
        if isinstance(x, CsrRows):
            n_entries = int(x.indptr[-1])
            buffer = io.BytesIO()
            np.savez(
                buffer,
                indptr=x.indptr,
                indices=x.indices,
                data=x.data.astype(np.float32, copy=False),
            )
            self._put(f"csr/{_marker((start, stop))}", buffer.getvalue())
        elif x is not None:
            self._container.root["X"][start:stop] = x
        self._put(f"done/{_marker((start, stop))}", _json_bytes({"n_entries": n_entries}))

    def _check(
        self, start: int, stop: int, obsm: Mapping[str, Any], x: np.ndarray | CsrRows | None
    ) -> None:
        if self._is_finished:
            raise PlanError(f"{redact_url(self.url)} is finished; nothing is left to write.")
        if start % self.shard_rows or stop != min(start + self.shard_rows, self.n_obs):
            raise PlanError(
                f"rows {start} to {stop} are not a shard; shards have {self.shard_rows} rows, and "
                f"the output {self.n_obs}. Write the ranges that pending() gives."
            )
        n = stop - start
        seen: dict[str, tuple[int, ...]] = {key: np.shape(table) for key, table in obsm.items()}
        expected: dict[str, tuple[int, ...]] = {key: (n, k) for key, k in self._obsm.items()}
        if x is not None:
            seen["X"] = (x.n_cells, x.n_genes) if isinstance(x, CsrRows) else x.shape
        if self._x is not None:
            expected["X"] = (n, len(self._var_names))
        if seen != expected:
            raise PlanError(f"rows {start} to {stop} need shapes {expected}; seen {seen}.")
        if x is not None and isinstance(x, CsrRows) != (self._x == "csr"):
            raise PlanError(f"X was announced as {self._x!r}; seen {type(x).__name__}.")

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        """float32 ``[stop - start, k]``: rows of a table that were written."""
        return np.asarray(self._container.root[f"obsm/{key}"][start:stop])

    def finish(self, obs: pd.DataFrame | None = None) -> None:
        """Make the output an AnnData that ``anndata.read_zarr`` opens.

        Parameters
        ----------
        obs
            Names (its index) and columns of the cells; without it they are numbered.

        Raises
        ------
        PlanError
            Shards are still pending, or ``obs`` has another number of rows.
        """
        if self._is_finished:
            self._remove_state()
            return
        pending = self.pending()
        if pending:
            raise PlanError(
                f"{len(pending)} of {len(self.shards)} shards of {redact_url(self.url)} are not "
                f"written yet, the first for rows {pending[0][0]} to {pending[0][1]}."
            )
        if obs is None:
            obs = pd.DataFrame(index=pd.RangeIndex(self.n_obs))
        if len(obs) != self.n_obs:
            raise PlanError(f"obs needs {self.n_obs} rows, one a cell; seen {len(obs)}.")
        if self._x == "csr":
            self._join_csr()
        _write_obs(self._container, obs)
        write_names(self._container, "var", self._var_names)
        for key, names in self._columns.items():
            text = self._container.text(f"uns/{key}_columns", len(names), (len(names),))
            text[...] = np.array(names, dtype=object)
        finish_anndata(self._container, **{_ATTRIBUTE: self._plan})
        self._is_finished = True
        self._remove_state()

    def _join_csr(self) -> None:
        """One matrix from the parts; starts over if it was interrupted."""
        n_entries = sum(
            json.loads(self._get(f"done/{_marker(shard)}"))["n_entries"] for shard in self.shards
        )
        chunk = max(_MIN_CHUNK_ENTRIES, n_entries * _CHUNK_ROWS // max(self.n_obs, 1))
        shape = (self.n_obs, len(self._var_names))
        layout = plain_layout(np.float32, shape[1], chunk, n_entries)
        matrix = CsrWriter(self._container, "X", shape, layout)
        for shard in self.shards:
            with np.load(io.BytesIO(self._get(f"csr/{_marker(shard)}"))) as part:
                rows = CsrRows(part["indptr"], part["indices"], part["data"], shape[1])
            matrix.append(rows)
        matrix.finish()

    @property
    def _container(self) -> ZarrContainer:
        if self._opened is None:
            self._opened = ZarrContainer(self.url, "a", self._options)
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _has(self, name: str) -> bool:
        return exists(join_url(self.url, STATE, name), self._options)

    def _get(self, name: str) -> bytes:
        with open_file(join_url(self.url, STATE, name), "rb", self._options) as file:
            return file.read()

    def _put(self, name: str, content: bytes) -> None:
        put_whole(join_url(self.url, STATE, *name.split("/")), content, self._options)

    def _remove_state(self) -> None:
        remove_state(self.url, self._options)


def _write_obs(container: ZarrContainer, obs: pd.DataFrame) -> None:
    names = obs.index.astype(str).to_numpy(dtype=object)
    write_frame(
        container,
        "obs",
        len(obs),
        [str(column) for column in obs.columns],
        lambda columns, start, stop: obs[columns].iloc[start:stop],
        lambda start, stop: names[start:stop],
    )


def _marker(shard: Range) -> str:
    return f"{shard[0]:015d}-{shard[1]:015d}"


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
