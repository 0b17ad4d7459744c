"""The cache of blocks: never over its limit, the last used stay, damage is never handed out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_dist.data.remote.block_cache import BlockCache

HEADER = 16


def block_of(key: int, size: int = 100) -> bytes:
    return bytes([key % 251]) * size


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "total")


@given(
    asked=st.lists(st.integers(0, 30), max_size=60),
    limit_blocks=st.integers(2, 12),
    size=st.integers(0, 300),
)
def test_never_over_the_limit_and_never_another_block(
    asked: list[int], limit_blocks: int, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    limit = limit_blocks * (size + HEADER)
    cache = BlockCache(folder, limit)
    for key in asked:
        found = cache.get(str(key))
        assert found is None or found == block_of(key, size)
        cache.put(str(key), block_of(key, size))
        assert cache.get(str(key)) == block_of(key, size)
        assert cache.total_bytes() <= limit


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10 * (100 + HEADER))
    for key in range(10):
        cache.put(str(key), block_of(key))
        os.utime(files_of(tmp_path, cache, key), (key, key))
    cache.get("0")  # Now the youngest.
    cache.put("10", block_of(10))
    kept = [key for key in range(11) if cache._path(str(key)).exists()]
    assert kept[0] == 0
    assert kept[1:] == list(range(11 - len(kept) + 1, 11))
    assert len(kept) < 11


def files_of(folder: Path, cache: BlockCache, key: int) -> Path:
    path = cache._path(str(key))
    assert path.is_relative_to(folder)
    return path


def test_too_large_a_block_is_not_kept(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 1000)
    cache.put("small", b"1")
    cache.put("large", b"2" * 1000)
    assert cache.get("large") is None
    assert cache.get("small") == b"1"


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_damage_is_a_miss_and_is_removed(damage: str, tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10_000)
    cache.put("a", block_of(1))
    path = cache._path("a")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= damage == "flip"
    spoilt = {"cut": raw[:-7], "flip": raw, "empty": b"", "other": b"x" * 200}[damage]
    path.write_bytes(bytes(spoilt))
    assert cache.get("a") is None
    assert not path.exists()
    cache.put("a", block_of(1))
    assert cache.get("a") == block_of(1)


@pytest.mark.parametrize("total", ["", "nonsense", f"{10**9:032d}", None])
def test_a_wrong_total_is_counted_again(total: str | None, tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 5 * (100 + HEADER))
    for key in range(3):
        cache.put(str(key), block_of(key))
    (tmp_path / "total").unlink() if total is None else (tmp_path / "total").write_text(total)
    again = BlockCache(tmp_path, 5 * (100 + HEADER))
    again.put("3", block_of(3))
    assert [again.get(str(key)) for key in range(4)] == [block_of(key) for key in range(4)]


def test_what_a_crash_left_behind_is_removed(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 3 * (100 + HEADER))
    cache.put("0", block_of(0))
    old = cache._path("0").with_name("x.block.123-0")
    new = cache._path("0").with_name("y.block.123-1")
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    for key in range(1, 5):
        cache.put(str(key), block_of(key))
    assert not old.exists()
    assert new.exists()  # Somebody may be writing it now.


def test_several_processes_share_one_limit(tmp_path: Path) -> None:
    limit = 20 * (1000 + HEADER)
    code = (
        "import sys\nfrom scvi_dist.data.remote.block_cache import BlockCache\n"
        "cache = BlockCache(sys.argv[1], int(sys.argv[2]))\n"
        "for key in range(150):\n"
        "    name = str((key * int(sys.argv[3])) % 97)\n"
        "    content = name.encode() * (1000 // len(name))\n"
        "    assert cache.get(name) in (None, content)\n"
        "    cache.put(name, content)\n"
        "    with cache._locked():\n"
        "        assert cache.total_bytes() <= int(sys.argv[2]), cache.total_bytes()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(limit)]
    running = [subprocess.Popen([*command, str(step)]) for step in (1, 5, 11)]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
