"""Compiled code on disk: shared by processes that start together, never taken for other code."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scvi_dist.kernels.code_cache import CodeFiles

LOOP = """
from scvi_dist.kernels.code_cache import cached_njit

@cached_njit(nogil=True)
def total(x):
    result = x[0] * 0
    for value in x:
        result += value
    return result
"""
RUN = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from loops import total
for dtype in sys.argv[2:]:
    assert total(np.arange(10).astype(dtype)) == 45, dtype
print(sum(total.stats.cache_hits.values()), sum(total.stats.cache_misses.values()))
"""
DTYPES = ["int32", "float32", "uint32", "int64", "float64", "uint64"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "loops.py").write_text(LOOP)
    return tmp_path


def start(folder: Path, *dtypes: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), *dtypes],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache")},
    )


def hits_and_misses(process: "subprocess.Popen[str]") -> tuple[int, int]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    hits, misses = out.split()
    return int(hits), int(misses)


@pytest.mark.slow
def test_processes_that_compile_at_once_leave_code_for_all_to_find(folder: Path) -> None:
    for process in [start(folder, dtype) for dtype in DTYPES]:
        assert hits_and_misses(process) == (0, 1)
    assert hits_and_misses(start(folder, *DTYPES)) == (len(DTYPES), 0)


@pytest.mark.slow
def test_code_of_sources_that_changed_is_compiled_again(folder: Path) -> None:
    (folder / "callee.py").write_text("")
    assert hits_and_misses(start(folder, "int32")) == (0, 1)
    assert hits_and_misses(start(folder, "int32")) == (1, 0)
    (folder / "callee.py").write_text("CHANGED = True")
    assert hits_and_misses(start(folder, "int32")) == (0, 1)
    assert len(list((folder / "cache").rglob("*.nbc"))) == 1


def test_no_order_of_loads_and_saves_mixes_two_signatures(tmp_path: Path) -> None:
    one, other = (CodeFiles(tmp_path, "loop", "sources") for _ in range(2))
    assert one.load("int32") is None
    assert other.load("int64") is None
    other.save("int64", "code of int64")
    one.save("int32", "code of int32")
    for files in (one, other):
        assert files.load("int32") == "code of int32"
        assert files.load("int64") == "code of int64"
    assert CodeFiles(tmp_path, "loop", "other sources").load("int32") is None
    one.flush()
    assert other.load("int32") is None


@pytest.mark.parametrize("left", [0, 10, 40, -1])
def test_a_file_that_is_cut_off_or_altered_is_not_read(tmp_path: Path, left: int) -> None:
    files = CodeFiles(tmp_path, "loop", "sources")
    files.save("key", list(range(100)))
    content = files.path("key").read_bytes()
    files.path("key").write_bytes(content[:left])
    assert files.load("key") is None
    files.path("key").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert files.load("key") is None
    files.save("key", "again")
    assert files.load("key") == "again"


def test_what_cannot_be_written_is_compiled_in_each_process(tmp_path: Path) -> None:
    files = CodeFiles(tmp_path / "not there", "loop", "sources")
    files.save("key", "code")
    assert files.load("key") is None


def test_a_function_that_nobody_can_keep_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from scvi_dist.kernels import code_cache

    def refuse(function: Any) -> None:
        raise RuntimeError("cannot cache function 'total': no locator available")

    monkeypatch.setattr(code_cache, "FunctionCache", refuse)

    @code_cache.cached_njit()
    def total(x: Any) -> Any:
        return x.sum()

    assert total(np.arange(4.0)) == 6.0
