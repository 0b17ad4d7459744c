"""Several hosts on this machine, as ``cluster/local.sh`` makes them, for tests."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "cluster" / "local.sh"
LIMIT_S = 400.0
SECRET = "s3cr3t-that-nobody-may-tell"
"""Among the variables of the shell that the hosts are started in."""
OUTSIDE = (
    *("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"),
    # Set for the Ray of this process, whose node nobody takes back.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER",
)
_PROBE = ("unshare", "--net", "--pid", "--fork", "--mount-proc", "ip", "netns", "list")


@dataclass(frozen=True)
class Hosts:
    """A head and two workers, each in a network namespace, and what a person's shell has set."""

    environment: dict[str, str]
    home: Path
    network: str
    head: str = field(init=False)
    """Address of the head."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "head", f"{self.network}.1")

    @property
    def address(self) -> str:
        """Of the dashboard, which takes jobs."""
        return f"http://{self.head}:8265"

    @property
    def token(self) -> str:
        return (self.home / "token").read_text().strip()

    def script(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return run([str(SCRIPT), *arguments], self.environment, cwd)

    def change(self, *arguments: str) -> None:
        """Like ``script``, where it has to work."""
        done = self.script(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def processes(self, host: str) -> list[int]:
        """Ids of a host's processes, as this machine knows them."""
        space = f"{self.environment['SCVI_DIST_LOCAL_NAME']}-{host}"
        found = run(["ip", "netns", "pids", space], self.environment, None)
        return [int(word) for word in found.stdout.split()]

    def shell(self) -> dict[str, str]:
        """Variables of a shell on this machine, outside of the hosts, that may use the cluster."""
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        return self.environment | own | {"RAY_API_SERVER_ADDRESS": self.address}


def run(
    command: list[str], environment: dict[str, str], cwd: Path | None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@contextmanager
def local_hosts() -> Iterator[Hosts]:
    """Hosts that are not up yet; they are down afterwards. Skips where there can be none."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    probe = subprocess.run(_PROBE, capture_output=True, text=True, timeout=30, check=False)
    if probe.returncode != 0:
        pytest.skip(f"no network namespaces here: {probe.stderr.strip()}")
    # Of this process alone: several checkouts may be tested on one machine.
    name, network = f"t{os.getpid() % 10**7}", f"10.77.{os.getpid() % 200 + 1}"
    environment = {k: v for k, v in os.environ.items() if k not in OUTSIDE} | {
        "SCVI_DIST_LOCAL_NAME": name,
        "SCVI_DIST_LOCAL_NET": network,
        # One host reads cells, the other trains.
        "SCVI_DIST_LOCAL_WORKER1": '--labels=role=reader --resources={"reader":2}',
        "SCVI_DIST_LOCAL_WORKER2": "--labels=role=trainer",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "MLFLOW_TRACKING_TOKEN": SECRET,
    }
    made = Hosts(environment, Path("/var/lib/scvi_dist") / name, network)
    try:
        yield made
    finally:
        made.script("down")
