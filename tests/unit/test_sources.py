"""Sources: lines become messages as they are, and a source that blocks or runs ahead does no harm."""

import io
import itertools
import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.accounting.stamps import STAMP_HEADER, decode, stream_of
from workers.errors import ConfigError
from workers.producer import lines
from workers.producer.generator import StampedSource
from workers.producer.lines import LineFormat, LineReader, read_file
from workers.producer.prefetch import ThreadedSource
from workers.sources import AHEAD_BYTES, AHEAD_MESSAGES, Outgoing, Record, SourceError, call_source
from workers.testing.processes import eventually


def values_of(data: bytes, line_format: LineFormat | None = None) -> list[bytes | None]:
    return [record["value"] for record in LineReader(io.BytesIO(data), "file", line_format or LineFormat())]


def drain(source: ThreadedSource) -> list[Record]:
    records: list[Record] = []
    while (batch := source.take(1000, 0.05)) is not None:
        records += batch.records
    return records


@given(st.lists(st.binary().filter(lambda line: b"\n" not in line)))
def test_any_bytes_between_newlines_are_a_message(lines: list[bytes]) -> None:
    assert values_of(b"".join(line + b"\n" for line in lines)) == lines


def test_a_last_line_without_a_newline_counts() -> None:
    assert values_of(b"a\n\nb\r\nc") == [b"a", b"", b"b\r", b"c"]


def test_a_long_line_is_one_message_and_one_without_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert values_of(b"x" * 20_000_000 + b"\nshort\n") == [b"x" * 20_000_000, b"short"]

    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1 << 20)
    with pytest.raises(SourceError, match="file line 2: longer than 1 MiB"):
        values_of(b"first\n" + b"x" * 3_000_000)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"", "not JSON"),
        (b"[1]", "a JSON object with the field 'id'"),
        (b'{"other": 1}', "a JSON object with the field 'id'"),
        (b"[" * 100_000, "not JSON"),
        (b'{"id": "\\ud83d"}', "no text"),
    ],
)
def test_a_line_that_is_not_such_json_is_named_or_marked(line: bytes, reason: str) -> None:
    data = b'{"id": 1}\n' + line + b'\n{"id": 3}\n'
    with pytest.raises(SourceError, match="file line 2: "):
        values_of(data, LineFormat(key_field="id"))

    records = list(LineReader(io.BytesIO(data), "file", LineFormat(key_field="id", dead_letter_invalid=True)))
    assert [record["value"] for record in records] == [b'{"id": 1}', line, b'{"id": 3}']
    assert [record.get("invalid") is not None for record in records] == [False, True, False]
    assert reason in records[1]["invalid"]


def test_a_broken_file_is_refused_before_anything_is_read_from_it(tmp_path: Path) -> None:
    path = tmp_path / "orders.jsonl"
    path.write_text('{"id": 1}\nbroken\n')

    with pytest.raises(ConfigError, match=r"line 2.*nothing was sent"):
        read_file(str(path), LineFormat(key_field="id"))


def test_a_stamped_run_is_exact_and_shared_out() -> None:
    source = StampedSource("run", 3, 100, 1_001, lambda: 3)
    sequences: dict[bytes, list[int]] = {}
    while (batch := source.take(10_000, 0)) is not None:
        for stamp in map(decode, (record["value"] for record in batch.records)):
            assert stamp is not None
            assert stamp.stream == batch.stream == stream_of("run", 3, batch.partition)
            sequences.setdefault(stamp.stream, []).append(stamp.sequence)

    assert sum(map(len, sequences.values())) == 1_001
    assert len(sequences) == 3
    assert all(of_stream == list(range(len(of_stream))) for of_stream in sequences.values())


@pytest.mark.parametrize("taken", [100, 1000])
def test_a_stamped_run_that_is_closed_early_is_not_complete(taken: int) -> None:
    """The producer closes it while it waits for room, and again at its end."""
    source = StampedSource("run", 3, 100, 1_000, lambda: 1)
    source.take(taken, 0)
    source.close()
    source.close()

    assert source.take(1, 0) is None
    assert source.complete == (taken == 1_000)


def test_a_partition_that_is_added_gets_its_part() -> None:
    partitions = 2
    source = StampedSource("run", 0, 100, None, lambda: partitions)
    before = {batch.partition for _ in range(6) if (batch := source.take(10, 0))}
    partitions = 3
    after = {batch.partition for _ in range(6) if (batch := source.take(10, 0))}

    assert (before, after) == ({0, 1}, {0, 1, 2})


