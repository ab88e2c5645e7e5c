"""The canary's account of its messages, from the send to the reception. Nothing here calls a client or a clock.

A log is read in its order. So an acknowledged message is lost once `lost_after_s` has passed and a later message of its
partition was received. While nothing of a partition is received, its messages are unavailable, and none is lost: a
broker that is down, or a fetch that hangs, delays them.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from workers.accounting.histogram import LatencyHistogram

# Messages of a partition that are remembered: those under way, and as many again that failed or were lost.
MAX_REMEMBERED = 10_000
# The numbers of Counts that metrics and the account show.
COUNTS = ("sent", "acknowledged", "failed", "received", "lost", "recovered", "duplicates")


@dataclass(slots=True)
class Counts:
    """The messages of one partition that were sent while one broker led it. Written by the loop's thread.

    `failed` has those without an acknowledgement, `recovered` those that were received after they counted as lost.
    """

    sent: int = 0
    acknowledged: int = 0
    failed: int = 0
    received: int = 0
    lost: int = 0
    recovered: int = 0
    duplicates: int = 0
    produce_latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    end_to_end_latency: LatencyHistogram = field(default_factory=LatencyHistogram)


@dataclass(slots=True)
class _Probe:
    """A message; times are of the monotonic clock, `acknowledged_at` is None before the acknowledgement.

    `offset` is None where the brokers did not say it.
    """

    counts: Counts
    sent_at: float
    acknowledged_at: float | None = None
    offset: int | None = None
    received: bool = False
    lost: bool = False


@dataclass(slots=True)
class _Partition:
    """A partition's messages by sequence. Each is in `pending`, in `absent` (failed or lost), or was received.

    `available` tells whether the latest message of which that is known arrived in time: the one with sequence `judged`.
    """

    expected_since: float
    broker: int = -1
    next_sequence: int = 0
    highest_received: int = -1
    forgotten_below: int = 0
    judged: int = -1
    available: bool | None = None
    pending: dict[int, _Probe] = field(default_factory=dict)
    absent: dict[int, _Probe] = field(default_factory=dict)
    not_due: deque[tuple[int, _Probe]] = field(default_factory=deque)

    def judge(self, sequence: int, in_time: bool) -> None:
        if sequence >= self.judged:
            self.judged, self.available = sequence, in_time

    def set_absent(self, sequence: int, probe: _Probe) -> None:
        self.pending.pop(sequence, None)
        self.absent[sequence] = probe
        while len(self.absent) > MAX_REMEMBERED:
            oldest = next(iter(self.absent))
            del self.absent[oldest]
            self.forgotten_below = max(self.forgotten_below, oldest + 1)


class Unread(NamedTuple):
    """When the first of some messages was acknowledged, and their lowest offset, None where it is not known.

    The offset of a later message is lower after its topic was created again.
    """

    since: float
    offset: int | None


class Probes:
    """Counts what became of each message. Called from the loop's thread; `counts` may be copied by any thread.

    Times are seconds of one monotonic clock. A message is in time when it is received within `max_latency_s`.
    """

    def __init__(self, max_latency_s: float, lost_after_s: float) -> None:
        # By partition, and by the broker that led it when the message was sent.
        self.counts: dict[tuple[int, int], Counts] = {}
        self._max_latency_s = max_latency_s
        self._lost_after_s = lost_after_s
        self._partitions: dict[int, _Partition] = {}

    @property
    def outstanding(self) -> int:
        """How many messages are under way."""
        return sum(len(each.pending) for each in self._partitions.values())

    def expect(self, partition: int, now: float) -> None:
        """Note that a partition is to be probed: when it cannot be written to, it is unavailable."""
        self._partitions.setdefault(partition, _Partition(now))

    def send(self, partition: int, broker: int, now: float) -> int:
        """Count a message that is sent now to a partition led by `broker`; return its sequence."""
        state = self._partitions.setdefault(partition, _Partition(now))
        state.broker = broker
        sequence = state.next_sequence
        state.next_sequence += 1
        counts = self._counts(partition, broker)
        counts.sent += 1
        state.pending[sequence] = probe = _Probe(counts, now)
        state.not_due.append((sequence, probe))
        if len(state.pending) > MAX_REMEMBERED:
            # Neither received nor lost: nothing of the partition has been read since.
            oldest = next(iter(state.pending))
            state.set_absent(oldest, state.pending[oldest])
        return sequence

    def withdraw(self, partition: int) -> None:
        """Take back the latest `send` to a partition: the client did not take the message."""
        state = self._partitions[partition]
        state.next_sequence -= 1
        state.not_due.pop()
        state.pending.pop(state.next_sequence).counts.sent -= 1

    def acknowledge(
        self, partition: int, broker: int, sequence: int, offset: int | None, latency_s: float, now: float
    ) -> None:
        """Count an acknowledgement that took `latency_s`. The message may have been received already."""
        counts = self._counts(partition, broker)
        counts.acknowledged += 1
        counts.produce_latency.add(latency_s)
        state = self._partitions.get(partition)
        if state is not None and sequence in state.pending:
            probe = state.pending[sequence]
            probe.acknowledged_at, probe.offset = now, offset

    def fail(self, partition: int, broker: int, sequence: int) -> None:
        """Count a delivery that failed, or whose outcome is unknown: the message may still be received."""
        self._counts(partition, broker).failed += 1
        state = self._partitions.get(partition)
        if state is not None and sequence in state.pending:
            state.set_absent(sequence, state.pending[sequence])
            state.judge(sequence, False)

    def receive(self, partition: int, sequence: int, now: float) -> None:
        """Count the reception of a message of ours."""
        state = self._partitions.get(partition)
        if state is None or sequence >= state.next_sequence:
            return
        probe = state.pending.pop(sequence, None) or state.absent.pop(sequence, None)
        if probe is not None:
            latency_s = now - probe.sent_at
            probe.received = True
            probe.counts.received += 1
            probe.counts.recovered += probe.lost
            probe.counts.end_to_end_latency.add(latency_s)
            state.highest_received = max(state.highest_received, sequence)
            state.judge(sequence, latency_s <= self._max_latency_s)
        elif sequence >= state.forgotten_below:
            self._counts(partition, state.broker).duplicates += 1

    def look(self, now: float) -> None:
        """Find the messages that are overdue, and those that are lost."""
        for state in self._partitions.values():
            self._find_overdue(state, now)
            self._find_lost(state, now)

    def available(self, partition: int) -> bool | None:
        """Whether the latest message of a partition arrived in time, None where that is not known yet."""
        state = self._partitions.get(partition)
        return None if state is None else state.available

    def availability(self, partitions: Iterable[int]) -> float | None:
        """The share of `partitions` whose latest message arrived in time, None before that is known of any."""
        known = [each for each in map(self.available, partitions) if each is not None]
        return sum(known) / len(known) if known else None

    def unread(self, partition: int) -> Unread | None:
        """The acknowledged messages of a partition behind which nothing was received, None without any."""
        state = self._partitions[partition]
        found = [probe for sequence, probe in state.pending.items() if sequence > state.highest_received]
        times = [probe.acknowledged_at for probe in found if probe.acknowledged_at is not None]
        offsets = [probe.offset for probe in found if probe.offset is not None]
        return Unread(min(times), min(offsets, default=None)) if times else None

    def _counts(self, partition: int, broker: int) -> Counts:
        key = (partition, broker)
        if key not in self.counts:
            self.counts[key] = Counts()
        return self.counts[key]

    def _find_overdue(self, state: _Partition, now: float) -> None:
        if not state.next_sequence and now - state.expected_since > self._max_latency_s:
            state.available = False
        while state.not_due and now - state.not_due[0][1].sent_at > self._max_latency_s:
            sequence, probe = state.not_due.popleft()
            if not probe.received:
                state.judge(sequence, False)

    def _find_lost(self, state: _Partition, now: float) -> None:
        passed = []
        for sequence, probe in state.pending.items():
            if sequence > state.highest_received:
                break
            passed.append((sequence, probe))
        for sequence, probe in passed:
            if probe.acknowledged_at is not None and now - probe.acknowledged_at >= self._lost_after_s:
                probe.lost = True
                probe.counts.lost += 1
                state.set_absent(sequence, probe)
