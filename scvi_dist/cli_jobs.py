"""The commands ``scvi-dist submit`` and ``scvi-dist jobs …``."""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from scvi_dist import cli_help
from scvi_dist.cli_options import json_option

if TYPE_CHECKING:
    from datetime import datetime

    from scvi_dist.console import Display
    from scvi_dist.job.cluster_jobs import Job, JobFacts

Command = Callable[[argparse.Namespace, "Display"], int]
MakeParser = Callable[..., argparse.ArgumentParser]
AddCommon = Callable[[argparse.ArgumentParser, Command], None]
AddOptions = Callable[[argparse.ArgumentParser], None]

DONE, FAILED, INTERRUPTED = 0, 1, 130
STOP_WAIT_S = 180.0
"""Longest wait of ``jobs stop`` for the end of a job, which writes a checkpoint first."""


def add_submit(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    make_parser: MakeParser,
    add_common: AddCommon,
    add_run_file: AddOptions,
) -> None:
    """``scvi-dist submit``."""
    parser = make_parser(
        commands.add_parser,
        name="submit",
        help="the same on a Ray cluster, as a job",
        description=cli_help.SUBMIT,
        epilog=cli_help.SUBMIT_EPILOG,
    )
    add_run_file(parser)
    _address(parser)
    parser.add_argument("--name", help="of the job; without it, the output folder's and a number")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="show what the job writes, to its end"
    )
    parser.add_argument(
        "--package", action="store_true", help="send this scvi_dist along: the cluster has another"
    )
    parser.add_argument(
        "--shared-storage",
        action="store_true",
        help="the cluster sees the current folder: relative paths mean the same there",
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="give the job this environment variable; no secrets, it is shown in the dashboard",
    )
    add_common(parser, _submit)


def add_jobs_commands(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    make_parser: MakeParser,
    add_common: AddCommon,
) -> None:
    """All of ``scvi-dist jobs``."""
    jobs = make_parser(
        commands.add_parser,
        name="jobs",
        help="the jobs of a Ray cluster",
        description=cli_help.JOBS,
    )
    jobs.set_defaults(command=None, parser=jobs)
    inner = jobs.add_subparsers(title="commands", metavar="COMMAND")
    for name, (text, description, epilog, add_options, command) in COMMANDS.items():
        parser = make_parser(
            inner.add_parser, name=name, help=text, description=description, epilog=epilog
        )
        add_options(parser)
        _address(parser)
        add_common(parser, command)


def _address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help="the cluster's dashboard, http://HEAD:8265 (RAY_API_SERVER_ADDRESS)",
    )


def _list_options(parser: argparse.ArgumentParser) -> None:
    json_option(parser, "the jobs")


def _name_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the job, as 'jobs list' shows it")


def _status_options(parser: argparse.ArgumentParser) -> None:
    _name_option(parser)
    json_option(parser, "what is known")


