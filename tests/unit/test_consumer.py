"""A member of a group, under any behaviour of its brokers and its handler; all on a client in memory."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from tests.unit.members import BY_KEY, FOR_EVER, Group, Handled, key_of_ten, numbers
from workers.accounting.offset_metadata import OffsetMetadata, decode, encode
from workers.consumer.assignment import Assignment
from workers.consumer.committing import StoredOffsets
from workers.consumer.failures import ErrorPolicy
from workers.consumer.fetching import CUT_ROUNDS, FetchWatch
from workers.consumer.flow import BATCH_MESSAGES
from workers.consumer.status import PartitionStatus
from workers.deadletters.headers import dead_letter_headers
from workers.errors import ConfigError, ExitCode, WorkerError
from workers.handlers import Reject, Retry, batch
from workers.kafka.credentials import CredentialsWatch
from workers.kafka.watermarks import Watermark
from workers.lifecycle import CLOSING_THREAD
from workers.loading import remember_traceback
from workers.testing.memory import FakeBroker, FakeClient, FakeDeadLetters
from workers.testing.processes import eventually

# Every message is handled, and committed afterwards


def test_what_was_handled_is_committed_and_not_handled_again_by_the_next_member(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 500))
    first, second = Handled(), Handled()
    group.member(first, idle_timeout_s=0.2).finish()
    assert first.values == numbers(0, 500)
    assert broker.offset() == 500
    broker.produce(numbers(500, 600))
    group.member(second, idle_timeout_s=0.2).finish()

    assert second.values == numbers(500, 600)


def test_nothing_is_committed_for_a_message_before_its_handler_returned(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 3))
    begun, hold = group.hold_at(1)
    member = group.member(Handled(hold)).start()
    assert begun.wait(20)
    group.until(lambda: broker.offset() == 1, "the first is committed")
    polls = member.client.polls
    group.until(lambda: member.client.polls > polls + 5, "the loop goes on to poll")
    assert broker.offset() == 1
    group.gate.set()
    member.stop()

    assert broker.offset() in (2, 3)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_member_handles_exactly_as_many_messages_as_it_is_asked_for(
    broker: FakeBroker, group: Group, concurrency: int
) -> None:
    broker.produce(numbers(0, 300), key=lambda value: value[-1:])
    handled = Handled()
    order = "partition" if concurrency == 1 else "key"
    group.member(handled, max_messages=123, concurrency=concurrency, order=order).finish()

    assert len(handled.messages) == 123
    rest = Handled()
    group.member(rest, idle_timeout_s=0.2).finish()
    assert sorted({*handled.offsets, *rest.offsets}) == [*range(300)]


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 1},
        {"concurrency": 50, "order": "none"},
        {"concurrency": 4, "order": "key"},
        {"concurrency": 1, "max_rate": 2000.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["single", "batch", "async", "async-batch"])
def test_messages_that_are_tried_again_take_their_place_among_the_last_messages(
    broker: FakeBroker, group: Group, options: dict[str, Any], form: str
) -> None:
    broker.add_partition("t")
    for partition in range(2):
        broker.produce(numbers(0, 200), partition=partition, key=lambda value: value[-1:])
    begun: set[tuple[int, int]] = set()
    lock = threading.Lock()

    def fail_most(message: Message) -> None:
        with lock:
            begun.add((message.partition() or 0, message.offset() or 0))
        if (message.offset() or 0) % 4:
            raise ValueError("no")

    def fail_in_a_batch(messages: list[Message]) -> None:
        with lock:
            begun.update((message.partition() or 0, message.offset() or 0) for message in messages)
        for message in messages:
            fail_most(message)

    async def fail_most_async(message: Message) -> None:
        fail_most(message)

    async def fail_in_a_batch_async(messages: list[Message]) -> None:
        fail_in_a_batch(messages)

    handlers: dict[str, Any] = {
        "single": fail_most,
        "batch": batch(fail_in_a_batch),
        "async": fail_most_async,
        "async-batch": batch(fail_in_a_batch_async),
    }
    policy = ErrorPolicy(max_attempts=3, backoff_s=0.02, backoff_max_s=0.04)
    member = group.member(handlers[form], policy=policy, max_messages=30, batch_size=3, **options).finish()

    assert len(begun) == 30
    assert member.consumer.status.handled == 30


def test_a_batch_that_is_tried_again_as_a_whole_takes_the_places_of_all_its_messages(
    broker: FakeBroker, group: Group
) -> None:
    broker.add_partition("t")
    for partition in range(2):
        broker.produce(numbers(0, 50), partition=partition)
    begun: set[tuple[int, int]] = set()
    calls = 0

    @batch
    def fail_at_first(messages: list[Message]) -> None:
        nonlocal calls
        calls += 1
        begun.update((message.partition() or 0, message.offset() or 0) for message in messages)
        if calls <= 6:
            raise Retry

    group.member(fail_at_first, max_messages=7, batch_size=5).finish()

    assert len(begun) == 7


@pytest.mark.parametrize("how", ["revoke", "lose"])
def test_a_limit_of_messages_is_reached_though_a_partition_goes_while_its_batch_is_taken_apart(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its messages counted as begun for ever, and the member turned without doing anything."""
    monkeypatch.setattr("workers.consumer.membership.REVOKE_WAIT_S", 0.05)
    broker.add_partition("t")
    broker.produce(numbers(0, 10))
    begun = threading.Event()

    @batch
    def handler(messages: list[Message]) -> None:
        if messages[0].partition() == 0:
            if len(messages) > 1:
                raise ValueError("no")
            if messages[0].offset() == 3:
                begun.set()
                group.gate.wait(20)

    member = group.member(handler, max_messages=60).start()
    assert begun.wait(20)
    getattr(broker, how)(("t", 0))
    group.until(lambda: ("t", 0) not in broker.owners, "it has gone")
    broker.produce(numbers(0, 100), partition=1)
    group.gate.set()
    member.finish()

    assert member.consumer.status.handled == 60


def test_a_member_does_not_spin_while_the_last_messages_wait_for_a_retry(broker: FakeBroker, group: Group) -> None:
    broker.add_partition("t")
    broker.produce(numbers(0, 5))
    broker.produce(numbers(0, 5), partition=1)
    calls = 0

    def fail_once(_: Message) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise Retry(after_s=1.0)

    member = group.member(Handled(fail_once), max_messages=1).start()
    group.until(lambda: calls, "it has failed")
    polls, begun = member.client.polls, time.monotonic()
    member.finish()

    assert (member.client.polls - polls) / (time.monotonic() - begun) < 150
    assert calls == 2


