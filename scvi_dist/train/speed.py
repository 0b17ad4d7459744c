"""How well several ranks use their time."""

from typing import Any


def parallel_efficiency(model: Any, wait_fraction: float) -> float | None:
    """Part of a step in which a rank computes, rather than waiting for cells or for gradients.

    Ranks of one machine that computes nothing else would train as many times faster than one.
    What batch norms exchange between ranks counts as computing.

    Parameters
    ----------
    model
        What the strategy trains; only torch's ``DistributedDataParallel`` keeps these times.
    wait_fraction
        Part of the time in which this rank waited for cells.

    Returns
    -------
    float or None
        0 … 1; ``None`` where nothing was measured.
    """
    if not hasattr(model, "_get_ddp_logging_data"):
        return None
    seen = model._get_ddp_logging_data()
    names = ("avg_forward_compute_time", "avg_backward_compute_time", "avg_backward_comm_time")
    forward, backward, comm = (float(seen.get(name, 0)) for name in names)
    hidden = float(seen.get("avg_backward_compute_comm_overlap_time", 0))
    if forward + backward <= 0:
        return None
    share = (forward + backward) / (forward + backward + max(0.0, comm - hidden))
    return share * (1 - wait_fraction)
