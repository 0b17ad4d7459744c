"""A progress bar for training, where somebody is there to see it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scvi_dist.train.progress import OnProgress, TrainProgress


def is_watched() -> bool:
    """Whether standard error is a terminal, or this is a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


@contextmanager
def progress_bar() -> "Iterator[OnProgress]":
    """A bar over the whole run, with the newest loss; give what it yields as ``on_progress``."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("training", total=1.0, told="")

        def show(progress: "TrainProgress") -> None:
            epoch = min(progress.epoch + 1, progress.max_epochs or progress.epoch + 1)
            of = f"/{progress.max_epochs}" if progress.max_epochs else ""
            metrics = progress.metrics
            loss = metrics.get("train_loss", metrics.get("train_loss_step"))
            bar.update(
                task,
                completed=progress.fraction,
                description=f"epoch {epoch}{of}",
                told=f"loss {loss:.4g}" if loss is not None else "",
            )

        yield show
