"""The client's and the brokers' reports on partitions: their ends, and fetches that hang.

Called by the loop's thread.
"""

import logging

from confluent_kafka import KafkaException

from workers.consumer.assignment import PartitionState
from workers.consumer.fetching import DRAINED_S
from workers.consumer.membership import Membership
from workers.consumer.parts import Parts
from workers.kafka.statistics import Statistics
from workers.lifecycle import call_until_stopped

log = logging.getLogger(__name__)

# The main thread of librdkafka (2.16) can stand still after all brokers were killed at once. Then nothing is fetched,
# the group gets no heartbeat, no statistics come, and a call that the thread is to answer never returns.
SEEK_TIMEOUT_S = 5.0
# Statistics come every 10 s at least (config.py).
SILENT_S = 30.0
# A turn that took longer counts as one of this length: the process may have been suspended.
TURN_S = 1.0


class Observer:
    """Passes on what is said, and has partitions healed that are not fetched any more."""

    def __init__(self, parts: Parts, membership: Membership) -> None:
        self._parts = parts
        self._membership = membership
        self._noted: Statistics | None = None
        # For how long the loop has turned without new statistics, and when it did so last.
        self._silent_s = 0.0
        self._turned_at = float("inf")

    def note_statistics(self, now: float) -> None:
        """Pass on the client's statistics where they are new; join with another client where none come any more."""
        statistics = self._parts.client_state.statistics
        self._silent_s += max(0.0, min(TURN_S, now - self._turned_at))
        self._turned_at = now
        if statistics is not None and statistics is not self._noted:
            self._noted, self._silent_s = statistics, 0.0
            self._membership.note(statistics)
            self._parts.assignment.note_ends(statistics.partitions, now)
        elif self._silent_s > SILENT_S and now - self._parts.fetching.drained_at < DRAINED_S:
            # They do not wait in the client's queue either.
            self._give_up_client()

    def _give_up_client(self) -> None:
        self._silent_s = 0.0
        self._parts.fetching.note_rejoin()
        self._membership.give_up_client()

    def look_at_fetching(self, now: float) -> None:
        """Note what brokers say of beginnings and ends; seek, or join again, where a fetch hangs."""
        parts, partitions = self._parts, self._parts.assignment.partitions
        parts.watermarks.wanted = tuple(partitions)
        if parts.fetching.note(partitions, parts.watermarks, now):
            for state in parts.assignment.of_other_topics(parts.watermarks.topic_ids, parts.watermarks.asked_at):
                parts.starts.other_topic(state)
        for state in parts.fetching.to_seek(partitions, now):
            if not self._seek(state):
                self._give_up_client()
                return
        if parts.fetching.rejoin_due(partitions, now):
            self._membership.renew()

    def _seek(self, state: PartitionState) -> bool:
        """Fetch a partition anew from where it is; return whether the client has answered."""
        client, shutdown = self._parts.client, self._parts.shutdown
        refused: list[KafkaException] = []

        def seek() -> None:
            try:
                client.seek(state.at_position())
            except KafkaException as error:
                refused.append(error)

        if not call_until_stopped(seek, shutdown, SEEK_TIMEOUT_S):
            return False
        for error in refused:
            # So it is where the event that its offset is not in the log was lost.
            log.warning("%s: not sought to offset %s: %s; asking its leader", state, state.position, error)
            self._parts.starts.not_sought(state, error.args[0])
        return True
