"""Triton's kernels hold the laws of all kernels, are built for GPUs, and are chosen on these.

Without a GPU they run in Triton's interpreter. It has to be asked for before Triton is imported,
which other tests may have done by now: so these tests start processes.
"""

import json
import os
import platform
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from scvi_dist.errors import ConfigError, KernelWarning
from scvi_dist.kernels import triton_support
from scvi_dist.kernels.choice import default_kernel, usable_name, works_on
from scvi_dist.module import VAE, CellAssignModule

HERE, CPU = Path(__file__).parent, torch.device("cpu")
IS_THERE = find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not IS_THERE, reason="the package triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
FILES = [
    HERE / name for name in ("test_triton_laws.py", "test_count_loss.py", "test_sparse_linear.py")
]
TOTALVAE = HERE.parent / "module" / "test_totalvae_kernels.py"
LONG = (
    "thousands",
    "other_objectives",
    "nan_is_seen",
    "without_gradients",
    "gradients_of_the_layer",
)
"""Parts of the names of tests that evaluate many cells, for which the interpreter is slow."""
LONGEST = ("any_shape", "sparse_and_dense", "gradients_are_those", "all_genes")
"""Those that would take minutes in it."""


def process(command: list[str | Path], **environment: str) -> str:
    """Output of a Python process that has to succeed."""
    where = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    done = subprocess.run(
        [sys.executable, *command], env=where, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def hold(files: list[Path], which: str, **environment: str) -> str:
    """Run these tests of the kernel; the line that tells how many passed."""
    options = ["-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", which]
    return process([*options, *files], **environment).splitlines()[-1]


@needs_triton
def test_laws_hold_in_the_interpreter() -> None:
    which = f"triton and not ({' or '.join((*LONG, *LONGEST))})"
    said = hold(FILES, which, TRITON_INTERPRET="1")
    assert int(said.split()[0]) > 100, said


@needs_triton
@pytest.mark.slow
def test_laws_of_many_cells_hold_in_the_interpreter() -> None:
    which = f"triton and not triton_laws and ({' or '.join(LONG)} or totalvae)"
    said = hold([*FILES, TOTALVAE], which, TRITON_INTERPRET="1")
    assert int(said.split()[0]) > 10, said


@needs_triton
@needs_gpu
@pytest.mark.gpu
def test_laws_hold_on_a_gpu() -> None:
    said = hold(FILES, "triton", SCVI_DIST_TEST_DEVICE="cuda")
    assert int(said.split()[0]) > 100, said


@needs_triton
@needs_gpu
@pytest.mark.gpu
def test_a_gpu_is_given_triton() -> None:
    module = VAE(n_input=5).to("cuda")
    expected = "triton" if torch.cuda.get_device_capability() >= (8, 0) else "torch"
    assert module.kernel == expected


builds = pytest.mark.skipif(
    not IS_THERE or (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="Triton's compiler is there for Linux on x86-64",
)


def n_built(tmp_path: Path, *options: str) -> int:
    """Number of kernels that were built, none of which keeps more than a few bytes in memory."""
    script = [HERE / "triton_builds.py", *options]
    lines = process(script, TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    for line in lines:
        built = json.loads(line)
        # Registers come in steps: ptxas may spill a few bytes outside of loops to fit into one.
        assert built["spilled_bytes"] <= 16, line
        assert built["registers"] <= 168, line
    return len(lines)


@builds
def test_kernels_are_built_without_a_gpu(tmp_path: Path) -> None:
    assert n_built(tmp_path, "80", "90") == 22


@builds
@pytest.mark.slow
def test_all_kernels_are_built_without_a_gpu(tmp_path: Path) -> None:
    assert n_built(tmp_path, "90", "--all") == 60


def test_triton_is_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not works_on("triton", CPU)
    assert not works_on("triton", torch.device("mps"))
    assert default_kernel(torch.device("mps")) == "torch"
    module = VAE(n_input=5)
    with pytest.raises(ConfigError, match=r"'triton' cannot compute here: this is a CPU"):
        module.kernel = "triton"
    assert module.kernel == "numba"


@needs_triton
def test_a_cpu_is_given_triton_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only where it is interpreted."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert usable_name("triton", CPU) == "triton"
    assert default_kernel(CPU) == "numba"


def test_without_the_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    triton_support._is_installed.cache_clear()
    try:
        assert not works_on("triton", CPU)
        with pytest.raises(ConfigError, match="'triton' is not installed"):
            usable_name("triton", CPU)
    finally:
        triton_support._is_installed.cache_clear()


def test_without_a_compiler_a_gpu_computes_with_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Triton would fail in the first step."""
    monkeypatch.setattr("sysconfig.get_paths", lambda scheme: {"include": str(tmp_path)})
    monkeypatch.setenv("CC", "cc")
    assert f"{tmp_path}/Python.h" in str(triton_support._missing_to_build())
    (tmp_path / "Python.h").touch()
    assert triton_support._missing_to_build() is None
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    assert "no C compiler" in str(triton_support._missing_to_build())


@needs_triton
def test_a_gpu_whose_trial_fails_computes_with_torch_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from scvi_dist.kernels import triton_trial

    monkeypatch.setattr(triton_trial, "failure", lambda device: "it is on fire")
    with pytest.warns(KernelWarning, match=r"not used on cuda:1, torch .*: it is on fire\."):
        assert triton_support._failed_trial(torch.device("cuda:1")) == "it is on fire"


def test_cell_types_have_no_kernel_of_triton() -> None:
    import numpy as np

    module = CellAssignModule(
        n_genes=3, rho=torch.ones(3, 2), basis_means=np.arange(10.0), b_g_0=None
    )
    with pytest.raises(ConfigError, match="no kernel 'triton'"):
        module.kernel = "triton"
