"""The histogram."""

from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from workers.accounting.histogram import PROMETHEUS_BOUNDS_S, LatencyHistogram

TIMES = st.lists(st.floats(0.0003, 200), min_size=1, max_size=200)


@given(TIMES, st.floats(1, 100))
def test_a_percentile_is_off_by_the_stated_error_at_most(times: list[float], percent: float) -> None:
    latencies = LatencyHistogram()
    for seconds in times:
        latencies.add(seconds)
    exact = sorted(times)[max(1, ceil(len(times) * percent / 100)) - 1]
    found = latencies.percentile(percent)

    assert found is not None
    assert abs(found - exact) <= exact * 0.022


@given(TIMES)
def test_the_buckets_for_prometheus_are_exact(times: list[float]) -> None:
    latencies = LatencyHistogram()
    for seconds in times:
        latencies.add(seconds)
    buckets = latencies.cumulative()

    assert buckets[-1] == ("+Inf", len(times))
    for (_, count), bound in zip(buckets, PROMETHEUS_BOUNDS_S, strict=False):
        # A float on the very bound may round to either side.
        assert sum(seconds < bound * (1 - 1e-9) for seconds in times) <= count
        assert count <= sum(seconds <= bound * (1 + 1e-9) for seconds in times)


def test_odd_times_are_counted_too() -> None:
    latencies = LatencyHistogram()
    for seconds in (-5.0, 0.0, 1e9):
        latencies.add(seconds)

    assert latencies.cumulative()[-1] == ("+Inf", 3)
    assert LatencyHistogram().percentile(50) is None


def test_a_clock_that_is_ahead_of_ours_makes_no_negative_latency() -> None:
    latencies = LatencyHistogram()
    latencies.add(2.0)
    latencies.add(-3600.0)

    assert (latencies.count, latencies.total_s) == (2, 2.0)
    assert latencies.cumulative()[0] == ("0.00025", 1.0)
