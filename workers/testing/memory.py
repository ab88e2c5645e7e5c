"""A Kafka cluster and its clients in memory, on which the consumer runs as it is.

`FakeClient` has the part of confluent_kafka.Consumer that workers/consumer uses, with librdkafka's rules where they
matter: a stored offset is committed only above the committed one; a partition whose position is outside of its log gets
one `_AUTO_OFFSET_RESET` event, and can then not be sought until it is assigned anew; a pause outlives the assignment.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    OFFSET_INVALID,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from workers.accounting.offset_metadata import decode
from workers.deadletters.headers import dead_letter_topic
from workers.deadletters.writer import DeadLetter
from workers.kafka.watermarks import Watermark
from workers.loading import text_of

Key = tuple[str, int]

# In place of auto.commit.interval.ms, statistics.interval.ms and Watermarks' interval.
COMMIT_S = 0.02
STATISTICS_S = 0.02
WATERMARKS_S = 0.02
# No outcome yet.
LATER = -1_000_000
# How often a client that waits looks for messages, in seconds.
LOOK_S = 0.002
# How many polls the request for the end of a partition takes.
END_POLLS = 5


@dataclass(slots=True)
class Record:
    """One message of a log."""

    value: Any
    key: Any = None
    headers: Any = None
    timestamp_ms: int = 0
    epoch: int = 0


@dataclass(slots=True)
class Log:
    """The messages of one partition, from offset `begin` on."""

    begin: int = 0
    records: list[Record] = field(default_factory=list)
    epoch: int = 0
    truncated_at: int | None = None

    @property
    def end(self) -> int:
        return self.begin + len(self.records)


def error(code: int, reason: str = "") -> KafkaException:
    return KafkaException(KafkaError(code, reason))


class FakeBroker:
    """Topics, and one consumer group. Its methods may be called from any thread."""

    def __init__(self, **topics: int) -> None:
        self.lock = threading.RLock()
        self.logs: dict[Key, Log] = {}
        self.topic_ids: dict[str, str] = {}
        # Commits of the group: the latest offset and metadata of each partition, and all offsets ever committed.
        self.committed: dict[Key, TopicPartition] = {}
        self.commits: list[tuple[Key, int]] = []
        self.clients: list[FakeClient] = []
        self.owners: dict[Key, FakeClient] = {}
        # Partitions that go to nobody here: another process has them.
        self.elsewhere: set[Key] = set()
        # Fetches that hang, and what ends that: "seek", "client" (a new one) or "never".
        self.hung: dict[Key, str] = {}
        self.answers = True
        self.refuses_commits: int | None = None
        # The error with which the group takes no member.
        self.refuses_members: int | None = None
        # The outcome of an output: None writes it, a number is its error, LATER leaves it under way.
        self.outcome: Callable[[Message], int | None] = lambda _: None
        self.producers: list[FakeProducer] = []
        # The brokers' answer to a call of a transaction ("init", "offsets", "commit", "abort"): None, or an error.
        self.answer: Callable[[str], KafkaError | None] = lambda _: None
        # This many commits of transactions are made, and their answers come too late.
        self.late_commits = 0
        # This many calls of committed() time out.
        self.committed_timeouts = 0
        # Partitions whose committed offset a transaction has: calls of committed() that ask for one of these time out.
        self.unstable: set[Key] = set()
        # Nobody waits for messages any more.
        self.over = False
        self._ids = count(1)
        for name, partitions in topics.items():
            self.create(name, partitions)

    def create(self, topic: str, partitions: int = 1) -> None:
        """Create a topic; one that is there is deleted before."""
        with self.lock:
            for key in [key for key in self.logs if key[0] == topic]:
                del self.logs[key]
            self.topic_ids[topic] = f"id-{next(self._ids)}"
            self.logs |= {(topic, number): Log() for number in range(partitions)}

    def add_partition(self, topic: str) -> Key:
        with self.lock:
            key = topic, sum(name == topic for name, _ in self.logs)
            self.logs[key] = Log()
            return key

    def produce(
        self,
        values: Iterable[Any],
        *,
        topic: str = "t",
        partition: int = 0,
        key: Any = None,
        headers: Any = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """Append messages; `key` is of all, or a function of the value."""
        at = int(time.time() * 1000) if timestamp_ms is None else timestamp_ms
        with self.lock:
            log = self.logs[topic, partition]
            for value in values:
                log.records.append(Record(value, key(value) if callable(key) else key, headers, at, log.epoch))

    def delete_before(self, offset: int, topic: str = "t", partition: int = 0) -> None:
        """Delete messages as retention does."""
        with self.lock:
            log = self.logs[topic, partition]
            del log.records[: offset - log.begin]
            log.begin = offset

    def truncate(self, offset: int, topic: str = "t", partition: int = 0) -> None:
        """Drop the messages from `offset` on, as a leader does that was not in sync."""
        with self.lock:
            log = self.logs[topic, partition]
            del log.records[offset - log.begin :]
            log.epoch += 1
            log.truncated_at = offset

    def connect(self, own: dict[str, Any]) -> "FakeClient":
        with self.lock:
            self.hung = {key: cure for key, cure in self.hung.items() if cure != "client"}
            client = FakeClient(self, own)
            self.clients.append(client)
            return client

    def connect_producer(self, own: dict[str, Any]) -> "FakeProducer":
        with self.lock:
            producer = FakeProducer(self, own)
            self.producers.append(producer)
            return producer

    def values(self, topic: str, partition: int = 0) -> list[Any]:
        """The values of a log."""
        with self.lock:
            return [record.value for record in self.logs[topic, partition].records]

    def revoke(self, *keys: Key) -> None:
        """Have partitions move to another process."""
        self._take("revoke", keys)

    def lose(self, *keys: Key) -> None:
        """Give partitions to another process without asking their owners."""
        self._take("lost", keys)

    def kill(self) -> None:
        """Let all members vanish as if their processes were killed: nothing that they do matters any more."""
        with self.lock:
            for client in self.clients + self.producers:
                client.dead = True
            for producer in self.producers:
                producer.staged.clear()
            self.owners.clear()

    def offset(self, partition: int = 0, topic: str = "t") -> int | None:
        """The committed offset, None where nothing is committed."""
        place = self.committed.get((topic, partition))
        return None if place is None else place.offset

    def ahead(self, partition: int = 0, topic: str = "t") -> list[int]:
        """The offsets above the committed one that are committed as done."""
        place = self.committed.get((topic, partition))
        if place is None:
            return []
        ranges = decode(place.offset, place.metadata).ahead
        return [offset for begin, end in ranges for offset in range(begin, end)]

    def take_transaction(self, messages: list[tuple[Message, int]], places: list[TopicPartition]) -> None:
        """Append what a transaction has written and commit its offsets: both or neither."""
        with self.lock:
            for message, partition in messages:
                self.append(message, partition)
            for each in places:
                key = each.topic, each.partition
                self.committed[key] = _copy(each)
                self.commits.append((key, each.offset))

    def append(self, message: Message, partition: int) -> None:
        self.produce(
            [message.value()],
            topic=message.topic() or "",
            partition=partition,
            key=message.key(),
            headers=message.headers() or None,
            timestamp_ms=message.timestamp()[1] or None,
        )

    def take_commit(self, client: "FakeClient", places: list[TopicPartition]) -> KafkaError | None:
        with self.lock:
            if client.dead:
                return KafkaError(KafkaError._STATE)
            if not self.answers:
                return KafkaError(KafkaError._TIMED_OUT)
            if self.refuses_commits is not None:
                return KafkaError(self.refuses_commits)
            for each in places:
                key = each.topic, each.partition
                self.committed[key] = _copy(each)
                self.commits.append((key, each.offset))
            return None

    def check(self) -> None:
        """Raise KafkaException while brokers do not answer."""
        if not self.answers:
            raise error(KafkaError._TIMED_OUT)

    def _take(self, how: str, keys: Iterable[Key]) -> None:
        with self.lock:
            for key in keys:
                self.elsewhere.add(key)
                self.owners[key].events.append((how, key))


class FakeClient:
    """A member of the group; its methods are called from the consumer's thread."""

    def __init__(self, broker: FakeBroker, own: dict[str, Any]) -> None:
        self.dead = False
        self.closed = False
        self.polls = 0
        self.joins = 0
        self.seeks: list[tuple[Key, int]] = []
        self.paused: set[Key] = set()
        # None once the group does not know this member any more.
        self.member_id: str | None = "member"
        # The thread whose callbacks are called.
        self._called_by: int | None = None
        # Called once, when messages are consumed.
        self.during_consume: Callable[[], object] | None = None
        # Rebalances to come: "revoke" or "lost", and the partition.
        self.events: list[tuple[str, Key]] = []
        self._broker = broker
        self._own = own
        self._topics: list[str] = []
        self._callbacks: dict[str, Callable[..., None]] = {}
        self._assigned: dict[Key, int] = {}
        self._epochs: dict[Key, int] = {}
        self._eof_at: dict[Key, int] = {}
        self._broken: set[Key] = set()
        # Partitions assigned at their end, and the poll in which the brokers tell it.
        self._end_told_at: dict[Key, int] = {}
        self._stored: dict[Key, TopicPartition] = {}
        self._committed: dict[Key, int] = {}
        self._answers: list[tuple[KafkaError | None, list[TopicPartition]]] = []
        self._leaving = False
        self._losing = False
        # Whether librdkafka's main thread stands still, and whether a call waits for it.
        self.hangs = False
        self._waits = False
        # Whether it sends no statistics, while its other threads go on to fetch.
        self.silent = False
        # The poll in which it was last told that the group takes no member.
        self._refused_at = 0
        self._committed_at = self._told_at = 0.0

    # The group

    def subscribe(self, topics: list[str], **callbacks: Callable[..., None]) -> None:
        self._wait(asks=True)
        self._topics = [*topics]
        self._callbacks = callbacks
        self.joins += 1

    def unsubscribe(self) -> None:
        self._wait(asks=True)
        self._topics = []
        self._leaving = True

    def close(self) -> None:
        self._wait(asks=True)
        self._leaving = True
        self._rebalance()
        self._serve_commits()
        self.closed = True
        assert not self._assigned or self.dead

    def incremental_assign(self, places: list[TopicPartition]) -> None:
        self._wait(asks=True)
        self._check_for_rebalance()
        for each in places:
            key = each.topic, each.partition
            assert key not in self._assigned, f"{key} is assigned already"
            self._begin(key, each)

    def incremental_unassign(self, places: list[TopicPartition]) -> None:
        self._wait(asks=True)
        self._check_for_rebalance()
        keys = [(each.topic, each.partition) for each in places]
        if not self._losing:
            self._commit_stored(keys)
        for key in keys:
            del self._assigned[key]
            self._stored.pop(key, None)

    def _check_for_rebalance(self) -> None:
        transactional = self._own.get("enable.auto.commit") is False
        assert self._called_by or not transactional, "librdkafka may take this for the answer to a rebalance that waits"

    def assign(self, places: list[TopicPartition]) -> None:
        self.unassign()
        for each in places:
            self._begin((each.topic, each.partition), each)

    def unassign(self) -> None:
        self.incremental_unassign([TopicPartition(*key) for key in self._assigned])

    def _begin(self, key: Key, place: TopicPartition) -> None:
        assert not place.metadata, "librdkafka leaks the metadata of an assignment at each commit"
        self._assigned[key] = place.offset
        self._broken.discard(key)
        self._eof_at.pop(key, None)
        self._end_told_at.pop(key, None)
        if place.offset == OFFSET_END:
            self._end_told_at[key] = self.polls + END_POLLS
        self._take_epoch(key, place)

    def _take_epoch(self, key: Key, place: TopicPartition) -> None:
        # Without an epoch librdkafka does not ask whether the log was cut, before a message tells the epoch.
        epoch: int | None = place.leader_epoch
        self._epochs[key] = sys.maxsize if epoch is None or epoch < 0 else epoch

    # Messages

    def poll(self, timeout: float = -1) -> Message | None:
        assert not self.closed
        self._wait()
        self.polls += 1
        deadline = time.monotonic() + timeout
        while True:
            told = self._serve()
            found = self._next()
            # A test need not wait as long as librdkafka would until its worker looks at what it was told.
            if found is not None or told or self._broker.over or time.monotonic() >= deadline:
                return found
            time.sleep(LOOK_S)

    def consume(self, num_messages: int = 1, timeout: float = -1) -> list[Message]:  # noqa: ARG002  (the interface)
        self._wait()
        during, self.during_consume = self.during_consume, None
        if during is not None:
            during()
        self._serve()
        found: list[Message] = []
        while len(found) < num_messages and (message := self._next()) is not None:
            found.append(message)
        return found

    def seek(self, place: TopicPartition) -> None:
        self._wait(asks=True)
        key = place.topic, place.partition
        if key not in self._assigned or key in self._broken:
            raise error(KafkaError._STATE)
        self.seeks.append((key, place.offset))
        # librdkafka takes the answer to the request for the end all the same, and goes there.
        self._assigned[key] = OFFSET_END if key in self._end_told_at else place.offset
        self._take_epoch(key, place)
        self._eof_at.pop(key, None)
        if self._broker.hung.get(key) == "seek":
            del self._broker.hung[key]

    def _wait(self, *, asks: bool = False) -> None:
        """As in the binding (2.16): a call that `asks` librdkafka waits without a limit, and the others wait for it."""
        self._waits = self._waits or (asks and self.hangs)
        while self._waits and self.hangs and not self._broker.over:
            time.sleep(LOOK_S)

    def pause(self, places: list[TopicPartition]) -> None:
        self._wait(asks=True)
        self.paused |= {(each.topic, each.partition) for each in places}

    def resume(self, places: list[TopicPartition]) -> None:
        self._wait(asks=True)
        self.paused -= {(each.topic, each.partition) for each in places}

    def _next(self) -> Message | None:
        refusal = self._broker.refuses_members
        if refusal is not None and self._topics and self._refused_at != self.polls:
            self._refused_at = self.polls
            return _event((self._topics[0], 0), refusal, OFFSET_INVALID)
        with self._broker.lock:
            keys = [*self._assigned]
            first = self.polls % max(1, len(keys))
            # No partition comes always first.
            for key in keys[first:] + keys[:first]:
                if self.hangs or key in self.paused or key in self._broken or key in self._broker.hung:
                    continue
                found = self._fetch(key) if self._broker.answers and not self.dead else None
                if found is not None:
                    return found
        return None

    def _fetch(self, key: Key) -> Message | None:
        log = self._broker.logs.get(key)
        if log is None:
            return None
        position = self._position(key, log)
        if position is None:
            return self._reset(key, position, "no previously committed offset available")
        truncated_at = log.truncated_at
        if self._epochs[key] < log.epoch and truncated_at is not None and position > truncated_at:
            # As librdkafka 2.16 says it: without an offset.
            told = f"detected at offset {position} (leader epoch 0): broker end offset is {truncated_at} (offset leader"
            return self._reset(key, None, f"Partition log truncation {told} epoch 0). Reset to INVALID.")
        if not log.begin <= position <= log.end and self._own["auto.offset.reset"] == "earliest":
            position = log.begin
        if not log.begin <= position <= log.end:
            return self._reset(key, position, "fetch failed due to requested offset not available on the broker")
        if self._end_told_at.get(key, 0) > self.polls:
            return None
        self._end_told_at.pop(key, None)
        self._assigned[key] = position
        if position == log.end:
            if self._eof_at.get(key) == position:
                return None
            self._eof_at[key] = position
            return _event(key, KafkaError._PARTITION_EOF, position)
        record = log.records[position - log.begin]
        self._assigned[key] = position + 1
        self._epochs[key] = record.epoch
        return Message(
            topic=key[0],
            partition=key[1],
            offset=position,
            key=record.key,
            value=record.value,
            headers=record.headers,
            timestamp=(1, record.timestamp_ms),
            leader_epoch=record.epoch,
        )

    def _position(self, key: Key, log: Log) -> int | None:
        position = self._assigned[key]
        if position == OFFSET_BEGINNING:
            return log.begin
        if position == OFFSET_END:
            return log.end
        if position == OFFSET_INVALID:
            committed = self._broker.committed.get(key)
            return None if committed is None else committed.offset
        return position

    def _reset(self, key: Key, position: int | None, reason: str) -> Message:
        assert self._own["auto.offset.reset"] == "error"
        self._broken.add(key)
        return _event(key, KafkaError._AUTO_OFFSET_RESET, OFFSET_INVALID if position is None else position, reason)

    def tell_error(self, told: KafkaError) -> None:
        """Call the client's callback for errors."""
        self._own["error_cb"](told)

    def lose_reset(self, topic: str, partition: int = 0) -> None:
        """Stop fetching, as librdkafka where an offset is not in the log, without the event that tells it."""
        self._broken.add((topic, partition))

    # Offsets

    def store_offsets(self, *, offsets: list[TopicPartition]) -> None:
        self._wait()
        for each in offsets:
            key = each.topic, each.partition
            if key not in self._assigned:
                raise error(KafkaError._STATE)
            self._stored[key] = each

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> None:
        self._wait()
        assert asynchronous, "a commit that waits blocks the loop"
        self._commit(offsets)

    def committed(self, places: list[TopicPartition], timeout: float = -1) -> list[TopicPartition]:  # noqa: ARG002  (the interface)
        self._broker.check()
        with self._broker.lock:
            if self._broker.committed_timeouts:
                self._broker.committed_timeouts -= 1
                raise error(KafkaError._TIMED_OUT)
            if any((each.topic, each.partition) in self._broker.unstable for each in places):
                raise error(KafkaError._TIMED_OUT)
            found = []
            for each in places:
                known = self._broker.committed.get((each.topic, each.partition))
                found.append(
                    TopicPartition(each.topic, each.partition, OFFSET_INVALID) if known is None else _copy(known)
                )
            return found

    def consumer_group_metadata(self) -> "FakeClient":
        self._wait(asks=True)
        # As the binding (2.16.1): the calls of other threads wait until the callbacks of a poll are over.
        while self._called_by not in (None, threading.get_ident()):
            time.sleep(LOOK_S)
        return self

    def memberid(self) -> str | None:
        self._wait(asks=True)
        return self.member_id

    def get_watermark_offsets(self, place: TopicPartition, timeout: float = -1) -> tuple[int, int]:  # noqa: ARG002  (the interface)
        self._broker.check()
        log = self._broker.logs[place.topic, place.partition]
        return log.begin, log.end

    def list_topics(self, topic: str | None = None, timeout: float = -1) -> Any:  # noqa: ARG002  (the interface)
        self._broker.check()
        names = {topic} if topic is not None else {name for name, _ in self._broker.logs}
        topics = {
            name: SimpleNamespace(
                error=None, partitions={number: None for known, number in self._broker.logs if known == name}
            )
            for name in names
        }
        return SimpleNamespace(topics=topics)

    def _commit_stored(self, keys: Iterable[Key]) -> None:
        due = [
            self._stored[key]
            for key in keys
            if key in self._stored and self._stored[key].offset > self._committed.get(key, OFFSET_INVALID)
        ]
        if due:
            self._commit(due)

    def _commit(self, places: list[TopicPartition]) -> None:
        # A dead member is told that all is well, so that its thread ends at once; the broker takes nothing.
        refused = None if self.dead else self._broker.take_commit(self, places)
        if refused is None:
            self._committed |= {(each.topic, each.partition): each.offset for each in places}
        self._answers.append((refused, places))

    # Callbacks that poll serves

    def _serve(self) -> bool:
        """Serve what is due; return whether that was statistics."""
        now = time.monotonic()
        told = not (self.hangs or self.silent) and now - self._told_at >= STATISTICS_S
        if told:
            self._told_at = now
            self._own["stats_cb"](self._statistics())
        if now - self._committed_at >= COMMIT_S:
            self._committed_at = now
            self._commit_stored(self._assigned)
        self._serve_commits()
        self._rebalance()
        return told

    def _serve_commits(self) -> None:
        while self._answers:
            self._own["on_commit"](*self._answers.pop(0))

    def _rebalance(self) -> None:
        self._called_by = threading.get_ident()
        try:
            self._rebalance_now()
        finally:
            self._called_by = None

    def _rebalance_now(self) -> None:
        if self._leaving:
            self._leaving = False
            self._give("revoke", [*self._assigned])
        while self.events:
            how, key = self.events.pop(0)
            if key in self._assigned:
                self._give(how, [key])
        broker = self._broker
        with broker.lock:
            free = [
                key
                for key in broker.logs
                if key[0] in self._topics
                and key not in broker.elsewhere
                # The session of one that sends no heartbeats times out.
                and (key not in broker.owners or broker.owners[key].hangs)
            ]
            if self.dead or self.hangs or not broker.answers or broker.refuses_members is not None:
                return
            broker.owners |= dict.fromkeys(free, self)
        if free:
            self._callbacks["on_assign"](self, [TopicPartition(*key) for key in free])
            assert set(free) <= self._assigned.keys(), "on_assign has not assigned what it was given"

    def _give(self, how: str, keys: list[Key]) -> None:
        if not keys:
            return
        self._losing = how == "lost"
        self._callbacks[f"on_{how}"](self, [TopicPartition(*key) for key in keys])
        self._losing = False
        assert self._assigned.keys().isdisjoint(keys), f"on_{how} has not unassigned what it was to give back"
        with self._broker.lock:
            for key in keys:
                if self._broker.owners.get(key) is self:
                    del self._broker.owners[key]

    def _statistics(self) -> str:
        up = "UP" if self._broker.answers else "DOWN"
        nobody = {"cnt": 0, "p50": 0, "p95": 0, "p99": 0}
        topics: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
        for (topic, number), position in self._assigned.items():
            log = self._broker.logs.get((topic, number))
            topics.setdefault(topic, {"partitions": {}})["partitions"][str(number)] = {
                # The last stable offset of a hung fetch does not move.
                "ls_offset": -1 if log is None else position if (topic, number) in self._broker.hung else log.end,
                "next_offset": position,
                "leader": 1,
                "desired": True,
                "fetch_state": "active",
            }
        return json.dumps(
            {
                "time": time.time(),
                "brokers": {"b": {"nodeid": 1, "nodename": "b:1", "state": up, "rtt": nobody}},
                "cgrp": {"state": up.lower(), "join_state": "steady" if self._topics else "init"},
                "msg_size": 0,
                "topics": topics,
            }
        )


