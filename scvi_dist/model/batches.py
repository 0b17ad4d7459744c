"""Batches by name."""

from collections.abc import Iterable
from typing import Any

from scvi_dist.batch import REGISTRY_KEYS
from scvi_dist.data.schema import Schema
from scvi_dist.errors import ConfigError, did_you_mean

BatchNames = Any
"""A category of the batch column, a list of them, or None for each cell's own."""


def batch_codes(
    schema: Schema, names: BatchNames, argument: str = "transform_batch"
) -> tuple[int | None, ...]:
    """Codes of batches by category; None stays None.

    ``argument`` is what a message calls them.
    """
    is_one = isinstance(names, str) or not isinstance(names, Iterable)
    known = {name: i for i, name in enumerate(schema.categories[REGISTRY_KEYS.BATCH_KEY])}
    codes: list[int | None] = []
    for name in [names] if is_one else names:
        if name is not None and name not in known:
            raise ConfigError(
                f"{argument}: {name!r} is not a batch of "
                f"{schema.setup.batch_key!r}; {did_you_mean(str(name), map(str, known))}"
            )
        codes.append(None if name is None else known[name])
    return tuple(codes)
