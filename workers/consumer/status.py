"""A picture of the consumer for other threads: the HTTP server and the metrics read this and nothing else."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from workers.consumer.assignment import TopicCounts


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """One owned partition. `lag_messages` and `lag_seconds` are None while its end is not known. `offset_distance` is
    how many messages are done beyond the low-water mark, `fetch_stalled_s` for how long nothing was received while it
    was behind its end.
    """

    topic: str
    partition: int
    lag_messages: int | None
    lag_seconds: float | None
    offset_distance: int
    fetch_stalled_s: float


@dataclass(frozen=True, slots=True)
class ConsumerStatus:
    """What the consumer was doing at `at` (time.monotonic). `stuck` names what makes no progress, None where all does.

    `topics` are live counters, which only the loop's thread changes.
    """

    at: float = float("inf")
    joined: bool = False
    stuck: str | None = None
    partitions: tuple[PartitionStatus, ...] = ()
    topics: Mapping[str, TopicCounts] = field(default_factory=dict)
    handled: int = 0
    rebalances: Mapping[str, int] = field(default_factory=dict)
    commits: Mapping[str, int] = field(default_factory=dict)
    fetch_recoveries: Mapping[str, int] = field(default_factory=dict)
    in_flight: int = 0
    waiting: int = 0
    buffered_bytes: int = 0
    shards: int = 0
    blocked_shards: int = 0
    oldest_in_flight_s: float = 0.0
    event_loop_lag_s: float | None = None

    def stalled(self, stall_timeout_s: float) -> str | None:
        """Why the consumer is not live, or None; any thread may ask."""
        still_s = time.monotonic() - self.at
        if still_s > stall_timeout_s:
            return f"the poll loop has not turned for {still_s:.0f} s"
        return self.stuck
