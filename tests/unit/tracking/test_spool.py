"""What is kept on disk is delivered once, in order, whoever dies."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scvi_dist.tracking.records import Record, Unreachable, joined, merged
from scvi_dist.tracking.spool import Spool

RECORDS = st.lists(
    st.one_of(
        st.integers(1, 400).map(
            lambda n: Record("metrics", {"points": [["loss", 1.0, 5, i] for i in range(n)]})
        ),
        st.text(max_size=5).map(lambda t: Record("tags", {"tags": {"t": t}})),
    ),
    max_size=12,
)


def _contents(records: list[Record]) -> list[object]:
    """What records say, however they are grouped."""
    said: list[object] = []
    for record in records:
        said.extend(record.points if record.op == "metrics" else [record.body])
    return said


@given(RECORDS)
def test_grouping_says_the_same_in_calls_that_mlflow_accepts(records: list[Record]) -> None:
    groups = [joined(group) for group in merged(records)]
    assert _contents(groups) == _contents(records)
    assert all(len(group.points) <= 1_000 for group in groups)
    assert sum(g.op != "metrics" for g in groups) == sum(r.op != "metrics" for r in records)


@given(RECORDS)
def test_a_record_survives_the_disk(records: list[Record]) -> None:
    assert [Record.from_line(r.to_line()) for r in records] == records


@settings(deadline=None, max_examples=40)
@given(RECORDS, st.lists(st.integers(0, 3), max_size=4))
def test_nothing_is_lost_or_repeated_over_outages(records, outages) -> None:
    """``outages``: how many deliveries succeed before each failure."""
    delivered: list[Record] = []
    with TemporaryDirectory() as folder:
        spool = Spool(folder, "driver")
        spool.append(records)
        for patience in outages:
            left = [patience]

            def deliver(record: Record, left: list[int] = left) -> None:
                if left[0] == 0:
                    raise Unreachable("down")
                left[0] -= 1
                delivered.append(record)

            try:
                spool.drain(deliver)
            except Unreachable:
                assert spool.pending
        spool.drain(delivered.append)
        assert _contents(delivered) == _contents(records)
        assert not spool.pending
        assert list(Path(folder).iterdir()) == []


def test_what_is_appended_while_delivering_is_delivered(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "driver")
    spool.append([Record("tags", {"tags": {"n": "0"}})])
    seen: list[str] = []

    def deliver(record: Record) -> None:
        seen.append(record.body["tags"]["n"])
        if len(seen) < 4:
            spool.append([Record("tags", {"tags": {"n": str(len(seen))}})])

    spool.drain(deliver)
    assert seen == ["0", "1", "2", "3"]
    assert not spool.pending


def test_a_living_owner_keeps_its_file_and_a_dead_ones_is_adopted(tmp_path: Path) -> None:
    owner, other = Spool(tmp_path, "rank0"), Spool(tmp_path, "driver")
    owner.append([Record("tags", {"tags": {"a": "1"}})])
    other.adopt()
    assert not other.pending
    owner.close()  # as the system does for a killed process
    other.adopt()
    seen: list[Record] = []
    other.drain(seen.append)
    assert [r.body for r in seen] == [{"tags": {"a": "1"}}]


def test_a_torn_last_line_costs_only_itself(tmp_path: Path, caplog) -> None:
    whole = Record("tags", {"tags": {"a": "1"}}).to_line()
    (tmp_path / "undelivered-rank0-1-x.jsonl").write_text(f"{whole}\n{whole[:-4]}")
    spool = Spool(tmp_path, "driver")
    spool.adopt()
    seen: list[Record] = []
    spool.drain(seen.append)
    assert [r.op for r in seen] == ["tags", "nothing"]
    assert "unreadable" in caplog.text


def test_an_error_of_another_kind_loses_nothing_either(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "driver")
    spool.append([Record("tags", {"tags": {}})])

    def deliver(record: Record) -> None:
        raise RuntimeError("defect")

    with pytest.raises(RuntimeError, match="defect"):
        spool.drain(deliver)
    assert spool.pending
    spool.close()