def test_a_backlog_waits_at_the_brokers_while_the_last_message_waits_for_a_retry(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn took one message more, and the next turn began at once."""
    monkeypatch.setattr("workers.consumer.flow.MAX_WAITING_MESSAGES", 0)
    broker.add_partition("t")
    broker.produce(numbers(0, 1))

    calls: list[Message] = []

    def wait(message: Message) -> None:
        calls.append(message)
        raise Retry(after_s=60)

    member = group.member(Handled(wait), max_messages=1).start()
    group.until(lambda: calls, "it has failed")
    broker.produce(numbers(0, 20_000), partition=1)
    group.check_backlog_waits(member)


def test_a_member_that_is_stopped_before_it_has_joined_never_joins(broker: FakeBroker, group: Group) -> None:
    member = group.member(Handled())
    member.shutdown.request()
    member.finish()

    assert member.client.joins == 0
    assert member.client.closed


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (KafkaError.INVALID_SESSION_TIMEOUT, r"session\.timeout\.ms=1: .*group\.min\.session\.timeout\.ms"),
        (KafkaError.INVALID_GROUP_ID, r"group\.id=g: .*another name"),
    ],
)
def test_a_setting_that_brokers_refuse_ends_a_member_that_has_never_joined(
    broker: FakeBroker, group: Group, code: int, says: str
) -> None:
    """It repeated the error until it was killed."""
    broker.refuses_members = code
    member = group.member(Handled(), properties={"session.timeout.ms": "1"})
    with pytest.raises(WorkerError, match=says) as raised:
        member.finish()

    assert raised.value.code == ExitCode.USAGE
    assert member.client.closed


def test_a_setting_that_brokers_refuse_later_is_tried_on_with(broker: FakeBroker, group: Group) -> None:
    """A coordinator with other bounds may move again, as while brokers are changed one after the other."""
    handled = Handled()
    broker.produce(numbers(0, 3))
    member = group.member(handled).start()
    group.until(lambda: broker.offset() == 3, "all are committed")
    broker.refuses_members = KafkaError.INVALID_SESSION_TIMEOUT
    broker.lose(("t", 0))
    polls = member.client.polls
    group.until(lambda: member.client.polls > polls + 5, "it goes on to poll")
    broker.produce(numbers(3, 5))
    broker.refuses_members = None
    broker.elsewhere.clear()
    group.until(lambda: broker.offset() == 5, "it goes on")

    assert handled.values == numbers(0, 5)


def test_a_consumer_is_not_idle_while_a_partition_waits(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 3))
    calls = 0

    def fail_for_a_while(message: Message) -> None:
        nonlocal calls
        calls += message.offset() == 1
        if message.offset() == 1 and calls == 1:
            raise Retry(after_s=0.6)

    handled = Handled(fail_for_a_while)
    group.member(handled, idle_timeout_s=0.1).finish()

    assert handled.offsets == [0, 1, 2]


def test_a_fatal_error_of_the_client_ends_the_member(broker: FakeBroker, group: Group) -> None:
    member = group.member(Handled()).start()
    group.until(lambda: member.consumer.ready() is None, "it is ready")
    member.consumer.client_state.fatal = WorkerError("fatal Kafka error _FATAL: over")

    with pytest.raises(WorkerError, match=r"over"):
        member.finish()


def test_a_fatal_error_that_the_binding_raises_ends_the_member_with_the_remedy(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fenced(*_: Any, **__: Any) -> Any:
        raise KafkaException(KafkaError(KafkaError.FENCED_INSTANCE_ID, "another one", True))

    member = group.member(Handled()).start()
    group.until(lambda: member.consumer.ready() is None, "it is ready")
    monkeypatch.setattr(member.client, "consume", fenced)

    with pytest.raises(WorkerError, match=r"^fatal Kafka error FENCED_INSTANCE_ID: another one; give each member a "):
        member.finish()


# Rebalances


def test_a_revocation_waits_for_the_message_at_hand_and_commits_it(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 10))
    begun = threading.Event()

    def slow(message: Message) -> None:
        if message.offset() == 4:
            begun.set()
            time.sleep(0.3)

    handled = Handled(slow)
    group.member(handled).start()
    assert begun.wait(20)
    broker.revoke(("t", 0))
    group.until(lambda: ("t", 0) not in broker.owners, "it is given back")

    assert handled.offsets == [0, 1, 2, 3, 4]
    assert broker.offset() == 5


class Rebalancing:
    """A coordinator that refuses the next commits, as it does while other members join."""

    def __init__(self, broker: FakeBroker, refusals: int) -> None:
        self._left = 0
        self._refusals = refusals
        self._take_commit = broker.take_commit

    def begin(self) -> None:
        self._left = self._refusals

    def take_commit(self, client: FakeClient, places: list[TopicPartition]) -> KafkaError | None:
        if self._left:
            self._left -= 1
            return KafkaError(KafkaError.REBALANCE_IN_PROGRESS)
        return self._take_commit(client, places)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_member_that_stops_during_a_rebalance_leaves_when_its_commit_was_taken(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch, concurrency: int
) -> None:
    rebalancing = Rebalancing(broker, refusals=3)
    monkeypatch.setattr(broker, "take_commit", rebalancing.take_commit)
    broker.produce(numbers(0, 6))
    begun, hold = group.hold_at(5)
    handled = Handled(hold)
    member = group.member(handled, stop_timeout_s=20.0, concurrency=concurrency).start()
    assert begun.wait(20)
    group.until(lambda: broker.offset() == 5, "all but the last are committed")
    rebalancing.begin()
    member.shutdown.request()
    group.gate.set()
    member.finish()

    assert sorted(handled.offsets) == [*range(6)]
    assert broker.offset() == 6
    assert member.consumer.trouble is None


def new_certificates(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """An event that says that the first client is to be given up for another."""
    changed = threading.Event()

    def refresh(_watch: CredentialsWatch, client: FakeClient | None) -> bool:
        return changed.is_set() and client is broker.clients[0]

    monkeypatch.setattr(CredentialsWatch, "refresh", refresh)
    return changed


def test_new_certificates_during_a_rebalance_have_nothing_handled_again(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebalancing = Rebalancing(broker, refusals=3)
    monkeypatch.setattr(broker, "take_commit", rebalancing.take_commit)
    changed = new_certificates(broker, monkeypatch)
    broker.produce(numbers(0, 5))
    begun, hold = group.hold_at(4)
    handled = Handled(hold)
    member = group.member(handled).start()
    assert begun.wait(20)
    group.until(lambda: broker.offset() == 4, "all but the last are committed")
    rebalancing.begin()
    changed.set()
    group.until(lambda: len(broker.clients) == 2, "a new client is connected")
    group.gate.set()
    broker.produce(numbers(5, 10))
    group.until(lambda: broker.offset() == 10, "all is committed")
    member.stop()

    assert handled.offsets == [*range(10)]
    assert broker.clients[0].closed


def test_a_call_that_lasts_is_waited_for_once_when_certificates_are_new(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was waited for twice, so the group was not left in time."""
    for name, seconds in {"REVOKE_WAIT_S": 1.5, "CONFIRM_S": 0.01, "LEAVE_S": 1.4}.items():
        monkeypatch.setattr(f"workers.consumer.membership.{name}", seconds)
    changed = new_certificates(broker, monkeypatch)
    broker.produce(numbers(0, 5))
    begun, hold = group.hold_at(4)
    handled = Handled(hold)
    group.member(handled).start()
    assert begun.wait(20)
    group.until(lambda: broker.offset() == 4, "all but the last are committed")
    changed.set()
    group.until(lambda: len(broker.clients) == 2 and broker.clients[1].joins, "the group is joined with another client")
    group.gate.set()
    group.until(lambda: broker.offset() == 5, "all is committed")

    assert "was not left in time" not in caplog.text
    assert handled.offsets == [0, 1, 2, 3, 4, 4]


@pytest.mark.parametrize("reason", ["rebalance", "certificates"])
def test_a_stop_that_is_asked_for_while_calls_are_waited_for_takes_its_own_time(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    changed = new_certificates(broker, monkeypatch)
    broker.produce(numbers(0, 10))
    begun, hold = group.hold_at(4)
    member = group.member(Handled(hold), stop_timeout_s=1.0).start()
    assert begun.wait(20)
    if reason == "certificates":
        changed.set()
        group.until(lambda: len(broker.clients) == 2, "a new client is connected")
    else:
        broker.revoke(("t", 0))
        group.until(lambda: not member.client.events, "it is being given back")
    member.shutdown.request()
    member.finish(7.0)

    assert broker.offset() == 4


def test_a_stop_does_not_wait_for_a_client_that_is_given_up_and_does_not_close(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, close = new_certificates(broker, monkeypatch), FakeClient.close

    def hang(client: FakeClient) -> None:
        if client is broker.clients[0]:
            group.gate.wait(60)
        close(client)

    monkeypatch.setattr(FakeClient, "close", hang)
    broker.produce(numbers(0, 5))
    member = group.member(Handled(), stop_timeout_s=1.0).start()
    group.until(lambda: broker.offset() == 5, "all is committed")
    changed.set()
    group.until(lambda: len(broker.clients) == 2, "a new client is connected")
    member.shutdown.request()
    member.finish(7.0)


def test_a_client_that_is_given_up_while_it_commits_stores_nothing_in_the_next_one(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop went on beside the thread that closed it, and both changed the same parts."""
    for name in ("REVOKE_WAIT_S", "CONFIRM_S", "LEAVE_S"):
        monkeypatch.setattr(f"workers.consumer.membership.{name}", 0.05)
    changed = new_certificates(broker, monkeypatch)
    used: list[Any] = []
    stage = StoredOffsets.stage

    def slowly(self: StoredOffsets, states: Any, **options: Any) -> None:
        if threading.current_thread().name == CLOSING_THREAD and not used:
            until = time.monotonic() + 1.0
            while time.monotonic() < until and not (broker.clients[1:] and broker.clients[1].joins):
                time.sleep(0.01)
            used.append(self._client())
        stage(self, states, **options)

    monkeypatch.setattr(StoredOffsets, "stage", slowly)
    broker.produce(numbers(0, 5))
    handled = Handled()
    group.member(handled).start()
    group.until(lambda: broker.offset() == 5, "all is committed")
    changed.set()
    group.until(lambda: len(broker.clients) == 2 and broker.clients[1].joins, "the group is joined with another client")
    broker.produce(numbers(5, 10))
    group.until(lambda: broker.offset() == 10, "it goes on")

    assert "was not left in time" in caplog.text
    assert used == [broker.clients[0]]
    assert handled.offsets == [*range(10)]


@pytest.mark.parametrize("answered", ["before it is given up", "after it was given up"])
def test_commits_that_are_refused_to_a_client_that_was_given_up_do_not_have_the_next_one_join_again(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch, answered: str
) -> None:
    for name in ("REVOKE_WAIT_S", "CONFIRM_S", "LEAVE_S"):
        monkeypatch.setattr(f"workers.consumer.membership.{name}", 0.05)
    changed = new_certificates(broker, monkeypatch)
    take_commit, close = broker.take_commit, FakeClient.close
    refusing = threading.Event()

    def take(client: FakeClient, places: list[TopicPartition]) -> KafkaError | None:
        if refusing.is_set() and client is broker.clients[0]:
            return KafkaError(KafkaError.UNKNOWN_MEMBER_ID)
        return take_commit(client, places)

    def close_late(client: FakeClient) -> None:
        if client is broker.clients[0]:
            eventually(lambda: broker.clients[1:] and broker.clients[1].joins, "the next client has joined")
            client.commit(offsets=[TopicPartition("t", 0, 5)], asynchronous=True)
        close(client)

    monkeypatch.setattr(broker, "take_commit", take)
    monkeypatch.setattr(FakeClient, "close", close_late)
    broker.produce(numbers(0, 5))
    member = group.member(Handled()).start()
    group.until(lambda: broker.offset() == 5, "all is committed")
    first = member.client
    # The next client gets no partition, so no commit of its own is answered.
    broker.elsewhere.add(("t", 0))
    refusing.set()
    if answered == "before it is given up":
        broker.produce(numbers(5, 10))
        group.until(lambda: member.consumer.status.commits["failure"], "a commit is refused")
    changed.set()
    group.until(lambda: first.closed, "the old client is closed")
    monkeypatch.setattr("workers.consumer.committing.FORGOTTEN_S", 0.0)
    polls = member.client.polls
    group.until(lambda: member.client.polls > polls + 20, "the loop goes on")

    assert member.client is not first
    assert member.client.joins == 1


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_partition_that_was_lost_is_not_committed_any_more(
    broker: FakeBroker, group: Group, concurrency: int
) -> None:
    broker.produce(numbers(0, 10))
    begun, hold = group.hold_at(4)
    order = "partition" if concurrency == 1 else "key"
    member = group.member(Handled(hold), concurrency=concurrency, order=order).start()
    assert begun.wait(20)
    group.until(lambda: broker.offset() == 4, "what was handled before is committed")
    broker.lose(("t", 0))
    group.until(lambda: ("t", 0) not in broker.owners, "it is gone")
    group.gate.set()
    member.stop()

    assert broker.commits[-1] == (("t", 0), 4)


def test_what_comes_again_after_a_rebalance_is_handled_from_what_was_committed(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 2000))
    handled = Handled(lambda _: time.sleep(0.0002))
    member = group.member(handled, idle_timeout_s=0.5).start()
    for _ in range(3):
        seen = len(handled.messages)
        group.until(partial(handled.more_than, seen + 50), "it makes progress")
        broker.revoke(("t", 0))
        group.until(lambda: ("t", 0) not in broker.owners, "it is given back")
        assert len(handled.messages) == broker.offset()
        broker.elsewhere.clear()
    member.finish()

    assert handled.values == numbers(0, 2000)


def test_a_message_that_came_before_a_rebalance_is_not_taken_for_one_after_it(broker: FakeBroker, group: Group) -> None:
    """It would be handled before those that the new assignment begins with, and its offset stored above theirs."""
    handled = Handled()
    member = group.member(handled, idle_timeout_s=1.0).start()
    group.until(lambda: member.consumer.ready() is None and broker.owners, "it is ready")
    taken = threading.Event()

    def rebalance() -> None:
        broker.revoke(("t", 0))
        broker.elsewhere.clear()
        taken.set()

    member.client.during_consume = rebalance
    broker.produce(numbers(0, 10))
    assert taken.wait(20)
    member.finish()

    assert handled.offsets == [*range(10)]
    assert member.consumer.status.rebalances["assign"] == 2


def test_a_member_that_its_group_has_forgotten_joins_again(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.produce(numbers(0, 3))
    monkeypatch.setattr("workers.consumer.committing.FORGOTTEN_S", 0.1)
    broker.refuses_commits = KafkaError.UNKNOWN_MEMBER_ID
    member = group.member(Handled()).start()
    group.until(lambda: member.client.joins == 2, "it joins again")


def test_a_member_whose_commits_are_taken_again_stays(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 3))
    broker.refuses_commits = KafkaError.STALE_MEMBER_EPOCH
    handled = Handled()
    member = group.member(handled).start()
    group.until(lambda: member.consumer.status.commits.get("failure"), "a commit is refused")
    broker.refuses_commits = None
    broker.produce(numbers(3, 6))
    group.until(lambda: member.consumer.status.commits.get("success"), "a commit is taken")
    member.stop()

    assert member.client.joins == 1
    assert handled.values == numbers(0, 6)


def test_a_pause_does_not_outlive_the_assignment(broker: FakeBroker, group: Group) -> None:
    """Librdkafka keeps it, and nothing would be fetched when the partition comes back."""
    broker.produce(numbers(0, 3))
    away = True

    def fail(_: Message) -> None:
        if away:
            raise Retry(after_s=30)

    handled = Handled(fail)
    member = group.member(handled).start()
    group.until(lambda: ("t", 0) in member.client.paused, "it waits for its retry")
    broker.revoke(("t", 0))
    group.until(lambda: ("t", 0) not in broker.owners, "it is given back")
    away = False
    broker.elsewhere.clear()
    group.until(lambda: handled.offsets == [0, 1, 2], "it is handled when it comes again")


# A topic that is created again, truncation, retention


@pytest.mark.parametrize("new_length", [100, 300, 700])
def test_all_messages_of_a_topic_that_was_created_again_are_handled(
    broker: FakeBroker, group: Group, new_length: int
) -> None:
    """Also when the new log is as long as the old one, or longer: its offsets are then in range."""
    broker.produce(numbers(0, 300))
    first, second = Handled(), Handled()
    member = group.member(first).start()
    group.until(lambda: broker.offset() == 300, "all are committed")
    group.until(lambda: member.lag() == 0, "ends are known")
    broker.create("t")
    broker.produce([b"new %d" % each for each in range(new_length)])
    group.until(lambda: b"new 0" in first.values, "the new log is read from its beginning")
    member.stop()
    group.member(second, idle_timeout_s=0.3).finish()

    assert {*first.values, *second.values} >= {b"new %d" % each for each in range(new_length)}


def test_the_offset_of_a_shorter_new_log_is_committed_before_it_reaches_the_old_one(
    broker: FakeBroker, group: Group
) -> None:
    """Librdkafka by itself commits only what is above: after a crash nothing, or all, would be handled again."""
    broker.produce(numbers(0, 300))
    member = group.member(Handled()).start()
    group.until(lambda: broker.offset() == 300, "all are committed")
    with broker.lock:
        broker.create("t")
        broker.produce(numbers(0, 50))

    group.until(lambda: broker.offset() == 50, "the lower offset is committed")
    broker.produce(numbers(50, 60))
    group.until(lambda: broker.offset() == 60, "the next ones are committed too")
    assert not member.ended


def test_a_lower_offset_is_committed_again_until_the_brokers_take_it(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 300))
    member = group.member(Handled()).start()
    group.until(lambda: broker.offset() == 300, "all are committed")
    with broker.lock:
        broker.refuses_commits = KafkaError.COORDINATOR_LOAD_IN_PROGRESS
        broker.create("t")
        broker.produce(numbers(0, 50))
    group.until(lambda: member.consumer.status.commits.get("failure"), "a commit is refused")
    broker.refuses_commits = None

    group.until(lambda: broker.offset() == 50, "the lower offset is committed")


def new(count: int) -> list[bytes]:
    """The messages of a log that was cut and written again."""
    return [b"new %d" % each for each in range(count)]


def test_messages_that_replace_truncated_ones_are_handled_though_the_fetch_had_hung(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs at the leader of before: the seek must not take away what tells that the log was cut."""
    monkeypatch.setattr("workers.consumer.fetching.SEEK_S", 0.3)
    broker.produce(numbers(0, 100))
    handled = Handled()
    group.member(handled).start()
    group.until(lambda: broker.offset() == 100, "all are committed")
    with broker.lock:
        broker.hung["t", 0] = "seek"
        broker.truncate(90)
        broker.produce(new(30))
    group.until(lambda: broker.offset() == 120, "the new ones are committed")

    assert handled.values[100:] == new(30)


def test_messages_that_replace_truncated_ones_are_handled_in_all_partitions_that_were_cut(
    broker: FakeBroker, group: Group
) -> None:
    """A member that is assigned all partitions at once is assigned the others anew when one is cut."""
    broker.add_partition("t")
    broker.produce(numbers(0, 100))
    broker.produce(numbers(0, 50), partition=1)
    handled = Handled()
    group.member(handled, properties={"partition.assignment.strategy": "range"}).start()
    group.until(lambda: (broker.offset(0), broker.offset(1)) == (100, 50), "all are committed")
    with broker.lock:
        broker.hung["t", 1] = "for ever"
        broker.truncate(90)
        broker.produce(new(5))
        broker.truncate(40, partition=1)
        broker.produce(new(20), partition=1)
    group.until(lambda: broker.offset(0) == 95, "the new ones of one are committed")
    del broker.hung["t", 1]
    group.until(lambda: broker.offset(1) == 60, "those of the other are committed")

    assert [value for partition, _, value in handled.messages[150:] if partition == 1] == new(20)


def test_messages_that_replace_truncated_ones_are_handled_though_those_before_were_left_to_the_client(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.consumer.flow.MAX_WAITING_BYTES", 1000)
    broker.produce([b"%0100d" % each for each in range(100)])
    calls: list[int] = []

    def fail_once(message: Message) -> None:
        if not calls:
            calls.append(message.offset() or 0)
            group.gate.wait(20)
            raise Retry(after_s=1.0)

    handled = Handled(fail_once)
    member = group.member(handled).start()
    group.until(lambda: ("t", 0) in member.client.paused, "it holds much")
    group.gate.set()
    group.until(lambda: member.client.seeks, "the rest is left to the client")
    _, offset = member.client.seeks[0]
    with broker.lock:
        broker.truncate(offset - 2)
        broker.produce(new(100))
    group.until(lambda: broker.offset() == offset + 98, "all is committed")

    assert {*handled.values} >= {*new(100)}


def test_messages_that_replace_truncated_ones_are_handled(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 100))
    handled = Handled()
    member = group.member(handled).start()
    group.until(lambda: broker.offset() == 100, "all are committed")
    with broker.lock:
        broker.truncate(90)
        broker.produce(new(30))
    group.until(lambda: broker.offset() == 120, "the new ones are committed")
    member.stop()

    assert handled.values[100:] == new(30)


def test_messages_that_retention_deleted_before_they_were_handled_are_counted_exactly(
    broker: FakeBroker, group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    broker.produce(numbers(0, 100))
    group.member(Handled(), max_messages=10).finish()
    broker.delete_before(60)
    handled = Handled()
    member = group.member(handled, idle_timeout_s=0.2).finish()

    assert handled.values == numbers(60, 100)
    assert member.consumer.status.topics["t"].deleted == 50
    assert "50 messages, offsets 10 to 59, were deleted by retention" in caplog.text
    assert broker.offset() == 100


@pytest.mark.parametrize("concurrency", [1, 8])
def test_what_retention_deletes_ahead_of_a_slow_member_is_counted_exactly(
    broker: FakeBroker, group: Group, concurrency: int
) -> None:
    broker.produce(numbers(0, 20_000), key=lambda value: value[-1:])
    handled = Handled(lambda message: group.gate.wait(20) if (message.offset() or 0) >= 100 else None)
    order = "partition" if concurrency == 1 else "key"
    member = group.member(handled, idle_timeout_s=0.5, concurrency=concurrency, order=order).start()
    group.until(lambda: member.consumer.status.waiting > 1000, "it has received some")
    broker.delete_before(15_000)
    group.gate.set()
    member.finish()

    received = [offset for offset in handled.offsets if offset < 15_000]
    assert sorted(handled.offsets) == [*range(len(received)), *range(15_000, 20_000)]
    assert member.consumer.status.topics["t"].deleted == 15_000 - len(received) > 0
    assert broker.offset() == 20_000


@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
def test_a_partition_that_begins_anew_leaves_the_others_where_they_are(
    broker: FakeBroker, group: Group, strategy: str
) -> None:
    broker.add_partition("t")
    broker.produce(numbers(0, 100))
    broker.produce(numbers(0, 50), partition=1)
    handled = Handled()
    properties = {"partition.assignment.strategy": strategy}
    member = group.member(handled, properties=properties).start()
    group.until(lambda: (broker.offset(0), broker.offset(1)) == (100, 50), "all are committed")
    with broker.lock:
        broker.truncate(90)
        broker.produce(numbers(90, 95))
    group.until(lambda: broker.offset(0) == 95, "the new ones are committed")
    broker.produce(numbers(50, 60), partition=1)
    group.until(lambda: broker.offset(1) == 60, "the other partition goes on")
    member.stop()

    assert [offset for partition, offset, _ in handled.messages if partition == 1] == [*range(60)]


def test_a_member_can_be_told_to_stop_when_messages_were_deleted(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 100))
    group.member(Handled(), max_messages=10).finish()
    broker.delete_before(60)

    with pytest.raises(WorkerError, match=r"50 messages.*--on-deleted is stop"):
        group.member(Handled(), stop_on_deleted=True).finish()
    assert broker.offset() == 10


def test_messages_deleted_before_the_group_began_are_not_counted(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 100))
    broker.delete_before(60)
    handled = Handled()
    member = group.member(handled, idle_timeout_s=0.2).finish()

    assert handled.values == numbers(60, 100)
    assert member.consumer.status.topics["t"].deleted == 0


# Where a group begins

FROM_END = {"auto.offset.reset": "latest"}


def test_a_group_that_begins_at_the_end_goes_on_there_after_a_crash(broker: FakeBroker, group: Group) -> None:
    """Its beginning is committed at once: messages that come while no member lives are not skipped."""
    broker.produce(numbers(0, 10))
    group.member(Handled(), properties=FROM_END).start()
    group.until(lambda: broker.offset() == 10, "where it begins is committed")
    broker.kill()
    broker.produce(numbers(10, 20))
    handled = Handled()
    group.member(handled, properties=FROM_END, idle_timeout_s=0.2).finish()

    assert handled.values == numbers(10, 20)


def test_a_group_begins_at_the_end_also_when_its_offsets_are_not_known_at_once(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 10))
    broker.committed_timeouts = 2
    handled = Handled()
    group.member(handled, properties=FROM_END).start()
    group.until(lambda: broker.offset() == 10, "where it begins is committed")
    broker.produce(numbers(10, 20))
    group.until(lambda: len(handled.values) == 10, "what comes afterwards is handled")

    assert handled.values == numbers(10, 20)


@pytest.mark.parametrize("timeouts", [0, 1])
def test_a_partition_that_was_added_to_a_known_topic_is_read_from_its_beginning(
    broker: FakeBroker, group: Group, timeouts: int
) -> None:
    broker.produce(numbers(0, 10))
    member = group.member(Handled(), properties=FROM_END).start()
    group.until(lambda: broker.offset() == 10, "where it begins is committed")
    member.stop()
    broker.add_partition("t")
    broker.produce(numbers(0, 5), partition=1)
    broker.committed_timeouts = timeouts
    handled = Handled()
    group.member(handled, properties=FROM_END, idle_timeout_s=0.5).finish()

    assert handled.messages == [(1, each, b"%d" % each) for each in range(5)]


def test_a_member_that_loses_its_partitions_as_their_topic_is_created_again_reads_all_of_the_new_one(
    broker: FakeBroker, group: Group
) -> None:
    """The brokers have deleted what the group had committed with the topic, so it looks like a new group."""
    broker.produce(numbers(0, 10))
    handled = Handled()
    member = group.member(handled, properties=FROM_END).start()
    group.until(lambda: member.consumer.status.commits.get("success"), "where it begins is committed")
    broker.produce(numbers(10, 15))
    group.until(lambda: member.consumer.status.commits["success"] > 1, "what comes afterwards is committed")
    with broker.lock:
        broker.lose(("t", 0))
        broker.create("t")
        broker.committed.clear()
        broker.produce(numbers(100, 120))
    group.until(lambda: not member.consumer.status.partitions, "the partition is lost")
    with broker.lock:
        broker.elsewhere.clear()
    group.until(lambda: broker.offset() == 20, "all is committed")

    assert handled.values == [*numbers(10, 15), *numbers(100, 120)]


def test_members_of_a_new_group_all_begin_at_the_end(broker: FakeBroker, group: Group) -> None:
    """Also those that are slower than the first to say where it begins."""
    broker.add_partition("t")
    broker.produce(numbers(0, 10), partition=0)
    broker.produce(numbers(0, 10), partition=1)
    broker.elsewhere = {("t", 0)}
    begin = encode(10, OffsetMetadata(partitions=2))
    broker.committed[("t", 0)] = TopicPartition("t", 0, 10, begin)
    handled = Handled()
    group.member(handled, properties=FROM_END, idle_timeout_s=0.5).finish()

    assert handled.values == []


def test_a_group_without_offsets_that_may_not_choose_them_is_a_clear_error(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 10))

    with pytest.raises(WorkerError, match=r"committed no offset, and auto.offset.reset is error"):
        group.member(Handled(), properties={"auto.offset.reset": "error"}).finish()


def test_an_offset_that_is_not_in_the_log_is_a_clear_error_where_none_may_be_chosen(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 10))
    group.member(Handled(), max_messages=5).finish()
    broker.delete_before(8)

    with pytest.raises(WorkerError, match=r"offset 5 cannot be read.*the log has 8 to 10"):
        group.member(Handled(), properties={"auto.offset.reset": "error"}).finish()
    assert broker.offset() == 5


