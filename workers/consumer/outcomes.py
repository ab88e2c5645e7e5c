"""Transactions counted by their outcome: committed, aborted, or in doubt. Called by the loop's thread.

A commit whose answer never came is in doubt until the group's committed offsets tell whether it took place.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from confluent_kafka import TopicPartition

from workers.consumer.assignment import Assignment, Key, PartitionState
from workers.producer.deliveries import DeliveriesByTopic


@dataclass(frozen=True, slots=True)
class Mark:
    """A partition's part of a transaction: the offset to commit, and how many messages and dead letters that is of."""

    state: PartitionState
    place: TopicPartition
    messages: int
    dead_letters: int


@dataclass(frozen=True, slots=True)
class _Doubt:
    """A transaction whose commit was asked for, and not answered: its marks, and its outputs by topic.

    `ends` are the offsets of its partitions that this member still has: the committed offset of any of them tells
    whether all of it was committed.
    """

    marks: Sequence[Mark]
    written: Counter[str]
    error: str
    ends: dict[Key, int]


class Outcomes:
    """The counts of one member's transactions.

    `topics` has the outcomes of outputs, by topic: acknowledged means committed. `successes` is the number of committed
    transactions, `failures` that of aborted ones and of those whose outcome is unknown.
    """

    def __init__(self) -> None:
        self.topics = DeliveriesByTopic()
        self.successes = 0
        self.failures = 0
        # Earlier transactions, until a committed offset tells.
        self._doubts: list[_Doubt] = []

    def committed(self, assignment: Assignment, marks: Sequence[Mark], written: Counter[str]) -> None:
        """Count a transaction as committed: its marks, and its outputs by topic."""
        self.successes += 1
        for topic, count in written.items():
            deliveries = self.topics[topic]
            deliveries.enqueued += count
            deliveries.acknowledged += count
        for mark in marks:
            assignment.settle(mark.state, mark.messages, mark.dead_letters)

    def aborted(self) -> None:
        """Count a transaction as aborted."""
        self.failures += 1

    def doubt(self, marks: Sequence[Mark], written: Counter[str], error: str) -> None:
        """Keep what is to be counted of a transaction whose commit ended with `error`, if it was committed."""
        # A partition without a message of its own is where it was, committed or not.
        ends = {mark.state.key: mark.place.offset for mark in marks if mark.state.owned and mark.messages > 0}
        self._doubts.append(_Doubt([*marks], Counter(written), error, ends))

    def forget(self, key: Key) -> None:
        """Forget a partition that has gone: its committed offset tells nothing any more."""
        for doubt in self._doubts:
            doubt.ends.pop(key, None)

    def settle(self, assignment: Assignment) -> list[Sequence[Mark]]:
        """Count the transactions in doubt of which a committed offset has told, or none can any more; return the marks
        of those that were committed.
        """
        settled = []
        for doubt in [*self._doubts]:
            states = [assignment.partitions.get(key) for key in doubt.ends]
            known = [state for state in states if state is not None and not state.awaits_committed]
            if not known and doubt.ends:
                continue
            self._doubts.remove(doubt)
            if not known:
                self._unknown(doubt)
            elif known[0].commit.confirmed_offset == doubt.ends[known[0].key]:
                self.committed(assignment, doubt.marks, doubt.written)
                settled.append(doubt.marks)
            else:
                self.aborted()
        return settled

    def close(self) -> None:
        """Count the transactions that are still in doubt as unknown."""
        for doubt in self._doubts:
            self._unknown(doubt)
        self._doubts.clear()

    def _unknown(self, doubt: _Doubt) -> None:
        self.failures += 1
        for topic, count in doubt.written.items():
            deliveries = self.topics[topic]
            deliveries.enqueued += count
            deliveries.unknown += count
            deliveries.errors[doubt.error] += count
