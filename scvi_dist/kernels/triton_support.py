"""Whether Triton's kernels can run on a device. Triton itself is imported for GPUs only."""

import os
import shutil
import sysconfig
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from scvi_dist.errors import KernelWarning

LEAST_CAPABILITY = (8, 0)
"""Of a GPU: kernels are built for those since the A100."""


def missing(device: torch.device) -> str | None:
    """What Triton's kernels lack on a device, in words; None where they can run."""
    if device.type == "cuda":
        return _missing_on_gpu(device)
    if device.type != "cpu":
        return f"this is {device}"
    # The interpreter is as slow as Python: it is there for tests.
    if os.environ.get("TRITON_INTERPRET") != "1":
        return (
            "this is a CPU, where they are only interpreted, with TRITON_INTERPRET=1, to test them"
        )
    return None if _is_installed() else _NOT_INSTALLED


_NOT_INSTALLED = "the package 'triton' is not installed"


@cache
def _missing_on_gpu(device: torch.device) -> str | None:
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return (
            f"this GPU has the compute capability {capability[0]}.{capability[1]}, not 8.0 or more"
        )
    if not _is_installed():
        return _NOT_INSTALLED
    return _missing_to_build() or _failed_trial(device)


def _failed_trial(device: torch.device) -> str | None:
    from scvi_dist.kernels import triton_trial

    what = triton_trial.failure(device)
    if what is not None:
        warnings.warn(
            f"Triton's kernels are not used on {device}, torch computes in their place: {what}. "
            "Please report it with the versions of torch, of Triton and of the driver.",
            KernelWarning,
            stacklevel=2,
        )
    return what


@cache
def _is_installed() -> bool:
    return find_spec("triton") is not None


def _missing_to_build() -> str | None:
    """Triton builds what starts its kernels for the Python that runs, with a C compiler."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "there is no C compiler: gcc, clang, or one named by CC"
    scheme = sysconfig.get_default_scheme()
    # Debian's own scheme has no headers, and Triton looks here as well.
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    header = Path(sysconfig.get_paths(scheme)["include"]) / "Python.h"
    return None if header.exists() else f"Python's headers are not installed: there is no {header}"
