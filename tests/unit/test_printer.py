"""--format text for people: a test message says what it is, whatever else is shown as it is."""

import re
import sys
import time
from typing import Any, cast

import pytest
from confluent_kafka import Message

from workers.accounting.stamps import encode, encode_batch, stream_of
from workers.consumer.printer import FORMATS, printer

STREAM = stream_of("b86dc7e90806", 0, 1)


def text(*values: bytes | None) -> list[str]:
    messages = [
        Message(topic="teste", partition=1, offset=283 + at, key=None, value=value, timestamp=(1, 7))
        for at, value in enumerate(values)
    ]
    return FORMATS["text"](messages).decode().splitlines()


@pytest.mark.parametrize("size", [57, 58, 100])
def test_a_test_message_names_its_run_its_number_when_it_was_sent_and_how_long_it_took(size: int) -> None:
    sent_at_us = 1_795_541_347_082_767

    (record,) = encode_batch(STREAM, 283, 1, sent_at_us, size)

    (line,) = text(record["value"])
    assert re.fullmatch(
        r"teste\[1\]@283 key=null run=b86dc7e90806 producer=0 message=283 sent=17:29:07\.082Z took=-?\d+(ms|s)",
        line,
    )


def test_the_time_that_a_message_took_is_the_time_until_it_is_printed() -> None:
    now_us = time.time_ns() // 1000

    quick, slow = text(encode(STREAM, 0, now_us - 2_500_000), encode(STREAM, 0, now_us - 100_500_000))

    assert 2500 <= int(quick.rpartition("took=")[2].removesuffix("ms")) < 10_000
    assert 100 <= int(slow.rpartition("took=")[2].removesuffix("s")) < 110


@pytest.mark.parametrize(
    "value",
    [
        b"kw1 ",
        b"kw1 is what this message begins with, and it is long enough to be a stamp ~~~~",
        encode(STREAM, 0, 1) + b" and more",
        encode(STREAM, 0, 1) + b"~",
        encode(STREAM, 0, 1)[:-1] + b"x",
    ],
)
def test_a_value_that_only_begins_like_a_test_message_is_shown_as_it_is(value: bytes) -> None:
    assert text(value) == [f"teste[1]@283 key=null {value.decode()}"]


def test_test_messages_and_others_may_stand_side_by_side() -> None:
    stamped = encode(STREAM, 0, time.time_ns() // 1000)

    lines = text(None, stamped, b"order", stamped)

    assert [" run=" in line for line in lines] == [False, True, False, True]
    assert lines[::2] == ["teste[1]@283 key=null null", "teste[1]@285 key=null order"]


def print_on(message: Message) -> None:
    with cast(Any, printer("text")()) as handle:
        handle([message])


def test_on_a_terminal_the_place_is_coloured_unless_no_color_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    message = Message(topic="teste", partition=1, offset=3, key=None, value=b"order", timestamp=(1, 7))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    print_on(message)
    monkeypatch.setenv("NO_COLOR", "1")
    print_on(message)

    assert capfdbinary.readouterr().out.splitlines() == [
        b"\x1b[36mteste[1]@3\x1b[0m key=null order",
        b"teste[1]@3 key=null order",
    ]


def test_other_formats_keep_the_stamp() -> None:
    stamped = encode(STREAM, 0, 1)
    message = Message(topic="teste", partition=1, offset=0, key=None, value=stamped, timestamp=(1, 7))

    assert FORMATS["value"]([message]) == stamped + b"\n"
    assert stamped in FORMATS["json"]([message])
