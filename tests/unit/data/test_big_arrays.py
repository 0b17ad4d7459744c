"""Large arrays are arrays like others, and their memory is gone with the last view of them."""

import sys
from pathlib import Path

import numpy as np
import pytest

from scvi_dist.data.on_disk.big_arrays import LARGE_BYTES, new_array


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
