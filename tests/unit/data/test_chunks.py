"""Chunks: fetched together, decoded once, damage noticed."""

import itertools
import mmap
import zlib
from collections.abc import Sequence
from pathlib import Path

import fsspec
import numcodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_dist.data.on_disk.chunks import (
    DECODERS,
    ChunkDamaged,
    LocalObjects,
    Objects,
    Piece,
    fetch_joined,
    read_chunks,
    unshuffled,
)
from scvi_dist.data.remote.objects import RemoteObjects
from scvi_dist.data.spans import expand, total_length

ENCODERS = {
    "": bytes,
    "blosc": numcodecs.Blosc().encode,
    "zstd": numcodecs.Zstd().encode,
    "lz4": numcodecs.LZ4().encode,
    "gzip": numcodecs.GZip().encode,
    "zlib": zlib.compress,
}


def test_every_decoder_has_a_test() -> None:
    assert set(ENCODERS) == set(DECODERS)


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_undo_what_encoders_do(name: str) -> None:
    values = np.random.default_rng(0).integers(0, 9, 500).astype("<i4")
    stored = memoryview(bytes(ENCODERS[name](values.tobytes())))
    out = np.zeros_like(values)
    DECODERS[name]()(stored, out.view(np.uint8))
    np.testing.assert_array_equal(out, values)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("damage", ["cut", "empty", "shorter", "longer", "noise"])
def test_decoders_notice_damage(name: str, damage: str) -> None:
    values = np.random.default_rng(0).integers(0, 9, 500).astype("<i4")
    encode = ENCODERS[name]
    stored = bytes(encode(values.tobytes()))
    bad = {
        "cut": stored[:-9],
        "empty": b"",
        "shorter": bytes(encode(values[:-1].tobytes())),
        "longer": bytes(encode(np.append(values, 1).astype("<i4").tobytes())),
        "noise": b"\xff" * 60,
    }[damage]
    with pytest.raises(ChunkDamaged):
        DECODERS[name]()(memoryview(bad), np.zeros(2000, dtype=np.uint8))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("left", [0, 15, 16, 17, 4096, 40_960])
def test_nothing_behind_a_chunk_that_is_cut_off_is_read(name: str, left: int) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 30, 1 << 18).astype("<i4")
    stored = bytes(ENCODERS[name](values.tobytes()))
    # It ends where a page ends: what lies behind is mostly not this process's to read.
    pages = -(-max(left, 1) // mmap.PAGESIZE)
    with mmap.mmap(-1, pages * mmap.PAGESIZE) as memory:
        start = len(memory) - left
        memory[start:] = stored[:left]
        with memoryview(memory) as whole, whole[start:] as cut, pytest.raises(ChunkDamaged):
            DECODERS[name]()(cut, np.zeros(values.nbytes, dtype=np.uint8))


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_shuffled_bytes_are_put_back(itemsize: int) -> None:
    raw = np.random.default_rng(0).integers(0, 256, 40 * itemsize).astype(np.uint8)
    shuffled = raw.reshape(-1, itemsize).T.tobytes()
    out = np.zeros_like(raw)
    unshuffled(DECODERS["zlib"](), itemsize)(zlib.compress(shuffled), out)
    np.testing.assert_array_equal(out, raw)


@st.composite
def pieces(draw: st.DrawFn) -> list[Piece]:
    found = []
    for _ in range(draw(st.integers(0, 12))):
        key = draw(st.sampled_from(["a", "b", "missing"]))
        if draw(st.integers(0, 4)) == 0:
            found.append(draw(st.sampled_from([Piece(key), Piece(key, -7)])))
            continue
        start = draw(st.integers(0, 90))
        found.append(Piece(key, start, start + draw(st.integers(1, 10))))
    return found


CONTENT = {"a": bytes(range(100)), "b": bytes(range(100, 200))}


def slice_of(piece: Piece) -> bytes | None:
    whole = CONTENT.get(piece.key)
    return None if whole is None else whole[piece.start : piece.stop]


@given(pieces(), st.integers(0, 40))
def test_joined_fetches_give_each_piece(asked: list[Piece], max_gap: int) -> None:
    seen: list[Piece] = []

    def read(joined: Sequence[Piece]) -> list[bytes | None]:
        seen.extend(joined)
        return [slice_of(piece) for piece in joined]

    got = fetch_joined(asked, read, max_gap)
    assert [None if g is None else bytes(g) for g in got] == [slice_of(p) for p in asked]
    assert len(seen) <= len(asked)
    for key in CONTENT:
        bounded = sorted((p.start, p.stop) for p in seen if p.key == key and p.stop is not None)
        for (_, stop), (start, _) in itertools.pairwise(bounded):
            assert start is not None
            assert start - stop > max_gap


@given(asked=pieces())
@pytest.mark.parametrize("kind", ["local", "remote"])
def test_objects_here_and_elsewhere(
    kind: str, asked: list[Piece], tmp_path_factory: pytest.TempPathFactory
) -> None:
    objects: Objects
    if kind == "local":
        folder = tmp_path_factory.getbasetemp() / "objects"
        folder.mkdir(exist_ok=True)
        for key, content in CONTENT.items():
            (folder / key).write_bytes(content)
        objects = LocalObjects(str(folder))
    else:
        filesystem = fsspec.filesystem("memory")
        filesystem.pipe({f"/objects/{key}": content for key, content in CONTENT.items()})
        objects = RemoteObjects("memory:///objects")
    got = objects.fetch(asked)
    assert [None if g is None else bytes(g) for g in got] == [slice_of(p) for p in asked]


def test_one_file_is_the_object_of_the_empty_key(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT["a"])
    got = LocalObjects(str(tmp_path / "f")).fetch([Piece("", 3, 5)])
    assert got == [CONTENT["a"][3:5]]


@given(
    st.sets(st.integers(0, 100), min_size=2, max_size=20),
    st.integers(1, 40),
    st.sets(st.integers(0, 9)),
)
def test_each_chunk_is_decoded_once(edges: set[int], chunk: int, gone: set[int]) -> None:
    bounds = sorted(edges)[: len(edges) // 2 * 2]
    spans = np.array(bounds, dtype=np.int64).reshape(-1, 2)
    stored = np.arange(1, 101, dtype="<i4")
    padded = np.append(stored, np.zeros(-len(stored) % chunk, dtype="<i4"))
    fetched: list[int] = []

    def fetch(numbers: list[int]) -> list[memoryview | None]:
        fetched.extend(numbers)
        return [
            None if i in gone else memoryview(padded[i * chunk : (i + 1) * chunk].tobytes())
            for i in numbers
        ]

    out = np.full(total_length(spans), -1, dtype=np.int64)
    absent = read_chunks(
        spans,
        out,
        chunk=chunk,
        dtype=np.dtype("<i4"),
        fetch=fetch,
        decode=DECODERS[""](),
        batch_bytes=1 << 20,
    )
    rows = expand(spans)
    expected = np.where(np.isin(rows // chunk, list(gone)), 0, stored[rows])
    np.testing.assert_array_equal(out, expected)
    assert sorted(fetched) == sorted({row // chunk for row in rows.tolist()})
    assert sorted(absent) == sorted(set(fetched) & gone)
