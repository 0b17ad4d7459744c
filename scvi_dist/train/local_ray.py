"""A Ray of this machine's own, for those who name no cluster."""

import os
from typing import Any

import ray

from scvi_dist.errors import TrainingFailed

ATTEMPTS = 3
_SLOW = "timed out during startup"


def quiet_ray() -> None:
    """No statistics to Ray's makers and no progress bars, unless the user has asked for them."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")


def start_local_ray(num_cpus: int, **options: Any) -> None:
    """Start a Ray with so many logical CPUs in processes beside this one.

    Ray gives its own processes 30 seconds, which a busy machine may not keep; then it is tried
    again.

    Parameters
    ----------
    **options
        Further arguments of ``ray.init``.

    Raises
    ------
    TrainingFailed
        It did not come up in three attempts.
    """
    quiet_ray()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                logging_level="ERROR",
                log_to_driver=False,
                **options,
            )
            return
        except Exception as error:
            ray.shutdown()
            # Ray raises a bare Exception here; only its words tell it from others.
            if _SLOW not in str(error):
                raise
            if attempt == ATTEMPTS:
                raise TrainingFailed(
                    f"Ray's processes on this machine did not answer within 30 s, {ATTEMPTS} times "
                    "in a row: the machine is too busy. Try again when it is less so, or train in "
                    "this process (num_workers=None; train.workers=0 in a run file)."
                ) from error
