"""The stamp."""

import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from workers.accounting.stamps import (
    STAMP_BYTES,
    STAMP_HEADER,
    Stamp,
    StreamName,
    check_run,
    decode,
    encode,
    encode_batch,
    is_bound,
    new_run,
    stream_of,
)
from workers.kafka.messages import stamp_of

RUNS = st.from_regex(r"[A-Za-z0-9.-]{1,12}", fullmatch=True)
SEQUENCES = st.integers(0, 10**12 - 1)
TIMES = st.integers(0, 10**16 - 1)


@given(RUNS, st.integers(0, 9999), st.none() | st.integers(0, 99999), SEQUENCES, TIMES)
def test_a_stamp_comes_back_as_it_was_written(
    run: str, producer: int, partition: int | None, sequence: int, sent_at: int
) -> None:
    stream = stream_of(run, producer, partition)
    data = encode(stream, sequence, sent_at)

    assert len(data) == STAMP_BYTES
    assert decode(data) == Stamp(stream, sequence, sent_at)
    assert StreamName.of(stream) == StreamName(run, producer, partition)
    assert is_bound(stream) == (partition is not None)


@given(st.binary(max_size=200))
def test_other_data_has_no_stamp_and_does_no_harm(data: bytes) -> None:
    assert decode(data) is None
    assert decode(b"kw1 " + data) is None


@given(st.integers(STAMP_BYTES, 300), st.integers(0, 5000), st.integers(1, 2500))
def test_a_batch_counts_on_and_has_the_size_asked_for(size: int, first: int, count: int) -> None:
    stream = stream_of("run", 1, 2)
    values = [record["value"] for record in encode_batch(stream, first, count, 1_000, size)]

    assert [len(value) for value in values] == [size] * count
    assert [decode(value) for value in values] == [Stamp(stream, first + n, 1_000) for n in range(count)]


def test_a_stamp_is_found_in_the_header_or_else_in_the_value() -> None:
    stamp = encode(stream_of("run", 0, None), 7, 1)

    assert stamp_of(Message(value=stamp)) == decode(stamp)
    assert stamp_of(Message(value=b"mine", headers=[("a", b"b"), (STAMP_HEADER, stamp)])) == decode(stamp)
    for value in (b"kw1 my own", encode(stream_of("old", 0, None), 3, 1)):
        assert stamp_of(Message(value=value, headers=[(STAMP_HEADER, stamp)])) == decode(stamp)
    assert stamp_of(Message(value=None, headers=[(STAMP_HEADER, None)])) is None


@pytest.mark.parametrize("name", ["", "thirteen-long", "with space", "under_score", "ünicode"])
def test_a_run_that_cannot_stand_in_a_stamp_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 12"):
        check_run(name)


def test_new_runs_differ_and_are_valid() -> None:
    assert len({check_run(new_run()) for _ in range(100)}) == 100
