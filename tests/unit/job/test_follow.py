"""Following a job: lost connections are taken up, Ctrl-C ends the watching and not the job."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from aiohttp import WSCloseCode, web

from scvi_dist import cli
from scvi_dist.errors import ClusterUnreachable
from scvi_dist.job import cluster_jobs
from scvi_dist.job.cluster_jobs import ClusterJobs

pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")
"""Ray's client says it so to aiohttp."""

LOG = "one\ntwo\nthree\n"
LIMIT_S = 60


@dataclass
class Dashboard:
    """Answers as Ray's does, for one job; loses connections as it is told."""

    losses: list[int] = field(default_factory=list)
    """Characters of the log after which one connection after the other is lost."""
    goes_on: bool = False
    """Whether the job writes its log and then goes on for ever."""
    stops: int = 0
    port: int = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/version", self.version)
        app.router.add_get("/api/jobs/", self.jobs)
        app.router.add_get("/api/jobs/a", self.job)
        app.router.add_get("/api/jobs/a/logs", self.logs)
        app.router.add_get("/api/jobs/a/logs/tail", self.tail)
        return app

    def details(self) -> dict[str, object]:
        status = "RUNNING" if self.goes_on or self.losses else "SUCCEEDED"
        return {
            "type": "SUBMISSION",
            "submission_id": "a",
            "status": status,
            "entrypoint": "x",
            "start_time": 1,
            "end_time": None,
            "metadata": {},
        }

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"ray_version": "2.60.0", "ray_commit": "", "version": "4"})

    async def jobs(self, request: web.Request) -> web.Response:
        return web.json_response([self.details()])

    async def job(self, request: web.Request) -> web.Response:
        return web.json_response(self.details())

    async def logs(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": LOG})

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if self.losses:
            await socket.send_str(LOG[: self.losses.pop(0)])
            # Gone without a word.
            request.transport.close()
            return socket
        for at in range(0, len(LOG), 5):
            await socket.send_str(LOG[at : at + 5])
        while self.goes_on:
            await asyncio.sleep(0.05)
        await socket.close(code=WSCloseCode.OK)
        return socket


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    made = Dashboard()
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(made.app(), shutdown_timeout=0.1)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    made.port = runner.addresses[0][1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield made
    made.goes_on = False
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(LIMIT_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(LIMIT_S)
    loop.close()


@pytest.mark.parametrize("losses", [[], [4], [4, 0, 9]])
def test_every_character_is_written_once(dashboard: Dashboard, losses: list[int], monkeypatch):
    monkeypatch.setattr(cluster_jobs, "POLL_S", 0.01)
    dashboard.losses = list(losses)
    written: list[str] = []
    facts = ClusterJobs(dashboard.address).job("a").follow(written.append)
    assert "".join(written) == LOG
    assert facts.status == "SUCCEEDED"


def test_a_cluster_that_stays_away_is_given_up(dashboard: Dashboard, monkeypatch) -> None:
    monkeypatch.setattr(cluster_jobs, "POLL_S", 0.01)
    monkeypatch.setattr(cluster_jobs, "RECONNECT_S", 0.1)
    dashboard.losses = [0] * 100_000
    with pytest.raises(ClusterUnreachable, match="goes on if its cluster does"):
        ClusterJobs(dashboard.address).job("a").follow(lambda _: None)


def test_ctrl_c_ends_the_watching_only(dashboard: Dashboard) -> None:
    dashboard.goes_on = True
    watching = subprocess.Popen(
        [sys.executable, "-m", "scvi_dist.cli", "jobs", "logs", "a", "-f"],
        env=os.environ | {"RAY_API_SERVER_ADDRESS": dashboard.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout is not None
        seen = [watching.stdout.readline() for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        rest, errors = watching.communicate(timeout=LIMIT_S)
    finally:
        watching.kill()
        watching.communicate()
    assert "".join(seen) == LOG
    assert watching.returncode == cli.INTERRUPTED, errors
    assert "the job goes on" in rest
    assert f"scvi-dist jobs stop a --address {dashboard.address}" in rest
    assert "Traceback" not in errors
