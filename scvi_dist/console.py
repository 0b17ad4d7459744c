"""What a person sees while something runs: one line a step, a bar where it takes long.

On a terminal steps spin and bars move; anywhere else (a log, a pipe) a line comes now and then.
"""

import logging
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from scvi_dist.train.progress import TrainProgress

SPARSE_S = 15.0
"""Seconds between two lines of progress where no bar can move."""

NAME_WIDTH = 12
"""Columns for the name of a step, so that what is said of it stands below each other."""

GIB = 1 << 30

Update = Callable[[float, str], None]
"""Takes the part done, 0 … 1, and a few words."""


@dataclass
class Step:
    """A step that runs; what is said of it when it is done."""

    said: str = ""

    def say(self, text: str) -> None:
        """Put ``text`` behind the step's name."""
        self.said = text


class Display:
    """Tells how a job goes.

    Parameters
    ----------
    stream
        Where to; the standard error stream by default, so that results can be piped.
    results
        Where results go; standard output by default.
    quiet
        Say nothing but warnings and results.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        results: TextIO | None = None,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = Console(
            file=stream or sys.stderr, highlight=False, soft_wrap=not _is_terminal(stream)
        )
        self._results = results or sys.stdout
        self._quiet = quiet
        self._clock = clock
        self._lively = self.console.is_terminal and not quiet
        self._busy = False
        self._log: TextIO | None = None

    @contextmanager
    def kept_in(self, path: Path) -> Iterator[None]:
        """All that is told meanwhile is kept in a file, too, with the time before each line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", buffering=1) as self._log:
            try:
                yield
            except Exception:
                self._keep(traceback.format_exc())
                raise
            finally:
                self._log = None

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Something that takes a moment: its name, and a tick when it is done."""
        step = Step()
        start = self._clock()
        if self._lively and not self._busy:
            self._busy = True
            try:
                with self.console.status(escape(name)):
                    yield step
            finally:
                self._busy = False
        else:
            yield step
        self._done(name, step.said, self._clock() - start)

    @contextmanager
    def progress(self, name: str) -> Iterator[tuple[Update, Step]]:
        """Something that takes long: a bar, or a line now and then."""
        step = Step()
        start = self._clock()
        if self._lively:
            with self._bar(name) as update:
                yield self._sparse(name, update), step
        else:
            yield self._sparse(name), step
        self._done(name, step.said, self._clock() - start)

    def note(self, text: str) -> None:
        """A line of information."""
        self._keep(text)
        if not self._quiet:
            self.console.print(f"  {escape(text)}", style="dim")

    def warn(self, text: str) -> None:
        """A line that should be read."""
        self._keep(f"! {text}")
        self.console.print(f"[yellow]![/yellow] {escape(text)}")

    def fail(self, text: str) -> None:
        """Why it did not work."""
        self._keep(f"error: {text}")
        self.console.print(Text("error: ", style="bold red") + Text(text))

    def result(self, title: str, rows: Mapping[str, str], then: str = "") -> None:
        """What came out, on standard output: two columns, and a line that comes last.

        Lines are never broken: a path or a command that is cut cannot be copied.
        """
        self._keep(title)
        for name, value in rows.items():
            self._keep(f"  {name}: {value}")
        width = max((len(name) for name in rows), default=0)
        print(f"\n{title}", file=self._results)
        for name, value in rows.items():
            first, *more = value.split("\n")
            print(f"  {name:<{width}}  {first}", file=self._results)
            for line in more:
                print(f"  {'':<{width}}  {line}", file=self._results)
        if then:
            print(f"\n{then}", file=self._results)

    def _keep(self, text: str) -> None:
        if self._log is not None:
            moment = datetime.now().astimezone().isoformat(timespec="seconds")
            for line in text.split("\n"):
                self._log.write(f"{moment} {line}\n")

    def _done(self, name: str, said: str, seconds: float) -> None:
        self._keep(f"{name}: {said} ({_duration(seconds)})" if said else name)
        if self._quiet:
            return
        words = f"{escape(f'{name:<{NAME_WIDTH}}')} {escape(said)}" if said else escape(name)
        took = f" [dim]({_duration(seconds)})[/dim]" if seconds >= 0.1 else ""
        self.console.print(f"[green]✓[/green] {words}{took}")

    @contextmanager
    def _bar(self, name: str) -> Iterator[Update]:
        columns = (
            TextColumn(f"  {{task.description:<{NAME_WIDTH}}}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[words]}", style="dim"),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task: TaskID = bar.add_task(escape(name), total=1.0, words="")

            def update(fraction: float, words: str) -> None:
                bar.update(task, completed=fraction, words=escape(words))

            self._busy = True
            try:
                yield update
            finally:
                self._busy = False

    def _sparse(self, name: str, bar: Update | None = None) -> Update:
        """A line now and then; where a bar moves, only for the log."""
        last = self._clock()

        def update(fraction: float, words: str) -> None:
            nonlocal last
            now = self._clock()
            if bar is not None:
                bar(fraction, words)
            if now - last < SPARSE_S:
                return
            last = now
            line = f"{name}: {100 * fraction:.0f} % {words}".rstrip()
            self._keep(line)
            if bar is None and not self._quiet:
                self.console.print(f"  {escape(line)}")

        return update


def training_words(progress: "TrainProgress") -> str:
    """A few words on how training goes."""
    epoch = min(progress.epoch + 1, progress.max_epochs or progress.epoch + 1)
    words = [f"epoch {epoch}{f'/{progress.max_epochs}' if progress.max_epochs else ''}"]
    for name, label in (("elbo_validation", "validation"), ("train_loss", "loss")):
        if name in progress.metrics:
            words.append(f"{label} {progress.metrics[name]:,.1f}")
    if progress.cells_per_s:
        words.append(f"{progress.cells_per_s:,.0f} cells/s")
    if progress.wait_fraction > 0.2:
        words.append(f"{100 * progress.wait_fraction:.0f} % waiting for data")
    if progress.memory_bytes:
        words.append(f"{progress.memory_bytes / GIB:.1f} GiB")
    if progress.gpu_bytes:
        words.append(f"GPU {progress.gpu_bytes / GIB:.1f} GiB")
    return " · ".join(words)


@contextmanager
def warnings_as_lines(display: Display) -> Iterator[None]:
    """Python warnings and our own log lines as single lines of the display, each text once."""
    seen: set[str] = set()

    def tell(text: str) -> None:
        line = " ".join(text.split())
        if line not in seen:
            seen.add(line)
            display.warn(line)

    class _Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell(record.getMessage())

    def show(message: Warning | str, category: type[Warning], *_: object) -> None:
        # Advice of libraries to their own developers is not for whoever runs a job.
        if not issubclass(category, DeprecationWarning | FutureWarning | ResourceWarning):
            tell(str(message))

    logger, handler = logging.getLogger("scvi_dist"), _Lines(logging.WARNING)
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show  # type: ignore[assignment]
            yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _is_terminal(stream: TextIO | None) -> bool:
    return (stream or sys.stderr).isatty()


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
