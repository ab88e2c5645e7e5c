"""Notices partitions that have messages and are not fetched any more.

A fetch can hang while heartbeats go on (librdkafka#4492). Then no message, no error and no statistics tell, so the ends
that brokers say on a timer are held against what was received. The same holds where librdkafka's _AUTO_OFFSET_RESET
event is lost: the partition's fetch state is NONE then, from which neither a resume nor a seek starts it. Called by the
loop's thread.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from workers.consumer.assignment import Key, PartitionState
from workers.kafka.watermarks import INTERVAL_S, Watermarks

log = logging.getLogger(__name__)

# Without progress for so long, a partition is sought, the group is joined anew with a new client, /livez fails.
SEEK_S = 25.0
REJOIN_S = 50.0
STUCK_S = 90.0
# The client's queue was empty so recently: what is not received is not waiting there.
DRAINED_S = 3.0
# An answer of the brokers is as good as new for so long.
ANSWER_S = 3 * INTERVAL_S
# The end that brokers say may be older than what was received, and the next answer is not: this many in a row are true.
CUT_ROUNDS = 3
# A rejoin may take so long; what was known of a partition is kept meanwhile.
REMEMBERED_S = 60.0


@dataclass(slots=True)
class Answer:
    """The end of a partition that brokers have said, and when. `cut_rounds` counts the latest answers in a row in which
    it was before what was received: its log was cut, and librdkafka has not noticed it.
    """

    at: float
    end: int
    cut_rounds: int

    @property
    def cut(self) -> bool:
        return self.cut_rounds >= CUT_ROUNDS


@dataclass(slots=True)
class Stall:
    """A partition that is behind its end, or beyond it: since when nothing of it was received, and what was tried."""

    since: float
    seen_at: float
    sought: bool = False
    rejoined: bool = False


class FetchWatch:
    """Partitions that are behind their end, or beyond it, while the client's queue is empty."""

    def __init__(self) -> None:
        # When `poll` returned nothing last (time.monotonic, as each `now`).
        self.drained_at = float("-inf")
        self.recoveries = {"seek": 0, "rejoin": 0}
        self._stalls: dict[Key, Stall] = {}
        self._answers: dict[Key, Answer] = {}
        self._round = 0

    def note(self, partitions: Mapping[Key, PartitionState], watermarks: Watermarks, now: float) -> bool:
        """Take what the brokers have said, and look which partitions make no progress; return whether it is new."""
        new = watermarks.round != self._round
        if new:
            self._round = watermarks.round
            for key, mark in watermarks.latest.items():
                state = partitions.get(key)
                if state is not None:
                    before = self._answers.get(key)
                    position = state.position or 0
                    cut_rounds = 0 if mark.end >= position else 1 if before is None else before.cut_rounds + 1
                    self._answers[key] = Answer(now, mark.end, cut_rounds)
                    # The client may have been told of a newer one meanwhile.
                    state.begin_offset = max(state.begin_offset, mark.begin)
                    state.update_end_offset(max(mark.end, position))
        for key, state in partitions.items():
            stall = self._stalls.get(key)
            if not self._behind(key, state, now) or (stall is not None and state.received_at > stall.since):
                self._stalls.pop(key, None)
            elif stall is None:
                self._stalls[key] = Stall(now, now)
            else:
                stall.seen_at = now
        for key in [key for key, stall in self._stalls.items() if now - stall.seen_at > REMEMBERED_S]:
            del self._stalls[key]
        return new

    def _behind(self, key: Key, state: PartitionState, now: float) -> bool:
        if state.paused or now - self.drained_at > DRAINED_S:
            # Not asked for, or maybe in the client's queue behind other messages.
            return False
        answer = self._answers.get(key)
        if answer is None or now - answer.at > ANSWER_S:
            return False
        if answer.cut:
            return True
        position = state.position if state.position is not None else state.begin_offset
        return 0 <= position < state.end_offset

    def stalled_s(self, key: Key, now: float) -> float:
        """Seconds for which a partition has made no progress, 0 where it does."""
        stall = self._stalls.get(key)
        return 0.0 if stall is None else now - stall.since

    def to_seek(self, partitions: Mapping[Key, PartitionState], now: float) -> Iterator[PartitionState]:
        """Partitions to seek to where they are, which fetches them anew."""
        for key, stall in self._stalls.items():
            state = partitions.get(key)
            if state is not None and not stall.sought and now - stall.since > SEEK_S:
                stall.sought = True
                if state.position is None:
                    continue
                self.recoveries["seek"] += 1
                answer = self._answers.get(key)
                end = state.end_offset if answer is None or not answer.cut else answer.end
                log.warning(
                    "%s is not fetched: its end is %d, and nothing has come from offset %d for %.0f s; seeking there",
                    state, end, state.position, now - stall.since,
                )  # fmt: skip
                yield state

    def rejoin_due(self, partitions: Mapping[Key, PartitionState], now: float) -> bool:
        """Whether the group is to be joined anew with a new client."""
        due = [
            key
            for key, stall in self._stalls.items()
            if key in partitions and not stall.rejoined and now - stall.since > REJOIN_S
        ]
        if due:
            self.note_rejoin()
            log.warning("%s: still not fetched; joining the group anew", ", ".join(f"{t}[{p}]" for t, p in due))
        return bool(due)

    def note_rejoin(self) -> None:
        """The group is joined anew with a new client, which fetches all partitions anew."""
        self.recoveries["rejoin"] += 1
        for stall in self._stalls.values():
            stall.rejoined = True

    def stuck(self, partitions: Mapping[Key, PartitionState], now: float) -> str | None:
        """Which partition is not fetched whatever was tried, or None."""
        for key, stall in self._stalls.items():
            state = partitions.get(key)
            if state is not None and now - stall.since > STUCK_S:
                still_s = now - stall.since
                return f"{state} is not fetched: nothing has come from offset {state.position} for {still_s:.0f} s"
        return None
