"""The jobs of a Ray cluster, by its dashboard's address. The only file that knows Ray's job API."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scvi_dist.errors import ClusterUnreachable, ConfigError, WaitTimeout, did_you_mean

CONNECT_S = 10.0
"""Longest wait for a dashboard to take a connection."""
ANSWER_S = 60.0
"""Longest wait for an answer: a package may have to be sent first."""
RECONNECT_S = 300.0
"""How long a lost connection to the logs is tried again."""
POLL_S = 1.0
"""Between two looks at a job, or two tries."""

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_ADDRESS, _RAY_ADDRESS = "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"
_TOKEN, _TOKEN_PATH, _AUTH_MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"

Write = Callable[[str], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class JobFacts:
    """What a cluster knows of a job; no secrets."""

    name: str
    status: str
    """``PENDING``, ``RUNNING``, or one of :data:`ENDED`."""
    message: str
    started: datetime | None
    ended: datetime | None
    exit_code: int | None
    """Of the command, where it ran."""
    metadata: Mapping[str, str]

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ENDED


class ClusterJobs:
    """The jobs at an address.

    Parameters
    ----------
    address
        ``http://HEAD:8265``; ``None``: the environment's RAY_API_SERVER_ADDRESS. A token comes
        from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.

    Raises
    ------
    ConfigError
        It is no address of a dashboard.
    ClusterUnreachable
        Nothing answers there, or it wants another token.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = _checked(address)
        _knock(self.address)
        # Ray prefers these to an address that is given.
        with _without(_ADDRESS, _RAY_ADDRESS), self._asking():
            self._client = _new_client(self.address)

    def start(
        self,
        entrypoint: str,
        *,
        name: str,
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
    ) -> "Job":
        """Start a command; the folders in ``runtime_env`` are sent along."""
        try:
            with self._asking():
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=name,
                    runtime_env=dict(runtime_env),
                    metadata=dict(metadata),
                )
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise
            raise ConfigError(
                f"{self.address} has had a job of the name {name!r} already; give another --name."
            ) from error
        return Job(self, name)

    def all(self) -> list[JobFacts]:
        """The jobs that this cluster was sent, newest first."""
        with self._asking():
            found = [facts_of(details) for details in self._client.list_jobs()]
        # Drivers that were not sent as jobs have no name.
        jobs = [facts for facts in found if facts.name]
        return sorted(jobs, key=lambda f: f.started or datetime.min.replace(tzinfo=UTC))[::-1]

    def job(self, name: str) -> "Job":
        """The job of a name; a :class:`ConfigError` if there is none."""
        names = [facts.name for facts in self.all()]
        if name not in names:
            raise ConfigError(
                f"{self.address} has no job {name!r}; {did_you_mean(name, names)}"
                if names
                else f"{self.address} has no jobs."
            )
        return Job(self, name)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """What Ray and its HTTP client raise, as errors of ours."""
        from ray.exceptions import AuthenticationError
        from requests import RequestException

        try:
            yield
        except AuthenticationError as error:
            given = any(name in os.environ for name in (_TOKEN, _TOKEN_PATH))
            raise ClusterUnreachable(
                f"{self.address} takes requests with its own token only; "
                f"{'the token of this environment is another' if given else 'none was given'}. "
                f"Set {_TOKEN}, or {_TOKEN_PATH} to a file that holds it."
            ) from error
        except (RequestException, ConnectionError) as error:
            if isinstance(error, ClusterUnreachable):
                raise
            raise ClusterUnreachable(
                f"{self.address} does not answer as the dashboard of a Ray cluster does: {error}"
            ) from error


