"""When and how offsets go to the brokers. Called by the loop's thread."""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from workers.consumer.assignment import Key, PartitionState

log = logging.getLogger(__name__)

# Errors of a coordinator for the commit of a member that it does not know, or that has another epoch.
FORGOTTEN = frozenset(
    {
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.FENCED_MEMBER_EPOCH,
    }
)
# Longer than brokers let a KIP-848 member wait between two heartbeats (group.consumer.heartbeat.interval.ms, 5 s).
FORGOTTEN_S = 8.0
# How often the offset of a partition that was rewound is committed until the brokers have it.
REPEAT_S = 1.0
# To make the metadata of all partitions at each turn would take a tenth of the loop's time. With
# auto.commit.interval.ms this is how much a crash redelivers.
STAGE_INTERVAL_S = 0.2


class StoredOffsets:
    """Stores offsets in the client, which commits them on a timer and when partitions are unassigned.

    librdkafka commits a stored offset only when it is above the one committed before, so the offset of a partition that
    was rewound is committed explicitly until the brokers have taken it.
    """

    def __init__(self, client: Callable[[], Any], say: Callable[[str, str], None]) -> None:
        self.successes = 0
        self.failures = 0
        self.forgotten_since: float | None = None
        self._client = client
        self._say = say
        self._staged_at = 0.0
        self._repeated_at = float("-inf")

    due_s = float("inf")
    # `stage` waits for no answer.
    longest_s = 0.0
    pending = False

    def stage(self, states: Collection[PartitionState], *, now: bool = False, idle: bool = False) -> None:
        """Store the low-water marks that have changed, and commit those of rewound partitions explicitly."""
        at = time.monotonic()
        if not (now or idle):
            if at - self._staged_at < STAGE_INTERVAL_S:
                return
            self._staged_at = at
        for state in states:
            if state.commit.dirty:
                self._store(state)
                state.commit.dirty = False
        self._commit_rewound(states, at, now)

    def _store(self, state: PartitionState) -> None:
        if state.next_offset is None:
            return
        place = state.to_commit()
        if place.offset == state.commit.staged_offset and state.tracker.distance:
            state.commit.make_explicit()
        state.commit.staged_offset = place.offset
        try:
            self._client().store_offsets(offsets=[place])
        except KafkaException as error:
            # The partition went while the handler was busy; its next owner begins at what was committed.
            log.debug("%s: offset %d not stored: %s", state, place.offset, error)

    def _commit_rewound(self, states: Collection[PartitionState], at: float, now: bool) -> None:
        rewound = [state for state in states if state.commit.rewound and state.next_offset is not None]
        if rewound and (now or at - self._repeated_at >= REPEAT_S):
            self._repeated_at = at
            places = [state.to_commit() for state in rewound]
            for state, place in zip(rewound, places, strict=True):
                state.commit.note_explicit(place)
            self.commit(places)

    def commit(self, places: list[TopicPartition]) -> None:
        """Commit offsets explicitly, without waiting for the answer."""
        try:
            self._client().commit(offsets=places, asynchronous=True)
        except KafkaException as error:
            log.debug("an offset was not committed: %s", error)

    def on_commit(
        self, error: KafkaError | None, partitions: list[TopicPartition], owned: Mapping[Key, PartitionState]
    ) -> None:
        """The brokers' answer to a commit; called from `poll`."""
        failed = error or next((each.error for each in partitions if each.error is not None), None)
        for each in partitions:
            state = owned.get((each.topic, each.partition))
            taken = error is None and each.error is None
            if not taken or state is None:
                continue
            state.commit.confirm(each)
        if failed is None:
            self.successes += 1
            self.forgotten_since = None
        elif failed.code() != KafkaError._NO_OFFSET:
            self.failures += 1
            self._say(f"commit {failed.name()}", f"an offset was not committed, and is tried again: {failed.str()}")
            if failed.code() in FORGOTTEN:
                self.forgotten_since = self.forgotten_since or time.monotonic()

    def forgotten(self) -> bool:
        """Whether the group has refused our commits for too long: others own our partitions by now.

        The response to its next heartbeat tells a client that. With KIP-848, librdkafka 2.16 may send no further
        heartbeat after one has timed out while the coordinator changed, and then it fetches for ever.
        """
        since = self.forgotten_since
        if since is None or time.monotonic() - since <= FORGOTTEN_S:
            return False
        self.forgotten_since = None
        return True
