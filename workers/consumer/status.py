"""A picture of the consumer for other threads: the HTTP server and the metrics read this and nothing else."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from workers.consumer.assignment import PartitionState, TopicCounts
from workers.consumer.membership import Membership
from workers.consumer.parts import Parts
from workers.producer.deliveries import Deliveries


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
    """The consumer's state at `at` (time.monotonic). `stuck` says which part makes no progress, None where all do.

    `topics` and `outputs` are live counters, which only the loop's thread changes.
    """

    at: float = float("inf")
    joined: bool = False
    stuck: str | None = None
    partitions: tuple[PartitionStatus, ...] = ()
    topics: Mapping[str, TopicCounts] = field(default_factory=dict)
    handled: int = 0
    outputs: Mapping[str, Deliveries] = field(default_factory=dict)
    outputs_in_flight: int = 0
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


class Publisher:
    """Takes the pictures, in the loop's thread."""

    def __init__(self, parts: Parts, membership: Membership, stall_timeout_s: float) -> None:
        self._parts = parts
        self._membership = membership
        self._stall_timeout_s = stall_timeout_s
        # When messages were last seen to have a reason to wait.
        self._idle_since = float("-inf")

    def take(self, now: float, *, may_begin: bool) -> ConsumerStatus:
        """The picture of now; `may_begin` says that --max-messages lets more messages be begun."""
        parts, states = self._parts, self._parts.assignment.partitions.values()
        in_flight = parts.executor.in_flight
        begun = [work.begun_at for work in in_flight if work.begun_at is not None]
        return ConsumerStatus(
            at=now,
            joined=self._membership.joined,
            stuck=self._stuck(now, may_begin),
            partitions=tuple(self._partition(state, now) for state in states),
            topics=parts.assignment.topics,
            handled=parts.assignment.handled,
            outputs=parts.outputs.topics,
            outputs_in_flight=parts.outputs.messages,
            rebalances=dict(self._membership.rebalances),
            commits={"success": parts.committer.successes, "failure": parts.committer.failures},
            fetch_recoveries=dict(parts.fetching.recoveries),
            in_flight=min(len(in_flight), parts.executor.concurrency),
            waiting=sum(state.count for state in states),
            buffered_bytes=sum(state.bytes for state in states),
            shards=parts.scheduler.shards(),
            blocked_shards=parts.scheduler.blocked_shards(),
            oldest_in_flight_s=now - min(begun) if begun else 0.0,
            event_loop_lag_s=parts.executor.loop_lag_s,
        )

    def _partition(self, state: PartitionState, now: float) -> PartitionStatus:
        handled = state.next_offset
        if handled is None:
            known = (
                self._parts.client_state.statistics.partitions
                if self._parts.client_state.statistics is not None
                else {}
            )
            handled = known[state.key].fetch_offset if state.key in known else -1
        messages = max(0, state.end_offset - handled) if state.end_offset >= 0 and handled >= 0 else None
        seconds = None if messages is None else state.age_s() if messages else 0.0
        stalled_s = self._parts.fetching.stalled_s(state.key, now)
        return PartitionStatus(*state.key, messages, seconds, state.tracker.distance, stalled_s)

    def _stuck(self, now: float, may_begin: bool) -> str | None:
        """Say which part has made no progress for longer than the stall timeout, or None."""
        for work in self._parts.executor.in_flight:
            if work.begun_at is not None and now - max(work.begun_at, work.progress_at) > self._stall_timeout_s:
                return (
                    f"{work.partition} has made no progress for {now - max(work.begun_at, work.progress_at):.0f} s at "
                    f"offset {work.received.offset(min(work.handled, len(work) - 1))}: the handler has not returned"
                )
        if not self._idles(may_begin):
            self._idle_since = now
        idle_s = now - max(self._idle_since, self._parts.assignment.progress_at)
        if idle_s > self._stall_timeout_s:
            return f"messages wait, and none was given to the handler for {idle_s:.0f} s"
        return self._parts.fetching.stuck(self._parts.assignment.partitions, now)

    def _idles(self, may_begin: bool) -> bool:
        """Whether messages wait though the handler could be given some."""
        scheduler, outputs = self._parts.scheduler, self._parts.outputs
        if self._parts.executor.in_flight or outputs.works or outputs.full or not (may_begin and scheduler.runnable):
            return False
        # Those that could run wait for the one at the low-water mark, which waits for its retry.
        return not (outputs.only_next and scheduler.next_retry_s() is not None)
