"""Which offsets of a partition are done, and the metadata that is committed with the low-water mark."""

import time
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError, Message, TopicPartition
from hypothesis import example, given
from hypothesis import strategies as st

from workers.accounting.offset_metadata import (
    MAX_BYTES,
    MAX_RANGES,
    MAX_RANGES_BYTES,
    OffsetMetadata,
    decode,
    encode,
    room_for_ledger,
)
from workers.accounting.order import MAX_GAPS, MAX_STREAMS, OrderCounts, OrderLedger
from workers.accounting.stamps import encode as stamp
from workers.accounting.stamps import stream_of
from workers.consumer.assignment import Assignment, PartitionState
from workers.consumer.committing import StoredOffsets
from workers.consumer.offsets import OffsetTracker
from workers.kafka.statistics import PartitionStatistics

OFFSETS = st.integers(0, 2**62)
# Ranges of done offsets beyond a low-water mark: distances from one range to the next, and lengths.
STEPS = st.builds(
    lambda pattern, times: pattern * times,
    st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, 10**9)), max_size=4),
    st.integers(0, 100),
)
TOPIC_IDS = st.from_regex(r"[A-Za-z0-9+/=_-]{0,36}", fullmatch=True)


def ranges_of(offsets: set[int]) -> tuple[tuple[int, int], ...]:
    """Half-open ranges, the slow way: one for each offset whose predecessor is missing."""
    begins = sorted(offset for offset in offsets if offset - 1 not in offsets)
    ends = sorted(offset + 1 for offset in offsets if offset + 1 not in offsets)
    return tuple(zip(begins, ends, strict=True))


@given(st.data())
def test_the_low_water_mark_is_the_first_offset_that_is_not_done_in_any_order(data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, 1000), "begin")
    tracker = OffsetTracker(begin)
    received: list[int] = []
    done: set[int] = set()
    passed_in_all = 0
    for _ in range(data.draw(st.integers(1, 40), "steps")):
        outstanding = [offset for offset in received if offset not in done]
        if not outstanding or data.draw(st.booleans(), "receive"):
            # A gap lies before a message where a transaction has its marker, or compaction took messages away.
            gaps = data.draw(st.lists(st.integers(1, 4), max_size=8), "gaps")
            offset = received[-1] if received else begin - 1
            fresh = [offset := offset + gap for gap in gaps]
            tracker.received(fresh)
            received += fresh
        else:
            offset = data.draw(st.sampled_from(outstanding), "complete")
            done.add(offset)
            passed_in_all += tracker.complete(offset)
        outstanding = [offset for offset in received if offset not in done]
        if outstanding:
            assert tracker.next_offset == outstanding[0]
        else:
            assert tracker.next_offset == (received[-1] + 1 if received else begin)
        beyond = {offset for offset in done if outstanding and offset > outstanding[0]}
        assert tracker.ahead() == ranges_of(beyond)
        assert tracker.distance == len(beyond)
        assert passed_in_all == len(received) - len(outstanding) - len(beyond)
        assert tracker.furthest == max(done, default=-1)


def test_offsets_that_are_completed_in_order_leave_nothing_behind() -> None:
    tracker = OffsetTracker(0)
    for offset in range(1000):
        tracker.received([offset])
        assert tracker.complete(offset) == 1
        assert (tracker.next_offset, tracker.distance) == (offset + 1, 0)


def test_the_first_message_tells_where_a_partition_without_a_committed_offset_begins() -> None:
    tracker = OffsetTracker()
    assert tracker.next_offset is None

    tracker.received([])
    assert tracker.next_offset is None

    tracker.received([7, 9])
    assert tracker.next_offset == 7


def test_the_end_of_a_partition_moves_the_mark_over_what_is_no_message() -> None:
    tracker = OffsetTracker(3)
    tracker.received([3])
    tracker.complete(3)
    tracker.advance_to(6)
    assert (tracker.next_offset, tracker.ahead()) == (6, ())

    tracker.received([8, 9])
    assert tracker.complete(9) == 0
    assert (tracker.next_offset, tracker.ahead()) == (8, ((9, 10),))
    assert tracker.complete(8) == 2
    assert tracker.next_offset == 10


