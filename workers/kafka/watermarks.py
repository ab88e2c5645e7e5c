"""Where partitions begin and end, as their brokers say, on a timer and independent of what is fetched.

Statistics and fetched messages say that too, but not of a partition that is paused, or whose fetch hangs.

A thread of librdkafka answers the requests of an admin client in Python. An answer that comes when the interpreter is
gone crashes the process (SIGSEGV), so the client is closed before.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from typing import Any, NamedTuple

from confluent_kafka import IsolationLevel, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from workers.lifecycle import WATERMARKS_THREAD

log = logging.getLogger(__name__)

INTERVAL_S = 5.0
REQUEST_TIMEOUT_S = 4.0
# How often a thread that waits for answers looks whether it is to end.
LOOK_S = 0.05

Key = tuple[str, int]


class Watermark(NamedTuple):
    """The offset of a partition's first message, and of the one that comes next; -1 where the broker did not say."""

    begin: int
    end: int


class _ClosedError(Exception):
    """The answers are not waited for any more."""


class Watermarks:
    """Asks for the watermarks of `wanted` every INTERVAL_S, in a thread of its own, with one request for all partitions
    of a broker. `latest` is a new dictionary after each round, of the partitions that were answered for; `round` counts
    the rounds, and the last one began at `asked_at` (time.monotonic).
    """

    def __init__(self, connect: Callable[[], AdminClient], isolation: IsolationLevel) -> None:
        self.latest: dict[Key, Watermark] = {}
        # Of the topics, by name; a topic that is created again has another.
        self.topic_ids: dict[str, str] = {}
        self.round = 0
        self.asked_at = float("-inf")
        # Written by the loop's thread.
        self.wanted: tuple[Key, ...] = ()
        self._connect = connect
        self._isolation = isolation
        self._admin: AdminClient | None = None
        # Which client is wanted, and which there is.
        self._generation = self._connected = 0
        self._asked = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name=WATERMARKS_THREAD, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask(self) -> None:
        """Ask at once, and not only when the interval is over."""
        self._asked.set()

    def reconnect(self) -> None:
        """Make a new client before the next round: credentials have changed."""
        self._generation += 1

    def close(self, timeout_s: float) -> bool:
        """End the thread and its client; return whether they ended within `timeout_s`. A request that is under way is
        not waited for.
        """
        self._ended = True
        self._asked.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._ask_until_closed()
        finally:
            self._disconnect()

    def _ask_until_closed(self) -> None:
        while not self._ended:
            wanted = self.wanted
            if wanted:
                asked_at = time.monotonic()
                try:
                    admin = self._client()
                    self.latest = self._query(admin, wanted)
                    # Asked afterwards: it goes to the controller, which can be away when the leaders are not.
                    self.topic_ids = self._query_topic_ids(admin, {topic for topic, _ in wanted})
                except _ClosedError:
                    return
                except Exception as error:  # the thread must not end: whatever it is, the next round may go well
                    self.latest, self.topic_ids = {}, {}
                    log.debug("the ends of partitions are not known: %s", error)
                self.asked_at = asked_at
                self.round += 1
            self._asked.wait(INTERVAL_S)
            self._asked.clear()

    def _client(self) -> AdminClient:
        generation = self._generation
        if self._admin is None or self._connected != generation:
            self._disconnect()
            self._admin = self._connect()
            self._connected = generation
        return self._admin

    def _disconnect(self) -> None:
        if self._admin is not None:
            # The binding has no other name for closing; it waits for the thread that answers.
            self._admin.__exit__(None, None, None)
            self._admin = None

    def _query(self, admin: AdminClient, keys: Iterable[Key]) -> dict[Key, Watermark]:
        """Return the watermarks of partitions, without those that were not answered for. Raises KafkaException."""
        partitions = [TopicPartition(*key) for key in keys]
        begins, ends = (
            admin.list_offsets(
                dict.fromkeys(partitions, spec), isolation_level=self._isolation, request_timeout=REQUEST_TIMEOUT_S
            )
            for spec in (OffsetSpec.earliest(), OffsetSpec.latest())
        )
        self._wait(begins)
        self._wait(ends)
        found = {}
        for partition in partitions:
            begin, end = _offset(begins[partition]), _offset(ends[partition])
            if end >= 0:
                found[partition.topic, partition.partition] = Watermark(begin, end)
        return found

    def _query_topic_ids(self, admin: AdminClient, topics: Iterable[str]) -> dict[str, str]:
        """Return the ids of topics by their names, without those that were not answered for. Raises KafkaException."""
        answers = admin.describe_topics(TopicCollection([*topics]), request_timeout=REQUEST_TIMEOUT_S)
        self._wait(answers)
        found = {}
        for name, answer in answers.items():
            try:
                found[name] = str(answer.result().topic_id)
            except KafkaException as error:
                log.debug("the id of topic %s is not known: %s", name, error)
        return found

    def _wait(self, answers: "Mapping[Any, Future[Any]]") -> None:
        """Wait for answers; raises _ClosedError when the thread is to end before they are there."""
        while wait(answers.values(), LOOK_S).not_done:
            if self._ended:
                raise _ClosedError


def _offset(answer: "Future[Any]") -> int:
    try:
        # Of a leader that cannot be reached librdkafka says OFFSET_INVALID, -1001, and no error.
        return max(-1, int(answer.result().offset))
    except KafkaException:
        return -1
