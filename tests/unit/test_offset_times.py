"""Ages of messages from the ends that were seen, and from lookups by timestamp."""

from bisect import bisect_left
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.monitoring.offset_times import MAX_POINTS, OffsetTimes, WriteTime, search

NOW_S = 1_800_000_000.0


def seen(*ends: tuple[int, float]) -> OffsetTimes:
    times = OffsetTimes()
    for offset, time_s in ends:
        times.add_end(offset, time_s)
    return times


def test_a_message_was_written_between_the_looks_before_and_after_it() -> None:
    times = seen((100, 10.0), (100, 40.0), (110, 50.0))

    assert times.written(100) == WriteTime(40.0, 50.0, 40.5)
    assert times.written(109) == WriteTime(40.0, 50.0, 49.5)


def test_what_was_written_before_the_first_look_is_at_least_that_old() -> None:
    known = seen((100, 10.0), (110, 20.0)).written(99)

    assert known == WriteTime(None, 10.0, 10.0)
    assert not known.is_good(NOW_S, 15.0)


def test_a_found_time_holds_for_its_message_and_bounds_the_others() -> None:
    times = seen((100, 1000.0))
    times.add_message(40, 500.0)

    assert times.written(40) == WriteTime(500.0, 500.0, 500.0)
    assert times.written(39).earliest_s is None
    assert (times.written(41).earliest_s, times.written(41).latest_s) == (500.0, 1000.0)


@pytest.mark.parametrize("offset", [98, 99])
def test_a_found_time_is_exact_beside_other_points_too(offset: int) -> None:
    times = seen((98, 900.0), (100, 1000.0))
    times.add_message(offset, 950.0)

    assert times.written(offset) == WriteTime(950.0, 950.0, 950.0)


@pytest.mark.parametrize(("timestamp_s", "taken_s"), [(5.0, 900.0), (5000.0, 1000.0)])
def test_a_timestamp_that_contradicts_what_was_seen_does_not_count(timestamp_s: float, taken_s: float) -> None:
    times = seen((90, 900.0), (100, 1000.0))
    times.add_message(95, timestamp_s)

    assert times.written(95).estimate_s == taken_s


def test_an_end_that_falls_belongs_to_another_log() -> None:
    times = seen((100, 10.0), (5, 20.0))

    assert times.written(4) == WriteTime(None, 20.0, 20.0)


def test_a_clock_that_is_set_back_makes_no_message_younger_than_the_one_behind_it() -> None:
    times = seen((100, 50.0), (110, 20.0), (120, 60.0))

    assert [times.written(offset).estimate_s for offset in (105, 115)] == [50.0, 55.5]


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0.1, 100)), min_size=1, max_size=300), st.data())
def test_however_long_it_runs_times_stay_in_order_bounded_and_true(
    steps: list[tuple[int, float]], data: st.DataObject
) -> None:
    times = OffsetTimes()
    written: list[tuple[float, float]] = []
    now_s, end = 0.0, 0
    times.add_end(0, 0.0)
    for count, pause_s in steps:
        written += [(now_s, now_s + pause_s)] * count
        now_s, end = now_s + pause_s, end + count
        times.add_end(end, now_s)
        assert len(times) <= MAX_POINTS
    if not end:
        return
    offset = data.draw(st.integers(0, end - 1))
    known = times.written(offset)
    assert known.earliest_s is not None
    # The bounds hold the true ones: thinning makes them wider, never wrong.
    assert known.earliest_s <= written[offset][0]
    assert written[offset][1] <= known.latest_s
    estimates = [times.written(each).estimate_s for each in range(end)]
    assert estimates == sorted(estimates)


def test_what_every_group_has_committed_is_forgotten() -> None:
    times = seen(*((number, float(number)) for number in range(50)))
    before = times.written(30)
    times.forget_below(30)

    assert times.written(30) == before
    assert len(times) == 20


def answers(timestamps_ms: list[int], offset: int, known: WriteTime, now_s: float = NOW_S) -> tuple[float | None, int]:
    """The result of a search in a log with these timestamps, and the number of its lookups."""
    newest = list(accumulate(timestamps_ms, max))
    searching = search(offset, known, now_s)
    lookups = 0
    message: tuple[int, int] | None = None
    try:
        while True:
            wanted = searching.send(message)
            lookups += 1
            at = bisect_left(newest, wanted)
            message = (at, timestamps_ms[at]) if at < len(newest) else None
    except StopIteration as ended:
        return ended.value, lookups


@given(st.lists(st.integers(1, 90 * 86_400_000), min_size=1, max_size=50), st.data())
def test_a_search_finds_the_age_to_a_twentieth_in_a_few_lookups(ages_ms: list[int], data: st.DataObject) -> None:
    timestamps = [int(NOW_S * 1000) - age for age in sorted(ages_ms, reverse=True)]
    offset = data.draw(st.integers(0, len(timestamps) - 1))
    found, lookups = answers(timestamps, offset, WriteTime(None, NOW_S, NOW_S))

    assert found is not None
    age_s = NOW_S - timestamps[offset] / 1000
    assert abs((NOW_S - found) - age_s) <= max(1.01, 0.06 * age_s)
    assert lookups <= 16


def test_timestamps_of_none_say_nothing() -> None:
    unknown = WriteTime(None, NOW_S, NOW_S)

    assert answers([-1, -1, -1], 1, unknown) == (None, 1)
    assert answers([0, 0, 1_700_000_000_000], 1, unknown) == (None, 1)


def test_a_timestamp_in_the_future_is_no_later_than_when_the_message_was_seen() -> None:
    future_ms = int(NOW_S * 1000) + 86_400_000
    found, _ = answers([future_ms, future_ms + 1], 1, WriteTime(None, NOW_S - 60, NOW_S - 60))

    assert found == pytest.approx(NOW_S - 60, abs=1.01)


@given(st.lists(st.integers(1, 3_600_000), min_size=2, max_size=50), st.integers(1, 7_200), st.data())
def test_a_clock_that_was_set_back_behind_the_messages_ends_no_search_and_adds_few_lookups(
    ages_ms: list[int], set_back_s: int, data: st.DataObject
) -> None:
    timestamps = [int(NOW_S * 1000) - age for age in sorted(ages_ms, reverse=True)]
    offset = data.draw(st.integers(0, len(timestamps) - 1))
    found, lookups = answers(timestamps, offset, WriteTime(None, NOW_S, NOW_S), NOW_S - set_back_s)

    assert found is not None
    age_s = NOW_S - timestamps[offset] / 1000
    assert abs((NOW_S - found) - age_s) <= max(1.01, 0.06 * age_s)
    assert lookups <= 16
