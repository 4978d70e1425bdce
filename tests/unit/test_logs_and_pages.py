"""proxy/logs: levels, formats, what never gets into a line. proxy/pages: sums over workers, past ones too."""

import io
import json
import os

import pytest

from shardproxy.config import Log
from shardproxy.dataplane.counters import BUCKET_COUNT, PAGE_BYTES, TABLE
from shardproxy.proxy.logs import LEVELS, Logger
from shardproxy.proxy.pages import CounterPages

NUMBERS = {name: number for number, (name, _, _) in enumerate(TABLE)}


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_hold_the_fields_and_the_level() -> None:
    stream = io.StringIO()
    Logger(Log(), stream, {"worker": 2})("node_down", node="127.0.0.1:7001", reason="gone")
    (line,) = lines(stream)
    assert line["event"] == "node_down"
    assert line["level"] == LEVELS["node_down"] == "warning"
    assert (line["worker"], line["node"], line["reason"]) == (2, "127.0.0.1:7001", "gone")


def test_the_level_is_the_least_that_is_logged() -> None:
    stream = io.StringIO()
    log = Logger(Log(level="warning"), stream)
    log("listening")
    log("node_down")
    assert [line["event"] for line in lines(stream)] == ["node_down"]


@pytest.mark.parametrize("form", ["json", "human"])
def test_an_exception_is_logged_by_type_and_place_alone(form: str) -> None:
    stream, key = io.StringIO(), "secret-key"
    try:
        int(key)
    except ValueError as error:
        Logger(Log(format=form), stream)("handler_failed", exc_info=error)  # type: ignore[arg-type]
    text = stream.getvalue()
    assert "ValueError" in text
    assert "test_logs_and_pages.py:" in text
    assert key not in text


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    Logger(Log(), Full())("listening")
    stream = io.StringIO()
    log = Logger(Log(), stream)
    stream.close()
    log("listening")


@pytest.fixture
def pages() -> CounterPages:
    return CounterPages.create(2)


def put(pages: CounterPages, slot: int, **values: int) -> None:
    """As the engine of that slot would."""
    words = pages.page(slot).cast("Q")
    for name, value in values.items():
        words[NUMBERS[name]] = value


def test_counters_are_added_up(pages: CounterPages) -> None:
    put(pages, 0, commands=3, clients=1)
    put(pages, 1, commands=4, clients=2)
    assert len(pages.page(0)) == PAGE_BYTES
    found = pages.counters()
    assert (found["commands"], found["clients"]) == (7, 3)
    assert found.keys() == NUMBERS.keys()


def test_a_past_worker_leaves_its_counters_and_takes_its_gauges(pages: CounterPages) -> None:
    put(pages, 0, commands=3, clients=1)
    put(pages, 1, commands=4, clients=2)
    words = pages.page(1).cast("Q")
    words[len(TABLE)] = words[len(TABLE) + 2 * BUCKET_COUNT - 1] = 9
    pages.retire(1)
    pages.retire(1)
    assert pages.counters()["commands"] == 7
    assert pages.counters()["clients"] == 1
    assert pages.latency()["read"][0] == pages.latency()["write"][-1] == 9
    put(pages, 1, commands=5)
    assert pages.counters()["commands"] == 12


def test_who_attaches_sees_the_same_memory(pages: CounterPages) -> None:
    other = CounterPages(os.dup(pages.fd), 2)
    put(other, 1, commands=42)
    assert pages.counters()["commands"] == 42


def test_the_times_of_writes_are_behind_all_pages(pages: CounterPages) -> None:
    other = CounterPages(os.dup(pages.fd), 2)
    pages.stamps[:] = b"\xff" * len(pages.stamps)
    assert set(other.counters().values()) == {0}
    assert other.stamps == pages.stamps
