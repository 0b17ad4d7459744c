"""The caller never waits, never sees an error, and nothing is lost."""

import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.tracking.last_steps import LastSteps
from scvi_dist.tracking.outbox import Outbox, OutboxConfig
from scvi_dist.tracking.records import Record, Refused, Unreachable
from scvi_dist.tracking.spool import Spool

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


class FakeSink:
    """Answers as a script says: one entry a call, then always "ok"."""

    def __init__(self, script: Iterable[str] = (), known: dict[str, int] | None = None) -> None:
        self.script = list(script)
        self.known = known or {}
        self.records: list[Record] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def deliver(self, record: Record) -> Any:
        self.entered.set()
        self.gate.wait(30)
        verdict = self.script.pop(0) if self.script else "ok"
        if verdict == "down":
            raise Unreachable("nobody answers")
        if verdict == "no":
            raise Refused("bad name")
        if verdict == "bug":
            raise ZeroDivisionError
        self.records.append(record)
        return f"made {record.op}"

    def last_steps(self) -> dict[str, int]:
        return self.known

    @property
    def steps(self) -> list[int]:
        return [point[3] for record in self.records for point in record.points]


def point(step: int, key: str = "loss") -> Record:
    return Record("metrics", {"points": [(key, 1.0, 0, step)]})


def open_outbox(sink: FakeSink, folder: str | Path, **config: Any) -> Outbox:
    settings = OutboxConfig(**{"interval_s": 0.01, "first_retry_s": 0.0, **config})
    spool = Spool(folder, "driver")
    spool.adopt()
    return Outbox(sink, spool, LastSteps(Path(folder) / "last-steps.json"), settings)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 40), st.lists(st.sampled_from(["ok", "down"]), max_size=12))
def test_every_value_arrives_once_and_in_order_over_outages(n: int, script: list[str]) -> None:
    with TemporaryDirectory() as folder:
        sink = FakeSink(script)
        outbox = open_outbox(sink, folder)
        for step in range(n):
            outbox.put(point(step))
            if step % 7 == 3:
                outbox.flush(10)
        while not outbox.close(10):
            assert "down" in script
            outbox = open_outbox(sink, folder)
        assert sink.steps == list(range(n))


def test_values_travel_in_batches(tmp_path: Path) -> None:
    sink = FakeSink()
    outbox = open_outbox(sink, tmp_path, interval_s=60.0, send_at_points=500)
    for step in range(499):
        outbox.put(point(step))
    assert outbox.flush(10)
    assert [len(record.points) for record in sink.records] == [499]
    assert outbox.close(10)


def test_a_hanging_server_holds_nobody_up_and_memory_stays_bounded(tmp_path: Path) -> None:
    sink = FakeSink()
    sink.gate.clear()
    outbox = open_outbox(sink, tmp_path, send_at_points=1, max_points=50)
    for step in range(1_000):
        outbox.put(point(step))
    assert len(outbox._queue) <= 51
    assert outbox.call(Record("model", {}), timeout_s=0.01) is None
    assert not outbox.flush(0.01)
    assert not outbox.close(0.01)
    sink.gate.set()
    outbox._thread.join(10)
    assert open_outbox(sink, tmp_path).close(10)
    assert sorted(set(sink.steps)) == list(range(1_000))


def test_a_caller_gets_the_answer(tmp_path: Path) -> None:
    outbox = open_outbox(FakeSink(), tmp_path)
    assert outbox.call(Record("register", {}), timeout_s=10) == "made register"
    assert outbox.close(10)


@pytest.mark.parametrize("verdict", ["no", "bug"])
def test_a_record_that_is_refused_stops_no_other(tmp_path: Path, verdict: str, caplog) -> None:
    sink = FakeSink(["ok", verdict, "ok"])
    outbox = open_outbox(sink, tmp_path, interval_s=60.0)
    for n in range(3):
        outbox.put(Record("tags", {"tags": {"n": str(n)}}))
    assert outbox.close(10)
    assert [r.body["tags"]["n"] for r in sink.records] == ["0", "2"]
    assert "tags" in caplog.text


