"""Off a terminal: a line for each step, a sparse line for progress, results whole."""

import io
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from scvi_dist.console import SPARSE_S, Display, training_words
from scvi_dist.train.progress import TrainProgress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(clock: Clock, quiet: bool = False) -> tuple[Display, io.StringIO, io.StringIO]:
    told, results = io.StringIO(), io.StringIO()
    return Display(told, results, quiet=quiet, clock=clock), told, results


def test_a_step_is_a_line_with_what_came_of_it_and_how_long_it_took(clock: Clock) -> None:
    display, told, _ = make(clock)
    with display.step("A [x] store") as step:
        clock.now += 3
        step.say("5 cells [x] 2")
    with display.step("Plan") as step:
        step.say("of it")
    assert told.getvalue() == "✓ A [x] store  5 cells [x] 2 (3.0 s)\n✓ Plan         of it\n"


def test_a_step_that_fails_is_not_ticked(clock: Clock) -> None:
    display, told, _ = make(clock)
    with pytest.raises(ZeroDivisionError), display.step("Divided"):
        _ = 1 / 0
    with pytest.raises(ZeroDivisionError), display.progress("Divided"):
        _ = 1 / 0
    assert "✓" not in told.getvalue()


@pytest.mark.parametrize("seconds", [0, 10, 100, 1_000])
def test_progress_in_a_log_is_a_line_now_and_then(clock: Clock, seconds: int) -> None:
    display, told, _ = make(clock)
    with display.progress("Trained") as (update, _):
        for tick in range(seconds):
            clock.now += 1
            update(tick / seconds, f"epoch {tick}")
    lines = told.getvalue().splitlines()
    assert lines[-1].startswith("✓ Trained")
    assert len(lines) - 1 == seconds // SPARSE_S


def test_quiet_says_only_what_has_to_be_read(clock: Clock) -> None:
    display, told, results = make(clock, quiet=True)
    with display.step("a"), display.progress("b") as (update, _):
        clock.now += 100
        update(0.5, "half")
    display.note("c")
    display.warn("watch out")
    display.result("Done", {"model": "/m"})
    assert told.getvalue() == "! watch out\n"
    assert "/m" in results.getvalue()


def test_paths_and_commands_are_never_broken(clock: Clock) -> None:
    display, told, results = make(clock)
    long = "/data/" + "x" * 300
    display.result("Done", {"latent": long, "figures": f"{long}\n{long}"}, then=f"mlflow ui {long}")
    display.warn(long)
    display.fail(long)
    assert results.getvalue().count(long) == 4
    assert told.getvalue().count(long) == 2


def test_nothing_is_taken_for_markup(clock: Clock) -> None:
    display, told, _ = make(clock)
    for tell in (display.note, display.warn, display.fail):
        tell("a [red]b[/red] [/] c")
    assert told.getvalue().count("a [red]b[/red] [/] c") == 3


def test_training_is_told_in_a_few_words() -> None:
    progress = TrainProgress(
        epoch=2,
        max_epochs=10,
        step=20,
        max_steps=None,
        steps_per_epoch=10,
        epoch_step=0,
        metrics={"elbo_validation": 1234.56, "train_loss": 1300.0},
        cells_per_s=5_000.0,
        wait_fraction=0.4,
    )
    assert training_words(progress) == (
        "epoch 3/10 · validation 1,234.6 · loss 1,300.0 · 5,000 cells/s · 40 % waiting for data"
    )
    measured = replace(progress, memory_bytes=3 << 29, gpu_bytes=10 << 30)
    assert training_words(measured).endswith(" waiting for data · 1.5 GiB · GPU 10.0 GiB")


def tell_all(display: Display, log: Path) -> None:
    with display.kept_in(log):
        with display.progress("Trained") as (update, step):
            update(0.5, "half")
            step.say("well")
        display.warn("mind\nthis")
        display.result("Done", {"folder": "/x"})
        raise ZeroDivisionError


@pytest.mark.parametrize("quiet", [False, True])
def test_what_is_told_is_kept_in_a_file_with_its_time(tmp_path: Path, quiet: bool) -> None:
    clock = iter(range(0, 1000, 20))
    display = Display(io.StringIO(), io.StringIO(), quiet=quiet, clock=lambda: next(clock))
    log = tmp_path / "logs" / "run.log"
    display.note("before")
    with pytest.raises(ZeroDivisionError):
        tell_all(display, log)
    display.note("after")
    lines = [line.split(" ", 1) for line in log.read_text().splitlines()]
    for moment, _ in lines:
        assert datetime.fromisoformat(moment).tzinfo is not None
    told = [text for _, text in lines]
    assert told[:6] == [
        *("Trained: 50 % half", "Trained: well (60 s)", "! mind", "this", "Done", "  folder: /x"),
    ]
    assert told[6].startswith("Traceback")
    assert any("ZeroDivisionError" in text for text in told)
    assert "before" not in told
    assert "after" not in told
