"""The ``scvi-dist`` command. Nothing heavy is imported until a command runs."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scvi_dist import cli_help
from scvi_dist.cli_analysis import add_analysis_commands
from scvi_dist.cli_jobs import add_jobs_commands, add_submit
from scvi_dist.cli_options import json_option
from scvi_dist.cli_store import add_store_commands
from scvi_dist.errors import (
    BudgetExceeded,
    ConfigError,
    FieldNotFound,
    OutputExists,
    SchemaMismatch,
    ScviDistError,
    StoreNotFound,
    UnsupportedStore,
)

if TYPE_CHECKING:
    from scvi_dist.console import Display

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: all is well; it did not work; the command or run file is wrong; Ctrl-C or SIGTERM."""

ASKED_WRONG = (
    BudgetExceeded,
    ConfigError,
    FieldNotFound,
    OutputExists,
    SchemaMismatch,
    StoreNotFound,
    UnsupportedStore,
)
"""Errors that another command or run file would avoid."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    parser = make_parser()
    options, left = parser.parse_known_args(arguments)
    # argparse takes no more key=value once an option stood between them.
    if left and hasattr(options, "overrides") and not any(a.startswith("-") for a in left):
        options.overrides += left
    elif left:
        options.parser.error(f"unrecognized arguments: {' '.join(left)}")
    if options.command is None:
        options.parser.print_help()
        return USAGE if options.parser is not parser else DONE
    from scvi_dist.console import Display, warnings_as_lines

    display = Display(quiet=options.quiet)
    try:
        with warnings_as_lines(display), _sigterm_interrupts():
            return options.command(options, display)
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        display.fail("interrupted. The same command goes on where it stopped.")
        return INTERRUPTED
    except (ScviDistError, OSError, MemoryError) as error:
        return _explain(error, options.debug, display)
    except Exception as error:  # the edge of the process: say it in a line, traceback on request
        return _explain(error, options.debug, display, expected=False)


def make_parser() -> argparse.ArgumentParser:
    """The command line's commands and options."""
    parser = _parser(
        argparse.ArgumentParser,
        prog="scvi-dist",
        description="scvi-tools' models on atlases that fit neither in memory nor on one machine.",
        epilog=cli_help.EPILOG,
    )
    parser.add_argument("--version", action=_Version)
    parser.set_defaults(command=None, parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_demo(commands)
    _add_run(commands)
    _add_plan(commands)
    add_submit(commands, _parser, _common, _run_file)
    add_jobs_commands(commands, _parser, _common)
    add_analysis_commands(commands, _parser, _common)
    add_store_commands(commands, _parser, _common)
    return parser


def _add_demo(commands: argparse._SubParsersAction) -> None:
    parser = _parser(
        commands.add_parser,
        name="demo",
        help="everything once, on a simulated atlas",
        description=cli_help.DEMO,
        epilog=cli_help.DEMO_EPILOG,
    )
    parser.add_argument(
        "--dir", default="scvi_dist_runs/demo", help="folder for everything (%(default)s)"
    )
    for name, default, text in (
        ("cells", 20_000, "cells to simulate"),
        ("genes", 2_000, "genes to simulate"),
        ("batches", 3, "batches to simulate"),
        ("cell-types", 8, "cell types to simulate"),
        ("epochs", 10, "epochs to train"),
        ("workers", 2, "Ray Train workers; 0: train in this process, without Ray"),
        ("seed", 0, "seed of atlas and training"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (%(default)s)")
    parser.add_argument(
        "--tracking",
        default="auto",
        metavar="URI",
        help="MLflow: 'auto' (a SQLite file in the folder, or MLFLOW_TRACKING_URI), 'off', "
        "or a URI such as http://host:5000 (%(default)s)",
    )
    _common(parser, _demo)


def _add_run(commands: argparse._SubParsersAction) -> None:
    parser = _parser(
        commands.add_parser,
        name="run",
        help="train on your own cells",
        description=cli_help.RUN,
        epilog=cli_help.RUN_EPILOG,
    )
    _run_file(parser)
    parser.add_argument("--keys", action="store_true", help="print the run with every default")
    _common(parser, _run)


def _add_plan(commands: argparse._SubParsersAction) -> None:
    parser = _parser(
        commands.add_parser,
        name="plan",
        help="what a run would do; starts nothing",
        description=cli_help.PLAN,
        epilog=cli_help.PLAN_EPILOG,
    )
    _run_file(parser)
    json_option(parser, "the plan")
    _common(parser, _plan)


def _run_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_file", metavar="RUN.yaml", help="the run file")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="replace values of the file, by dotted key: train.max_epochs=20",
    )


def _common(
    parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace, "Display"], int]
) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="only warnings and results")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(command=command, parser=parser)


def _demo(options: argparse.Namespace, display: "Display") -> int:
    from scvi_dist.job import DemoOptions, run_demo

    run_demo(
        DemoOptions(
            dir=options.dir,
            n_cells=options.cells,
            n_genes=options.genes,
            n_batches=options.batches,
            n_cell_types=options.cell_types,
            epochs=options.epochs,
            workers=options.workers,
            seed=options.seed,
            tracking=options.tracking,
        ),
        display,
    )
    return DONE


def _run(options: argparse.Namespace, display: "Display") -> int:
    from scvi_dist.config import dump_run, load_run

    config = load_run(options.run_file, options.overrides)
    if options.keys:
        print(dump_run(config), end="")
        return DONE
    from scvi_dist.job import run_job

    done = run_job(config, display)
    return INTERRUPTED if done.interrupted else DONE


def _plan(options: argparse.Namespace, display: "Display") -> int:
    from scvi_dist.config import load_run
    from scvi_dist.job import plan_job

    plan = plan_job(load_run(options.run_file, options.overrides))
    print(plan.to_json() if options.json else plan.to_text())
    return DONE


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends what runs as Ctrl-C does; training itself does better: it checkpoints first."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _explain(error: BaseException, debug: bool, display: "Display", expected: bool = True) -> int:
    """One message; what is wrong with the request is told from what went wrong on the way."""
    if debug:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    text = str(error) or type(error).__name__
    if expected:
        display.fail(text)
    else:
        hint = "" if debug else " Run it again with --debug for the traceback."
        display.fail(f"{type(error).__name__}: {text}{hint}")
    return USAGE if isinstance(error, ASKED_WRONG) else FAILED


class _Version(argparse.Action):
    """Prints the version; importing it only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from scvi_dist import __version__

        print(f"scvi-dist {__version__}")
        parser.exit()


def _parser(
    make: Callable[..., argparse.ArgumentParser], **settings: object
) -> argparse.ArgumentParser:
    width = min(100, int(os.environ.get("COLUMNS", 0)) or 100)

    class Formatter(argparse.RawDescriptionHelpFormatter):
        def __init__(self, prog: str) -> None:
            super().__init__(prog, max_help_position=28, width=width)

    name = settings.pop("name", None)
    positional = () if name is None else (name,)
    return make(*positional, formatter_class=Formatter, **settings)


if __name__ == "__main__":
    sys.exit(main())
