"""A pass over cells whose process is killed goes on from what it had merged."""

import os
import subprocess
import sys
from pathlib import Path

import cell_passes as cp
import pytest

from scvi_dist.analysis.passes.cell_pass import run_here
from scvi_dist.analysis.passes.engines import EngineConfig, resolve_executor

pytestmark = [pytest.mark.fault, pytest.mark.slow]

PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import cell_passes as cp
from scvi_dist.analysis.passes.cell_pass import Parts
from scvi_dist.analysis.passes.engines import EngineConfig, resolve_executor

folder = Path({folder!r})
config = EngineConfig(checkpoint_dir=folder / "sums", checkpoint_every_s=0)
with resolve_executor("threads:2", config) as executor:
    cells = cp.cells_of_store(folder / "cells.h5ad")
    waits = cp.Waits(folder=str(folder), at=400)
    executor(waits, cp.small_module(), cells, cp.PARTS)
"""


def test_a_killed_pass_goes_on(tmp_path: Path) -> None:
    cp.write_cells(tmp_path / "cells.h5ad")
    code = PROGRAM.format(tests=str(Path(cp.__file__).parent), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ})
    try:
        assert cp.comes((tmp_path / "waiting").exists)
        assert cp.comes(lambda: list((tmp_path / "sums").glob("*.npz")))
    finally:
        process.kill()
        process.wait(timeout=30)
    (tmp_path / "go").touch()
    for mark in tmp_path.glob("rows-*"):
        mark.unlink()
    cells, module, parts = (
        cp.cells_of_store(tmp_path / "cells.h5ad"),
        cp.small_module(),
        cp.PARTS,
    )
    config = EngineConfig(checkpoint_dir=tmp_path / "sums", checkpoint_every_s=0)
    with resolve_executor("sync", config) as executor:
        found = executor(cp.Waits(folder=str(tmp_path), at=400), module, cells, parts)
    again = {int(mark.name[5:]) for mark in tmp_path.glob("rows-*")}
    assert 400 in again
    assert 0 not in again
    cp.same(found, run_here(cp.Expression(), module, cells, parts))