def test_all_ranges_are_listed_that_the_metadata_has_room_for_and_no_others() -> None:
    done = set(range(1, 10_000, 2))
    tracker = OffsetTracker(0)
    tracker.received(range(10_000))
    for offset in done:
        tracker.complete(offset)

    assert encode(0, OffsetMetadata(ahead=tracker.ahead())) == encode(0, OffsetMetadata(ahead=ranges_of(done)))
    assert len(tracker.ahead()) == MAX_RANGES


def test_an_offset_that_was_never_received_is_an_error_not_a_loss() -> None:
    with pytest.raises(IndexError):
        OffsetTracker(0).complete(5)


def absolute(offset: int, steps: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    ranges, end = [], offset
    for gap, length in steps:
        begin = end + gap
        end = begin + length
        ranges.append((begin, end))
    return tuple(ranges)


@given(
    OFFSETS,
    TOPIC_IDS,
    st.integers(0, 10**6),
    st.integers(-1, 2**31 - 1),
    st.integers(0, 10**16 - 1),
    STEPS,
    st.text(max_size=50),
)
def test_metadata_comes_back_as_it_was_committed_but_for_the_furthest_ranges(
    offset: int, topic_id: str, partitions: int, epoch: int, time_ms: int, steps: list[tuple[int, int]], ledger: str
) -> None:
    ahead = absolute(offset, steps)
    found = decode(offset, encode(offset, OffsetMetadata(topic_id, partitions, ahead, epoch, time_ms, ledger)))

    assert found == OffsetMetadata(topic_id, partitions, ahead[: len(found.ahead)], epoch, time_ms, ledger)
    if len(found.ahead) < len(ahead):
        # Only for want of room.
        relative = [f"{begin - offset}-{end - offset}" for begin, end in ahead[: len(found.ahead) + 1]]
        assert len(",".join(relative)) >= MAX_RANGES_BYTES


def crowded_ledger(streams: int, gaps: int) -> OrderLedger:
    ledger = OrderLedger(OrderCounts())
    for number in range(streams):
        stream = stream_of("run", number, 3)
        ledger.observe(stamp(stream, 10**9 + 3 * place, 1) for place in range(gaps + 1))
    return ledger


@given(OFFSETS, TOPIC_IDS, STEPS, st.sampled_from([0, 1, 7, MAX_STREAMS]), st.sampled_from([0, 3, MAX_GAPS]))
@example(2**62, "x" * 36, [(10**9, 10**9)] * 400, MAX_STREAMS, MAX_GAPS)
def test_metadata_with_its_ledger_is_never_larger_than_brokers_take_and_keeps_every_stream(
    offset: int, topic_id: str, steps: list[tuple[int, int]], streams: int, gaps: int
) -> None:
    metadata = OffsetMetadata(topic_id, 10**9, absolute(offset, steps), 2**31 - 1, 10**16 - 1)
    ledger = crowded_ledger(streams, gaps).as_text(room_for_ledger(metadata, offset))
    text = encode(offset, metadata._replace(ledger=ledger))

    assert len(text.encode()) <= MAX_BYTES
    assert decode(offset, text).ledger == ledger
    assert len(ledger.split(";") if ledger else []) == streams


# Text that is nearly an envelope, and text that is nearly a ledger.
FOREIGN = st.one_of(
    st.text(max_size=200),
    st.from_regex(r"kw[0-9]\|[A-Za-z0-9|,;-]{0,60}", fullmatch=True),
    st.from_regex(
        r"(?s)kw1\|.{0,40}\|-?\d{1,12}\|\d{1,18}\|(\d{1,20}-\d{1,20},){0,4}\d*-?\d*\|.{0,60}", fullmatch=True
    ),
    st.from_regex(r"(?s)kw1\|\|0\|-1\|0\|\|.{23} [0-9]{1,30}( [0-9]{1,5}-[0-9]{1,5}){0,3}", fullmatch=True),
)


# An envelope, and text that looks like a ledger, as large as Kafka takes it, in characters of three bytes.
WIDE = "kw1||0|-1|0||" + ";".join(["€" * 20 + f"{number:03d} 5" for number in range(62)])


@given(OFFSETS, FOREIGN, st.sampled_from([0, 2, MAX_STREAMS]))
@example(0, WIDE.replace("€", "x"), 2)
@example(0, WIDE, 2)
def test_whatever_text_was_committed_a_start_takes_it_and_commits_what_brokers_take(
    offset: int, text: str, streams: int
) -> None:
    found = decode(offset, text)
    end = offset
    for begin, following in found.ahead:
        assert end < begin < following
        end = following

    ledger = OrderLedger(OrderCounts(), found.ledger)
    ledger.observe(stamp(stream_of("run", number, 0), 5, 1) for number in range(streams))
    fresh = found._replace(ledger=ledger.as_text(room_for_ledger(found, offset)))
    assert len(encode(offset, fresh).encode()) <= MAX_BYTES


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "somebody else's",
        '{"leader_epoch": 3}',
        "kw1|",
        "kw1|id|0|3|100|5-7",
        "kw1|id|0|3|100|5-7,|",
        "kw1|id|0|3|100|7-5|",
        "kw1|id|0|3|100|5-7,6-9|",
        "kw1|id|0|3|100|5-8,7-9|",
        "kw1|id|0|3|100|0-2|",
        "kw1|id|0|3|100|-3-2|",
        "kw2|id|3|100|5-7|a ledger",
        "kw10|5-7",
        "kw1|id|0|3|100|" + "9" * 20 + "-" + "9" * 21 + "|",
        "kw1|id|0|3|100|\u0665-\u0667|",
        "\x00\uffff",
    ],
)
def test_what_is_no_envelope_of_this_version_names_no_offset_as_done(text: str | None) -> None:
    assert decode(100, text).ahead == ()


