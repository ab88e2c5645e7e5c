"""The instruments of the fault suite see what they are there to see."""

import struct
from collections.abc import Generator
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.faults.books import Acknowledged, Handled
from tests.faults.field import SETUPS, Fault, Field
from tests.faults.proxy import FETCH_KEY, Requests
from workers.accounting.stamps import encode, stream_of

STREAM = stream_of("run", 0, None)
PRODUCE_KEY = 0


def handled(*offsets_by_look: dict[str, list[tuple[int, bytes]]], by_key: bool = True) -> Handled:
    """The books after members have written offsets and keys of partition 0, look by look."""
    books = Handled(by_key)
    for members in offsets_by_look:
        lines = {
            name: [b"0 %d %b %b" % (offset, key, encode(STREAM, offset, 0)) for offset, key in written]
            for name, written in members.items()
        }
        books.look(Acknowledged(), lines.items())
    return books


def acknowledged(count: int) -> Acknowledged:
    books = Acknowledged()
    books.observe([b"delivered topic[0]@%d" % offset for offset in range(count)])
    return books


def test_messages_of_two_keys_may_overtake_each_other_and_those_of_one_key_may_not() -> None:
    assert handled({"a": [(1, b"y"), (0, b"x")]}).reordered == 0
    assert handled({"a": [(1, b"x"), (0, b"x")]}).reordered == 1
    assert handled({"a": [(1, b"y"), (0, b"x")]}, by_key=False).reordered == 1


def test_a_message_that_another_member_overtook_is_out_of_order() -> None:
    assert handled({"a": [(1, b"x")]}, {}, {"b": [(0, b"x")]}).reordered == 1


def test_a_member_that_was_read_a_moment_too_early_is_not_out_of_order() -> None:
    assert handled({"a": [], "b": [(1, b"x")]}, {"a": [(0, b"x")]}).reordered == 0


def test_a_redelivery_is_no_disorder() -> None:
    books = handled({"a": [(0, b"x"), (1, b"x")]}, {"b": [(0, b"x"), (1, b"x"), (2, b"x")]})

    assert (books.redelivered, books.reordered, books.duplicated) == (2, 0, 0)


def test_what_is_acknowledged_and_not_handled_is_missing() -> None:
    assert handled({"a": [(0, b"x"), (2, b"x")]}).missing(acknowledged(4), {0: 4}) == 2


def test_what_retention_deleted_is_counted_and_not_waited_for() -> None:
    books = handled({"a": [(0, b"x"), (4, b"x")]})

    books.forgive(0, 4)

    assert books.next[0] == 5
    assert books.never_handled(0, 5) == 3
    assert books.missing(acknowledged(5), {0: 5}) == 0


def test_messages_that_were_handled_after_retention_deleted_them_are_in_order() -> None:
    books = handled({"a": [(0, b"x")]})

    books.forgive(0, 4)
    books.look(Acknowledged(), [("a", [b"0 %d x %b" % (offset, encode(STREAM, offset, 0)) for offset in (1, 4, 5)])])
    books.forgive(0, 6)

    assert books.breaches(acknowledged(6)) == []


def test_other_messages_at_the_offsets_of_a_truncated_log_have_to_be_handled_too() -> None:
    sent = acknowledged(3)
    books = handled({"a": [(0, b"x"), (1, b"x"), (2, b"x")]})

    sent.truncate(0, 1)
    books.truncate(0, 1)
    sent.observe([b"delivered topic[0]@1"])

    assert books.missing(sent, sent.ends()) == 1
    books.look(sent, [("a", [b"0 1 x %b" % encode(STREAM, 1, 0)])])
    assert books.missing(sent, sent.ends()) == 0
    assert (books.redelivered, books.reordered) == (0, 0)


def test_books_with_nothing_in_them_are_a_breach() -> None:
    assert handled().breaches(Acknowledged()) == ["nothing was acknowledged", "nothing was handled"]


def test_books_name_every_promise_that_was_not_kept() -> None:
    assert handled({"a": [(0, b"x"), (1, b"x")]}).breaches(acknowledged(2)) == []
    assert handled({"a": [(0, b"x")]}).breaches(acknowledged(2)) == ["missing 1"]
    assert handled({"a": [(1, b"x"), (0, b"x")]}).breaches(acknowledged(2)) == ["reordered 1"]
    twice = handled({"a": [(0, b"x")]})
    twice.look(Acknowledged(), [("a", [b"0 1 x %b" % encode(STREAM, 0, 0)])])
    assert twice.breaches(acknowledged(2)) == ["duplicated 1"]


def nothing(_: Field) -> Generator[None]:
    yield


@pytest.mark.parametrize("own_loads", [False, True])
def test_a_fault_that_meets_no_load_fails(own_loads: bool, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="load"):
        Field(tmp_path).play(Fault("nothing", "", nothing, 0, own_loads))


def test_a_fault_fails_when_the_books_of_its_own_loads_are_not_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load = Mock()
    load.breaches.return_value = ["missing 1"]
    monkeypatch.setattr(Field, "_loads", lambda *_: [load])

    with pytest.raises(AssertionError, match="missing 1"), Field(tmp_path).own_loads(*SETUPS[:1]):
        load.producer.stop.assert_not_called()

    load.producer.stop.assert_called_once()


def request(key: int, size: int) -> bytes:
    return struct.pack(">ih", size, key) + bytes(size - 2)


def test_only_the_fetches_of_a_connection_that_hangs_are_swallowed() -> None:
    requests = Requests()
    fetch, other = request(FETCH_KEY, 50), request(PRODUCE_KEY, 70)

    assert requests.passed(fetch + other) == fetch + other
    requests.hangs = True
    assert requests.passed(other + fetch + other) == other + other
    assert requests.swallowed == 1


def test_a_request_that_arrives_in_pieces_is_passed_on_whole() -> None:
    requests = Requests()
    data = request(FETCH_KEY, 50) + request(PRODUCE_KEY, 300)

    assert b"".join(requests.passed(data[at : at + 3]) for at in range(0, len(data), 3)) == data
