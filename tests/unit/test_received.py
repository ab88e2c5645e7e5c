"""Messages as they were received, whatever a handler does to them."""

import random
from typing import Any

import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.compiled import without_compiled
from workers.accounting.stamps import STAMP_HEADER
from workers.consumer.received import Received
from workers.kafka import fields

Row = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]] | None]
BYTES = st.none() | st.binary(max_size=5)
HEADERS = st.none() | st.lists(st.tuples(st.sampled_from("abc"), BYTES), min_size=1, max_size=3)
FIELDS = st.lists(st.tuples(BYTES, BYTES, HEADERS), min_size=1, max_size=12)


def message(
    offset: int,
    value: bytes | None = b"value",
    key: bytes | None = b"key",
    headers: list[tuple[str, bytes | None]] | None = None,
) -> Message:
    own: Any = headers and [*headers]
    return Message(topic="t", partition=0, offset=offset, value=value, key=key, headers=own)


def rows(received: Received) -> list[Row]:
    headers = received.headers or [None] * len(received)
    offsets = [received.offset(place) for place in range(len(received))]
    return list(zip(offsets, received.values, received.keys, headers, strict=True))


def size(row: Row) -> int:
    _, value, key, headers = row
    return len(value or b"") + len(key or b"") + sum(len(name) + len(data or b"") for name, data in headers or [])


def made(fields: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]] | None]]) -> list[Row]:
    return [(3 * at, value, key, headers) for at, (value, key, headers) in enumerate(fields)]


@given(FIELDS, st.data())
def test_each_choice_of_messages_has_their_fields_and_counts_their_bytes(
    fields: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]] | None]], data: st.DataObject
) -> None:
    expected = made(fields)
    received = Received([message(*row) for row in expected])
    places = range(len(expected))
    chosen = sorted(data.draw(st.sets(st.sampled_from(places), min_size=1), "chosen"))
    rest = [place for place in places if place not in chosen]
    begin = data.draw(st.integers(0, len(expected)), "begin")

    def check(found: Received, rows_of_it: list[Row]) -> None:
        assert rows(found) == rows_of_it
        assert len(found) == len(found.messages) == len(rows_of_it)
        assert [each.offset() for each in found.messages] == [row[0] for row in rows_of_it]
        assert found.bytes == sum(map(size, rows_of_it))

    check(received, expected)
    check(received.part(begin), expected[begin:])
    check(received.part(0, begin), expected[:begin])
    check(received.pick(chosen), [expected[place] for place in chosen])
    check(Received.joined([received.part(0, begin), received.part(begin)]), expected)
    parts = [received.pick(chosen), *([received.pick(rest)] if rest else [])]
    random.Random(begin).shuffle(parts)
    check(Received.merged(parts), expected)


def test_without_headers_none_are_kept() -> None:
    received = Received([message(0), message(1, headers=[])])

    assert received.headers is None
    assert Received.merged([received.part(0, 1), received.part(1)]).headers is None
    assert Received.joined([received, received]).headers is None


def spoil(handled: Message) -> None:
    """Do to a message all that a handler can do."""
    headers = handled.headers()
    if isinstance(headers, list):
        # This is no copy: the message returns the same list each time.
        headers.append(("added", b"1"))
        headers.reverse()
    handled.set_headers([("other", b"2")])
    handled.set_value(b"another value")
    handled.set_key(None)
    handled.set_topic("another")  # type: ignore[attr-defined]  # the stubs of 2.16 lack it


def test_a_handler_that_changes_its_messages_changes_nothing_of_what_was_received() -> None:
    expected: list[Row] = [(0, b"a", b"k", [("h", b"1"), ("h", None)]), (1, None, None, None), (2, b"", b"", None)]
    received = Received([message(*row) for row in expected])
    bytes_before = received.bytes
    for each in received.messages:
        spoil(each)

    assert rows(received) == expected
    assert rows(received.part(0, 1)) == expected[:1]
    assert received.part(0, 1).bytes == size(expected[0])
    assert received.bytes == bytes_before


def test_each_further_try_is_of_the_message_as_it_was_received() -> None:
    expected: list[Row] = [(0, b"a", b"k", [("h", b"1"), ("h", None)]), (1, None, None, None)]
    received = Received([message(*row) for row in expected])
    for _ in range(3):
        for each in received.messages:
            spoil(each)
        received.restore("t")
        found = [(each.offset(), each.value(), each.key(), each.headers()) for each in received.messages]
        assert found == expected
        assert {each.topic() for each in received.messages} == {"t"}


def test_a_stamp_is_that_of_the_header_or_else_the_value() -> None:
    received = Received(
        [
            message(0, b"in the value"),
            message(1, b"mine", headers=[("other", b"x"), (STAMP_HEADER, b"in the header")]),
            message(2, b"no stamp among its headers", headers=[("other", b"x")]),
            message(3, None),
        ]
    )

    assert [*received.stamps()] == [
        b"in the value",
        b"in the header",
        b"no stamp among its headers",
        None,
    ]


class OddlyNamed(Message):
    """A message as the client delivers it when one header has a name that is not UTF-8. Nobody else can make one."""

    odd = True

    def headers(self) -> Any:
        if self.odd:
            raise SystemError("<method 'headers'> returned a result with an exception set")
        return super().headers()

    def set_headers(self, headers: Any) -> None:
        self.odd = False
        super().set_headers(headers)


def test_a_header_name_that_is_not_utf8_costs_only_that_message_its_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    in_python = without_compiled(fields)
    monkeypatch.setattr(in_python, "Message", OddlyNamed)
    monkeypatch.setattr(fields, "take", in_python.take)
    messages = [
        OddlyNamed(topic="t", partition=0, offset=offset, value=b"value", key=b"key", headers=[(name, b"data")])
        for offset, name in enumerate(["first", "odd", "third"])
    ]
    messages[0].odd = messages[2].odd = False
    received = Received([*messages])

    assert received.headers == [[("first", b"data")], None, [("third", b"data")]]
    assert received.values == [b"value"] * 3
    assert received.bytes == 3 * len(b"valuekey") + len(b"firstdata") + len(b"thirddata")
    # The handler can read what it is given, at the first try and after it.
    assert not messages[1].headers()
    received.restore("t")
    assert [each.headers() for each in messages] == [[("first", b"data")], None, [("third", b"data")]]