def test_reading_ahead_is_bounded_in_messages() -> None:
    taken = itertools.count()
    source = ThreadedSource({"value": b"", "key": None, "n": next(taken)} for _ in itertools.count())
    eventually(lambda: len(source._buffer) >= AHEAD_MESSAGES, "the buffer is full")
    produced = next(taken)

    assert produced <= AHEAD_MESSAGES + 2
    source.close()


def test_reading_ahead_is_bounded_in_bytes() -> None:
    source = ThreadedSource({"value": b"x" * 1_000_000, "key": None} for _ in itertools.count())
    eventually(lambda: source._bytes_in >= AHEAD_BYTES, "the buffer is full")

    assert len(source._buffer) * 1_000_000 <= AHEAD_BYTES + 1_000_000
    source.close()


@pytest.mark.parametrize("headers", [[("h", b"x" * 1_000_000)], [("h", b"")] * 10_000])
def test_headers_count_for_what_is_read_ahead_and_for_the_queue(headers: list[tuple[str, bytes]]) -> None:
    source = ThreadedSource({"value": b"x", "key": None, "headers": headers} for _ in itertools.count())
    eventually(lambda: source._bytes_in >= AHEAD_BYTES or len(source._buffer) > 100, "the buffer is full")

    assert len(source._buffer) <= AHEAD_BYTES // 1_000_000 + 1
    batch = source.take(1, 0)
    assert batch is not None
    assert batch.largest_bytes >= 1_000_000
    source.close()


def test_reading_ahead_goes_no_further_than_it_may() -> None:
    taken = itertools.count()
    source = ThreadedSource(({"value": b"", "key": None, "n": next(taken)} for _ in itertools.count()), ahead=10)
    eventually(lambda: len(source._buffer) >= 10, "the buffer is full")

    assert next(taken) <= 12
    source.close()


def test_a_stop_leaves_no_line_in_a_pipe_reader_half_read() -> None:
    """Whatever was read from the pipe is given as whole lines, and the next reader begins with the line after them."""
    reading, writing = os.pipe()
    lines_sent = [b"line %d" % number for number in range(20_000)]
    with os.fdopen(writing, "wb") as writer, os.fdopen(reading, "rb") as pipe:

        def write() -> None:
            with writer:
                writer.write(b"\n".join(lines_sent) + b"\n")

        sender = threading.Thread(target=write)
        sender.start()
        source = ThreadedSource(LineReader(pipe, "pipe", LineFormat()), ahead=5)
        first = eventually(lambda: (batch := source.take(3, 0.1)) and batch.records, "the first lines")
        source.close()
        given = [record["value"] for record in [*first, *drain(source)]]
        rest = pipe.read().split(b"\n")
        sender.join()

    assert given + rest == [*lines_sent, b""]
    assert 3 <= len(given) < len(lines_sent)


