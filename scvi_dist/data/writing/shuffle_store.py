"""``shuffle_store``: a globally shuffled, sharded Zarr copy of a store."""

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from scvi_dist.data.filesystem import exists, join_url, normalise_url, open_file, redact_url
from scvi_dist.data.on_disk.layout import SHUFFLED
from scvi_dist.data.store import Store
from scvi_dist.data.writing.anndata_writer import (
    MatrixLayout,
    finish_anndata,
    make_csr,
    pieces,
    rows_in_chunk,
    start_anndata,
    write_frame,
)
from scvi_dist.data.writing.containers import ZarrContainer
from scvi_dist.data.writing.content import Content
from scvi_dist.data.writing.convert import CONTENT, Converted, CopyConfig, write_extras
from scvi_dist.data.writing.external_shuffle import KeyRange, Shuffle, Sizes, SpillFacts
from scvi_dist.data.writing.extras import read_extras
from scvi_dist.data.writing.output import STATE, is_empty_folder, make_way, put_whole, remove_state
from scvi_dist.data.writing.row_tables import ObsTypes, RowFiles, from_streams
from scvi_dist.data.writing.task_pool import run_tasks
from scvi_dist.data.writing.writer import OnProgress, same_layout, training_layout, type_of_values
from scvi_dist.errors import OutputExists

_VERSION = 1
_PIECE_ROWS = 1 << 16