# Failures


def test_a_message_that_failed_is_tried_again_in_its_place(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 10))
    calls: list[int] = []

    def fail_twice(message: Message) -> None:
        offset = message.offset() or 0
        calls.append(offset)
        if offset == 4 and calls.count(4) < 3:
            raise ValueError

    handled = Handled(fail_twice)
    member = group.member(handled, idle_timeout_s=0.2).finish()

    assert handled.offsets == [*range(10)]
    assert calls.count(4) == 3
    assert member.consumer.status.topics["t"].retried == 2
    assert member.dead_letters.sent == []


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_message_that_fails_for_ever_becomes_a_dead_letter_and_is_passed(
    broker: FakeBroker, group: Group, concurrency: int
) -> None:
    broker.produce(numbers(0, 100), key=lambda value: value[-1:])

    def fail(message: Message) -> None:
        if message.offset() in (4, 17):
            raise ValueError("no")

    handled = Handled(fail)
    order = "partition" if concurrency == 1 else "key"
    member = group.member(handled, idle_timeout_s=0.3, concurrency=concurrency, order=order).finish()

    assert sorted(handled.offsets) == [each for each in range(100) if each not in (4, 17)]
    assert sorted((each.topic, each.offset, each.value, each.attempts) for each in member.dead_letters.sent) == [
        ("t.dlq", 4, b"4", 5),
        ("t.dlq", 17, b"17", 5),
    ]
    assert member.consumer.status.topics["t"].dead_lettered == 2
    assert broker.offset() == 100


