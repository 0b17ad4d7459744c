"""Memory that is freed while a worker computes is used again, and given back afterwards."""

import os
import subprocess
import sys

import pytest

from scvi_dist.analysis.passes.freed_memory import FreedMemory

_PROGRAM = """
import os
import resource

import numpy as np

from scvi_dist.analysis.passes.freed_memory import FREED_MEMORY


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(64):
        np.ones(1 << 17)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


print(faults())
with FREED_MEMORY.kept():
    faults()
    with FREED_MEMORY.kept():
        print(faults())
    print(faults())
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="settings of the GNU C library")
def test_a_worker_of_dask_faults_its_arrays_in_once_while_it_computes() -> None:
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    before, nested, within, after = map(int, done.stdout.split())
    every_time = 64 * (1 << 17) * 8 // os.sysconf("SC_PAGE_SIZE")
    assert before >= every_time // 2
    assert nested < every_time // 8
    assert within < every_time // 8
    # Later tasks of somebody else find the settings that Dask made.
    assert after >= every_time // 2


@pytest.mark.parametrize("given", [{}, {"MALLOC_TRIM_THRESHOLD_": "much"}])
def test_other_processes_are_left_alone(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: object) -> None:
        raise AssertionError("the C library is not to be asked")

    monkeypatch.setattr("ctypes.CDLL", refuse)
    with FreedMemory(given).kept():
        pass
