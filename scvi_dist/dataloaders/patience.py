"""Reading that outlasts an outage of the service that holds a store."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from scvi_dist.errors import StoreUnreachable

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 10.0
"""Waits between two tries double from the first to the longest."""

log = logging.getLogger(__name__)

T = TypeVar("T")


def patiently(
    read: Callable[[], T],
    limit_s: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] = time.sleep,
) -> T:
    """What ``read`` gives, tried again while the service does not answer.

    Single requests have retries of their own, of some seconds; this is for minutes.

    Parameters
    ----------
    limit_s
        Longest outage to wait for, in seconds; 0: none.

    Raises
    ------
    StoreUnreachable
        The outage lasted longer, or waiting does not help.
    """
    began_s: float | None = None
    wait_s = FIRST_WAIT_S
    while True:
        try:
            return read()
        except StoreUnreachable as error:
            began_s = clock() if began_s is None else began_s
            out_s = clock() - began_s
            if not error.may_pass or out_s >= limit_s:
                error.add_note(f"waited {out_s:.0f} s of at most {limit_s:.0f} s for the store")
                raise
            log.warning(
                "%s Reading waits: out of reach for %.0f s, of at most %.0f s.",
                error,
                out_s,
                limit_s,
            )
        pause(min(wait_s, limit_s - out_s))
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