def test_nothing_is_passed_while_its_dead_letter_cannot_be_written(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 10))

    def reject(message: Message) -> None:
        if message.offset() == 4:
            raise Reject

    handled = Handled(reject)
    letters = FakeDeadLetters(answer=False)
    member = group.member(handled, dead_letters=letters).start()
    group.until(lambda: len(letters.sent) > 2, "it is sent again")
    assert (handled.offsets, broker.offset()) == ([0, 1, 2, 3], 4)
    letters.answer = True
    group.until(lambda: broker.offset() == 10, "it goes on")
    member.stop()


def test_a_dead_letter_that_is_too_large_ends_the_member(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 10))

    def reject(_: Message) -> None:
        raise Reject

    letters = FakeDeadLetters(answer=False)
    letters.too_large = True
    with pytest.raises(WorkerError, match=r"topic t.dlq takes no dead letter of that size"):
        group.member(Handled(reject), dead_letters=letters).finish()
    assert not broker.commits


def test_a_member_can_be_told_to_stop_at_the_first_message_that_fails(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 10))

    def fail(message: Message) -> None:
        if message.offset() == 4:
            raise ValueError("no")

    with pytest.raises(WorkerError, match=r"t\[0\] offset 4, attempt 2: ValueError: no"):
        group.member(Handled(fail), policy=ErrorPolicy("stop", max_attempts=2, backoff_s=0.01)).finish()
    assert broker.offset() == 4


@pytest.mark.parametrize("concurrency", [1, 8])
def test_retries_and_dead_letters_are_of_what_was_received_whatever_the_handler_does_to_a_message(
    broker: FakeBroker, group: Group, concurrency: int
) -> None:
    broker.produce(numbers(0, 5), key=b"k", headers=[("h", b"1")])
    seen = []

    def deface(message: Message) -> None:
        seen.append((message.topic(), message.key(), message.value(), message.headers()))
        fails = message.offset() == 2
        message.set_value(object())
        message.set_key(object())
        message.set_headers([("other", b"2")])
        message.set_topic("other")  # type: ignore[attr-defined]
        if fails:
            raise ValueError("no")

    order = "partition" if concurrency == 1 else "key"
    member = group.member(deface, idle_timeout_s=0.2, concurrency=concurrency, order=order).finish()

    of_two = ("t", b"k", b"2", [("h", b"1")])
    assert seen == [("t", b"k", b"%d" % each, [("h", b"1")]) for each in (0, 1, 2, 2, 2, 2, 2, 3, 4)]
    [letter] = member.dead_letters.sent
    assert (letter.topic, letter.key, letter.value, letter.headers) == (f"{of_two[0]}.dlq", *of_two[1:])
    assert broker.offset() == 5


def test_a_batch_whose_messages_the_handler_changed_is_taken_apart_as_it_was_received(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 20), key=b"k")
    good: list[Any] = []

    @batch
    def deface(messages: list[Message]) -> None:
        values = [message.value() for message in messages]
        for message in messages:
            message.set_value(object())
            message.set_key(object())
        messages.clear()
        if b"7" in values:
            raise ValueError("no")
        good.extend(values)

    member = group.member(deface, idle_timeout_s=0.2).finish()

    assert good == [value for value in numbers(0, 20) if value != b"7"]
    assert [(each.offset, each.key, each.value) for each in member.dead_letters.sent] == [(7, b"k", b"7")]
    assert broker.offset() == 20


