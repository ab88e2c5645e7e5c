"""The accounts, held against plain reference implementations."""

from itertools import accumulate, chain, pairwise

from hypothesis import given
from hypothesis import strategies as st

from workers.accounting.accounts import StreamSent
from workers.accounting.order import MAX_GAPS, MAX_STREAMS, OrderCounts, OrderLedger
from workers.accounting.ranges import MAX_ENTRIES, CountedRanges, Ranges
from workers.accounting.stamps import MAGIC, Stamp, encode, is_stream, none_is_stamp, stream_of
from workers.accounting.verify import StreamSeen

STREAM = stream_of("run", 0, 1)
UNBOUND = stream_of("run", 0, None)
# Sequences of a stream as a log could have them: mostly in order, with gaps, repeats and late ones.
SEQUENCES = st.lists(st.integers(0, 60), max_size=80)


def values(sequences: list[int], stream: bytes = STREAM) -> list[bytes | None]:
    return [encode(stream, sequence, 1) for sequence in sequences]


def observed(sequences: list[int], stream: bytes = STREAM) -> OrderCounts:
    counts = OrderCounts()
    OrderLedger(counts).observe(values(sequences, stream))
    return counts


def test_a_sequence_that_no_stamp_can_have_is_no_part_of_a_ledger() -> None:
    """Another program may have committed the text."""
    counts = OrderCounts()
    ledger = OrderLedger(counts, f"{STREAM.decode()} {'9' * 40};{UNBOUND.decode()} 5 1-{'9' * 13}")
    assert ledger.as_text() == ""
    assert not ledger.observe_consecutive([encode(STREAM, 0, 1)])


@given(st.lists(st.integers(0, 50), unique=True))
def test_ranges_hold_what_was_added(numbers: list[int]) -> None:
    counted = CountedRanges()
    for number in numbers:
        counted.add(number)

    assert list(counted.exact) == sorted(numbers)
    assert len(counted) == len(numbers)
    merged = counted.exact.merged()
    assert all(before[1] < after[0] for before, after in pairwise(merged))


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_ranges_without_others_hold_the_rest(numbers: set[int], others: set[int]) -> None:
    rest = Ranges((n, n + 1) for n in numbers).without(Ranges((n, n + 1) for n in others))

    assert list(rest) == sorted(numbers - others)


def test_failures_that_alternate_with_others_stay_in_bounds() -> None:
    sent = StreamSent(2 * MAX_ENTRIES + 10)
    for number in range(0, sent.sent, 2):
        sent.failed.add(number)

    assert len(sent.failed.entries()) <= MAX_ENTRIES
    assert len(sent.failed) == sent.sent // 2


@given(st.permutations(range(60)), st.sets(st.integers(0, 59)), st.integers(1, 8))
def test_what_is_beyond_the_bound_is_counted_where_it_is(order: list[int], members: set[int], limit: int) -> None:
    counted = CountedRanges(limit=limit)
    for number in order:
        if number in members:
            counted.add(number)

    entries = counted.entries()
    assert len(entries) <= limit
    assert len(counted) == len(members)
    assert [sum(start <= number < end for number in members) for start, end, _ in entries] == [n for *_, n in entries]
    assert all(before[1] <= after[0] for before, after in pairwise(entries))


def test_overlapping_ranges_of_an_account_are_one() -> None:
    counted = CountedRanges([(0, 10, 10), (5, 15, 10), (30, 31, 1)])

    assert (counted.document(), len(counted)) == ([[0, 15], [30, 31]], 16)


@given(SEQUENCES)
def test_the_order_ledger_counts_as_one_with_perfect_memory(sequences: list[int]) -> None:
    first = sequences[0] if sequences else 0
    seen: set[int] = set()
    expected = OrderCounts()
    highest = first - 1
    for sequence in sequences:
        if sequence > highest:
            expected.missing += sequence - highest - 1
            highest = sequence
        elif sequence in seen or sequence < first:
            # The ledger does not count messages before the first one as missing, so such a message can only be old.
            expected.duplicates += 1
        else:
            expected.reordered += 1
        seen.add(sequence)

    assert observed(sequences) == expected