class FakeProducer:
    """Has the part of confluent_kafka.Producer that outputs and the canary use; what is sent is written in
    `poll`, message by message as `FakeBroker.outcome` says.
    """

    def __init__(self, broker: FakeBroker, own: dict[str, Any]) -> None:
        self.own = own
        self.closed = False
        self.dead = False
        # This many messages fit at once.
        self.room = 1000
        self.most = 0
        self._broker = broker
        self._under_way: list[tuple[Message, int, Callable[[KafkaError | None, Message], None]]] = []
        # Those that are written together, while `FakeBroker.outcome` is asked.
        self.at_hand = self._under_way
        # The transaction that is open: what it has written, its offsets, and whether an output of it has failed.
        self.staged: list[tuple[Message, int]] = []
        self._begun = False
        self._offsets: list[TopicPartition] = []
        self._failed = self._committing = self._late = False
        self._fatal: KafkaError | None = None
        # The thread that is in a call of the transaction.
        self._called_by: int | None = None

    def __len__(self) -> int:
        return len(self._under_way)

    def produce(
        self,
        topic: str,
        value: Any,
        key: Any = None,
        *,
        partition: int = -1,
        timestamp: int = 0,
        headers: Any = None,
        on_delivery: Callable[[KafkaError | None, Message], None],
    ) -> None:
        assert self._called_by is None, "a call of the transaction is under way"
        if len(self._under_way) >= self.room:
            raise BufferError("Local: Queue full")
        if len(value or b"") > 1_000_000:
            raise error(KafkaError.MSG_SIZE_TOO_LARGE)
        message = Message(topic=topic, value=value, key=key, headers=headers, timestamp=(1, timestamp))
        self._under_way.append((message, max(0, partition), on_delivery))
        self.most = max(self.most, len(self._under_way))

    def poll(self, timeout_s: float) -> int:
        assert self._called_by in (None, threading.get_ident()), "a call of the transaction is under way"
        until = time.monotonic() + timeout_s
        while not (served := self._serve()) and self._under_way and time.monotonic() < until:
            time.sleep(LOOK_S)
        return served

    # Transactions

    def init_transactions(self, timeout_s: float) -> None:  # noqa: ARG002  (the interface)
        with self._calling("init"):
            pass

    def begin_transaction(self) -> None:
        assert not self._begun, "a transaction is open"
        self._begun, self._failed, self._committing = True, False, False

    def send_offsets_to_transaction(self, places: list[TopicPartition], member: FakeClient, timeout_s: float) -> None:  # noqa: ARG002  (the interface)
        with self._calling("offsets"):
            self._take_offsets(places, member)

    def _take_offsets(self, places: list[TopicPartition], member: FakeClient) -> None:
        assert self._begun
        for each in places:
            if self._broker.owners.get((each.topic, each.partition)) is not member:
                raise _refused(KafkaError.ILLEGAL_GENERATION, abort=True)
        self._offsets = [_copy(each) for each in places]

    def commit_transaction(self, timeout_s: float) -> None:
        with self._calling("commit"):
            self._commit(timeout_s)

    def _commit(self, timeout_s: float) -> None:
        assert self._begun
        assert self._offsets
        # As librdkafka: until its messages have outcomes the commit can be asked for again, but not be aborted.
        self._committing = True
        self.poll(min(timeout_s, 0.1))
        if self._under_way:
            raise _refused(KafkaError._TIMED_OUT, retriable=True)
        self._committing = False
        if self._failed:
            raise _refused(KafkaError._INCONSISTENT, abort=True)
        with self._broker.lock:
            if self.dead:
                raise _refused(KafkaError._TIMED_OUT, retriable=True)
            self._broker.take_transaction(self.staged, self._offsets)
            self._late = self._broker.late_commits > 0
            self._broker.late_commits -= self._late
        if self._late:
            raise _refused(KafkaError._TIMED_OUT, abort=True)
        self._end()

    def abort_transaction(self, timeout_s: float) -> None:  # noqa: ARG002  (the interface)
        with self._calling("abort"):
            self._abort()

    def _abort(self) -> None:
        if self._committing:
            raise _refused(KafkaError._STATE)
        if self._late:
            self._fatal = KafkaError(KafkaError.INVALID_TXN_STATE, "there is no transaction", True)
            raise KafkaException(self._fatal)
        self.purge()
        self._end()

    def _end(self) -> None:
        self._begun = False
        self.staged, self._offsets = [], []

    @contextmanager
    def _calling(self, call: str) -> Iterator[None]:
        assert self._called_by is None, "a call of the transaction is under way"
        self._called_by = threading.get_ident()
        try:
            self._ask(call)
            yield
        finally:
            self._called_by = None

    def _ask(self, call: str) -> None:
        refused = self._fatal or self._broker.answer(call)
        if refused is not None and refused.fatal():
            self._fatal = refused
        if refused is None and (self.dead or not self._broker.answers):
            refused = KafkaError(KafkaError._TIMED_OUT, "timed out", False, True)
        if refused is not None:
            raise KafkaException(refused)

    def purge(self) -> None:
        gone, self._under_way = self._under_way, []
        for message, _, on_delivery in gone:
            on_delivery(KafkaError(KafkaError._PURGE_QUEUE), message)

    def list_topics(self, topic: str | None = None, timeout: float = -1) -> None:  # noqa: ARG002  (the interface)
        self._broker.check()

    def close(self) -> None:
        """As the binding: what is open is aborted, which the brokers refuse where another producer has taken over."""
        if self._begun and self._broker.producers[-1] is not self:
            self.own["error_cb"](KafkaError(KafkaError._FENCED, "fenced", True))
        gone, self._under_way = self._under_way, []
        for message, _, on_delivery in gone:
            on_delivery(KafkaError(KafkaError._FENCED, "fenced", True), message)
        self.closed = True

    def _serve(self) -> int:
        served = 0
        kept: list[tuple[Message, int, Callable[[KafkaError | None, Message], None]]] = []
        under_way, self._under_way = self._under_way, []
        self.at_hand = under_way
        for each in under_way:
            message, partition, on_delivery = each
            # Under the lock, so that nothing is written any more once `FakeBroker.kill` has returned.
            with self._broker.lock:
                outcome = self._broker.outcome(message) if self._broker.answers and not self.dead else LATER
                if outcome is None and self._begun:
                    self.staged.append((message, partition))
                elif outcome is None:
                    self._broker.append(message, partition)
                elif outcome != LATER and self._begun:
                    self._failed = True
            if outcome == LATER:
                kept.append(each)
                continue
            on_delivery(None if outcome is None else KafkaError(outcome), message)
            served += 1
        self._under_way = kept + self._under_way
        return served