def test_a_partition_that_fails_again_and_again_holds_up_no_other(broker: FakeBroker, group: Group) -> None:
    broker.add_partition("t")
    broker.produce(numbers(0, 3))
    broker.produce(numbers(0, 50), partition=1)

    def fail(message: Message) -> None:
        if message.partition() == 0:
            raise ValueError

    handled = Handled(fail)
    member = group.member(handled, policy=FOR_EVER).start()
    group.until(lambda: broker.offset(1) == 50, "the other partition is handled")
    group.until(lambda: member.consumer.status.topics["t"].retried > 3, "it is tried again and again")
    group.until(lambda: (member.lag(0), member.lag(1)) == (3, 0), "the lag where it fails")
    assert member.consumer.live() is None
    member.stop()

    assert not broker.offset(0)


def test_a_retry_does_not_wait_for_all_that_a_slow_partition_holds(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.consumer.dispatching.SLICE_S", 0.05)
    broker.add_partition("t")
    broker.produce([b"fails at first"])
    broker.produce([b"slow"] * 150, partition=1)
    calls: list[Message] = []

    def slow_beside_failing(message: Message) -> None:
        if message.partition() == 1:
            time.sleep(0.005)
            return
        calls.append(message)
        if len(calls) < 4:
            raise ValueError("not yet")

    handled = Handled(slow_beside_failing)
    group.member(handled, policy=ErrorPolicy(backoff_s=0.02, backoff_max_s=0.1), max_messages=151).finish()

    at = handled.values.index(b"fails at first")
    assert at > 0
    assert len(handled.values) - at > 20


def test_a_retry_that_was_asked_for_is_not_counted(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 2))
    calls: list[int] = []

    def away_at_first(message: Message) -> None:
        calls.append(message.offset() or 0)
        if len(calls) < 5:
            raise Retry("the database is away", after_s=0.01)

    handled = Handled(away_at_first)
    policy = ErrorPolicy(max_attempts=2, backoff_s=0.01)
    member = group.member(handled, policy=policy, max_messages=2).finish()

    assert calls == [0, 0, 0, 0, 0, 1]
    assert handled.offsets == [0, 1]
    assert member.dead_letters.sent == []


def test_a_dead_letter_that_waits_for_its_next_try_takes_its_place_among_the_last_messages(
    broker: FakeBroker, group: Group
) -> None:
    broker.add_partition("t")
    broker.produce(numbers(0, 1))

    def reject(message: Message) -> None:
        if message.partition() == 0:
            raise Reject

    handled = Handled(reject)
    letters = FakeDeadLetters(answer=False)
    member = group.member(handled, dead_letters=letters, max_messages=1).start()
    group.until(lambda: letters.sent, "it is sent")
    broker.produce(numbers(0, 5), partition=1)
    tries = len(letters.sent)
    group.until(lambda: len(letters.sent) > tries + 2, "it is tried again")
    assert handled.messages == []
    letters.answer = True
    member.finish()

    assert handled.messages == []
    assert broker.offset(0) == 1


@pytest.mark.parametrize("answer", [None, False])
def test_a_member_does_not_spin_while_a_dead_letter_waits(
    broker: FakeBroker, group: Group, answer: bool | None
) -> None:
    broker.produce(numbers(0, 5))

    def reject(_: Message) -> None:
        raise Reject

    letters = FakeDeadLetters(answer)
    member = group.member(Handled(reject), dead_letters=letters, max_messages=1).start()
    group.until(lambda: letters.sent, "it is sent")
    polls, begun = member.client.polls, time.monotonic()
    time.sleep(1.0)
    rate = (member.client.polls - polls) / (time.monotonic() - begun)
    letters.answer = True
    member.finish()

    assert 1 < rate < 150