@given(
    st.integers(0, 30), st.lists(st.sampled_from([(1,), (0, 2), (2, 0), (0, 1), (2,), (11,)]), max_size=30), st.data()
)
def test_a_batch_is_judged_as_its_messages_one_by_one(
    start: int, steps: list[tuple[int, ...]], data: st.DataObject
) -> None:
    """Steps of 0 and 2 cancel out in a count, of 11 in the last digit; a later time makes repeated stamps rise."""
    sequences = list(accumulate(chain(*steps), initial=start))
    batch: list[bytes | None] = [encode(STREAM, sequence, time) for time, sequence in enumerate(sequences)]
    for odd in data.draw(st.lists(st.sampled_from([None, b"", b"kw1 ", b"other"]), max_size=1)):
        batch.insert(data.draw(st.integers(0, len(batch))), odd)
    whole, single = OrderCounts(), OrderCounts()
    ledger, reference = OrderLedger(whole), OrderLedger(single)
    for each in (ledger, reference):
        each.observe(values(list(range(start))))
    if not ledger.observe_consecutive(batch):
        ledger.observe(batch)
    reference.observe(batch)

    assert whole == single
    assert ledger.as_text() == reference.as_text()


ODD_VALUES = st.sampled_from([MAGIC, MAGIC + b"x", b"kw1!", b"kw1", b"kw0 ", b"{}", b"\0\0", b"7"])


@given(st.lists(st.none() | st.binary(max_size=6) | ODD_VALUES, max_size=6))
def test_values_of_which_none_is_said_to_be_a_stamp_have_none(values: list[bytes | None]) -> None:
    assert not none_is_stamp(values) or not any((value or b"").startswith(MAGIC) for value in values)


def test_json_and_framed_values_are_known_to_be_no_stamps() -> None:
    assert none_is_stamp([None, b'{"order": 1}', b"", b"{}"])
    assert none_is_stamp([b"\0\0\0\0\7text", b"17"])
    assert none_is_stamp([None, b""])


@given(st.integers(0, 1000), st.integers(0, 300))
def test_an_unbroken_stream_is_never_accused(start: int, count: int) -> None:
    assert observed(list(range(start, start + count))) == OrderCounts()


@given(SEQUENCES)
def test_a_stream_over_several_partitions_has_no_gaps_here(sequences: list[int]) -> None:
    counts = observed(sorted(set(sequences)), UNBOUND)

    assert counts == OrderCounts()


@given(st.integers(1, 200), st.integers(0, 200))
def test_the_next_owner_goes_on_where_the_memo_ends(count: int, cut: int) -> None:
    sequences = list(range(count))
    cut = min(cut, count)
    counts = OrderCounts()
    before = OrderLedger(counts)
    before.observe(values(sequences[:cut]))
    after = OrderLedger(counts, before.as_text())
    after.observe(values(sequences[cut:]))
    assert counts == OrderCounts()

    # The second owner knows the messages that the first one had seen.
    after.observe(values(sequences[:cut]))
    assert counts.duplicates == cut


@given(SEQUENCES, SEQUENCES)
def test_a_message_that_fills_a_gap_is_late_for_the_next_owner_too(first: list[int], second: list[int]) -> None:
    handed_over, kept = OrderCounts(), OrderCounts()
    before, alone = OrderLedger(handed_over), OrderLedger(kept)
    before.observe(values(first))
    alone.observe(values(first))
    OrderLedger(handed_over, before.as_text()).observe(values(second))
    alone.observe(values(second))

    assert handed_over == kept


def test_a_gap_counts_as_missing_at_once_and_a_late_message_as_reordered() -> None:
    assert observed([0, 1, 5]) == OrderCounts(missing=3)
    assert observed([0, 1, 5, 3]) == OrderCounts(missing=3, reordered=1)
    assert observed([0, 1, 5, 3, 3]) == OrderCounts(missing=3, reordered=1, duplicates=1)


