"""Which failures pass by themselves, and how long to wait before the next try."""

import errno
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from scvi_dist.data.remote.remote_config import RemoteConfig

_BUSY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_BUSY_ERRNO = frozenset(
    getattr(errno, name)
    for name in (
        *("EBUSY", "EAGAIN", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "EPIPE", "ETIMEDOUT"),
        *("ENETUNREACH", "EHOSTUNREACH", "ENETDOWN", "EREMOTEIO"),
    )
    if hasattr(errno, name)
)
# By name: the clients that raise them are loaded only where they are used.
_BUSY_CLASSES = frozenset(
    {
        *("ClientConnectionError", "ClientPayloadError", "ServerDisconnectedError"),
        *("HTTPClientError", "EndpointConnectionError", "ConnectionClosedError"),
        *("IncompleteRead", "IncompleteReadError", "ResponseParserError", "ReadTimeoutError"),
    }
)
_T = TypeVar("_T")
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class GaveUp(ConnectionError):
    """A request failed as often as it may; the message has the last failure and the number."""


class ShortAnswer(ConnectionError):
    """Fewer bytes came than the object has in that range."""


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed in a moment: throttled, reset, timed out, cut short."""
    for link in _chain(error):
        if isinstance(link, _FINAL):
            return False
        if isinstance(link, (ConnectionError, TimeoutError)):
            return True
        status = _status_of(link)
        if status is not None:
            return status in _BUSY_STATUS
        if isinstance(link, OSError) and link.errno in _BUSY_ERRNO:
            return True
        if _BUSY_CLASSES.intersection(kind.__name__ for kind in type(link).__mro__):
            return True
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then what caused it."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _status_of(error: BaseException) -> int | None:
    """The HTTP status, where an error has one (aiohttp, gcsfs, botocore)."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        answered = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return answered if isinstance(answered, int) else None
    for name in ("status", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int) and 100 <= value < 600:
            return value
    return None


class Attempts:
    """Counts the tries of one request and says how long to wait before the next.

    Waits double and are cut by a random part, so that many readers that were turned away together
    do not come back together.
    """

    def __init__(self, config: RemoteConfig, draw: random.Random | None = None) -> None:
        self._config = config
        self._draw = draw or random.Random()
        self._start = time.monotonic()
        self.n = 0
        """Tries that failed so far."""

    def wait_after(self, error: Exception) -> float:
        """Seconds to wait before the next try.

        Raises
        ------
        GaveUp
            That was the last try.
        Exception
            The error itself, if trying again would not help.
        """
        self.n += 1
        if not is_transient(error):
            raise error
        if self.n >= self._config.attempts:
            took = time.monotonic() - self._start
            tries = f"{self.n} attempt{'s' if self.n > 1 else ''} in {took:.1f} s"
            # Not chained: the messages of clients tell the whole URL, with what signs it.
            raise GaveUp(f"{_words(error)} ({tries})") from None
        longest = min(self._config.first_wait_s * 2.0 ** (self.n - 1), self._config.longest_wait_s)
        return longest * self._draw.uniform(0.5, 1.0)


def _words(error: BaseException) -> str:
    status = next((s for s in map(_status_of, _chain(error)) if s is not None), None)
    shown = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"status {status}, {shown}" if status is not None else shown


def persist(ask: Callable[[], _T], config: RemoteConfig) -> _T:
    """The answer of a blocking request, asked again while that may help.

    Raises
    ------
    GaveUp
        All attempts failed.
    """
    tries = Attempts(config)
    while True:
        try:
            return ask()
        except Exception as error:  # judged by Attempts, which raises what is final
            time.sleep(tries.wait_after(error))