@pytest.mark.parametrize("before", ["", "somebody else's ", "kw2|id|0|3|100|5-7|"])
def test_a_ledger_that_is_in_no_envelope_of_this_version_is_ignored(before: str) -> None:
    assert decode(5, before + crowded_ledger(2, 1).as_text()) == OffsetMetadata()


def committing(*, in_order: bool = True) -> tuple[Mock, Assignment, PartitionState, StoredOffsets]:
    """A partition whose group has committed offset 20, and the parts that commit for it."""
    client = Mock()
    assignment = Assignment(["t"], in_order=in_order)
    [state] = assignment.assign([TopicPartition("t", 0, 20)])
    return client, assignment, state, StoredOffsets(lambda: client, Mock())


def received(offset: int, epoch: int) -> Message:
    return Message(topic="t", partition=0, offset=offset, value=b"v", leader_epoch=epoch)


def place(partition: TopicPartition) -> tuple[int, int | None]:
    return partition.offset, partition.leader_epoch


def test_the_epoch_of_a_message_is_not_committed_with_an_offset_behind_a_marker() -> None:
    """The marker may be of a later leader: the brokers would tell of a cut that never was."""
    assignment = Assignment(["t"])
    [state] = assignment.assign([TopicPartition("t", 0, 9)])
    [(_, one)] = assignment.buffer([received(9, 4)])
    assignment.complete(state, one, 0, 1)
    assert place(state.to_commit()) == (10, 4)
    assignment.end_of_partition(state, 11)
    assert place(state.to_commit()) == (11, None)
    assert place(state.at_position()) == (11, None)


def test_the_epoch_of_the_message_that_waits_behind_a_gap_is_committed_with_its_offset() -> None:
    assignment = Assignment(["t"], in_order=False)
    [state] = assignment.assign([TopicPartition("t", 0, 9)])
    [(_, three)] = assignment.buffer([received(9, 4), received(11, 5), received(12, 6)])
    assignment.complete(state, three, 2, 3)
    assignment.complete(state, three, 0, 1)
    assert place(state.to_commit()) == (11, 5)
    assignment.complete(state, three, 1, 2)
    assert place(state.to_commit()) == (13, 6)


