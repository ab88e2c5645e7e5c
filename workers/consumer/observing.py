"""The client's and the brokers' reports on partitions: their ends, and fetches that hang.

Called by the loop's thread.
"""

import logging

from confluent_kafka import KafkaException

from workers.consumer.membership import Membership
from workers.consumer.parts import Parts
from workers.consumer.seeking import ClientHangsError, seek
from workers.kafka.statistics import Statistics

log = logging.getLogger(__name__)

# The main thread of librdkafka (2.16) can hang after all brokers were killed at once: then nothing is fetched, the
# group gets no heartbeat, and no statistics come. They come every 10 s at least (config.py), and overtake messages
# in the client's queue (RD_KAFKA_PRIO_HIGH in rd_kafka_stats_emit_all of rdkafka.c).
SILENT_S = 30.0


class Observer:
    """Passes on what is said, and has partitions healed that are not fetched any more."""

    def __init__(self, parts: Parts, membership: Membership) -> None:
        self._parts = parts
        self._membership = membership
        self._noted: Statistics | None = None

    def note_statistics(self, now: float) -> None:
        """Pass on the client's statistics where they are new; raises ClientHangsError where none come any more."""
        statistics = self._parts.client_state.statistics
        self._parts.client_state.note_turn()
        if statistics is not None and statistics is not self._noted:
            self._noted = statistics
            self._membership.note(statistics)
            self._parts.assignment.note_ends(statistics.partitions, now)
        elif self._parts.client_state.silent_s > SILENT_S:
            raise ClientHangsError(f"the Kafka client has sent no statistics for {SILENT_S:g} s")

    def look_at_fetching(self, now: float) -> None:
        """Note what brokers say of beginnings and ends; seek, or join again, where a fetch hangs. Raises
        ClientHangsError.
        """
        parts, partitions = self._parts, self._parts.assignment.partitions
        parts.watermarks.wanted = tuple(partitions)
        if parts.fetching.note(partitions, parts.watermarks, now):
            for state in parts.assignment.of_other_topics(parts.watermarks.topic_ids, parts.watermarks.asked_at):
                parts.starts.other_topic(state)
        for state in parts.fetching.to_seek(partitions, now):
            try:
                seek(parts.client, state.at_position())
            except KafkaException as error:
                # So it is where the event that its offset is not in the log was lost.
                log.warning("%s: not sought to offset %s: %s; asking its leader", state, state.position, error)
                parts.starts.not_sought(state, error.args[0])
        if parts.fetching.rejoin_due(partitions, now):
            self._membership.renew()
