"""A run file as a job of a Ray cluster: what is wrong with it is said here, before it is sent.

The job is ``scvi-dist run`` on a host of the cluster, with the same run file. What is sent is a
folder with that file, a script that starts it, and the small files that it names; cells stay
where they are.
"""

import os
import re
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

from scvi_dist import __version__
from scvi_dist.config import RunConfig, load_run
from scvi_dist.config.run_file import dump, read_run_file
from scvi_dist.config.secret_check import looks_secret
from scvi_dist.data.filesystem import is_remote
from scvi_dist.errors import ConfigError
from scvi_dist.job.cluster_jobs import ClusterJobs, Job

RUN_FILE, SCRIPT = "run.yaml", "job.sh"

STOP_S = 120
"""Seconds between the request to stop and the end by force: enough for a checkpoint."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmitOptions:
    """How a run file becomes a job."""

    address: str | None = None
    """Of the cluster's dashboard, ``http://HEAD:8265``; ``None``: RAY_API_SERVER_ADDRESS."""
    name: str | None = None
    """Of the job, once in the life of a cluster; ``None``: the output folder's and a random end."""
    package: bool = False
    """Send this installation's ``scvi_dist`` along, instead of using the cluster's."""
    shared_storage: bool = False
    """All hosts see the current folder, under the same path: relative paths mean what they mean
    here."""
    env: tuple[str, ...] = ()
    """Names of environment variables that the job gets from here. They are shown to whoever looks
    at the job: no secrets."""

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ConfigError(
                "the name of a job: expected up to 100 letters, digits, '-', '_' or '.', seen "
                f"{self.name!r}."
            )
        for name in self.env:
            _check_variable(name)


def submit(
    run_file: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    options: SubmitOptions | None = None,
    **given: Any,
) -> Job:
    """Start a run file on a cluster; returns at once, with the job.

    Submitted again, a run goes on in its output folder and in its MLflow run, as ``run`` does.

    Parameters
    ----------
    run_file
        The run file that ``scvi-dist run`` takes.
    overrides
        ``key=value`` texts.
    options
        How; or the fields of :class:`SubmitOptions` as arguments.

    Raises
    ------
    ConfigError
        The run file is wrong, holds a secret or names files that the cluster does not see; there
        is a job of that name.
    ClusterUnreachable
        No cluster answers at the address, or it wants another token.

    Examples
    --------
    >>> job = submit("run.yaml", address="http://head:8265")  # doctest: +SKIP
    >>> job.follow()  # doctest: +SKIP
    """
    options = options or SubmitOptions(**given)
    config = load_run(run_file, overrides)
    own_files = [] if options.shared_storage else _files_to_send(config)
    jobs = ClusterJobs(options.address)
    name = options.name or _new_name(config)
    with tempfile.TemporaryDirectory(prefix="scvi_dist-job-") as made:
        folder = Path(made)
        _pack(folder, run_file, overrides, own_files)
        shutil.copy(Path(str(files("scvi_dist.job"))) / SCRIPT, folder / SCRIPT)
        where = f" {shlex.quote(os.getcwd())}" if options.shared_storage else ""
        return jobs.start(
            # The run takes the place of Ray's shell. Were it that shell's child, nobody would learn
            # of its end once the job is stopped, and Ray would wait for it until its limit.
            f"exec sh {SCRIPT}{where}",
            name=name,
            runtime_env=_runtime_env(folder, options),
            metadata={
                "scvi_dist": __version__,
                "run_file": os.path.basename(os.fspath(run_file)),
                "output": config.output.dir,
                "model": config.model.name,
            },
        )


def _pack(
    folder: Path,
    run_file: str | os.PathLike[str],
    overrides: Sequence[str],
    own_files: Sequence[str],
) -> None:
    """The folder that is sent; the run file's text is left as it is where nothing overrides it."""
    if overrides:
        # In a file rather than on the command line, which the dashboard shows.
        text = dump(read_run_file(run_file, overrides).tree)
        (folder / RUN_FILE).write_text(text, encoding="utf-8")
    else:
        shutil.copy(run_file, folder / RUN_FILE)
    for name in own_files:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, target)


def _files_to_send(config: RunConfig) -> list[str]:
    """The small files that the run names by relative paths.

    Raises
    ------
    ConfigError
        A relative path leads to what is too large to be sent, or out of this folder.
    """
    for key, path in _places(config):
        if _is_relative(path):
            raise ConfigError(
                f"{key}: expected a URL, or an absolute path that means the same on all hosts of "
                f"the cluster; seen {path!r}, which is relative to a folder of this machine. If "
                "the cluster sees this folder too, under the same path, say --shared-storage."
            )
    sent = []
    for key in ("genes_file", "markers"):
        path = getattr(config.data, key)
        if path is None or not _is_relative(path):
            continue
        if ".." in PurePosixPath(path).parts or not Path(path).is_file():
            raise ConfigError(
                f"data.{key}: expected a file in or below this folder, which is sent with the run "
                f"file, or an absolute path of the cluster; seen {path!r}."
            )
        sent.append(path)
    return sent


def _places(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Key and path of what stays where it is."""
    store = config.data.store
    yield from (("data.store", one) for one in ([store] if isinstance(store, str) else store))
    yield "output.dir", config.output.dir
    if config.data.remote.cache_dir is not None:
        yield "data.remote.cache_dir", config.data.remote.cache_dir


def _is_relative(path: str) -> bool:
    return not (is_remote(path) or path.startswith(("/", "~", "file://", "local://")))


def _runtime_env(folder: Path, options: SubmitOptions) -> dict[str, Any]:
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), **_from_here(options.env)}
    env: dict[str, Any] = {"working_dir": str(folder), "env_vars": variables}
    if options.package:
        env["py_modules"] = [str(files("scvi_dist"))]
        env["excludes"] = ["**/__pycache__"]
    return env


def _from_here(names: Sequence[str]) -> Mapping[str, str]:
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ConfigError(f"--env: not set here: {', '.join(missing)}.")
    return {name: os.environ[name] for name in names}


def _check_variable(name: str) -> None:
    if not _ENV_NAME.fullmatch(name):
        raise ConfigError(
            f"--env: expected the name of an environment variable, seen {name.partition('=')[0]!r}"
            "; its value is taken from the environment of this command."
        )
    if looks_secret(name):
        raise ConfigError(
            f"--env {name}: the variables of a job are shown in the dashboard and kept in Ray's "
            "logs, where a secret must not be. Set it where the cluster's hosts get theirs: a "
            "role of the hosts, a Kubernetes Secret, or the environment of 'ray start'."
        )


def _new_name(config: RunConfig) -> str:
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(config.output.dir).name).strip("-_.") or "run"
    return f"{stem[:80]}-{secrets.token_hex(3)}"