def test_an_outage_is_reported_once_and_so_is_its_end(tmp_path: Path, caplog) -> None:
    outbox = open_outbox(FakeSink(["down"] * 4), tmp_path)
    for step in range(6):
        outbox.put(point(step))
        outbox.flush(10)
    assert outbox.close(10)
    assert caplog.text.count("cannot be reached") == 1
    assert caplog.text.count("answers again") == 1


def test_while_the_server_is_down_it_is_not_asked_all_the_time(tmp_path: Path) -> None:
    sink = FakeSink(["down"] * 100)
    outbox = open_outbox(sink, tmp_path, first_retry_s=60.0, last_retry_s=60.0)
    for step in range(20):
        outbox.put(point(step))
        assert not outbox.flush(10)
    assert len(sink.script) == 99
    assert not outbox.close(10)
    assert len(sink.script) == 98


@pytest.mark.parametrize("same_disk", [True, False])
def test_steps_recorded_before_a_restart_are_not_recorded_again(tmp_path, same_disk) -> None:
    sink = FakeSink()
    first = open_outbox(sink, tmp_path / "a")
    for step in range(10):
        first.put(point(step))
    assert first.close(10)
    if not same_disk:
        sink.known = {"loss": 9}
    second = open_outbox(sink, tmp_path / ("a" if same_disk else "b"))
    for step in range(6, 14):
        second.put(point(step))
        second.put(point(step, "other"))
    assert second.close(10)
    by_key = {
        key: [p[3] for r in sink.records for p in r.points if p[0] == key]
        for key in ("loss", "other")
    }
    assert by_key == {"loss": list(range(14)), "other": list(range(6, 14))}


def test_what_comes_after_closing_is_kept(tmp_path: Path) -> None:
    sink = FakeSink()
    outbox = open_outbox(sink, tmp_path)
    assert outbox.close(10)
    outbox.put(point(3))
    assert outbox.call(point(4), timeout_s=1) is None
    outbox._spool.close()
    assert open_outbox(sink, tmp_path).close(10)
    assert sink.steps == [3, 4]


def test_a_full_disk_costs_values_but_not_the_run(tmp_path: Path, monkeypatch, caplog) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    sink = FakeSink(["down"])
    outbox = open_outbox(sink, tmp_path)
    monkeypatch.setattr(outbox._spool, "append", full)
    outbox.put(point(1))
    outbox.flush(10)
    outbox.put(point(2))
    outbox.flush(10)
    outbox.close(10)
    assert sink.steps == [2]
    assert "No space left" in caplog.text


def test_what_was_secured_survives_a_kill(tmp_path: Path) -> None:
    """A hanging delivery and a full queue, and then nothing of the process is left but its disk."""
    hanging = FakeSink()
    hanging.gate.clear()
    outbox = open_outbox(hanging, tmp_path, send_at_points=1)
    outbox.put(point(0))
    assert hanging.entered.wait(10)
    for step in range(1, 5):
        outbox.put(point(step))
    outbox.secure()
    outbox._spool.close()  # as the system does for a killed process
    after = FakeSink()
    assert open_outbox(after, tmp_path).close(10)
    assert sorted(after.steps) == list(range(5))
    hanging.script = ["down"]
    hanging.gate.set()
    outbox.close(10)


def test_securing_an_idle_outbox_leaves_nothing(tmp_path: Path) -> None:
    outbox = open_outbox(FakeSink(), tmp_path)
    outbox.secure()
    assert outbox.close(10)
    assert list(tmp_path.iterdir()) == []


FORGETFUL = """
import sys
from scvi_dist.tracking.last_steps import LastSteps
from scvi_dist.tracking.outbox import Outbox, OutboxConfig
from scvi_dist.tracking.records import Record
from scvi_dist.tracking.spool import Spool

folder = sys.argv[1]
config = OutboxConfig(interval_s=600.0)
outbox = Outbox(None, Spool(folder, "driver"), LastSteps(folder + "/last-steps.json"), config)
outbox.put(Record("metrics", {"points": [("loss", 1.0, 0, 7)]}))
"""


def test_a_process_that_ends_without_closing_leaves_its_values_on_the_disk(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FORGETFUL, str(tmp_path)], check=True, timeout=60)
    sink = FakeSink()
    assert open_outbox(sink, tmp_path).close(10)
    assert sink.steps == [7]
