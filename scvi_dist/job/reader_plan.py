"""How many cores have to read so that those who train do not wait: measured, and assumed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from scvi_dist.config import RunConfig
from scvi_dist.data import Store

SAMPLE_CELLS = 4_096
"""Cells that are read to measure how fast reading is."""
OPERATIONS = 6
"""Floating-point operations for each weight and cell: two forwards, four backwards."""
CORE_FLOPS, GPU_FLOPS = 2e10, 5e12
"""What a training step gets out of a core and of a GPU; assumed, far below what they could."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderPlan:
    """Cores that keep all ranks busy."""

    decode_cells_per_s: float
    """What one core reads and decodes; measured on this host."""
    step_cells_per_s: float
    """What one rank trains on; assumed."""
    device: str
    cores: int
    """Over all ranks."""

    def to_text(self) -> str:
        """The plan for a person."""
        return (
            f"{self.cores:,} keep all ranks busy, if a core reads {self.decode_cells_per_s:,.0f} "
            f"cells/s (measured here) and a rank trains {self.step_cells_per_s:,.0f} (assumed: "
            f"{self.device})"
        )


def plan_readers(
    config: RunConfig,
    store: Store,
    n_parameters: int,
    world: int,
    clock: Callable[[], float] = time.perf_counter,
) -> ReaderPlan:
    """Read some cells, and compare with what training would take.

    Parameters
    ----------
    world
        Ranks that train.
    """
    stop = min(store.n_obs, SAMPLE_CELLS)
    store.read_rows([(0, min(stop, 64))])  # What is loaded on first use does not count.
    began_s = clock()
    store.read_rows([(0, stop)])
    decode = stop / max(clock() - began_s, 1e-6)
    ray = config.train.ray_config
    cores = ray.worker_resources(1).get("CPU", 1)
    flops = GPU_FLOPS if ray.use_gpu else CORE_FLOPS * cores
    device = "a GPU" if ray.use_gpu else f"{cores:g} core{'s' if cores != 1 else ''}"
    step = flops / (OPERATIONS * max(n_parameters, 1))
    return ReaderPlan(
        decode_cells_per_s=decode,
        step_cells_per_s=step,
        device=f"{device} at {flops:.0e} operations/s",
        cores=max(1, ceil(world * step / decode)),
    )
