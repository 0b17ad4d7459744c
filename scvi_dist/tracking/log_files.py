"""What libraries say while a run goes on: in files of the run's folder, not on the screen."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = "logs"
"""In the folder of a run."""

TALKATIVE = ("lightning.pytorch", "lightning.fabric", "ray", "ray.train", "ray.data", "mlflow")
"""Loggers of which also what is only informative is kept."""

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def rank_log(run_dir: str | Path | None, rank: int) -> Path | None:
    """The file of one rank; ``None`` where the run has no folder, or this host does not see it."""
    if run_dir is None or not Path(run_dir).is_dir():
        return None
    return Path(run_dir) / FOLDER / f"rank-{rank}.log"


@contextmanager
def library_log(path: Path | None) -> Iterator[None]:
    """Log lines and Python warnings of this process go to a file, too.

    What is said on the screen stays; what a library would say to nobody is kept here.
    """
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    handler.setLevel(logging.INFO)
    loggers = [logging.getLogger(), *(_own_chain())]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with _warnings_to(handler):
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


@contextmanager
def only_in_files(*names: str) -> Iterator[None]:
    """Loggers that say nothing on the screen; a :func:`library_log` around this hears them."""
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    files = [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
    for logger in loggers:
        logger.handlers, logger.propagate = list(files), False
        logger.setLevel(logging.INFO if files else logging.ERROR)
    try:
        yield
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def _own_chain() -> list[logging.Logger]:
    """Loggers whose lines the root does not hear."""
    names = ("scvi_dist", *TALKATIVE)
    return [log for log in map(logging.getLogger, names) if not log.propagate]


@contextmanager
def _warnings_to(handler: logging.Handler) -> Iterator[None]:
    shown = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None):  # type: ignore[no-untyped-def]
        text = warnings.formatwarning(message, category, filename, lineno, line).strip()
        handler.handle(
            logging.LogRecord("warnings", logging.WARNING, filename, lineno, text, None, None)
        )
        shown(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        # Somebody else's that came meanwhile stays.
        if warnings.showwarning is show:
            warnings.showwarning = shown