def _logs_options(parser: argparse.ArgumentParser) -> None:
    _name_option(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")


def _submit(options: argparse.Namespace, display: "Display") -> int:
    from scvi_dist.job.submission import SubmitOptions, submit

    with display.step("Job") as step:
        job = submit(
            options.run_file,
            options.overrides,
            SubmitOptions(
                address=options.address,
                name=options.name,
                package=options.package,
                shared_storage=options.shared_storage,
                env=tuple(options.env),
            ),
        )
        step.say(job.name)
    if options.follow:
        return _follow(job, display)
    display.result("submitted", {"job": job.name, **_ways(job)})
    return DONE


def _follow(job: "Job", display: "Display") -> int:
    """What a job writes, to its end; Ctrl-C ends the watching, not the job."""
    try:
        facts = job.follow(_write)
    except KeyboardInterrupt:
        rows = _ways(job)
        display.result("the job goes on", {"job": job.name, **rows})
        return INTERRUPTED
    if facts.status == "FAILED":
        display.fail(f"the job {job.name} failed: {_message(facts)}")
    elif facts.status == "STOPPED":
        display.note(f"the job {job.name} was stopped; submitted again, the run goes on.")
    return exit_code(facts)


def exit_code(facts: "JobFacts") -> int:
    """The exit code that the run itself had, as far as it is known."""
    if facts.status == "FAILED":
        return facts.exit_code if facts.exit_code in (1, 2, INTERRUPTED) else FAILED
    return INTERRUPTED if facts.status == "STOPPED" else DONE


def _list(options: argparse.Namespace, display: "Display") -> int:
    from scvi_dist.job.cluster_jobs import ClusterJobs

    jobs = ClusterJobs(options.address).all()
    if options.json:
        print(json.dumps([_as_json(facts) for facts in jobs], indent=1))
        return DONE
    rows = [("NAME", "STATUS", "STARTED", "TOOK", "OUTPUT")]
    rows += [
        (f.name, f.status, _time(f.started), _took(f), f.metadata.get("output", "")) for f in jobs
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    return DONE


def _logs(options: argparse.Namespace, display: "Display") -> int:
    job = _job(options)
    if options.follow:
        return _follow(job, display)
    _write(job.logs())
    return DONE


def _status(options: argparse.Namespace, display: "Display") -> int:
    facts = _job(options).facts()
    if options.json:
        print(json.dumps(_as_json(facts), indent=1))
        return exit_code(facts)
    rows = {"status": facts.status, "started": _time(facts.started), "took": _took(facts)}
    if facts.status == "FAILED":
        rows["why"] = _message(facts)
    display.result(facts.name, rows | dict(facts.metadata))
    return exit_code(facts)


def _stop(options: argparse.Namespace, display: "Display") -> int:
    job = _job(options)
    if not job.stop():
        display.note(f"the job {job.name} had ended: {job.facts().status}.")
        return DONE
    with display.step("Stopping") as step:
        facts = job.wait(STOP_WAIT_S)
        step.say(f"{job.name} {facts.status}")
    return DONE


def _job(options: argparse.Namespace) -> "Job":
    from scvi_dist.job.cluster_jobs import ClusterJobs

    return ClusterJobs(options.address).job(options.name)


def _ways(job: "Job") -> dict[str, str]:
    """What one can do with a job that runs."""
    rest = shlex.join([job.name, "--address", job.jobs.address])
    return {
        "look": f"scvi-dist jobs logs --follow {rest}",
        "stop": f"scvi-dist jobs stop {rest}",
    }


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _message(facts: "JobFacts") -> str:
    """Ray's message without the end of the log in it, which stands in the log."""
    return facts.message.partition("Last available logs")[0].strip() or "no reason is known."


def _as_json(facts: "JobFacts") -> dict[str, object]:
    return {
        "name": facts.name,
        "status": facts.status,
        "message": _message(facts) if facts.message else "",
        "started": facts.started.isoformat() if facts.started else None,
        "ended": facts.ended.isoformat() if facts.ended else None,
        "exit_code": facts.exit_code,
        "metadata": dict(facts.metadata),
    }


def _time(moment: "datetime | None") -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}" if moment else ""


def _took(facts: "JobFacts") -> str:
    if facts.started is None:
        return ""
    if facts.ended is None:
        return "" if facts.has_ended else "so far"
    seconds = round((facts.ended - facts.started).total_seconds())
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


COMMANDS: dict[str, tuple[str, str, str, AddOptions, Command]] = {
    "list": (
        "the jobs that a cluster was sent",
        cli_help.JOBS_LIST,
        cli_help.JOBS_LIST_EPILOG,
        _list_options,
        _list,
    ),
    "logs": (
        "what a job has written",
        cli_help.JOBS_LOGS,
        cli_help.JOBS_LOGS_EPILOG,
        _logs_options,
        _logs,
    ),
    "stop": (
        "stop a job, after a checkpoint",
        cli_help.JOBS_STOP,
        cli_help.JOBS_STOP_EPILOG,
        _name_option,
        _stop,
    ),
    "status": (
        "how a job is",
        cli_help.JOBS_STATUS,
        cli_help.JOBS_STATUS_EPILOG,
        _status_options,
        _status,
    ),
}
"""Name -> help, description, epilog, what adds its options, what does it."""
