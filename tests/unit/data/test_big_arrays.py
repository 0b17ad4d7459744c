"""Large arrays are arrays like others; their memory is taken over, or gone with the last view."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from scvi_dist.data import big_arrays
from scvi_dist.data.big_arrays import LARGE_BYTES, keep_waiting, new_array, waiting_bytes


@pytest.mark.parametrize("shape", [0, 3, (0, 5), LARGE_BYTES, (LARGE_BYTES // 64, 16)])
@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "bool"])
def test_shape_and_type_are_those_asked_for_and_it_can_be_written(
    shape: object, dtype: str
) -> None:
    array = new_array(shape, dtype)
    like = np.ones(shape, dtype=dtype)
    assert array.shape == like.shape
    assert array.dtype == like.dtype
    assert array.flags.writeable
    assert array.flags.c_contiguous
    array[...] = like
    assert np.array_equal(array, like)


def test_objects_are_never_in_raw_memory() -> None:
    names = new_array(LARGE_BYTES, object)
    names[:] = "gene"
    assert names[-1] == "gene"


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_memory_goes_back_to_the_system_with_the_last_view() -> None:
    def resident() -> int:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x)
        return int(line.split()[1]) * 1024

    size = 64 * LARGE_BYTES
    before = resident()
    array = new_array(size, np.uint8)
    array[:] = 1
    view = array[::2].reshape(2, -1)[1]
    del array
    assert resident() > before + 0.9 * size
    assert view.sum() == size // 4
    del view
    assert resident() < before + 0.1 * size


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_is_taken_over_by_the_next_array_of_its_size_and_by_no_one_else() -> None:
    stays = new_array(3 * LARGE_BYTES, np.uint8)
    stays[:] = 7
    gone = new_array(2 * LARGE_BYTES, np.int32)
    gone[:] = 1
    place, view = address(gone), gone[5:]
    del gone
    other = new_array(2 * LARGE_BYTES, np.int32)
    assert address(other) != place
    del view, other
    again = {address(a) for a in [new_array(2 * LARGE_BYTES, np.int32) for _ in range(2)]}
    assert len(again) == 2
    assert (stays == 7).all()


def test_no_more_waits_than_is_used_and_nothing_once_all_is_gone() -> None:
    before = waiting_bytes()
    arrays = [new_array(2 * LARGE_BYTES, np.uint8) for _ in range(6)]
    used = sum(a.nbytes for a in arrays)
    while arrays:
        used -= arrays.pop().nbytes
        assert waiting_bytes() <= before + max(used, 0) * 1.2
    assert waiting_bytes() <= before


def test_threads_never_share_memory() -> None:
    def fill(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        held: list[np.ndarray] = []
        for i in range(60):
            array = new_array(LARGE_BYTES + int(rng.integers(4)) * (LARGE_BYTES // 2), np.uint8)
            array[:] = (seed * 60 + i) % 251
            held.append(array)
            if len(held) > 3:
                first = held.pop(int(rng.integers(3)))
                if (first != first[0]).any():
                    return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(fill, range(8)))


def test_memory_waits_for_a_process_that_reads_on_and_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(big_arrays, "_MAPPINGS", type(big_arrays._MAPPINGS)())
    del_at_once = new_array(4 * LARGE_BYTES, np.uint8)
    del del_at_once
    assert waiting_bytes() == 0
    keep_waiting(4 * LARGE_BYTES)
    keep_waiting(LARGE_BYTES)  # never takes back what another reader asked for
    one, other = (new_array(4 * LARGE_BYTES, np.uint8) for _ in range(2))
    where = {address(one), address(other)}
    del one, other
    assert waiting_bytes() == 4 * LARGE_BYTES
    assert address(new_array(4 * LARGE_BYTES, np.uint8)) in where