def test_the_log_names_the_remedy_for_a_connection_of_sqlite3_that_threads_share(
    broker: FakeBroker, group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    broker.produce(numbers(0, 1))
    with closing(sqlite3.connect(":memory:")) as database:
        policy = ErrorPolicy(max_attempts=2, backoff_s=0.01)
        group.member(lambda _: database.execute("select 1"), policy=policy, max_messages=1).finish()

    said = [each.getMessage() for each in caplog.records if "ProgrammingError" in each.getMessage()]
    assert len(said) == 2
    assert all("@lifespan(per_thread=True)" in each for each in said)


def test_a_dead_letter_can_tell_of_any_error() -> None:
    headers = dict(dead_letter_headers(Message(topic="t", partition=0, offset=0), "g", ValueError("no \ud83d"), 1))

    assert headers["kafka-workers.error-message"] == b"no \\ud83d"

    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    headers = dict(dead_letter_headers(Message(topic="t", partition=0, offset=0), "g", MuteError(), 1))
    assert headers["kafka-workers.error-class"] == b"MuteError"


def test_a_dead_letter_has_the_end_of_the_traceback() -> None:
    def fail(depth: int) -> None:
        if depth:
            # Each level is another line, which the traceback does not fold.
            exec("\n" * depth + "fail(depth - 1)", {"fail": fail, "depth": depth})
        raise ValueError("cannot take this")

    with pytest.raises(ValueError, match="cannot") as raised:
        fail(60)
    # The executor drops the frames, as they keep the work and its messages alive.
    remember_traceback(raised.value)
    error = raised.value.with_traceback(None)
    headers = dict(dead_letter_headers(Message(topic="t", partition=0, offset=0), "g", error, 1))
    traceback = headers["kafka-workers.error-traceback"]
    assert isinstance(traceback, bytes)
    assert traceback.decode().splitlines()[-1] == "ValueError: cannot take this"
    assert 3900 < len(traceback) <= 4000


# Members that are stuck, and members that wait


def test_the_lag_of_a_partition_whose_fetch_hangs_stays_true(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's statistics go on to tell the end that it saw last."""
    monkeypatch.setattr("workers.consumer.assignment.STALE_S", 0.0)
    broker.produce(numbers(0, 5))
    member = group.member(Handled()).start()
    group.until(lambda: broker.offset() == 5, "it has begun")
    broker.hung["t", 0] = "for ever"
    broker.produce(numbers(5, 10))

    def lag() -> int:
        return sum(each.lag_messages or 0 for each in member.consumer.status.partitions)

    group.until(lambda: lag() == 5, "the lag grows")
    monkeypatch.setattr("workers.testing.memory.WATERMARKS_S", 60.0)
    for _ in range(3):
        before = member.consumer.client_state.statistics
        group.until(lambda: member.consumer.client_state.statistics is not before, "other statistics")  # noqa: B023
        published = member.consumer.status
        group.until(lambda: member.consumer.status is not published, "another status")  # noqa: B023
        assert lag() == 5


def test_a_lag_is_not_known_before_the_end_is(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The messages that have arrived are not all that there are: 0 would pass for a group that has caught up."""
    # Neither the statistics nor the brokers tell it.
    monkeypatch.setattr("workers.consumer.assignment.STALE_S", 60.0)
    monkeypatch.setattr("workers.testing.memory.FakeWatermarks.round", 0)
    broker.produce(numbers(0, 3 * BATCH_MESSAGES))
    seen: list[int | None] = []

    def look(message: Message) -> None:
        if message.offset() == 0:
            published = member.consumer.status
            group.until(lambda: member.consumer.status is not published, "another status")
            seen.extend(each.lag_messages for each in member.consumer.status.partitions)

    member = group.member(Handled(look)).start()
    group.until(lambda: seen, "it has looked")
    assert seen == [None]
    group.until(lambda: member.lag() == 0, "the client has told the end")


# tests/unit/test_fetching.py has the rules for a fetch that hangs; these tests show the consequences.


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop looks at fetching in almost each turn."""
    monkeypatch.setattr("workers.consumer.loop.STATUS_INTERVAL_S", 0.01)


@pytest.mark.usefixtures("quick_looks")
def test_a_fetch_that_hangs_is_healed_by_seeking(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.consumer.fetching.SEEK_S", 0.05)
    broker.produce(numbers(0, 5))
    handled = Handled()
    member = group.member(handled).start()
    group.until(lambda: broker.offset() == 5, "it has begun")
    broker.hung["t", 0] = "seek"
    broker.produce(numbers(5, 10))
    group.until(lambda: handled.values == numbers(0, 10), "it is fetched again")

    assert member.client.seeks == [(("t", 0), 5)]
    assert member.client.joins == 1
    assert member.consumer.live() is None


@pytest.mark.usefixtures("quick_looks")
def test_a_fetch_that_still_hangs_is_healed_by_joining_anew_with_a_new_client(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.consumer.fetching.SEEK_S", 0.05)
    monkeypatch.setattr("workers.consumer.fetching.REJOIN_S", 0.1)
    broker.produce(numbers(0, 5))
    handled = Handled()
    member = group.member(handled).start()
    group.until(lambda: broker.offset() == 5, "it has begun")
    broker.hung["t", 0] = "client"
    broker.produce(numbers(5, 10))
    group.until(lambda: broker.offset() == 10, "it is fetched again")
    assert handled.values == numbers(0, 10)
    first, second = broker.clients
    assert first.seeks
    assert first.closed
    assert second.joins == 1
    assert member.consumer.live() is None
    group.until(lambda: member.consumer.status.fetch_recoveries == {"seek": 1, "rejoin": 1}, "it is counted")


# tests/workers/test_hung_client.py has a real client.


@pytest.mark.usefixtures("quick_looks")
@pytest.mark.parametrize("exactly_once", [False, True])
def test_a_client_that_does_not_answer_a_seek_is_given_up_for_a_new_one(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch, exactly_once: bool
) -> None:
    """The seek never returned, so the loop stood still, and its partitions were not handled on until a restart."""
    monkeypatch.setattr("workers.consumer.fetching.SEEK_S", 0.05)
    monkeypatch.setattr("workers.consumer.seeking.SEEK_TIMEOUT_S", 0.2)
    broker.produce(numbers(0, 5))
    handled = Handled()
    member = group.member(handled, exactly_once=exactly_once).start()
    group.until(lambda: broker.offset() == 5, "it has begun")
    began = member.consumer.status.at
    # A commit of a transaction asks the client, and would stand still.
    group.until(lambda: member.consumer.status.at > began + 0.5, "nothing is to be committed")
    member.client.hangs = True
    broker.produce(numbers(5, 10))
    group.until(lambda: broker.offset() == 10, "another client goes on")
    assert handled.values == numbers(0, 10)
    first, second = broker.clients
    assert not first.closed
    assert second.joins == 1
    assert member.consumer.live() is None
    group.until(lambda: member.consumer.status.fetch_recoveries == {"seek": 1, "rejoin": 1}, "it is counted")
    assert member.consumer.status.rebalances["lost"] == 1

    first.hangs = False
    group.until(lambda: first.closed, "it is closed when it answers again")


def test_a_client_that_sends_no_statistics_is_given_up_though_nothing_is_to_be_fetched(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle member would never have had a partition again, and its probe would have been green."""
    monkeypatch.setattr("workers.consumer.observing.SILENT_S", 0.3)
    broker.elsewhere.add(("t", 0))
    handled = Handled()
    member = group.member(handled).start()
    group.until(lambda: member.consumer.status.joined, "it is idle")
    began = member.consumer.status.at
    group.until(lambda: member.consumer.status.at > began + 0.5, "it idles for longer than a client may be silent")
    assert len(broker.clients) == 1
    member.client.hangs = True
    group.until(lambda: len(broker.clients) == 2, "it has another client")
    broker.elsewhere.clear()
    broker.produce(numbers(0, 5))
    group.until(lambda: handled.values == numbers(0, 5), "the new client fetches")
    assert member.consumer.status.rebalances["lost"] == 0


def test_a_new_client_is_made_as_soon_as_it_can_be(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workers.consumer.observing.SILENT_S", 0.3)
    monkeypatch.setattr("workers.consumer.membership.CONNECT_LOOK_S", 0.01)
    broker.produce(numbers(0, 5))
    handled = Handled()
    connect, refusals = broker.connect, [ConfigError("key.pem cannot be read")] * 3

    def sometimes(own: dict[str, Any]) -> FakeClient:
        if broker.clients and refusals:
            raise refusals.pop()
        return connect(own)

    monkeypatch.setattr(broker, "connect", sometimes)
    member = group.member(handled).start()
    group.until(lambda: broker.offset() == 5, "it has begun")
    member.client.hangs = True
    broker.produce(numbers(5, 10))
    group.until(lambda: broker.offset() == 10, "another client goes on")
    assert not refusals
    assert caplog.text.count("key.pem cannot be read") == 1


def test_a_stop_while_a_client_hangs_and_no_other_can_be_made_ends_the_worker(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.consumer.observing.SILENT_S", 0.3)
    monkeypatch.setattr("workers.consumer.membership.CONNECT_LOOK_S", 0.01)
    tried = threading.Event()
    connect = broker.connect

    def once(own: dict[str, Any]) -> FakeClient:
        if broker.clients:
            tried.set()
            raise ConfigError("key.pem cannot be read")
        return connect(own)

    monkeypatch.setattr(broker, "connect", once)
    member = group.member(Handled()).start()
    group.until(lambda: member.consumer.status.joined, "it has joined")
    member.client.hangs = True
    group.until(tried.is_set, "it tries to make another client")
    with pytest.raises(WorkerError, match=r"no statistics for 0\.3 s, and a stop was asked for"):
        member.stop()
    member.error = None


def test_the_worker_ends_when_one_client_after_the_other_hangs(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.consumer.observing.SILENT_S", 0.3)
    connect = broker.connect

    def hanging(own: dict[str, Any]) -> FakeClient:
        client = connect(own)
        client.during_consume = lambda: setattr(client, "hangs", True)
        return client

    monkeypatch.setattr(broker, "connect", hanging)
    member = group.member(Handled()).start()
    with pytest.raises(WorkerError, match="as 3 clients before it; start the worker again"):
        member.finish()
    member.error = None
    assert len(broker.clients) == 4


def test_a_client_that_was_given_up_tells_this_member_nothing_any_more(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a group.instance.id its last commit is refused as fenced, which would end the member."""
    monkeypatch.setattr("workers.consumer.observing.SILENT_S", 0.3)
    member = group.member(Handled()).start()
    group.until(lambda: member.consumer.status.joined, "it has joined")
    first = member.client
    first.hangs = True
    group.until(lambda: member.consumer.status.fetch_recoveries["rejoin"] == 1, "it has another client")
    first.tell_error(KafkaError(KafkaError.FENCED_INSTANCE_ID, "fenced", fatal=True))
    assert member.consumer.client_state.fatal is None
    member.client.tell_error(KafkaError(KafkaError.FENCED_INSTANCE_ID, "fenced", fatal=True))
    with pytest.raises(WorkerError, match="FENCED_INSTANCE_ID"):
        member.finish()
    member.error = None


def test_a_client_with_a_backlog_that_sends_no_statistics_is_given_up(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its group has given the partition to another member by then, which handles the same messages."""
    monkeypatch.setattr("workers.consumer.observing.SILENT_S", 0.3)
    broker.produce(numbers(0, 5000))
    member = group.member(Handled(lambda _: time.sleep(0.001))).start()
    group.until(lambda: member.consumer.status.joined, "it has joined")
    member.client.silent = True
    group.until(lambda: member.consumer.status.fetch_recoveries["rejoin"] == 1, "it has another client")
    assert member.lag() != 0


@pytest.mark.usefixtures("quick_looks")
def test_a_fetch_that_hangs_whatever_was_tried_fails_the_probe(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in {"SEEK_S": 0.05, "REJOIN_S": 0.1, "STUCK_S": 0.2}.items():
        monkeypatch.setattr(f"workers.consumer.fetching.{name}", seconds)
    broker.produce(numbers(0, 5))
    member = group.member(Handled()).start()
    group.until(lambda: broker.offset() == 5, "it has begun")
    broker.hung["t", 0] = "never"
    broker.produce(numbers(5, 10))
    said = group.until(member.consumer.live, "the probe fails")

    assert "t[0] is not fetched: nothing has come from offset 5" in said
    assert member.consumer.status.fetch_recoveries == {"seek": 1, "rejoin": 1}
    assert member.lag() == 5


def test_a_partition_whose_reset_event_was_lost_is_fetched_again(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.consumer.fetching.SEEK_S", 0.2)
    broker.produce(numbers(0, 5))
    handled = Handled()
    member = group.member(handled).start()
    group.until(lambda: broker.offset() == 5, "it has begun")
    member.client.lose_reset("t")
    broker.produce(numbers(5, 20))
    broker.delete_before(10)
    group.until(lambda: broker.offset() == 20, "it is fetched again")

    assert handled.offsets == [*range(5), *range(10, 20)]
    assert member.consumer.status.topics["t"].deleted == 5
    assert len(broker.clients) == 1
    assert member.client.joins == 1


def test_a_log_that_was_cut_below_the_position_is_read_again_though_the_event_was_lost(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The lag was 0, and the partition stood still until its log had outgrown the position."""
    monkeypatch.setattr("workers.consumer.fetching.SEEK_S", 0.2)
    broker.produce(numbers(0, 100))
    handled = Handled()
    member = group.member(handled).start()
    group.until(lambda: broker.offset() == 100, "all are committed")
    with broker.lock:
        member.client.lose_reset("t")
        broker.truncate(90)
        broker.produce([b"new %d" % each for each in range(5)])
    group.until(lambda: broker.offset() == 95, "the new ones are committed")

    assert handled.values[-5:] == [b"new %d" % each for each in range(5)]
    assert len(broker.clients) == 1
    assert "its end is 95, and nothing has come from offset 100" in caplog.text


def test_an_end_that_is_older_than_what_was_received_is_no_stall() -> None:
    watch = FetchWatch()
    assignment = Assignment(["t"])
    (state,) = assignment.assign([TopicPartition("t", 0, 100)])
    watermarks: Any = SimpleNamespace(round=0, latest={})

    def answered(end: int) -> float:
        watermarks.round += 1
        watermarks.latest = {state.key: Watermark(0, end)}
        watch.drained_at = time.monotonic()
        watch.note(assignment.partitions, watermarks, time.monotonic())
        return watch.stalled_s(state.key, time.monotonic() + 1.0)

    assert [answered(end) > 0 for end in (95, 100, 95, 95, 100)] == [False] * 5
    assert [answered(95) > 0 for _ in range(CUT_ROUNDS)] == [*[False] * (CUT_ROUNDS - 1), True]
    assert answered(100) == 0


@pytest.mark.usefixtures("quick_looks")
@pytest.mark.parametrize("reason", ["retry", "full", "brokers"])
def test_a_partition_that_has_a_reason_not_to_be_fetched_raises_no_alarm(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """It waits for a retry, the handler has enough to do, or the brokers do not answer."""
    # The answers of brokers are too old before a stall would count, however busy the machine is.
    limits = {"SEEK_S": 0.1, "REJOIN_S": 0.15, "STUCK_S": 0.2, "ANSWER_S": 0.05, "DRAINED_S": 0.05}
    for name, seconds in limits.items():
        monkeypatch.setattr(f"workers.consumer.fetching.{name}", seconds)
    broker.produce(numbers(0, 5))
    handled = Handled()

    def handler(message: Message) -> None:
        if message.offset() == 5 and reason == "retry":
            raise Retry(after_s=30)
        if message.offset() == 5 and reason == "full":
            group.gate.wait(20)
        handled(message)

    member = group.member(handler).start()
    group.until(lambda: broker.offset() == 5, "it has begun")
    broker.answers = reason != "brokers"
    broker.produce(numbers(5, 20_000))
    turns = member.consumer.status.at
    group.until(lambda: member.consumer.status.at > turns + 0.4, "twice the time of STUCK_S passes")

    assert member.consumer.live() is None
    assert member.consumer.status.fetch_recoveries == {"seek": 0, "rejoin": 0}


def test_waiting_for_ones_turn_is_not_being_stuck(group: Group, broker: FakeBroker) -> None:
    for _ in range(5):
        broker.add_partition("t")
    for number in range(6):
        broker.produce(numbers(0, 10), partition=number)
    handled = Handled(lambda _: time.sleep(0.2))
    member = group.member(handled, stall_timeout_s=0.8).start()
    said = set()

    def nine() -> bool:
        said.add(member.consumer.live())
        return len(handled.messages) >= 9

    group.until(nine, "each has had its turn")

    assert said == {None}
    assert len({partition for partition, _, _ in handled.messages}) > 1


def test_a_handler_that_hangs_is_being_stuck(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 5))

    def hang(message: Message) -> None:
        if message.offset() == 3:
            group.gate.wait(20)

    member = group.member(Handled(hang), stall_timeout_s=0.5).start()
    said = group.until(member.consumer.live, "the probe fails")

    assert "t[0] has made no progress" in said
    assert "at offset 3: the handler has not returned" in said


def test_waiting_for_brokers_or_the_handler_at_the_start_is_no_stall(broker: FakeBroker, group: Group) -> None:
    member = group.member(Handled(), stall_timeout_s=0.0)

    assert member.consumer.live() is None


def test_a_pause_between_attempts_is_no_stall(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 5))

    def fail(_: Message) -> None:
        raise Retry(after_s=30)

    member = group.member(Handled(fail), stall_timeout_s=0.3).start()
    group.until(lambda: member.consumer.status.blocked_shards, "it waits for its retry")
    since = member.consumer.status.at
    group.until(lambda: member.consumer.status.at > since + 0.5, "longer than a stall")

    assert member.consumer.live() is None


# Lag


def test_the_lag_in_seconds_begins_when_a_message_is_there_and_not_when_the_last_was_sent(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 5), timestamp_ms=1)
    member = group.member(Handled()).start()
    group.until(lambda: member.lag() == 0, "all is handled")
    broker.hung["t", 0] = "never"
    broker.produce(numbers(5, 6))
    group.until(lambda: member.lag() == 1, "there is one more")

    seen = member.partition()
    assert seen is not None
    assert seen.lag_seconds is not None
    assert seen.lag_seconds < 60


@pytest.mark.parametrize("timestamp_ms", [-1, 0])
def test_messages_without_a_time_have_the_lag_for_which_they_wait(
    broker: FakeBroker, group: Group, timestamp_ms: int
) -> None:
    broker.produce(numbers(0, 5), timestamp_ms=timestamp_ms)

    def hang(message: Message) -> None:
        if message.offset() == 1:
            group.gate.wait(20)

    member = group.member(Handled(hang)).start()

    def waits() -> bool:
        seen = member.partition()
        assert seen is None or seen.lag_seconds is None or seen.lag_seconds < 60
        return seen is not None and (seen.lag_messages, (seen.lag_seconds or 0.0) > 0.5) == (4, True)

    group.until(waits, "the lag grows")


# Memory


def test_a_handler_that_hangs_is_given_no_more_bytes_than_fit(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.consumer.flow.MAX_WAITING_BYTES", 1_000_000)
    broker.produce([bytes(100_000)] * 100)
    handled = Handled(lambda _: group.gate.wait(20))
    member = group.member(handled).start()
    group.until(lambda: ("t", 0) in member.client.paused, "it is paused")
    # `consume` has no bound in bytes; librdkafka's queue has (queued.max.messages.kbytes).
    group.gate.set()
    group.until(lambda: broker.offset() == 100, "all are handled")

    assert handled.offsets == [*range(100)]


# Many messages at once


class Keys:
    """A handler that notes what is at work at once, and that no key is so twice."""

    def __init__(self, before: Callable[[Message], object] = lambda _: None) -> None:
        self.by_key: dict[Any, list[int]] = {}
        self.most = 0
        self.twice = False
        self._at_work: set[Any] = set()
        self._lock = threading.Lock()
        self._before = before

    def __call__(self, message: Message) -> None:
        self.begin([message])
        try:
            self._before(message)
            self.by_key.setdefault(message.key(), []).append(message.offset() or 0)
        finally:
            self.end([message])

    def begin(self, messages: list[Message]) -> None:
        keys = {message.key() for message in messages}
        with self._lock:
            self.twice = self.twice or not self._at_work.isdisjoint(keys)
            self._at_work |= keys
            self.most = max(self.most, len(self._at_work))

    def end(self, messages: list[Message]) -> None:
        with self._lock:
            self._at_work -= {message.key() for message in messages}

    @property
    def offsets(self) -> list[int]:
        return sorted(offset for offsets in [*self.by_key.values()] for offset in offsets)

    def more_than(self, count: int) -> bool:
        return len(self.offsets) > count

    @property
    def in_order(self) -> bool:
        return not self.twice and all(offsets == sorted(offsets) for offsets in self.by_key.values())


def test_messages_of_different_keys_are_handled_at_once_and_those_of_one_in_order(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 200), key=key_of_ten)
    keys = Keys(lambda _: time.sleep(0.002))
    group.member(keys, idle_timeout_s=0.3, **BY_KEY).finish()

    assert keys.in_order
    assert keys.offsets == [*range(200)]
    assert 2 <= keys.most <= 8
    assert broker.offset() == 200


def test_an_async_handler_has_messages_of_different_keys_at_once_and_those_of_one_in_order(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 200), key=key_of_ten)
    keys = Keys()

    async def handler(message: Message) -> None:
        keys.begin([message])
        await asyncio.sleep(0.002)
        keys.by_key.setdefault(message.key(), []).append(message.offset() or 0)
        keys.end([message])

    group.member(handler, idle_timeout_s=0.3, **BY_KEY).finish()

    assert keys.in_order
    assert keys.offsets == [*range(200)]
    assert 2 <= keys.most <= 8
    assert broker.offset() == 200


def test_no_two_batches_at_once_have_messages_of_the_same_key(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 2000), key=lambda value: value[-2:])
    keys = Keys()
    sizes: list[int] = []

    @batch
    def handler(messages: list[Message]) -> None:
        keys.begin(messages)
        time.sleep(0.005)
        for message in messages:
            keys.by_key.setdefault(message.key(), []).append(message.offset() or 0)
        sizes.append(len(messages))
        keys.end(messages)

    group.member(handler, idle_timeout_s=0.3, **BY_KEY).finish()

    assert keys.in_order
    assert keys.offsets == [*range(2000)]
    assert max(sizes) > 1
    assert broker.offset() == 2000


def test_the_offset_of_the_first_message_that_is_not_done_is_committed_and_no_later_one(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 100), key=key_of_ten)
    keys = Keys(lambda message: group.gate.wait(20) if message.offset() == 33 else None)
    member = group.member(keys, **BY_KEY).start()
    # 33, 43, ... 93 are of the key that hangs.
    group.until(lambda: len(keys.offsets) == 93, "all but one key are done")
    group.until(lambda: broker.offset() == 33, "what is before it is committed")
    group.until(lambda: (member.partition() or PartitionStatus("", 0, 0, 0, 0, 0)).offset_distance == 60, "it is told")
    assert broker.offset() == 33
    group.gate.set()
    group.until(lambda: broker.offset() == 100, "all are committed")

    assert keys.in_order


@pytest.mark.parametrize("poisoned", [0, 33])
@pytest.mark.parametrize("end", ["stop", "kill", "revoke"])
def test_what_is_done_beyond_a_poisoned_message_is_not_handled_again_by_the_next_member(
    broker: FakeBroker, group: Group, poisoned: int, end: str
) -> None:
    """Its list travels in the metadata of the commit."""
    broker.produce(numbers(0, 100), key=key_of_ten)

    def fail(message: Message) -> None:
        if message.offset() == poisoned:
            raise ValueError

    first, second = Keys(fail), Keys()
    member = group.member(first, policy=FOR_EVER, **BY_KEY).start()
    beyond = [each for each in range(100) if each % 10 != poisoned % 10 or each < poisoned]
    group.until(lambda: first.offsets == beyond, "all but one key are done")

    if end == "stop":
        member.stop()
    elif end == "revoke":
        broker.revoke(("t", 0))
        group.until(lambda: ("t", 0) not in broker.owners, "it is given back")
        broker.elsewhere.clear()
        broker.kill()
    else:
        # A crash repeats what was done since the last commit, so wait for that.
        done = [each for each in beyond if each > poisoned]
        group.until(lambda: broker.ahead() == done, "what is done beyond it is committed")
        broker.kill()
    group.member(second, idle_timeout_s=0.3, **BY_KEY).finish()

    assert second.offsets == [*range(poisoned, 100, 10)]
    assert second.in_order
    assert broker.offset() == 100


def test_what_was_done_beyond_a_poisoned_message_is_remembered_by_members_that_come_and_go(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 100), key=key_of_ten)

    def fail(message: Message) -> None:
        if message.offset() == 0:
            raise ValueError

    first = Keys(fail)
    member = group.member(first, policy=FOR_EVER, **BY_KEY).start()
    group.until(lambda: len(first.offsets) == 90, "all but one key are done")
    member.stop()
    second = Keys(fail)
    member = group.member(second, policy=FOR_EVER, **BY_KEY).start()
    group.until(lambda: member.consumer.status.topics["t"].retried > 1, "it has begun")
    member.stop()
    third = Keys()
    group.member(third, idle_timeout_s=0.3, **BY_KEY).finish()

    assert second.offsets == []
    assert third.offsets == [*range(0, 100, 10)]


def test_what_was_done_and_not_received_again_yet_stays_remembered(broker: FakeBroker, group: Group) -> None:
    """A member that receives less than its predecessor had done commits the rest of that too."""
    broker.produce(numbers(0, 1000), key=key_of_ten)
    poisoned = {0, 1}

    def fail(message: Message) -> None:
        if message.offset() in poisoned:
            raise ValueError

    first, second, third = Keys(fail), Keys(fail), Keys()
    member = group.member(first, policy=FOR_EVER, max_distance=3000, **BY_KEY).start()
    group.until(lambda: len(first.offsets) == 800, "all but two keys are done")
    member.stop()
    poisoned.remove(1)
    member = group.member(second, policy=FOR_EVER, max_distance=100, **BY_KEY).start()
    group.until(lambda: second.more_than(5), "it handles what it has of one of them")
    member.stop()
    group.member(third, idle_timeout_s=0.3, **BY_KEY).finish()

    assert max(second.offsets) < 100
    assert sorted(second.offsets + third.offsets) == sorted([*range(0, 1000, 10), *range(1, 1000, 10)])


def test_a_partition_that_was_lost_and_came_back_waits_for_what_is_still_in_the_handler(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 100), key=key_of_ten)
    keys = Keys(lambda message: group.gate.wait(20) if message.offset() == 33 else None)
    group.member(keys, idle_timeout_s=0.5, **BY_KEY).start()
    group.until(lambda: 33 not in keys.offsets and len(keys.offsets) == 93, "all but one key are done")
    broker.lose(("t", 0))
    group.until(lambda: ("t", 0) not in broker.owners, "it is lost")
    broker.elsewhere.clear()
    group.until(lambda: ("t", 0) in broker.owners, "it is back")
    polls = broker.clients[-1].polls
    group.until(lambda: broker.clients[-1].polls > polls + 100, "the loop turns")
    handled = len(keys.offsets)
    group.gate.set()
    group.until(lambda: broker.offset() == 100, "all are committed")

    assert handled == 93
    assert not keys.twice