@dataclass(frozen=True, slots=True)
class Job:
    """A job on a cluster."""

    jobs: ClusterJobs
    name: str

    def facts(self) -> JobFacts:
        """How it is now."""
        with self.jobs._asking():
            return facts_of(self.jobs._client.get_job_info(self.name))

    def logs(self) -> str:
        """All that it has written."""
        with self.jobs._asking():
            return self.jobs._client.get_job_logs(self.name)

    def follow(self, write: Write = print) -> JobFacts:
        """Pass on what the job writes, to its end; a lost connection is taken up again.

        Raises
        ------
        ClusterUnreachable
            The connection was lost for longer than :data:`RECONNECT_S`. The job may go on.
        """
        written = 0
        lost_at: float | None = None
        while True:
            try:
                for chunk in _tail(self.jobs._client, self.name, written):
                    write(chunk)
                    written += len(chunk)
                    lost_at = None
                facts = self.facts()
                rest = self.logs()[written:] if facts.has_ended else ""
            except ClusterUnreachable as error:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > RECONNECT_S:
                    raise ClusterUnreachable(
                        f"{self.jobs.address} has not answered for {RECONNECT_S:.0f} s. The job "
                        f"{self.name} goes on if its cluster does."
                    ) from error
            else:
                lost_at = None
                if rest:
                    write(rest)
                if facts.has_ended:
                    return facts
            time.sleep(POLL_S)

    def wait(self, timeout_s: float) -> JobFacts:
        """How it ended; :class:`WaitTimeout` if it has not after so many seconds."""
        deadline = time.monotonic() + timeout_s
        while not (facts := self.facts()).has_ended:
            if time.monotonic() > deadline:
                raise WaitTimeout(
                    f"the job {self.name} is {facts.status} after {timeout_s:.0f} s; expected it "
                    "to have ended."
                )
            time.sleep(POLL_S)
        return facts

    def stop(self) -> bool:
        """Ask it to stop, which writes a checkpoint first; whether it was running."""
        with self.jobs._asking():
            return self.jobs._client.stop_job(self.name)


def facts_of(details: Any) -> JobFacts:
    """From Ray's own record of a job."""
    return JobFacts(
        name=details.submission_id or "",
        status=str(getattr(details.status, "value", details.status)),
        message=details.message or "",
        started=_moment(details.start_time),
        ended=_moment(details.end_time),
        exit_code=details.driver_exit_code,
        metadata=dict(details.metadata or {}),
    )


def _tail(client: Any, name: str, skip: int) -> Iterator[str]:
    """What a job writes, without its first ``skip`` characters; Ray sends all anew each time.

    Raises
    ------
    ClusterUnreachable
        The connection was lost before the end.
    """
    from aiohttp import ClientError

    with asyncio.Runner() as runner:
        chunks = client.tail_job_logs(name)
        try:
            while True:
                try:
                    chunk = runner.run(anext(chunks))
                except StopAsyncIteration:
                    return
                except (ClientError, OSError, RuntimeError) as error:
                    raise ClusterUnreachable(f"the log of {name} broke off: {error}") from error
                new = chunk[skip:]
                skip = max(0, skip - len(chunk))
                if new:
                    yield new
        finally:
            runner.run(chunks.aclose())


def _new_client(address: str) -> Any:
    """Ray's client, with a limit to its waits and without its log lines."""
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            return super()._do_request(*arguments, **{"timeout": ANSWER_S, **options})

    for name in ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
    logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)
    return Client(address, headers=_headers())


def _checked(address: str | None) -> str:
    address = address or os.environ.get(_ADDRESS)
    if not address:
        raise ConfigError(
            f"give the cluster's --address, such as http://HEAD:8265, or set {_ADDRESS}."
        )
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"expected the address of a dashboard, such as http://HEAD:8265, seen {address!r}. "
            "(ray://HEAD:10001 and HEAD:6379 are for programs that join the cluster.)"
        )
    if parts.username or parts.password:
        raise ConfigError(
            f"the address of a cluster must not hold a password; set {_TOKEN} in the environment."
        )
    return address.rstrip("/")


def _knock(address: str) -> None:
    """Ray's client would wait for minutes where nothing answers."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((str(parts.hostname), port), timeout=CONNECT_S).close()
    except OSError as error:
        raise ClusterUnreachable(
            f"nothing answers at {address}: {error}. Expected the dashboard of a Ray cluster; one "
            "on loopback is reached through 'ssh -L 8265:localhost:8265 HEAD'."
        ) from error


def _headers() -> dict[str, str] | None:
    """The token, also where Ray was not told to look for one."""
    if _AUTH_MODE in os.environ:
        return None
    token = os.environ.get(_TOKEN, "")
    path = os.environ.get(_TOKEN_PATH)
    if not token and path:
        try:
            token = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{_TOKEN_PATH}: {path} cannot be read: {error.strerror}.") from error
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else None


@contextmanager
def _without(*names: str) -> Iterator[None]:
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


def _moment(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None