@pytest.mark.parametrize("comes", [True, False], ids=["the rest comes", "it does not"])
def test_a_stop_in_the_middle_of_a_line_waits_for_its_rest_and_tells_when_it_does_not_come(
    comes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer with a buffer writes half a line and waits. The half is in no pipe any more."""
    monkeypatch.setattr("workers.producer.prefetch.GRACE_S", 0.0)
    monkeypatch.setattr("workers.producer.prefetch.LINE_GRACE_S", 20.0 if comes else 0.1)
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as writer, os.fdopen(reading, "rb") as pipe:
        writer.write(b"one\nha")
        source = ThreadedSource(LineReader(pipe, "pipe", LineFormat()))
        first = eventually(lambda: (batch := source.take(3, 0.1)) and batch.records, "the first line")
        source.close()
        if comes:
            assert source.take(3, 0.1) is not None
            writer.write(b"lf\nnext\n")
            assert [record["value"] for record in [*first, *drain(source)]] == [b"one", b"half"]
            assert pipe.read(5) == b"next\n"
        else:
            with pytest.raises(SourceError, match=r"pipe: the stop came in the middle of a line.* its first 2 bytes"):
                drain(source)
            assert not source.complete
            writer.write(b"\n")


@pytest.mark.parametrize("timestamp_ms", [0, -1])
def test_a_time_that_librdkafka_would_take_for_now_is_refused(timestamp_ms: int) -> None:
    with pytest.raises(SourceError, match=f"timestamp_ms is {timestamp_ms}; leave it out for now"):
        list(call_source(lambda: [Outgoing("x", timestamp_ms=timestamp_ms)], "mine:items"))


def test_a_source_that_blocks_gives_an_empty_batch_and_then_what_comes() -> None:
    gate = threading.Event()

    def rows() -> Iterator[Record]:
        yield {"value": b"1", "key": None}
        gate.wait(10)
        yield {"value": b"2", "key": None}

    source = ThreadedSource(rows())
    first = eventually(lambda: (batch := source.take(10, 0.01)) and batch.records, "the first message")
    waiting = source.take(10, 0.01)
    assert waiting is not None
    assert waiting.records == []
    gate.set()

    assert [record["value"] for record in [*first, *drain(source)]] == [b"1", b"2"]


def test_what_came_before_an_error_is_not_lost() -> None:
    def rows() -> Iterator[Record]:
        yield {"value": b"1", "key": None}
        raise RuntimeError("gone")

    source = ThreadedSource(rows())
    first = eventually(lambda: (batch := source.take(10, 0.01)) and batch.records, "the first message")

    assert [record["value"] for record in first] == [b"1"]
    with pytest.raises(SourceError, match="RuntimeError: gone"):
        drain(source)


@pytest.mark.parametrize("count", [None, 3])
def test_a_generator_is_closed_in_its_own_thread_when_no_more_is_taken(count: int | None) -> None:
    closed = threading.Event()
    threads: list[int] = []

    def rows() -> Iterator[str]:
        threads.append(threading.get_ident())
        try:
            while True:
                yield "x"
        finally:
            threads.append(threading.get_ident())
            closed.set()

    records = call_source(rows, "mine:rows")
    source = ThreadedSource(records, count=count)
    source.take(10, 1)
    if count is None:
        source.close()

    assert closed.wait(10)
    assert threads[0] == threads[1]


def test_a_stamp_that_a_message_came_with_is_of_another_run() -> None:
    stream = stream_of("run", 0, None)
    source = ThreadedSource(
        call_source(lambda: [Outgoing("b", headers=[(STAMP_HEADER, b"old")])], "mine:items"), stream
    )
    [record] = drain(source)

    [(_, stamp)] = record["headers"]
    assert decode(stamp) is not None


def test_stamps_go_into_headers_and_count() -> None:
    stream = stream_of("run", 0, None)
    items: list[str | Outgoing] = ["a", Outgoing("b", headers=[("mine", b"1")])]
    source = ThreadedSource(call_source(lambda: items, "mine:items"), stream)
    records = drain(source)

    stamps = [decode(dict(record["headers"])[STAMP_HEADER]) for record in records]
    assert [stamp.sequence for stamp in stamps if stamp] == [0, 1]
    assert ("mine", b"1") in records[1]["headers"]


@pytest.mark.parametrize("more", [{"headers": [("h", b"")]}, {"partition": 1}, {"timestamp_ms": 1}])
def test_a_batch_with_more_than_value_and_key_is_not_plain(more: dict[str, Any]) -> None:
    source = ThreadedSource(call_source(lambda: [Outgoing("x", **more)], "mine:items"))
    plain = eventually(lambda: (batch := source.take(10, 0.05)) and batch.records and [batch.plain], "the message")

    assert plain == [False]


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (Outgoing("x", key=5), "mine:items, message 1: key is an int"),
        (Outgoing("x", headers={"a": b"1"}), "headers is a dict"),  # type: ignore[arg-type]
        (Outgoing("x", headers=[("a", 1)]), "a header is a name"),  # type: ignore[list-item]
        (Outgoing("x", partition="1"), "partition is a str"),  # type: ignore[arg-type]
        (Outgoing("x", partition=2**40), "partition is 1099511627776"),
        (Outgoing("x", timestamp_ms=2**70), "timestamp_ms is 1180591620717411303424"),
        (Outgoing("x", headers=[("n\ud800", b"1")]), "cannot be sent"),
        (Outgoing("x", headers=[("n\0a", b"1")]), "cannot be sent"),
        (Outgoing("x", headers=[("n", "v\ud800")]), "cannot be sent"),
    ],
)
def test_what_the_client_would_not_take_is_named(item: Outgoing, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        list(call_source(lambda: [item], "mine:items"))


def test_a_source_that_exits_is_not_at_its_end() -> None:
    def items() -> Iterator[str]:
        yield "one"
        sys.exit(5)

    source = ThreadedSource(call_source(items, "mine:items"))
    with pytest.raises(SourceError, match="SystemExit: 5"):
        list(iter(partial(source.take, 10, 0.1), None))


@pytest.mark.parametrize(
    ("returned", "kind"), [(7, "an int"), ("hello", "a str"), (b"hello", "a bytes"), ({}, "a dict")]
)
def test_a_function_that_returns_no_messages_is_named(returned: Any, kind: str) -> None:
    """It was "'int' object is not iterable", as of the user's own code; and text was sent letter by letter."""
    with pytest.raises(SourceError, match=f"^orders:source returned {kind}.*; yield messages, or return a list"):
        next(call_source(lambda: returned, "orders:source"))
