"""scvi-tools' arguments about how torch's data loaders read, which have no use here."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from scvi_dist.errors import ConfigError, did_you_mean

LoaderArguments: TypeAlias = Mapping[str, Any] | None

_WITHOUT_EFFECT = (
    "num_workers",
    "persistent_workers",
    "pin_memory",
    "pin_memory_device",
    "prefetch_factor",
    "load_sparse_tensor",
    "data_and_attributes",
    "iter_ndarray",
    "drop_last",
    "drop_dataset_tail",
    "distributed_sampler",
    "data_loader_class",
    "shuffle",
)


def check_loader_arguments(given: LoaderArguments) -> None:
    """Raise for what is no such argument, or would change which cells come in which order.

    Raises
    ------
    ConfigError
        An unknown name, or cells left out or shuffled.
    """
    for name, value in (given or {}).items():
        if name not in _WITHOUT_EFFECT:
            raise ConfigError(
                f"there is no argument {name!r}; {did_you_mean(name, _WITHOUT_EFFECT)}"
            )
        if name in ("shuffle", "drop_last", "drop_dataset_tail", "distributed_sampler") and value:
            raise ConfigError(
                f"{name}={value!r}: results are of all cells that are asked for, in that order. "
                "Choose and order them with indices=…"
            )
