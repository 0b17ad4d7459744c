"""A client of one MLflow server or database, and what its errors mean."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scvi_dist.tracking.records import Record, Refused, Unreachable
from scvi_dist.tracking.values import redact

MAX_ANSWERED_FAILURES = 5
"""A record that fails so often in other ways than a missing connection is given up."""


class Connection:
    """Makes the client on first use and tells passing failures from final ones."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: Any = None
        self._failing: tuple[str, int] = ("", 0)

    def client(self, may_create: bool = False) -> Any:
        """An ``MlflowClient``. ``may_create``: a SQLite file that is missing is made."""
        database = self._uri.removeprefix("sqlite:///")
        if database != self._uri:
            if may_create:
                Path(database).parent.mkdir(parents=True, exist_ok=True)
            elif not Path(database).exists():
                # SQLite would make an empty one, on a host that has another disk for example.
                raise Unreachable(f"there is no database at {database} on this host")
        if self._client is None:
            _prepare_environment()
            from mlflow import MlflowClient

            for name in ("alembic", "mlflow.store.db.utils", "urllib3.connectionpool"):
                logging.getLogger(name).setLevel(logging.ERROR)
            self._client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        return self._client

    def verdict(self, error: Exception, record: Record) -> Exception:
        """Whether to try again after ``error``."""
        from mlflow.exceptions import MlflowException, RestException

        status = None
        if isinstance(error, MlflowException):
            status = error.get_http_status_code()
            if self._uri.startswith("http") and not isinstance(error, RestException):
                return Unreachable(brief(error))  # raised before any answer came
        elif isinstance(error, FileNotFoundError):
            return Refused(brief(error))
        elif isinstance(error, ConnectionError | TimeoutError):
            return Unreachable(brief(error))
        # Wrong credentials and rate limits may be put right while the run goes on.
        if status is not None and 400 <= status < 500 and status not in (401, 403, 408, 429):
            return Refused(brief(error))
        line = record.to_line()
        count = self._failing[1] + 1 if self._failing[0] == line else 1
        self._failing = (line, count)
        if count >= MAX_ANSWERED_FAILURES:
            return Refused(f"it failed {count} times, last with: {brief(error)}")
        return Unreachable(brief(error))


def _prepare_environment() -> None:
    """Set what mlflow reads from the environment, unless the user has set it."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # mlflow's own defaults would wait four minutes for a server that does not answer.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@contextmanager
def as_global_uri(uri: str) -> Iterator[None]:
    """mlflow's process-wide URI set to ``uri``.

    Registering a logged model straight in a database looks the model up through that URI, whatever
    the client was made with.
    """
    import mlflow

    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def brief(error: Exception) -> str:
    """First line of the message, without secrets."""
    text = (str(error) or type(error).__name__).splitlines()[0]
    return redact(text)[:300]