def test_the_epoch_of_the_first_message_behind_a_gap_is_committed_with_its_offset() -> None:
    assignment = Assignment(["t"])
    [state] = assignment.assign([TopicPartition("t", 0, 9, "", 4)])
    assert place(state.to_commit()) == (9, 4)
    [(_, _)] = assignment.buffer([received(11, 5)])
    assert place(state.to_commit()) == (11, 5)
    assert place(state.at_position()) == (12, 5)


def test_a_partition_that_begins_again_knows_its_end_still() -> None:
    """It is the same log. A lag that is not known would interrupt its alert."""
    assignment = Assignment(["t"])
    [state] = assignment.assign([TopicPartition("t", 0, 9)])
    state.begin_offset = 3
    state.update_end_offset(1000)
    again = assignment.rewind(state)
    assert (again.begin_offset, again.end_offset) == (3, 1000)
    again = assignment.adopt(TopicPartition("t", 0, 9))
    assert (again.begin_offset, again.end_offset) == (3, 1000)
    assert assignment.reset(again, 0).end_offset == -1


def test_old_statistics_tell_no_end_before_the_messages_that_have_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.consumer.assignment.STALE_S", 0.0)
    assignment = Assignment(["t"])
    [state] = assignment.assign([TopicPartition("t", 0, 9)])
    list(assignment.buffer([received(offset, 0) for offset in range(9, 50)]))
    for told, known in ((-1, -1), (20, 50)):
        assignment.note_ends({state.key: PartitionStatistics(told, 50)}, time.monotonic())
        assert state.end_offset == known


def test_an_end_behind_markers_leaves_nothing_that_waits() -> None:
    assignment = Assignment(["t"])
    [state] = assignment.assign([TopicPartition("t", 0, 9)])
    assignment.end_of_partition(state, 12)
    assert (state.next_offset, state.end_offset, state.behind_since_s) == (12, 12, 0.0)


def test_the_answer_to_an_earlier_commit_does_not_stand_for_one_that_was_not_sent() -> None:
    client, assignment, state, committer = committing()
    state.topic_id = "an-id"
    state.commit.make_explicit()

    # The client has committed by itself what was stored before the id was known.
    committer.on_commit(None, [TopicPartition("t", 0, 20)], assignment.partitions)
    committer.stage(assignment.partitions.values())
    [place] = client.commit.call_args.kwargs["offsets"]
    assert decode(20, place.metadata).topic_id == "an-id"

    committer.on_commit(None, [place], assignment.partitions)
    committer.stage(assignment.partitions.values(), now=True)
    assert client.commit.call_count == 1


def test_only_the_answer_to_an_explicit_commit_ends_it_and_not_one_that_was_on_its_way_or_was_refused() -> None:
    client, assignment, state, committer = committing()
    state.topic_id = "an-id"
    state.commit.make_explicit()
    committer.stage(assignment.partitions.values(), now=True)
    [place] = client.commit.call_args.kwargs["offsets"]

    committer.on_commit(None, [TopicPartition("t", 0, 20)], assignment.partitions)
    committer.on_commit(KafkaError(KafkaError.NOT_COORDINATOR), [place], assignment.partitions)
    committer.stage(assignment.partitions.values(), now=True)
    assert client.commit.call_count == 2

    committer.on_commit(None, [place], assignment.partitions)
    committer.stage(assignment.partitions.values(), now=True)
    assert client.commit.call_count == 2


def test_what_is_done_in_any_order_is_stored_before_it_is_committed_explicitly() -> None:
    client, assignment, state, committer = committing(in_order=False)
    committer.stage(assignment.partitions.values())
    client.reset_mock()
    [(_, received)] = assignment.buffer(
        [Message(topic="t", partition=0, offset=20 + number, value=b"v") for number in range(3)]
    )
    assignment.complete(state, received, 0, 2)
    state.commit.make_explicit()
    committer.stage(assignment.partitions.values())
    committer.stage(assignment.partitions.values(), now=True)

    assert [call[0] for call in client.method_calls] == ["store_offsets", "commit"]
