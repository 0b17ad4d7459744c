"""Who runs a pass over cells: this thread, or what a user names with ``dask=``."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np

RunPass: TypeAlias = Callable[..., Mapping[str, np.ndarray]]
"""Runs a pass over cells; called as :func:`~scvi_dist.analysis.cell_pass.run_here` is."""


@contextmanager
def chosen_engine(dask: Any, otherwise: RunPass) -> Iterator[RunPass]:
    """What ``dask`` names, closed afterwards if it was opened here; ``otherwise`` where None."""
    if dask is None:
        yield otherwise
        return
    engines = import_module("scvi_dist.analysis.engines")
    with engines.resolve_executor(dask) as run:
        yield run
