"""Dead letters as a person and a machine get them, whatever is in them."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from confluent_kafka import Message
from hypothesis import example, given
from hypothesis import strategies as st

from workers.deadletters.headers import (
    ATTEMPTS,
    ERROR_CLASS,
    ERROR_MESSAGE,
    ERROR_TRACEBACK,
    GROUP,
    ORIGINAL_OFFSET,
    ORIGINAL_PARTITION,
    ORIGINAL_TIMESTAMP,
    ORIGINAL_TOPIC,
    TREATED,
    dead_letter_headers,
    invalid_line_headers,
)
from workers.deadletters.listing import row_of
from workers.deadletters.stored import EVERYTHING, Origin, Place, Selection, StoredDeadLetter
from workers.deadletters.text import BY, Tally, as_document, as_table, as_text, time_of
from workers.deadletters.treated import Record, State, record_of


def letter(value: bytes | None = b"value", key: bytes | None = b"key", text: str = "no") -> StoredDeadLetter:
    origin = Message(topic="orders", partition=2, offset=316, headers=[("trace", b"\xff\n")])
    headers = dead_letter_headers(origin, "workers", ValueError(text), 5)
    return StoredDeadLetter(Message(topic="orders.dlq", partition=0, offset=12, value=value, key=key, headers=headers))


def shown(value: bytes | None) -> list[str]:
    """The lines of the value."""
    text = as_text("orders.dlq", letter(value), State.WAITING, None)
    return text[text.index("  value") :].splitlines()


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        (None, ["  value     null"]),
        (b"", ["  value     0 bytes"]),
        ("Grüße\r\nzwei\ttab".encode(), ["  value     17 bytes", "    Grüße", "    zwei\\ttab"]),
        (b"\x1b[31mred", ["  value     8 bytes", "    \\x1b[31mred"]),
        (b"\xff" + bytes(range(60, 76)), [
            "  value     17 bytes",
            "    00000000  ff 3c 3d 3e 3f 40 41 42 43 44 45 46 47 48 49 4a  .<=>?@ABCDEFGHIJ",
            "    00000010  4b                                               K",
        ]),
    ],
)  # fmt: skip
def test_a_value_is_text_where_it_is_utf_8_and_bytes_otherwise(value: bytes | None, lines: list[str]) -> None:
    assert shown(value) == lines


def test_of_a_large_value_the_beginning_is_shown_even_where_that_ends_within_a_character() -> None:
    lines = shown(b"a" + "ü".encode() * 4000)
    assert lines[0] == "  value     8,001 bytes"
    assert lines[1] == "    a" + "ü" * 2047
    assert lines[2] == "    … 3,905 bytes more; `dead-letters show --format json` has them"


def test_whatever_is_in_a_dead_letter_each_line_of_its_text_is_printable() -> None:
    text = as_text("t", letter(b"\x07", b"\x1b", "\x1b[2J\nline"), State.DISCARDED, Record(
        State.DISCARDED, ((12, 13),), "g", "now", "me", "\x1b"
    ))  # fmt: skip
    assert all(line.isprintable() for line in text.splitlines())
    assert "  state     discarded now by me: \\x1b" in text
    assert "    trace: \\xff\\n" in text


def test_a_table_fits_a_terminal_of_80_columns_and_is_whole_elsewhere() -> None:
    rows = [(letter(key=b"k" * 100, text="e" * 1000), State.WAITING)] * 2
    assert max(map(len, as_table(rows, show_state=True, width=80).splitlines())) == 80
    assert "ValueError" in as_table(rows, show_state=False, width=80)
    whole = as_table(rows, show_state=False, width=None)
    assert "k" * 100 in whole
    assert whole.endswith("e" * 1000)


def test_a_document_has_everything_in_json() -> None:
    found = json.loads(json.dumps(as_document("orders.dlq", letter(b"\xff"), State.WAITING, None)))
    assert found["letter"] == "0:12"
    assert found["source"] == {"topic": "orders", "partition": 2, "offset": 316, "timestamp": found["timestamp"]}
    assert found["error"]["class"] == "ValueError"
    assert found["error"]["traceback"] == "ValueError: no\n"
    assert (found["key"], found["value_base64"]) == ("key", "/w==")
    assert found["headers"] == [{"name": "trace", "value_base64": "/wo="}]


def test_a_message_that_says_nothing_or_nonsense_is_shown_all_the_same() -> None:
    bare = StoredDeadLetter(Message(topic="t", value=b"v"))
    odd = StoredDeadLetter(
        Message(
            topic="t", headers=[(ORIGINAL_TOPIC, b"a b"), (ORIGINAL_PARTITION, b"x"), ("kafka-workers.attempts", b"")]
        )
    )
    assert (bare.has_story, odd.has_story) == (False, True)
    for each in (bare, odd):
        assert (each.origin, each.attempts, each.origin_offset) == (None, None, None)
        assert "source    -" in as_text("t", each, State.WAITING, None)
        assert as_document("t", each, State.WAITING, None)["source"] is None
    assert StoredDeadLetter(Message(topic="t", headers=[(ERROR_MESSAGE, b"no JSON")])).has_story


def test_a_line_that_could_not_be_produced_says_so() -> None:
    line = StoredDeadLetter(Message(topic="t", value=b"x", headers=invalid_line_headers("no JSON")))
    assert (line.has_story, line.error_class, line.origin) == (True, "InvalidLine", None)
    assert Selection(errors=frozenset({"InvalidLine"})).matches(line)
    shown = as_text("t", line, State.WAITING, None)
    assert "source    a line that `produce` could not send; mend it and produce it again" in shown
    assert "attempts" not in shown
    assert "a line" in as_table([(line, State.WAITING)], show_state=False, width=None)
    assert as_document("t", line, State.WAITING, None)["error"]["class"] == "InvalidLine"


def test_an_origin_without_a_partition_leaves_that_open() -> None:
    assert StoredDeadLetter(Message(topic="t", headers=[(ORIGINAL_TOPIC, b"a")])).origin == Origin("a", -1)


@pytest.mark.parametrize(
    ("at_ms", "text"), [(None, "-"), (-1, "-"), (1_000, "1970-01-01 00:00:01Z"), (2**62, str(2**62))]
)
def test_a_time_is_shown_whatever_it_is(at_ms: int | None, text: str) -> None:
    assert time_of(at_ms) == text


def test_a_named_dead_letter_says_where_to_begin() -> None:
    named = Selection(letters=frozenset({Place(1, 9), Place(1, 7), Place(2, 5)}))
    assert [named.first_offset(partition) for partition in range(3)] == [0, 7, 5]
    assert [named.includes_partition(partition) for partition in range(3)] == [False, True, True]


NOON = datetime(2026, 11, 25, 12, 0, 0, 123_000, tzinfo=UTC)
NOON_MS = 1_795_608_000_123


@pytest.mark.parametrize(
    ("at_ms", "since", "before"),
    [
        (NOON_MS - 1, False, True),
        (NOON_MS, True, False),
        (NOON_MS + 1, True, False),
        # Whoever writes a message chooses its time, up to one that no calendar has.
        (2**63 - 1, True, False),
        (-1, False, True),
    ],
)
def test_dead_letters_are_chosen_by_their_time_whatever_it_is(at_ms: int, since: bool, before: bool) -> None:
    found = StoredDeadLetter(Message(topic="t", timestamp=(1, at_ms)))
    assert Selection(since=NOON).matches(found) is since
    assert Selection(until=NOON).matches(found) is before
    assert EVERYTHING.matches(found)


OWN = [
    ORIGINAL_TOPIC, ORIGINAL_PARTITION, ORIGINAL_OFFSET, ORIGINAL_TIMESTAMP, GROUP, ATTEMPTS, ERROR_CLASS,
    ERROR_MESSAGE, ERROR_TRACEBACK, TREATED,
]  # fmt: skip
CONTENT = (
    st.none()
    | st.binary(max_size=20)
    | st.integers().map(lambda number: b"%d" % number)
    | st.sampled_from([b"orders", b"discarded", b"replayed", b"1e999", b"nan", b"9" * 4300, b"-" + b"9" * 5000])
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=3), each, max_size=3),
    max_leaves=8,
)
NUMBER = st.integers(-1, 9) | st.floats() | st.text(max_size=3)
RECORD = st.fixed_dictionaries(
    {"offsets": JSON | st.lists(st.tuples(NUMBER, NUMBER), max_size=3), "group": JSON, "at": JSON, "by": JSON,
     "reason": JSON}
).map(lambda fields: json.dumps(fields).encode())  # fmt: skip
INFINITE = b'{"offsets": [[1e999, 1]], "group": "", "at": "", "by": "", "reason": ""}'


@given(
    st.lists(st.tuples(st.sampled_from(OWN) | st.text(max_size=8), CONTENT), max_size=12),
    CONTENT | RECORD,
    CONTENT,
    st.integers(-1, 2**63 - 1),
)
@example([(TREATED, b"discarded")], INFINITE, None, 0)
@example([], b"", b"", 2**63 - 1)
def test_whatever_is_written_into_a_dead_letter_topic_can_be_listed_and_shown(
    headers: list[tuple[str, bytes | None]], value: bytes | None, key: bytes | None, at_ms: int
) -> None:
    """Whoever may write to the topic could end each command for it with a traceback."""
    message = Message(topic="t", partition=0, offset=7, value=value, key=key, headers=[*headers], timestamp=(1, at_ms))
    record = record_of(message)
    found = StoredDeadLetter(message)
    for selection in (
        EVERYTHING,
        Selection(since=NOON),
        Selection(until=NOON),
        Selection(source_offsets=frozenset({1})),
    ):
        selection.matches(found)
    state = State.WAITING if record is None else record.state
    json.dumps(as_document("t", found, state, record))
    for text in (
        as_text("t", found, state, record),
        as_table([(found, state)], show_state=True, width=80),
        row_of("t", found, state, record).text,
        *(named(found) for named in BY.values()),
    ):
        # A terminal is given UTF-8.
        text.encode()
    tally = Tally()
    tally.add(found)
    json.dumps(tally.document("error", BY["error"](found)))
