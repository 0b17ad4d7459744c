"""Which device a model is on."""

import torch

from scvi_dist.errors import ConfigError, did_you_mean

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


def resolve_device(
    accelerator: str = "auto", device: int | str | torch.device = "auto"
) -> torch.device:
    """The torch device that scvi-tools' arguments name.

    ``auto`` is the first CUDA device where there is one, else the CPU; Apple's GPU only if named.

    Raises
    ------
    ConfigError
        For an accelerator that is not known or not there.
    """
    if isinstance(device, torch.device):
        return device
    if accelerator not in ACCELERATORS:
        raise ConfigError(f"accelerator {accelerator!r}: {did_you_mean(accelerator, ACCELERATORS)}")
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    kind = "cuda" if accelerator == "gpu" else accelerator
    available = {"cpu": True, "cuda": torch.cuda.is_available()}
    if not available.get(kind, torch.backends.mps.is_available()):
        raise ConfigError(f"accelerator {accelerator!r} was asked for, but torch finds none here.")
    if isinstance(device, str) and not device.isdigit() and device != "auto":
        return torch.device(device)
    if kind == "cpu":
        return torch.device("cpu")
    return torch.device(kind, 0 if device == "auto" else int(device))