def test_what_is_done_beyond_the_mark_is_handled_again_where_the_log_has_other_messages_now(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 100), key=key_of_ten)

    def fail(message: Message) -> None:
        if message.offset() == 33:
            raise ValueError

    first, second = Keys(fail), Keys()
    member = group.member(first, policy=FOR_EVER, **BY_KEY).start()
    group.until(lambda: len(first.offsets) == 93, "all but one key are done")
    member.stop()
    broker.truncate(40)
    broker.produce(numbers(40, 100), key=key_of_ten)
    group.member(second, idle_timeout_s=0.3, **BY_KEY).finish()

    assert second.offsets == [33, *range(40, 100)]
    assert broker.offset() == 100


@pytest.mark.parametrize("metadata", ["", "of somebody else", "kw9|?", "kw1||0|1|9-1|", "kw1|" + "9" * 4000])
def test_foreign_metadata_never_breaks_a_start(broker: FakeBroker, group: Group, metadata: str) -> None:
    broker.produce(numbers(0, 10), key=key_of_ten)
    broker.committed["t", 0] = TopicPartition("t", 0, 4, metadata)
    keys = Keys()
    group.member(keys, idle_timeout_s=0.2, **BY_KEY).finish()

    assert keys.offsets == [*range(4, 10)]


@pytest.mark.parametrize("bound", [100, 1000])
def test_a_poisoned_message_blocks_its_key_and_the_others_up_to_the_bound(group: Group, bound: int) -> None:
    broker = group.broker
    broker.create("t", 3)
    for number in range(3):
        broker.produce(numbers(0, 2000), partition=number, key=lambda value, number=number: value[-3:] + b"%d" % number)
    poison = True

    def fail(message: Message) -> None:
        if message.offset() == 7 and poison:
            raise ValueError

    keys = Keys(fail)
    group.member(keys, policy=FOR_EVER, max_distance=bound, **BY_KEY).start()
    group.until(lambda: len(keys.offsets) >= 3 * (bound // 2), "the others go on nearly up to the bound")
    polls = broker.clients[-1].polls
    group.until(lambda: broker.clients[-1].polls > polls + 100, "the loop turns")
    assert max(keys.offsets) < 7 + bound
    assert [broker.offset(number) for number in range(3)] == [7] * 3
    poison = False
    group.until(lambda: [broker.offset(each) for each in range(3)] == [2000] * 3, "all go on when it is mended")

    assert keys.in_order
    assert keys.offsets == sorted(3 * [*range(2000)])


@pytest.mark.parametrize("raised", [Retry(after_s=3600), Reject("no")], ids=["its retry", "its dead letter"])
def test_messages_that_wait_behind_a_poisoned_key_hold_up_no_other_partition(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    """However many they are: the handler can be given none of them."""
    monkeypatch.setattr("workers.consumer.dispatching.PAUSE_AFTER_S", 0.1)
    broker.create("t", 2)
    broker.produce(numbers(0, 2 * BATCH_MESSAGES), key=b"poisoned")

    def fail(message: Message) -> None:
        if message.key() == b"poisoned":
            raise raised

    member = group.member(Handled(fail), dead_letters=FakeDeadLetters(answer=False), **BY_KEY).start()
    group.until(lambda: member.consumer.status.waiting >= 2 * BATCH_MESSAGES, "enough waits behind it")
    polls = member.client.polls
    group.until(lambda: member.client.polls > polls + 5, "the loop turns")
    time.sleep(0.2)
    broker.produce(numbers(0, 5000), partition=1, key=lambda value: value[-3:])
    group.until(lambda: broker.offset(1) == 5000, "the other partition is handled")


@pytest.mark.parametrize(
    ("key", "fewest", "most"),
    [(lambda value: value[-3:], 1000, 3000), (lambda value: b"%d" % (int(value) // 500), 4000, 7000)],
    ids=["other keys in turn", "a key many times in a row"],
)
def test_so_much_is_received_that_each_call_has_a_key_and_no_more(
    broker: FakeBroker, group: Group, key: Callable[[bytes], bytes], fewest: int, most: int
) -> None:
    broker.produce(numbers(0, 12_000), key=key)
    keys = Keys(lambda _: group.gate.wait(20))
    member = group.member(keys, concurrency=100, order="key").start()
    group.until(lambda: member.consumer.status.waiting >= fewest, "enough is received")
    polls = member.client.polls
    group.until(lambda: member.client.polls > polls + 20, "the loop turns")
    assert member.consumer.status.waiting < most
    group.gate.set()
    group.until(lambda: broker.offset() == 12_000, "all are handled")

    assert keys.in_order


def test_a_revocation_waits_for_all_messages_at_hand(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 400), key=key_of_ten)
    keys = Keys(lambda _: time.sleep(0.01))
    group.member(keys, idle_timeout_s=0.5, **BY_KEY).start()
    for _ in range(3):
        seen = len(keys.offsets)
        group.until(partial(keys.more_than, seen + 20), "it makes progress")
        broker.revoke(("t", 0))
        group.until(lambda: ("t", 0) not in broker.owners, "it is given back")
        broker.elsewhere.clear()
    group.members[0].finish()

    assert keys.offsets == [*range(400)]
    assert broker.offset() == 400


def test_messages_in_no_order_are_all_handled_at_once(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 40), key=b"k")
    together = threading.Barrier(8)
    handled = Handled(lambda _: together.wait(20))
    group.member(handled, idle_timeout_s=0.3, concurrency=8, order="none").finish()

    assert sorted(handled.offsets) == [*range(40)]
    assert broker.offset() == 40


# Answers of brokers that are late, and commits that must reach them


def test_a_log_that_was_cut_while_no_member_lived_is_read_from_the_cut(broker: FakeBroker, group: Group) -> None:
    """Also when it is longer by now than what was committed."""
    broker.produce(numbers(0, 100))
    group.member(Handled(), max_messages=100).finish()
    with broker.lock:
        broker.truncate(60)
        broker.produce([b"new %d" % each for each in range(80)])
    handled = Handled()
    group.member(handled, idle_timeout_s=0.5).finish()

    assert handled.values == [b"new %d" % each for each in range(80)]


@pytest.mark.parametrize("properties", [None, FROM_END])
def test_a_committed_offset_that_is_not_answered_in_time_is_not_taken_for_none(
    broker: FakeBroker, group: Group, properties: dict[str, str] | None
) -> None:
    broker.produce(numbers(0, 20))
    group.member(Handled(), max_messages=20).finish()
    broker.produce(numbers(20, 60))
    broker.delete_before(30)
    broker.committed_timeouts = 1
    handled = Handled()
    member = group.member(handled, properties=properties, idle_timeout_s=0.5).finish()

    assert handled.values == numbers(30, 60)
    assert member.consumer.status.topics["t"].deleted == 10


@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
def test_a_log_that_was_cut_is_read_from_the_cut_though_the_committed_offset_came_late(
    broker: FakeBroker, group: Group, strategy: str
) -> None:
    """The offset was fetched without its epoch, and the new messages before it were skipped."""
    broker.produce(numbers(0, 100))
    group.member(Handled(), max_messages=100).finish()
    with broker.lock:
        broker.truncate(80)
        broker.produce([b"new %d" % each for each in range(50)])
    broker.committed_timeouts = 1
    handled = Handled()
    properties = {"partition.assignment.strategy": strategy}
    group.member(handled, properties=properties, idle_timeout_s=0.5).finish()

    assert handled.values == [b"new %d" % each for each in range(50)]


def test_a_topic_that_was_created_again_is_known_for_another_though_the_committed_offset_came_late(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 20))
    member = group.member(Handled()).start()
    group.until(lambda: decode(20, broker.committed["t", 0].metadata).topic_id if broker.offset() == 20 else "", "id")
    member.stop()
    broker.create("t")
    broker.produce(numbers(100, 140))
    broker.committed_timeouts = 1
    handled = Handled()
    group.member(handled).start()

    group.until(lambda: set(handled.values) == set(numbers(100, 140)), "all of the new topic is handled")


def test_the_end_at_which_a_group_begins_is_committed_until_the_brokers_have_it(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.consumer.committing.REPEAT_S", 0.05)
    broker.produce(numbers(0, 10))
    broker.refuses_commits = KafkaError.REBALANCE_IN_PROGRESS
    member = group.member(Handled(), properties=FROM_END).start()
    group.until(lambda: member.consumer.status.commits.get("failure", 0) > 0, "a commit is refused")
    assert broker.offset() is None
    broker.refuses_commits = None

    group.until(lambda: broker.offset() == 10, "it is committed without a message")


def test_what_was_handled_is_committed_though_another_partition_ends_the_worker(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is committed before the poisoned message, nor on the timer after it.
    broker.refuses_commits = KafkaError.REBALANCE_IN_PROGRESS
    monkeypatch.setattr("workers.testing.memory.COMMIT_S", 3600.0)
    broker.add_partition("t")

    def reject_poison(message: Message) -> None:
        if message.value() == b"poison":
            broker.refuses_commits = None
            raise Reject("no")

    handled = Handled(reject_poison)
    member = group.member(handled, policy=ErrorPolicy("stop")).start()
    broker.produce(numbers(0, 50), partition=0)
    group.until(lambda: len(handled.messages) == 50, "one partition is handled")
    assert broker.offset() is None
    broker.produce([b"poison"], partition=1)
    with pytest.raises(WorkerError, match="stopping as --on-error says"):
        member.finish()

    assert broker.offset() == 50