def test_streams_of_many_producers_do_not_mix() -> None:
    counts = OrderCounts()
    ledger = OrderLedger(counts)
    streams = [stream_of("run", number, 1) for number in range(10)]
    for sequence in range(50):
        ledger.observe([encode(stream, sequence, 1) for stream in streams])

    assert counts == OrderCounts()


def test_messages_that_were_forwarded_from_another_partition_are_not_counted() -> None:
    counts = OrderCounts()
    ledger = OrderLedger(counts, partition=1)
    ledger.observe(values([0, 5, 3, 3], stream_of("run", 0, 2)))
    ledger.observe(values([0, 9], UNBOUND))
    assert counts == OrderCounts()

    ledger.observe(values([0, 5], stream_of("run", 0, 1)))
    assert counts == OrderCounts(missing=4)


def test_memory_and_memo_stay_bounded_whatever_is_read() -> None:
    counts = OrderCounts()
    ledger = OrderLedger(counts)
    for number in range(3 * MAX_STREAMS):
        ledger.observe(values([0, 1], stream_of("run", number, 1)))
    ledger.observe(values(list(range(0, 10 * MAX_GAPS, 2)), stream_of("other", 0, 1)))
    late = [0, 10 * MAX_GAPS, *range(2, 10 * MAX_GAPS, 2)]
    ledger.observe(values(late, stream_of("late", 0, 1)))

    # Kafka's offset.metadata.max.bytes.
    assert len(ledger.as_text()) <= 4096
    assert len(ledger._streams) == MAX_STREAMS
    assert max(len(each.gaps) for each in ledger._streams.values()) == MAX_GAPS


@given(st.text())
def test_a_memo_of_somebody_else_does_no_harm(memo: str) -> None:
    counts = OrderCounts()
    OrderLedger(counts, memo).observe(values([0, 1, 2]))

    assert counts == OrderCounts()


@given(st.lists(st.none() | st.binary(max_size=70)))
def test_messages_without_a_stamp_are_passed_over(others: list[bytes | None]) -> None:
    counts = OrderCounts()
    OrderLedger(counts).observe([*others, *values([0]), b"kw1 " + b"x" * 60, *values([1])])

    assert counts == OrderCounts()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 200_000)), max_size=60), st.integers(0, 200_001))
def test_what_was_seen_in_a_log_is_exact(places: list[tuple[int, int]], sent: int) -> None:
    seen = StreamSeen()
    for partition, sequence in places:
        seen.add(partition, Stamp(STREAM, sequence, 1))
    distinct = {sequence for _, sequence in places}

    assert seen.present == len(distinct)
    assert seen.duplicated == len(places) - len(distinct)
    assert all(sequence in seen for sequence in distinct)
    assert seen.highest == max(distinct, default=-1)
    assert len(seen.missing(sent)) == sent - len([sequence for sequence in distinct if sequence < sent])
    assert not any(sequence in seen for sequence in list(seen.missing(min(sent, 300))))


def test_a_stamp_with_the_highest_sequence_takes_neither_long_nor_much_memory() -> None:
    seen = StreamSeen()
    seen.add(0, Stamp(STREAM, 10**12 - 1, 1))

    assert len(seen.missing(10**12)) == 10**12 - 1


def test_order_in_a_log_is_judged_within_a_partition() -> None:
    seen = StreamSeen()
    for partition, sequence in [(0, 0), (1, 5), (0, 3), (1, 4), (0, 9)]:
        seen.add(partition, Stamp(STREAM, sequence, 1))

    assert seen.reordered == 1


@given(st.binary(min_size=23, max_size=23))
def test_what_only_begins_like_a_stamp_does_no_harm(name: bytes) -> None:
    """Its name would go into the metadata of an offset, which holds text."""
    ledger = OrderLedger(OrderCounts())
    ledger.observe([b"kw1 " + name + b" 000000000007 0000000000000001"])

    assert (ledger.as_text() != "") == is_stream(name)
