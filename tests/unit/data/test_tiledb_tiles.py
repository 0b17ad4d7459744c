"""Entries read from an array's files are those that TileDB reads; the rest is left to TileDB."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiledbsoma

from scvi_dist.data.soma.matrix import SparseSoma, column_map
from scvi_dist.data.soma.tiledb_metadata import NotPlain, filters_of, read_fragments
from scvi_dist.errors import StoreChanged, StoreCorrupt

ZSTD = {"_type": "ZstdFilter", "level": 3}
SHUFFLED = ["ByteShuffleFilter", ZSTD]


@dataclass(frozen=True)
class Layout:
    """How an array is created and written."""

    shape: tuple[int, int] = (60, 40)
    create: dict[str, Any] = field(default_factory=dict)
    dtype: type[np.generic] = np.float32
    cuts: Sequence[int] = ()
    """Rows at which a new fragment begins."""
    is_plain: bool = True


def dims(tile: tuple[int, int], filters: Any) -> dict[str, Any]:
    sides = zip(("soma_dim_0", "soma_dim_1"), tile, strict=True)
    return {name: {"tile": size, "filters": filters} for name, size in sides}


LAYOUTS = {
    "as tiledbsoma does": Layout(),
    "several blocks a tile": Layout(shape=(700, 60), create={"capacity": 100_000}),
    "rows cut in tiles": Layout(create={"capacity": 50, "dims": dims((7, 9), [ZSTD])}),
    "by columns": Layout(create={"cell_order": "col-major", "tile_order": "col-major"}),
    "plain": Layout(create={"dims": dims((8, 8), []), "attrs": {"soma_data": {"filters": []}}}),
    "gzip": Layout(create={"dims": dims((8, 8), ["GzipFilter"])}),
    "shuffled bytes": Layout(
        shape=(300, 60),
        dtype=np.uint16,
        create={"dims": dims((64, 60), SHUFFLED), "attrs": {"soma_data": {"filters": SHUFFLED}}},
    ),
    "fragments": Layout(cuts=(1, 30, 44), create={"capacity": 64}, dtype=np.int64),
    "fragments, duplicates allowed": Layout(cuts=(20,), create={"allows_duplicates": True}),
    "filters that are not known": Layout(
        is_plain=False, create={"dims": dims((8, 8), ["DoubleDeltaFilter", ZSTD])}
    ),
}


def counts_of(layout: Layout) -> np.ndarray:
    rng = np.random.default_rng(1)
    counts_ng = rng.integers(0, 200, layout.shape) * (rng.random(layout.shape) < 0.6)
    counts_ng[5:9] = 0
    return counts_ng.astype(layout.dtype)


def write(path: Path, layout: Layout) -> np.ndarray:
    counts_ng = counts_of(layout)
    config = {"tiledb": {"create": layout.create}}
    value_type = pa.from_numpy_dtype(np.dtype(layout.dtype))
    tiledbsoma.SparseNDArray.create(
        str(path), type=value_type, shape=layout.shape, platform_config=config
    ).close()
    cuts = [0, *layout.cuts, layout.shape[0]]
    for start, stop in itertools.pairwise(cuts):
        rows, columns = np.nonzero(counts_ng[start:stop])
        put(path, rows + start, columns, counts_ng[rows + start, columns])
    return counts_ng


def put(path: Path, rows: Any, columns: Any, values: np.ndarray) -> None:
    table = pa.table(
        {
            "soma_dim_0": np.asarray(rows, np.int64),
            "soma_dim_1": np.asarray(columns, np.int64),
            "soma_data": values,
        }
    )
    with tiledbsoma.open(str(path), "w") as array:
        array.write(table)


def read(matrix: SparseSoma, rows: np.ndarray, genes: np.ndarray, n_columns: int) -> np.ndarray:
    block = matrix.read(rows, column_map(genes, n_columns, "here"))
    assert block.indptr[0] == 0
    assert block.indptr[-1] == len(block.indices) == len(block.data)
    return block.to_dense(block.data.dtype)


@pytest.mark.parametrize("name", LAYOUTS)
def test_both_ways_read_the_same(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    counts_ng = write(tmp_path / "x", layout)
    n, g = layout.shape
    rng = np.random.default_rng(2)
    with tiledbsoma.open(str(tmp_path / "x")) as array:
        ways = [SparseSoma(array, "x")]
        assert (ways[0].tiles is not None) == layout.is_plain
        by_tiledb = SparseSoma(array, "x")
        by_tiledb.tiles = None
        ways.append(by_tiledb)
        for trial in range(12):
            rows = np.sort(rng.choice(n, int(rng.integers(0, n)), replace=False))
            genes = [np.arange(g), np.sort(rng.choice(g, 9, replace=False)), rng.permutation(g)]
            for matrix in ways:
                seen = read(matrix, rows, genes[trial % 3], g)
                np.testing.assert_array_equal(seen, counts_ng[rows][:, genes[trial % 3]])
                assert seen.dtype == layout.dtype


def test_few_blocks_are_decoded_for_few_rows(tmp_path: Path, monkeypatch: Any) -> None:
    """Of a tile with many blocks, only those of the wanted rows; its rows only once."""
    from scvi_dist.data.soma import tiledb_blocks

    layout = LAYOUTS["several blocks a tile"]
    counts_ng = write(tmp_path / "x", layout)
    decoded: list[int] = []
    decode = tiledb_blocks._decode_block
    monkeypatch.setattr(
        tiledb_blocks, "_decode_block", lambda *a: (decoded.append(len(a[2])), decode(*a))
    )
    with tiledbsoma.open(str(tmp_path / "x")) as array:
        matrix = SparseSoma(array, "x")
        numbers = []
        for rows in ([300], [301, 302], list(range(700))):
            decoded.clear()
            seen = read(matrix, np.array(rows), np.arange(60), 60)
            np.testing.assert_array_equal(seen, counts_ng[rows])
            numbers.append(len(decoded))
    n_blocks = -(-np.count_nonzero(counts_ng) * 8 // (64 << 10))
    assert n_blocks >= 4
    assert numbers[0] <= n_blocks + 2
    assert numbers[1] <= 4
    assert numbers[2] > numbers[1]


def plain_tiles(path: Path) -> bool:
    with tiledbsoma.open(str(path)) as array:
        return SparseSoma(array, "x").tiles is not None


def test_what_overwrites_or_deletes_is_left_to_tiledb(tmp_path: Path) -> None:
    layout = LAYOUTS["as tiledbsoma does"]
    counts_ng = write(tmp_path / "x", layout)
    assert plain_tiles(tmp_path / "x")
    rows, columns = (axis[:3] for axis in np.nonzero(counts_ng))
    counts_ng[rows, columns] = 7
    put(tmp_path / "x", rows, columns, np.full(3, 7, np.float32))
    assert not plain_tiles(tmp_path / "x")
    with tiledbsoma.SparseNDArray.open(str(tmp_path / "x"), "d") as array:
        array.delete_cells((slice(20, 29),))
    counts_ng[20:30] = 0
    assert not plain_tiles(tmp_path / "x")
    with tiledbsoma.open(str(tmp_path / "x")) as array:
        seen = read(SparseSoma(array, "x"), np.arange(60), np.arange(40), 40)
    np.testing.assert_array_equal(seen, counts_ng)


@pytest.mark.parametrize(
    ("modes", "is_plain"),
    [(["commits"], True), (["fragment_meta", "commits"], True), (["fragments"], False)],
)
def test_a_consolidated_array_reads_the_same(
    modes: list[str], is_plain: bool, tmp_path: Path
) -> None:
    counts_ng = write(tmp_path / "x", LAYOUTS["fragments"])
    with tiledbsoma.open(str(tmp_path / "x"), "w") as array:
        array._handle.consolidate_and_vacuum(modes)
    with tiledbsoma.open(str(tmp_path / "x")) as array:
        matrix = SparseSoma(array, "x")
        assert (matrix.tiles is not None) == is_plain
        seen = read(matrix, np.arange(60), np.arange(40), 40)
    np.testing.assert_array_equal(seen, counts_ng)


def test_fragments_later_than_the_handle_do_not_count(tmp_path: Path) -> None:
    layout = Layout(shape=(60, 40))
    counts_ng = write(tmp_path / "x", layout)
    with tiledbsoma.open(str(tmp_path / "x")) as array:
        then = array.tiledb_timestamp_ms
        while int(time.time() * 1000) <= then:
            continue
        put(tmp_path / "x", [0, 0], [0, 1], np.array([9, 9], np.float32))
        matrix = SparseSoma(array, "x")
        seen = read(matrix, np.arange(60), np.arange(40), 40)
        assert matrix.tiles is not None
    np.testing.assert_array_equal(seen, counts_ng)
    with tiledbsoma.open(str(tmp_path / "x")) as array:
        assert read(SparseSoma(array, "x"), np.array([0]), np.arange(2), 40).tolist() == [[9, 9]]


def files_of(path: Path, name: str) -> list[Path]:
    return sorted((path / "__fragments").glob(f"*/{name}"))


@pytest.mark.parametrize("name", ["a0.tdb", "d0.tdb", "d1.tdb"])
def test_noise_in_a_file_names_the_rows(name: str, tmp_path: Path) -> None:
    write(tmp_path / "x", LAYOUTS["fragments"])
    for file in files_of(tmp_path / "x", name):
        # The head of the first block stays; what it leads to does not.
        raw = file.read_bytes()
        file.write_bytes(raw[:28] + b"\xff" * (len(raw) - 28))
    with tiledbsoma.open(str(tmp_path / "x")) as array:
        matrix = SparseSoma(array, "the store")
        assert matrix.tiles is not None
        with pytest.raises(StoreCorrupt, match=r"the store: the entries of rows \d+ to \d+"):
            matrix.read(np.arange(60), column_map(np.arange(40), 40, "x"))


@pytest.mark.parametrize(
    ("at", "number"),
    [(0, 0), (0, 1), (0, 1 << 20), (8, 0), (8, 8), (8, 1 << 30), (12, 1 << 30), (16, 1 << 30)],
)
def test_heads_of_tiles_and_blocks_are_not_believed(at: int, number: int, tmp_path: Path) -> None:
    """How many blocks there are, how long each is before and after, how long its notes are."""
    write(tmp_path / "x", LAYOUTS["several blocks a tile"])
    (file,) = files_of(tmp_path / "x", "a0.tdb")
    raw = bytearray(file.read_bytes())
    raw[at : at + 4] = number.to_bytes(4, "little")
    file.write_bytes(raw)
    with tiledbsoma.open(str(tmp_path / "x")) as array:
        matrix = SparseSoma(array, "the store")
        assert matrix.tiles is not None
        with pytest.raises(StoreCorrupt, match=r"the store: the entries of rows \d+ to \d+"):
            matrix.read(np.arange(0, 700, 3), column_map(np.arange(60), 60, "x"))


def test_a_file_cut_off_is_left_to_tiledb_which_refuses_it(tmp_path: Path) -> None:
    write(tmp_path / "x", LAYOUTS["as tiledbsoma does"])
    (file,) = files_of(tmp_path / "x", "d1.tdb")
    file.write_bytes(file.read_bytes()[:-40])
    with tiledbsoma.open(str(tmp_path / "x")) as array:
        matrix = SparseSoma(array, "the store")
        assert matrix.tiles is None
        with pytest.raises(StoreCorrupt, match="the store: rows 0 to 59"):
            matrix.read(np.arange(60), column_map(np.arange(40), 40, "x"))


def test_a_file_that_vanished_means_the_store_changed(tmp_path: Path) -> None:
    write(tmp_path / "x", LAYOUTS["as tiledbsoma does"])
    with tiledbsoma.open(str(tmp_path / "x")) as array:
        matrix = SparseSoma(array, "the store")
        files_of(tmp_path / "x", "d0.tdb")[0].unlink()
        with pytest.raises(StoreChanged, match=r"d0\.tdb is gone"):
            matrix.read(np.arange(60), column_map(np.arange(40), 40, "x"))


def test_a_gene_twice_is_refused_with_its_row(tmp_path: Path) -> None:
    layout = Layout(create={"allows_duplicates": True})
    counts_ng = write(tmp_path / "x", layout)
    rows, columns = np.nonzero(counts_ng)
    put(tmp_path / "x", rows[:1], columns[:1], np.array([3], np.float32))
    with tiledbsoma.open(str(tmp_path / "x")) as array:
        for keep in (True, False):
            matrix = SparseSoma(array, "the store")
            matrix.tiles = matrix.tiles if keep else None
            with pytest.raises(StoreCorrupt, match=f"soma_joinid {rows[0]} has a gene twice"):
                matrix.read(np.arange(60), column_map(np.arange(40), 40, "x"))


def test_metadata_of_another_kind_are_not_taken(tmp_path: Path) -> None:
    write(tmp_path / "x", LAYOUTS["as tiledbsoma does"])
    with tiledbsoma.open(str(tmp_path / "x")) as array:
        filters_of(array.schema_config_options())
        capacity, now = array.schema_config_options().capacity, array.tiledb_timestamp_ms
    (file,) = files_of(tmp_path / "x", "__fragment_metadata.tdb")
    raw = file.read_bytes()
    for spoilt in (raw[:-9], raw[:40], b"", raw[: len(raw) // 2] + raw[-300:]):
        file.write_bytes(spoilt)
        with pytest.raises(NotPlain):
            read_fragments(str(tmp_path / "x"), capacity, False, now)