class FakeWatermarks:
    """Has the interface of workers.kafka.watermarks.Watermarks; a round is made when one is due and is looked at."""

    def __init__(self, broker: FakeBroker) -> None:
        self.latest: dict[Key, Watermark] = {}
        self.topic_ids: dict[str, str] = {}
        self.asked_at = float("-inf")
        self.wanted: tuple[Key, ...] = ()
        self.reconnects = 0
        self._broker = broker
        self._rounds = 0

    @property
    def round(self) -> int:
        now = time.monotonic()
        if now - self.asked_at >= WATERMARKS_S and self.wanted:
            self.asked_at = now
            self._rounds += 1
            with self._broker.lock:
                answers, logs = self._broker.answers, self._broker.logs
                self.topic_ids = dict(self._broker.topic_ids) if answers else {}
                self.latest = (
                    {key: Watermark(logs[key].begin, logs[key].end) for key in self.wanted if key in logs}
                    if answers
                    else {}
                )
        return self._rounds

    def start(self) -> None: ...

    def ask(self) -> None: ...

    def close(self, timeout_s: float) -> None: ...

    def reconnect(self) -> None:
        self.reconnects += 1


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as it was sent."""

    topic: str
    offset: int
    key: Any
    value: Any
    headers: Any
    error: str
    attempts: int


class FakeDeadLetters:
    """Keeps dead letters. `answer` is the brokers' answer to each: delivered, an error, or nothing yet."""

    held = False
    named = None

    def __init__(self, answer: bool | None = True) -> None:
        self.sent: list[Letter] = []
        self.answer = answer
        self.too_large = False
        self._under_way: list[DeadLetter] = []

    def missing(self, client: Any, topics: Iterable[str]) -> list[str]:  # noqa: ARG002  (the interface)
        return []

    def send(self, message: Message, error: BaseException, attempts: int) -> DeadLetter:
        self.sent.append(
            Letter(
                dead_letter_topic(message.topic() or ""),
                message.offset() or 0,
                message.key(),
                message.value(),
                message.headers(),
                text_of(error),
                attempts,
            )
        )
        letter = DeadLetter()
        self._under_way.append(letter)
        return letter

    def poll(self, timeout_s: float) -> None:
        if self.answer is None:
            time.sleep(timeout_s)
            return
        for letter in self._under_way:
            letter.delivered, letter.too_large = self.answer, self.too_large
            letter.error = "" if self.answer else "not written"
        self._under_way.clear()

    def close(self, timeout_s: float) -> None: ...


def _refused(code: int, *, retriable: bool = False, abort: bool = False) -> KafkaException:
    return KafkaException(KafkaError(code, "refused", False, retriable, abort))


def _copy(place: TopicPartition) -> TopicPartition:
    # The binding answers None where there is none, and does not take it.
    epoch: int | None = place.leader_epoch
    return TopicPartition(
        place.topic, place.partition, place.offset, place.metadata or "", -1 if epoch is None else epoch
    )


def _event(key: Key, code: int, offset: int, reason: str = "") -> Message:
    said = KafkaError(code, reason) if reason else KafkaError(code)
    return Message(topic=key[0], partition=key[1], offset=offset, error=said)