def shuffle_store(
    store: Store,
    url: str | os.PathLike[str],
    *,
    seed: int = 0,
    config: CopyConfig | None = None,
    engine: str = "threads",
    workers: int = 2,
    memory_bytes: int = 2 << 30,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Converted:
    """Write the cells of a store in random order to a sharded Zarr store.

    The order depends on the seed alone. The same call goes on with an output that was interrupted.
    One matrix is written (X, or the layer at which the store was opened), with obs, obsm, var,
    varm and uns. While it runs, the output holds the cells a second time.

    Parameters
    ----------
    store
        Any store; with the engine ``ray`` one that other processes can open.
    url
        A local path or any fsspec URL; with ``ray`` on several hosts, one that all see.
    config
        Layout of the result; by default the one made for training.
    engine, workers
        ``threads`` of this process, or ``ray`` tasks on any CPU of the cluster; how many at once.
    memory_bytes
        What all workers together may hold in cells.
    overwrite
        Replace what is there.
    on_progress
        Hears the cells that are done, over both passes.

    Raises
    ------
    OutputExists
        Something is at ``url`` that is not the same shuffle, unfinished or finished.
    """
    config = config or CopyConfig(layout="training")
    url = normalise_url(url)
    plan = {
        "version": _VERSION,
        "source": store.digest(),
        "seed": seed,
        "n_obs": store.n_obs,
        "n_vars": store.n_vars,
        **asdict(config),
    }
    options = dict(storage_options or {})
    if _is_finished(url, plan, options):
        remove_state(url, options)
        return _told(store, url, options)
    shard = _layout(store, config, np.dtype(np.uint8)).shard_entries
    sizes = _claim(url, plan, Sizes.within(store, memory_bytes, workers, shard), overwrite, options)
    shuffle = Shuffle(
        locator=store.locator, url=url, seed=seed, sizes=sizes, storage_options=options, given=store
    )
    tell = _Tell(on_progress, store.n_obs)
    spilled = _first_pass(shuffle, engine, workers, tell)
    content = sum((facts.content for facts in spilled), Content())
    layout = _layout(store, config, content.value_type(type_of_values(store)))
    _lay_out(shuffle, layout, spilled)
    ranges = _second_pass(shuffle, spilled, layout, engine, workers, tell)
    lost = _finish(shuffle, len(ranges), plan, content)
    return Converted(url=redact_url(url), matrices=("X",), lost=lost, content={"X": content})


def _first_pass(shuffle: Shuffle, engine: str, workers: int, tell: "_Tell") -> list[SpillFacts]:
    found: dict[int, SpillFacts] = {}

    def done(number: int, facts: SpillFacts) -> None:
        found[number] = facts
        tell.add(int(facts.rows.sum()))

    work = shuffle.elsewhere() if engine == "ray" else shuffle
    tasks = list(range(shuffle.n_stretches))
    run_tasks(work.spill, tasks, done, engine=engine, workers=workers)
    return [found[number] for number in range(shuffle.n_stretches)]


def _second_pass(
    shuffle: Shuffle,
    spilled: list[SpillFacts],
    layout: MatrixLayout,
    engine: str,
    workers: int,
    tell: "_Tell",
) -> list[KeyRange]:
    ranges = list(key_ranges(spilled, shuffle.sizes.range_entries, layout.value_type))
    left = [task for task in ranges if not shuffle.has(f"rows/{task.number:06d}.arrow")]
    tell.skip(len(ranges) - len(left), len(ranges))
    work = shuffle.elsewhere() if engine == "ray" else shuffle
    run_tasks(work.gather, left, lambda _, n: tell.add(n), engine=engine, workers=workers)
    return ranges


def key_ranges(
    spilled: list[SpillFacts], range_entries: int, value_type: np.dtype
) -> Iterator[KeyRange]:
    """The tasks of the second pass: whole shards each, with the buckets that reach into them."""
    offsets = np.stack([facts.offsets for facts in spilled])
    per_bucket = np.sum([facts.entries for facts in spilled], axis=0)
    ends = np.cumsum(per_bucket)
    starts = ends - per_bucket
    total = int(ends[-1])
    edges = [*range(0, total, range_entries), total] if total else [0, 0]
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        # Buckets that end just where the range begins may hold cells without entries.
        first = int(np.searchsorted(ends, start, side="left"))
        last = len(ends) if stop == total else int(np.searchsorted(starts, stop, side="left"))
        yield KeyRange(
            number=number,
            bounds=offsets[:, [first, last]],
            first_entry=int(starts[first]),
            start=start,
            stop=stop,
            is_last=stop == total,
            value_type=value_type.name,
        )


def _layout(store: Store, config: CopyConfig, value_type: np.dtype) -> MatrixLayout:
    if config.layout == "training":
        return training_layout(store, value_type, config.chunk_rows, config.codec)
    return same_layout(store, config.chunk_rows)


def _claim(
    url: str, plan: dict[str, Any], sizes: Sizes, overwrite: bool, options: dict[str, Any]
) -> Sizes:
    """Begin, or go on with what is there: the sizes that it was begun with."""
    place = join_url(url, STATE, "shuffle.json")
    if exists(place, options):
        with open_file(place, "rb", options) as file:
            found = json.loads(file.read())
        if found["plan"] == plan:
            return Sizes(**found["sizes"])
        if not overwrite:
            differ = ", ".join(
                f"{key}: there {found['plan'].get(key)!r}, here {value!r}"
                for key, value in plan.items()
                if found["plan"].get(key) != value
            )
            raise OutputExists(
                f"{redact_url(url)} holds another shuffle that is not finished ({differ}). Choose "
                "another place, or pass overwrite=True to replace it."
            )
    if exists(url, options) and not is_empty_folder(url, options):
        make_way(url, overwrite, options)
    told = {"plan": plan, "sizes": asdict(sizes)}
    put_whole(place, json.dumps(told).encode(), options)
    return sizes


def _root_attributes(url: str, options: dict[str, Any]) -> dict[str, Any]:
    if not exists(join_url(url, "zarr.json"), options):
        return {}
    with open_file(join_url(url, "zarr.json"), "rb", options) as file:
        return json.loads(file.read()).get("attributes", {})


def _is_finished(url: str, plan: dict[str, Any], options: dict[str, Any]) -> bool:
    return _root_attributes(url, options).get(SHUFFLED) == plan


def _told(store: Store, url: str, options: dict[str, Any]) -> Converted:
    """What a finished output says of itself."""
    told = json.loads(_root_attributes(url, options)[CONTENT])
    content = {path: Content.from_json(tree) for path, tree in told.items()}
    lost = read_extras(store).lost
    return Converted(url=redact_url(url), matrices=("X",), lost=lost, content=content)


def _lay_out(shuffle: Shuffle, layout: MatrixLayout, spilled: list[SpillFacts]) -> None:
    """Make the arrays of the matrix, once."""
    if shuffle.has("layout.json"):
        return
    store = shuffle.store
    n_entries = sum(int(facts.entries.sum()) for facts in spilled)
    with ZarrContainer(shuffle.url, "a", shuffle.storage_options) as container:
        start_anndata(container)
        make_csr(container, "X", store.shape, layout, n_entries)
    put_whole(join_url(shuffle.url, STATE, "layout.json"), b"{}", shuffle.storage_options)


def _finish(
    shuffle: Shuffle, n_ranges: int, plan: dict[str, Any], content: Content
) -> tuple[str, ...]:
    """Row pointers, obs, obsm and what does not depend on the order of cells; then the mark."""
    store, options = shuffle.store, shuffle.storage_options

    def load(number: int) -> Any:
        return from_streams(shuffle.get(f"rows/{number:06d}.arrow"))[0]

    starts = np.cumsum([0, *(load(number).num_rows for number in range(n_ranges))])
    rows = RowFiles(starts.tolist(), load, ObsTypes.of(store))
    with ZarrContainer(shuffle.url, "a", options) as container:
        _write_indptr(container, rows, store.n_obs)
        write_frame(container, "obs", store.n_obs, list(store.obs_columns), rows.obs, rows.names)
        for key, width in store.obsm_keys.items():
            _write_obsm(container, rows, key, width, store)
        extras = read_extras(store)
        write_extras(container, extras)
        told = json.dumps({"X": content.to_json()})
        finish_anndata(container, **{CONTENT: told, SHUFFLED: plan})
    remove_state(shuffle.url, options)
    return extras.lost


def _write_indptr(container: ZarrContainer, rows: RowFiles, n_obs: int) -> None:
    indptr = container.root["X/indptr"]
    indptr[0:1] = 0
    before = 0
    for start, stop in pieces(n_obs, _PIECE_ROWS):
        ends = before + np.cumsum(rows.column("length", start, stop).to_numpy())
        indptr[start + 1 : stop + 1] = ends
        before = int(ends[-1])


def _write_obsm(
    container: ZarrContainer, rows: RowFiles, key: str, width: int, store: Store
) -> None:
    names = store.obsm_columns(key)
    n_obs = store.n_obs
    if names is not None:
        places = {name: k for k, name in enumerate(names)}

        def read(wanted: list[str], start: int, stop: int) -> Any:
            import pandas as pd

            values_nk = rows.obsm(key, start, stop)
            return pd.DataFrame({name: values_nk[:, places[name]] for name in wanted})

        write_frame(container, f"obsm/{key}", n_obs, list(names), read, rows.names)
        return
    chunk = rows_in_chunk(4 * width, min(_PIECE_ROWS, max(1, n_obs)))
    array = container.numbers(f"obsm/{key}", (n_obs, width), np.float32, (chunk, width))
    for start, stop in pieces(n_obs, _PIECE_ROWS):
        array[start:stop] = rows.obsm(key, start, stop)


class _Tell:
    """Progress over both passes, in cells."""

    def __init__(self, on_progress: OnProgress | None, n_obs: int) -> None:
        self._on_progress, self._n_obs, self._done = on_progress, n_obs, 0

    def add(self, n_cells: int) -> None:
        self._done += n_cells
        if self._on_progress:
            self._on_progress(min(self._done, 2 * self._n_obs), 2 * self._n_obs)

    def skip(self, n_done: int, n_tasks: int) -> None:
        """Some tasks of the second pass were done before."""
        self.add(self._n_obs * n_done // max(1, n_tasks))
