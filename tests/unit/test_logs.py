"""Logs: JSON for machines, text for a person on a terminal, with the level in colour unless NO_COLOR is set."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from workers.consumer.assignment import PartitionState, TopicCounts
from workers.kafka.messages import MessagePlace
from workers.lifecycle import set_up_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def said(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, log_format: str | None = None) -> list[str]:
    monkeypatch.setattr(sys, "stderr", stream)
    set_up_logging(log_format, "info")
    logging.getLogger("workers").info("assigned teste[0]")
    logging.getLogger("workers").warning("broker 1 is away")
    return stream.getvalue().splitlines()


def test_elsewhere_than_on_a_terminal_each_event_is_a_line_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [json.loads(line) for line in said(io.StringIO(), monkeypatch)]

    assert [(event["level"], event["message"]) for event in events] == [
        ("INFO", "assigned teste[0]"),
        ("WARNING", "broker 1 is away"),
    ]


def test_in_json_the_place_of_a_message_and_a_partition_are_fields_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    set_up_logging("json", "info")
    state = PartitionState(TopicCounts("orders"), 2, None, in_order=True)
    log = logging.getLogger("workers")
    log.warning("%s: attempt %d failed", MessagePlace("orders", 2, 41), 3)
    log.warning("%s is not fetched", state)
    log.warning("%s is away", "broker 1")

    place, partition, other = (json.loads(line) for line in stream.getvalue().splitlines())

    assert place["message"] == "orders[2] offset 41: attempt 3 failed"
    assert (place["topic"], place["partition"], place["offset"]) == ("orders", 2, 41)
    assert partition["message"] == "orders[2] is not fetched"
    assert (partition["topic"], partition["partition"]) == ("orders", 2)
    assert other.keys() == {"level", "logger", "message", "timestamp"}


def test_on_a_terminal_the_level_of_what_matters_is_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)

    info, warning = said(Terminal(), monkeypatch)

    assert info[8:] == " INFO    assigned teste[0]"
    assert warning[8:] == " \x1b[33mWARNING\x1b[0m broker 1 is away"


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_text_has_no_colours_where_nobody_wants_them(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    _, warning = said(stream, monkeypatch, "text")

    assert warning[8:] == " WARNING broker 1 is away"


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_text_of_an_error_that_a_producer_chose_stays_one_line_and_moves_no_terminal(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    set_up_logging("text", "info")

    logging.getLogger("workers").info("failed: %s", ValueError("x\n12:00:00 INFO forged\x1b[31m\u202e Ж漢字é 🙂"))

    (line,) = stream.getvalue().splitlines()
    assert line.endswith(" INFO    failed: x\\n12:00:00 INFO forged\\x1b[31m\\u202e Ж漢字é 🙂")
