"""Several hosts on this machine: runs are sent to them as jobs, stopped, and go on.

Needs root and network namespaces; the hosts are those of ``cluster/local.sh``.
"""

import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import yaml
from local_hosts import LIMIT_S, OUTSIDE, SECRET, Hosts, run

from scvi_dist import cli
from scvi_dist.data.simulated.simulate import simulate_atlas
from scvi_dist.errors import ClusterUnreachable
from scvi_dist.job.cluster_jobs import ClusterJobs

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    # Ray's client runs here: its warnings are not ours to refuse.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

EPOCHS, BATCH, CELLS = 40, 128, 1_500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an atlas and a run file, all of whose paths are relative."""
    made = tmp_path_factory.mktemp("cluster")
    simulate_atlas(made / "atlas", n_cells=CELLS, n_genes=120, n_shards=2)
    content = {
        "data": {"store": "atlas/atlas.zarr", "batch_key": "batch"},
        "train": {
            "workers": 2,
            "max_epochs": EPOCHS,
            "batch_size": BATCH,
            "checkpoint_every_n_steps": 10,
            "ray": {"placement_strategy": "SPREAD"},
        },
        "tracking": {"uri": f"sqlite:///{made}/mlflow.db", "system_metrics_interval_s": 0},
        "output": {"dir": "out", "latent": False, "figures": False},
    }
    (made / "run.yaml").write_text(yaml.safe_dump(content))
    return made


class Done(NamedTuple):
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def scvi_dist(
    hosts: Hosts, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """The command, outside of the hosts, in a shell that may use the cluster; in this process,
    since imports take seconds."""
    monkeypatch.chdir(folder)
    # Without the mode: Ray would add the token that it has read for the Ray of this process.
    for name in (*OUTSIDE, "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in hosts.shell().items():
        if name != "RAY_AUTH_MODE":
            monkeypatch.setenv(name, value)

    def call(*arguments: str) -> Done:
        capsys.readouterr()
        code = cli.main(list(arguments))
        return Done(code, *capsys.readouterr())

    return call


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def test_hosts_are_apart_and_up_changes_nothing_that_is_up(hosts: Hosts) -> None:
    before = hosts.script("status")
    again = hosts.script("up")
    assert (before.returncode, again.returncode) == (0, 0)
    assert again.stdout.startswith(before.stdout)
    seen = {
        host: hosts.script("run", host, "sh", "-c", "hostname; hostname --all-ip-addresses").stdout
        for host in ("head", "worker1", "worker2")
    }
    assert {host: text.split() for host, text in seen.items()} == {
        "head": ["head", f"{hosts.network}.1"],
        "worker1": ["worker1", f"{hosts.network}.2"],
        "worker2": ["worker2", f"{hosts.network}.3"],
    }


def newest_step(folder: Path) -> int:
    """Of the checkpoints; -1 before there is one."""
    found = folder.glob("out/checkpoints/step-*/manifest.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in found), default=-1)


def end_driver(hosts: Hosts) -> None:
    """SIGKILL to the process that a job is."""
    commands = {p: p.cmdline() for p in map(psutil.Process, hosts.processes("head"))}
    (driver,) = [p for p, words in commands.items() if {"scvi_dist.cli", "run"} <= set(words)]
    driver.kill()


def test_a_run_outlives_its_driver_and_a_stop_with_the_same_file(
    hosts: Hosts, folder: Path, scvi_dist: Callable[..., Done]
) -> None:
    """Sent as a job whose driver is killed; sent again and stopped; finished by ``run``."""
    sent = scvi_dist("submit", "run.yaml", "--shared-storage", "--name", "one")
    assert sent.returncode == cli.DONE, sent.stderr
    assert "scvi-dist jobs logs --follow one --address" in sent.stdout
    wait_for(lambda: newest_step(folder) > 0, "a checkpoint")
    end_driver(hosts)
    assert scvi_dist("jobs", "logs", "one", "--follow").returncode == cli.FAILED
    assert rows(folder, "select status from runs") == [("RUNNING",)]

    left_at = newest_step(folder)
    again = scvi_dist("submit", "run.yaml", "--shared-storage", "--name", "again")
    assert again.returncode == cli.DONE, again.stderr
    wait_for(lambda: newest_step(folder) > left_at + 10, "a checkpoint of the second job")
    stopped = scvi_dist("jobs", "stop", "again")
    assert stopped.returncode == cli.DONE, stopped.stderr
    assert "again STOPPED" in stopped.stderr
    assert not (folder / "out" / "model").exists()
    followed = scvi_dist("jobs", "logs", "again", "--follow")
    assert followed.returncode == cli.INTERRUPTED
    assert "after a checkpoint" in followed.stdout
    told = scvi_dist("jobs", "status", "again", "--json")
    assert told.returncode == cli.INTERRUPTED
    assert json.loads(told.stdout)["metadata"]["output"] == "out"

    went_on = hosts.script("run", "head", "scvi-dist", "run", "run.yaml", cwd=folder)
    assert went_on.returncode == cli.DONE, went_on.stderr
    assert "went on from a checkpoint" in went_on.stderr
    assert rows(folder, "select status from runs") == [("FINISHED",)]
    steps = rows(folder, "select step from metrics where key = 'elbo_train' order by step")
    assert set(steps) == {(epoch,) for epoch in range(EPOCHS)}
    # The driver that was killed may have told of an epoch whose end no checkpoint had yet.
    assert len(steps) <= EPOCHS + 1
    assert rows(folder, "select value from tags where key = 'scvi_dist.restarts'") == [("2",)]


def test_a_run_folder_tells_the_run(folder: Path) -> None:
    out = folder / "out"
    assert {path.name for path in out.iterdir()} >= {
        *("run.yaml", "plan.json", "environment.json", "logs", "checkpoints", "model"),
        *("summary.json", "tracking"),
    }
    logs = {path.name: path.read_text() for path in (out / "logs").iterdir()}
    assert set(logs) == {"run.log", "libraries.log", "rank-0.log", "rank-1.log"}
    assert "Training:" in logs["run.log"]
    assert "GPU available" in logs["rank-0.log"]


def test_a_finished_run_that_is_sent_again_does_nothing(
    folder: Path, scvi_dist: Callable[..., Done]
) -> None:
    how = ("--shared-storage", "--follow", "--package", "--name", "two")
    again = scvi_dist("submit", "run.yaml", *how)
    assert again.returncode == cli.DONE, again.stderr
    assert "this run is finished" in again.stdout
    # The package that was sent is what ran.
    environment = json.loads((folder / "out" / "environment.json").read_text())
    assert "runtime_resources" in environment["scvi_dist"]
    listed = scvi_dist("jobs", "list").stdout.splitlines()
    assert [line.split()[:2] for line in listed[1:]] == [
        *(["two", "SUCCEEDED"], ["again", "STOPPED"], ["one", "FAILED"]),
    ]


def test_the_exit_code_of_a_job_is_that_of_its_run(scvi_dist: Callable[..., Done]) -> None:
    wrong = ("data.batch_key=btach", "output.dir=wrong")
    failed = scvi_dist("submit", "run.yaml", *wrong, "--shared-storage", "-f", "--name", "three")
    assert failed.returncode == cli.USAGE
    assert "did you mean 'batch'?" in failed.stdout
    assert "the job three failed" in failed.stderr
    taken = scvi_dist("submit", "run.yaml", "--shared-storage", "--name", "one")
    assert taken.returncode == cli.USAGE
    assert "give another --name" in taken.stderr


def test_without_the_token_nothing_is_told(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*OUTSIDE, "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ClusterUnreachable, match="none was given"):
        ClusterJobs(hosts.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(ClusterUnreachable, match="is another"):
        ClusterJobs(hosts.address)


def test_secrets_are_nowhere(hosts: Hosts, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*OUTSIDE, "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", hosts.token)
    jobs = ClusterJobs(hosts.address)
    told = [repr(jobs._client.get_job_info(facts.name)) for facts in jobs.all()]
    told += [jobs.job(facts.name).logs() for facts in jobs.all()]
    assert len(told) == 8
    for secret in (SECRET, hosts.token):
        assert not any(secret in text for text in told)
        assert files_with(secret, folder) == []
        assert files_with(secret, *hosts.home.glob("*/session_*/logs")) == []
    # The same search finds what is there.
    assert files_with(hosts.token, hosts.home) == [hosts.home / "token"]


def test_a_host_that_was_lost_comes_back(hosts: Hosts) -> None:
    assert hosts.script("kill", "worker2").returncode == 0
    lost = hosts.script("status")
    assert lost.returncode == 1
    assert [line.split()[2].rstrip(",") for line in lost.stdout.splitlines()] == [
        *("up", "up", "down"),
    ]
    back = hosts.script("up")
    assert back.returncode == 0, back.stderr
    kept = [line for line in lost.stdout.splitlines() if "up" in line]
    assert back.stdout.splitlines()[:2] == kept
    assert hosts.script("kill", "worker3").returncode == 1


def test_down_leaves_nothing(hosts: Hosts) -> None:
    name = hosts.environment["SCVI_DIST_LOCAL_NAME"]
    assert hosts.script("down").returncode == 0
    for command in (["ip", "netns"], ["ip", "link"], ["ps", "-eo", "args"]):
        shown = run(command, hosts.environment, None).stdout
        assert f"{name}-" not in shown
        assert f"/{name}/" not in shown
    assert not hosts.home.exists()
    assert not list(Path("/etc/netns").glob(f"{name}-*"))
    assert hosts.script("status").returncode == 1


def rows(folder: Path, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(folder / "mlflow.db") as database:
        return database.execute(query).fetchall()


def files_with(text: str, *folders: Path) -> list[Path]:
    """Files that hold a text, in whatever format."""
    wanted = text.encode()
    return [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and wanted in path.read_bytes()
    ]
