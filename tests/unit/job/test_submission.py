"""What is sent to a cluster, what is refused before, and what a job's end means."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import scvi_dist
from scvi_dist import cli, cli_jobs
from scvi_dist.config import load_run
from scvi_dist.errors import ClusterUnreachable, ConfigError
from scvi_dist.job import submission
from scvi_dist.job.cluster_jobs import ClusterJobs, JobFacts, _checked, _headers, facts_of
from scvi_dist.job.submission import RUN_FILE, SubmitOptions, submit

SECRET = "hunter2-do-not-tell"
NOWHERE = "http://127.0.0.1:1"
ABSOLUTE = "data: {store: /shared/atlas.zarr, genes_file: genes.txt}\noutput: {dir: /shared/out}\n"
RELATIVE = "data: {store: atlas.zarr}\noutput: {dir: out}  # a comment\n"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    Path("genes.txt").write_text("g1\ng2\n")


def run_file(text: str) -> str:
    Path("run.yaml").write_text(text)
    return "run.yaml"


def packed(text: str, *overrides: str) -> dict[str, str]:
    path = run_file(text)
    folder = Path("packed")
    folder.mkdir()
    files = submission._files_to_send(load_run(path, overrides))
    submission._pack(folder, path, overrides, files)
    return {p.name: p.read_text() for p in folder.iterdir()}


def test_the_run_file_is_sent_as_it_is_with_the_small_files_it_names() -> None:
    assert packed(ABSOLUTE) == {RUN_FILE: ABSOLUTE, "genes.txt": "g1\ng2\n"}


def test_overrides_are_sent_inside_the_run_file() -> None:
    sent = packed(ABSOLUTE, "train.max_epochs=3", "model.n_latent=7")
    assert yaml.safe_load(sent[RUN_FILE])["train"] == {"max_epochs": 3}
    Path("sent.yaml").write_text(sent[RUN_FILE])
    Path("original.yaml").write_text(ABSOLUTE)
    here = load_run("original.yaml", ["train.max_epochs=3", "model.n_latent=7"])
    assert load_run("sent.yaml") == here


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.store=atlas.zarr", "data.store"),
        ("data.store=[/a.h5ad, b.h5ad]", "data.store"),
        ("output.dir=out", "output.dir"),
        ("data.remote.cache_dir=cache", "data.remote.cache_dir"),
        ("data.genes_file=missing.txt", "data.genes_file"),
        ("data.genes_file=../genes.txt", "data.genes_file"),
    ],
)
def test_what_the_cluster_would_not_find_is_refused(override: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: expected"):
        submit(run_file(ABSOLUTE), [override], address=NOWHERE)


def test_paths_of_all_hosts_and_urls_are_taken() -> None:
    for store in ("/shared/a.zarr", "s3://bucket/a.zarr", "~/a.zarr", "file:///shared/a.zarr"):
        with pytest.raises(ClusterUnreachable):
            submit(run_file(ABSOLUTE), [f"data.store={store}"], address=NOWHERE)


def test_relative_paths_are_taken_from_shared_storage() -> None:
    with pytest.raises(ClusterUnreachable):
        submit(run_file(RELATIVE), address=NOWHERE, shared_storage=True)
    with pytest.raises(ConfigError, match="--shared-storage"):
        submit(run_file(RELATIVE), address=NOWHERE)


@pytest.mark.parametrize(
    "override",
    [
        f"data.store=s3://user:{SECRET}@bucket/a.zarr",
        f"data.store=https://host/a.zarr?X-Amz-Signature={SECRET}",
        f"data.storage_options.secret={SECRET}",
        f"tracking.uri=http://user:{SECRET}@host:5000",
        f"tracking.uri=http://host:5000?token={SECRET}",
        f"train.ray.env_vars.AWS_SECRET_ACCESS_KEY={SECRET}",
        f"tracking.tags.api_key={SECRET}",
    ],
)
def test_a_secret_in_a_run_is_refused_and_not_shown(override: str, capsys) -> None:
    for command in ("run", "plan", "submit"):
        assert cli.main([command, run_file(ABSOLUTE), override]) == cli.USAGE
        told = "".join(capsys.readouterr())
        assert "environment" in told
        assert SECRET not in told


def test_variables_that_may_be_secrets_are_not_passed_on(monkeypatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_TOKEN", "DB_PASSWORD", "my_api_key"):
        with pytest.raises(ConfigError, match=name):
            SubmitOptions(env=(name,))
    with pytest.raises(ConfigError, match="seen 'HTTPS_PROXY'"):
        SubmitOptions(env=(f"HTTPS_PROXY={SECRET}",))
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    sent = submission._runtime_env(Path("x"), SubmitOptions(env=("AWS_REGION",)))
    assert sent["env_vars"] == {"AWS_REGION": "us-west-2", "RAY_JOB_STOP_WAIT_TIME_S": "120"}
    with pytest.raises(ConfigError, match="NOT_SET_ANYWHERE"):
        submission._runtime_env(Path("x"), SubmitOptions(env=("NOT_SET_ANYWHERE",)))


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "x" * 101])
def test_names_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="the name of a job"):
        SubmitOptions(name=name)


@pytest.mark.parametrize(
    "address", ["head:8265", "ray://head:10001", "auto", "ftp://head", "http://"]
)
def test_what_is_no_dashboard_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="expected the address of a dashboard"):
        ClusterJobs(address)


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError) as refused:
        ClusterJobs(f"http://me:{SECRET}@head:8265")
    assert SECRET not in str(refused.value)


def test_the_address_comes_from_the_environment_too(monkeypatch) -> None:
    with pytest.raises(ConfigError, match="RAY_API_SERVER_ADDRESS"):
        _checked(None)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265/")
    assert _checked(None) == "http://head:8265"
    assert _checked("https://other") == "https://other"


def test_the_token_is_taken_from_the_environment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert _headers() is None
    (tmp_path / "token").write_text("from-file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert _headers() == {"Authorization": "Bearer from-file"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-variable")
    assert _headers() == {"Authorization": "Bearer from-variable"}
    # Told to, Ray does it itself.
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert _headers() is None


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_what_does_not_answer_is_named(deaf_port: int, monkeypatch) -> None:
    monkeypatch.setattr("scvi_dist.job.cluster_jobs.ANSWER_S", 0.2)
    for address in (NOWHERE, f"http://127.0.0.1:{deaf_port}"):
        with pytest.raises(ClusterUnreachable, match=address):
            ClusterJobs(address)


def facts(status: str, exit_code: int | None = None) -> JobFacts:
    return facts_of(
        SimpleNamespace(
            submission_id="a",
            status=status,
            message="why. Last available logs: a lot",
            start_time=1_000,
            end_time=3_726_000,
            driver_exit_code=exit_code,
            metadata=None,
        )
    )


@pytest.mark.parametrize(
    ("status", "exit_code", "ours"),
    [
        ("PENDING", None, cli.DONE),
        ("RUNNING", None, cli.DONE),
        ("SUCCEEDED", 0, cli.DONE),
        ("FAILED", cli.FAILED, cli.FAILED),
        ("FAILED", cli.USAGE, cli.USAGE),
        ("FAILED", cli.INTERRUPTED, cli.INTERRUPTED),
        ("FAILED", -9, cli.FAILED),
        ("FAILED", None, cli.FAILED),
        ("STOPPED", None, cli.INTERRUPTED),
    ],
)
def test_the_exit_code_is_that_of_the_run(status: str, exit_code: int | None, ours: int) -> None:
    assert cli_jobs.exit_code(facts(status, exit_code)) == ours


def test_a_job_is_told_in_few_words() -> None:
    told = facts("FAILED", 1)
    assert told.started == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert cli_jobs._message(told) == "why."
    assert cli_jobs._took(told) == "1:02:05"


def test_asking_a_cluster_loads_nothing_that_trains() -> None:
    code = (
        "import sys\nimport scvi_dist.cli_jobs, scvi_dist.job.cluster_jobs\n"
        "loaded = {'torch', 'numpy', 'ray', 'mlflow'} & set(sys.modules)\nassert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Starts the job's script where "python" on PATH is one without Ray, as on many hosts."""
    (tmp_path / "bin").mkdir()
    for name in ("python", "python3"):
        path = tmp_path / "bin" / name
        path.write_text("#!/bin/sh\nexit 1\n")
        path.chmod(0o755)
    run_file("nonsense: 1\n")

    def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        root = str(Path(scvi_dist.__file__).parents[1])
        own = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "PYTHONPATH": root, **environment}
        script = Path(submission.__file__).parent / submission.SCRIPT
        return subprocess.run(
            ["sh", str(script), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={k: v for k, v in os.environ.items() if k != "SCVI_DIST_PYTHON"} | own,
        )

    return start


def test_the_script_takes_an_interpreter_that_has_what_it_needs(started, tmp_path: Path) -> None:
    none = started()
    assert none.returncode == cli.USAGE
    assert "submit with --package" in none.stderr
    told = started(SCVI_DIST_PYTHON=sys.executable)
    assert told.returncode == cli.USAGE
    assert f"{tmp_path}/run.yaml, line 1: nonsense" in told.stderr
    (tmp_path / "bin" / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    found = started()
    assert found.stderr == told.stderr


def test_the_script_refuses_a_folder_that_its_host_does_not_see(started) -> None:
    done = started("/not/mounted/here", SCVI_DIST_PYTHON=sys.executable)
    assert done.returncode == cli.USAGE
    assert "does not see /not/mounted/here" in done.stderr
