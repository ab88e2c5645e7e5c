"""Exactly once: each output of a handler is in its topic once, whatever happens to its member."""

import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message, TopicPartition

from tests.unit.members import BY_KEY, FOR_EVER, Group, Handled, key_of_ten, numbers
from tests.unit.test_outputs import forward, forward_async, forward_batch, twice
from workers.consumer import calling
from workers.consumer import transactions as module
from workers.consumer.assignment import Assignment
from workers.consumer.breaker import LEAST
from workers.consumer.failures import ErrorPolicy
from workers.consumer.membership import Membership
from workers.deadletters.headers import ATTEMPTS, ERROR_CLASS
from workers.errors import ConfigError, WorkerError
from workers.handlers import Reject, Retry, batch
from workers.kafka.credentials import CredentialsWatch
from workers.sources import Outgoing
from workers.testing.handling import Member
from workers.testing.memory import LATER, FakeBroker, FakeProducer
from workers.testing.processes import eventually

ONCE = {"exactly_once": True}
FENCED = KafkaError(KafkaError._FENCED, "fenced", True)
ABORT = KafkaError(KafkaError.ILLEGAL_GENERATION, "the group has moved on", False, False, True)
TIMED_OUT = KafkaError(KafkaError._TIMED_OUT, "timed out", False, True)


@pytest.fixture
def broker() -> FakeBroker:
    broker = FakeBroker(t=1, out=1)
    broker.create("t.dlq")
    return broker


class Answers:
    """Answers calls of transactions: the errors that are given for a call, one after the other, then none."""

    def __init__(self, broker: FakeBroker, **errors: list[KafkaError | None]) -> None:
        self.errors = errors
        self.calls: list[str] = []
        broker.answer = self._answer

    def _answer(self, call: str) -> KafkaError | None:
        self.calls.append(call)
        errors = self.errors.get(call)
        return errors.pop(0) if errors else None


def finish(group: Group, handler: Any = forward, **options: Any) -> Member:
    return group.member(handler, **{"idle_timeout_s": 0.3, **ONCE, **options}).finish()


def with_outputs_under_way(broker: FakeBroker, group: Group, *values: list[bytes], **options: Any) -> Member:
    """A member whose outputs have no outcome yet: those of `values`, each list in a partition of its own."""
    for partition, each in enumerate(values):
        if partition:
            broker.add_partition("t")
        broker.produce(each, partition=partition)
    broker.outcome = lambda _: LATER
    member = group.member(forward, **{**ONCE, **options}).start()
    count = sum(map(len, values))
    group.until(lambda: member.consumer.status.outputs_in_flight == count, "all are under way")
    return member


@pytest.mark.parametrize("options", [{}, BY_KEY, {**BY_KEY, "order": "none"}], ids=["one call", "by key", "no order"])
@pytest.mark.parametrize("handler", [forward, forward_async])
def test_outputs_are_written_once_in_the_order_of_offsets(
    broker: FakeBroker, group: Group, handler: Any, options: dict[str, Any]
) -> None:
    broker.produce(numbers(0, 500), key=key_of_ten)
    member = finish(group, handler, **options)

    assert broker.values("out") == numbers(0, 500)
    assert broker.offset() == 500
    told = member.consumer.status
    assert (told.outputs["out"].enqueued, told.outputs["out"].acknowledged) == (500, 500)
    assert told.outputs_in_flight == 0
    assert told.commits["success"] >= 1
    assert told.commits["failure"] == 0


def test_batches_are_committed_as_a_whole(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 500))
    finish(group, forward_batch, batch_size=7)
    assert broker.values("out") == numbers(0, 500)
    with pytest.raises(ConfigError, match="--order partition"):
        finish(group, forward_batch, **BY_KEY)


def test_an_open_transaction_is_seen_by_nobody_and_ends_with_its_member(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 100))
    broker.outcome = lambda message: LATER if message.value() == b"99" else None
    group.member(forward, **ONCE).start()
    group.until(lambda: broker.producers and len(broker.producers[0].staged) == 99, "the others are written")
    assert broker.values("out") == []
    assert broker.offset() is None
    broker.kill()
    broker.outcome = lambda _: None

    finish(group)
    assert broker.values("out") == numbers(0, 100)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, BY_KEY], ids=["one call", "by key"])
def test_members_that_are_killed_and_refused_at_any_moment_write_each_output_once(
    broker: FakeBroker, group: Group, options: dict[str, Any], seed: int
) -> None:
    chance = random.Random(seed)
    errors = [ABORT, TIMED_OUT, KafkaError(KafkaError._INCONSISTENT, "failed", False, False, True)]

    def answer(call: str) -> KafkaError | None:
        broker.late_commits = chance.random() < 0.1
        return chance.choice(errors) if call in ("offsets", "commit") and chance.random() < 0.2 else None

    def slowly(message: Message) -> Iterator[Outgoing]:
        time.sleep(0.0005)
        if chance.random() < 0.02:
            raise RuntimeError("away")
        yield from twice(message)

    broker.produce(numbers(0, 1500), key=key_of_ten)
    broker.answer = answer
    retry = ErrorPolicy("retry", backoff_s=0.001, backoff_max_s=0.002)
    for _ in range(4):
        group.member(slowly, **{**ONCE, **options, "policy": retry}).start()
        time.sleep(0.1 + 0.2 * chance.random())
        broker.kill()
    broker.answer = lambda _: None
    finish(group, slowly, **{**options, "policy": retry})

    assert broker.values("out") == [value for value in numbers(0, 1500) for _ in range(2)]


def test_what_is_done_beyond_a_message_that_waits_is_not_written_before_it(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 100), key=key_of_ten)
    handled: set[Any] = set()

    def handler(message: Message) -> Outgoing:
        if message.value() == b"10" and not group.gate.is_set():
            raise RuntimeError("away")
        handled.add(message.value())
        return forward(message)

    group.member(handler, **{**ONCE, **BY_KEY, "policy": FOR_EVER}).start()
    group.until(lambda: len(handled) == 91, "all other keys are handled")
    group.until(lambda: broker.offset() == 10, "what is before it is committed")
    assert broker.values("out") == numbers(0, 10)
    # The next owner must not pass over messages whose outputs were not written.
    assert broker.ahead() == []
    group.gate.set()
    group.until(lambda: broker.offset() == 100, "all is committed")
    assert broker.values("out") == numbers(0, 100)


@pytest.mark.parametrize("options", [{}, BY_KEY], ids=["one call", "by key"])
def test_a_message_that_its_handler_refuses_becomes_a_dead_letter_once(
    broker: FakeBroker, group: Group, options: dict[str, Any]
) -> None:
    broker.produce(numbers(0, 50), key=key_of_ten)
    Answers(broker, commit=[ABORT, ABORT])

    def handler(message: Message) -> Outgoing:
        if message.value() == b"7":
            raise Reject("not wanted")
        return forward(message)

    member = finish(group, handler, **options)
    assert broker.values("out") == [each for each in numbers(0, 50) if each != b"7"]
    [letter] = broker.logs["t.dlq", 0].records
    assert letter.value == b"7"
    assert dict(letter.headers)[ERROR_CLASS] == b"Reject"
    assert member.consumer.status.topics["t"].dead_lettered == 1


@batch
def forward_twice_in_batches(messages: list[Message]) -> list[Outgoing]:
    return [outgoing for message in messages for outgoing in twice(message)]


@pytest.mark.parametrize(
    ("handler", "options"),
    [(twice, {}), (twice, BY_KEY), (forward_twice_in_batches, {})],
    ids=["one", "by key", "batch"],
)
@pytest.mark.parametrize("code", [KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.MSG_SIZE_TOO_LARGE])
def test_a_message_whose_output_brokers_refuse_becomes_a_dead_letter_and_all_others_are_written_once(
    broker: FakeBroker, group: Group, handler: Any, options: dict[str, Any], code: int
) -> None:
    broker.produce(numbers(0, 50), key=key_of_ten)
    broker.outcome = lambda message: code if message.value() == b"7" and message.topic() == "out" else None
    # A busy machine may make a pause longer than the usual one between two transactions that are aborted.
    member = finish(group, handler, **options, idle_timeout_s=2.0)

    assert broker.values("out") == [each for each in numbers(0, 50) if each != b"7" for _ in range(2)]
    [letter] = broker.logs["t.dlq", 0].records
    assert letter.value == b"7"
    assert dict(letter.headers)[ATTEMPTS] == b"5"
    assert member.consumer.status.commits["failure"] >= 5
    assert broker.offset() == 50


@pytest.mark.parametrize(
    ("other", "max_attempts"), [(b"bad", 5), (b"good", 1)], ids=["one of two is looked for", "a dead letter is due"]
)
@pytest.mark.parametrize("gone", ["before the abort", "before the report"])
def test_a_refused_output_of_a_partition_that_has_gone_holds_up_no_other(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch, other: bytes, max_attempts: int, gone: str
) -> None:
    """Each message of the other partition got a transaction of its own, until the worker was started again."""
    # The abort waits for the reports, however long they take.
    monkeypatch.setattr(module, "SETTLE_S", 20.0)
    policy = ErrorPolicy(max_attempts=max_attempts, backoff_s=0.01, backoff_max_s=0.02)
    member = with_outputs_under_way(broker, group, [b"bad"], [other], policy=policy)
    slow = SlowCall(broker, "abort")

    def outcome(message: Message) -> int | None:
        return KafkaError.MSG_SIZE_TOO_LARGE if message.value() == b"bad" and not slow.there.is_set() else None

    if gone == "before the abort":
        broker.outcome = outcome
        assert slow.there.wait(20)
    broker.lose(("t", 0))
    group.until(lambda: member.consumer.status.rebalances["lost"], "it has heard of that")
    broker.outcome = outcome
    assert slow.there.wait(20)
    broker.produce(numbers(0, 200), partition=1)
    slow.go.set()
    group.until(lambda: broker.offset(1) == 201, "all of the other is committed")

    commits = [offset for key, offset in broker.commits if key == ("t", 1)]
    assert len(commits) < 200
    assert broker.offset(0) is None


def test_a_refused_output_stops_the_worker_where_it_is_told_to(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 10))
    broker.outcome = lambda message: KafkaError.TOPIC_AUTHORIZATION_FAILED if message.value() == b"7" else None
    stop = ErrorPolicy("stop", 2, backoff_s=0.01, backoff_max_s=0.01)
    with pytest.raises(WorkerError, match=r"stopping as --on-error says: t\[0\] offset 7, attempt 2"):
        finish(group, policy=stop)
    assert b"7" not in broker.values("out")


def test_a_dead_letter_that_is_too_large_stops_the_worker_and_nothing_is_skipped(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 10))
    broker.outcome = lambda message: KafkaError.MSG_SIZE_TOO_LARGE if message.topic() == "t.dlq" else None

    def reject(_: Message) -> None:
        raise Reject

    with pytest.raises(WorkerError, match="as nothing is skipped"):
        finish(group, reject)
    assert broker.offset() in (None, 0)


def test_a_producer_that_brokers_have_fenced_is_made_again_and_all_is_written_once(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 100))
    answers = Answers(broker, commit=[FENCED])
    finish(group)
    assert broker.values("out") == numbers(0, 100)
    assert len(broker.producers) == 2
    assert answers.calls.count("init") == 2


def test_a_second_process_with_the_same_transactional_id_ends_the_worker(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 100))
    Answers(broker, commit=[FENCED] * 3)
    with pytest.raises(WorkerError, match="give each process its own --transactional-id"):
        finish(group)


def test_a_user_without_the_right_to_the_transactional_id_gets_a_clear_error(broker: FakeBroker, group: Group) -> None:
    Answers(broker, init=[KafkaError(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "denied", True)])
    with pytest.raises(WorkerError, match="no right to transactional id id; grant Write and Describe"):
        finish(group)


def test_brokers_that_refuse_transactions_get_an_error_with_the_remedy(broker: FakeBroker, group: Group) -> None:
    Answers(broker, init=[KafkaError(KafkaError.INVALID_TRANSACTION_TIMEOUT, "too long", True)])
    with pytest.raises(WorkerError, match=r"transaction\.timeout\.ms is at most their transaction\.max\.timeout\.ms"):
        finish(group)


def test_partitions_that_are_taken_away_are_committed_before(broker: FakeBroker, group: Group) -> None:
    broker.add_partition("t")
    broker.produce(numbers(0, 100))
    broker.produce(numbers(100, 200), partition=1)
    hurdle = threading.Event()

    def handler(message: Message) -> Outgoing:
        if message.value() == b"50":
            hurdle.set()
        time.sleep(0.001)
        return forward(message)

    group.member(handler, **ONCE).start()
    assert hurdle.wait(20)
    broker.revoke(("t", 0))
    group.until(lambda: ("t", 0) not in broker.owners, "it has gone")
    written = broker.values("out")
    at = broker.offset()
    assert at is not None
    assert 50 <= at <= 100
    assert [each for each in written if int(each) < 100] == numbers(0, at)
    group.until(lambda: broker.offset(1) == 100, "the other goes on")
    assert sorted(broker.values("out")) == sorted([*numbers(0, at), *numbers(100, 200)])


def test_what_was_written_of_partitions_that_are_lost_is_aborted(broker: FakeBroker, group: Group) -> None:
    member = with_outputs_under_way(broker, group, numbers(0, 100), numbers(100, 200))
    broker.lose(("t", 0))
    group.until(lambda: member.consumer.status.rebalances["lost"], "it has heard of that")
    broker.outcome = lambda _: None
    group.until(lambda: broker.offset(1) == 100, "the other goes on")

    assert broker.values("out") == numbers(100, 200)
    assert broker.offset() is None
    group.until(lambda: member.consumer.status.commits["failure"] == 1, "it counts the abort")


def test_outputs_that_are_not_acknowledged_yet_are_waited_for(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 100))
    answers = Answers(broker)
    broker.outcome = lambda message: LATER if message.value() == b"99" else None
    group.member(forward, **ONCE).start()
    group.until(lambda: broker.producers and len(broker.producers[0].staged) == 99, "the others are written")
    broker.outcome = lambda _: None
    group.until(lambda: broker.offset() == 100, "all is committed")
    assert broker.values("out") == numbers(0, 100)
    assert "abort" not in answers.calls


@pytest.mark.parametrize("options", [{}, {"properties": {"auto.offset.reset": "latest"}}], ids=["begin", "end"])
def test_a_commit_whose_answer_does_not_come_is_asked_for_before_anything_is_handled_again(
    broker: FakeBroker, group: Group, options: dict[str, Any]
) -> None:
    broker.answer = lambda call: TIMED_OUT if call == "offsets" else None
    group.member(forward, **{**ONCE, **options}).start()
    group.until(lambda: broker.clients and broker.owners, "it has its partition")
    broker.produce(numbers(0, 100))
    broker.late_commits = 3
    broker.answer = lambda _: None
    group.until(lambda: broker.offset() == 100, "all is committed")
    broker.produce(numbers(100, 200))
    group.until(lambda: broker.offset() == 200, "it goes on")
    assert broker.values("out") == numbers(0, 200)


def test_a_commit_whose_answer_does_not_come_counts_for_the_limit_of_messages(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 100))
    broker.late_commits = 1
    group.member(forward, **ONCE, max_messages=30).finish()
    assert broker.values("out") == numbers(0, 30)


@pytest.mark.parametrize("options", [{}, BY_KEY], ids=["one call", "by key"])
def test_messages_that_are_tried_again_take_their_place_among_the_last_messages(
    broker: FakeBroker, group: Group, options: dict[str, Any]
) -> None:
    broker.add_partition("t")
    for partition in range(2):
        broker.produce(numbers(0, 100), partition=partition, key=key_of_ten)
    begun: set[tuple[int, int]] = set()

    def fail_most(message: Message) -> Outgoing:
        begun.add((message.partition() or 0, message.offset() or 0))
        if (message.offset() or 0) % 4:
            raise ValueError("no")
        return forward(message)

    group.member(fail_most, **ONCE, max_messages=30, **options).finish()
    assert len(begun) == 30


def test_a_coordinator_that_is_not_there_yet_is_waited_for(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 10))
    # librdkafka gives the last error when the time is up, and does not say that asking again may help.
    Answers(broker, init=[KafkaError(KafkaError.COORDINATOR_NOT_AVAILABLE, "no coordinator")])
    finish(group)
    assert broker.values("out") == numbers(0, 10)


def test_certificates_that_change_while_a_producer_is_fenced_end_nothing(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.produce(numbers(0, 10))
    Answers(broker, commit=[FENCED])
    changed = [True]
    monkeypatch.setattr(
        CredentialsWatch, "refresh", lambda *_: bool(broker.offset() is None and changed and changed.pop())
    )
    finish(group)
    assert broker.values("out") == numbers(0, 10)


def test_a_member_that_does_not_leave_its_group_in_time_ends_and_commits_nothing_more(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client is left to the thread that closes it; the one that was to follow is closed."""
    for name in ("REVOKE_WAIT_S", "CONFIRM_S", "LEAVE_S"):
        monkeypatch.setattr(f"workers.consumer.membership.{name}", 0.05)
    monkeypatch.setattr(module.Transaction, "longest_s", 0.05)
    broker.produce(numbers(0, 10))
    member = group.member(forward, **ONCE).start()
    group.until(lambda: broker.offset() == 10, "all is committed")
    first = member.client
    monkeypatch.setattr(first, "close", lambda: group.gate.wait(20))
    monkeypatch.setattr(CredentialsWatch, "refresh", lambda _, client: client is first)
    eventually(lambda: member.ended, "the member ends", 20)
    assert isinstance(member.error, WorkerError)
    assert "the group was not left in time" in str(member.error)
    assert str(member.error).endswith("; start the worker again: it continues from the committed offsets")
    assert [client.closed for client in broker.clients] == [False, True]


def test_a_member_that_cannot_go_on_leaves_its_group(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 100))
    Answers(broker, commit=[FENCED] * 9)
    with pytest.raises(WorkerError):
        finish(group)
    assert broker.clients[-1].closed


def test_nothing_escapes_from_the_callback_of_a_rebalance(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    escaped: list[BaseException] = []
    on_revoke = Membership._on_revoke

    def watched(self: Membership, client: Any, partitions: list[TopicPartition]) -> None:
        try:
            on_revoke(self, client, partitions)
        except BaseException as error:
            escaped.append(error)
            raise

    monkeypatch.setattr(Membership, "_on_revoke", watched)
    member = with_outputs_under_way(broker, group, numbers(0, 10))
    broker.answer = lambda _: KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED, "denied", True)
    broker.outcome = lambda _: None
    broker.revoke(("t", 0))
    eventually(lambda: member.ended, "the member ends", 20)
    assert escaped == []
    assert isinstance(member.error, WorkerError)


@pytest.mark.parametrize("options", [{}, BY_KEY], ids=["one call", "by key"])
def test_messages_become_dead_letters_when_their_topic_may_not_be_written_to(
    broker: FakeBroker, group: Group, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the call of the transaction says so, and no report of an output."""
    monkeypatch.setattr(module, "FLUSH_S", 0.1)
    broker.produce(numbers(0, 3), key=key_of_ten)
    broker.outcome = lambda message: LATER if message.topic() == "out" else None

    def answer(call: str) -> KafkaError | None:
        denied = call in ("offsets", "commit") and any(len(producer) for producer in broker.producers)
        code = KafkaError.TOPIC_AUTHORIZATION_FAILED
        return KafkaError(code, "denied", False, False, True) if denied else None

    broker.answer = answer
    member = finish(group, **options, policy=ErrorPolicy(max_attempts=2, backoff_s=0.01, backoff_max_s=0.02))
    assert [record.value for record in broker.logs["t.dlq", 0].records] == numbers(0, 3)
    assert broker.values("out") == []
    assert member.consumer.status.commits["failure"] <= 12


@pytest.mark.parametrize("options", [{}, BY_KEY], ids=["one call", "by key"])
def test_all_messages_become_dead_letters_when_their_topic_does_not_exist(
    broker: FakeBroker, group: Group, options: dict[str, Any]
) -> None:
    broker.add_partition("t")
    for partition in range(2):
        broker.produce(numbers(10 * partition, 10 * partition + 5), key=key_of_ten, partition=partition)
    broker.outcome = lambda message: KafkaError._UNKNOWN_TOPIC if message.topic() == "out" else None
    twice_each = ErrorPolicy(max_attempts=2, backoff_s=0.01, backoff_max_s=0.02)
    member = finish(group, **options, policy=twice_each)
    letters = sorted(record.value for record in broker.logs["t.dlq", 0].records)
    assert letters == sorted([*numbers(0, 5), *numbers(10, 15)])
    assert (broker.offset(0), broker.offset(1)) == (5, 5)
    assert handled(member) == 10


@pytest.mark.parametrize(
    ("handler", "options"),
    [(forward, {}), (forward, BY_KEY), (forward_batch, {"batch_size": 10})],
    ids=["one call", "by key", "batch"],
)
def test_messages_whose_dead_letters_are_held_back_are_written_when_their_topic_takes_them_again(
    broker: FakeBroker, group: Group, handler: Any, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    count = 2 * LEAST
    broker.produce(numbers(0, count), key=key_of_ten)
    refused = [True]
    code = KafkaError.TOPIC_AUTHORIZATION_FAILED
    broker.outcome = lambda message: code if refused and message.topic() == "out" else None
    policy = ErrorPolicy(max_attempts=1, backoff_s=0.01, backoff_max_s=0.02)
    member = group.member(handler, **ONCE, policy=policy, max_dead_letter_share=0.1, **options).start()
    group.until(lambda: "--max-dead-letter-share allows" in caplog.text, "dead letters are held back")
    # Each time after a longer pause: its refusal makes all other partitions of the transaction handle theirs again.
    group.until(lambda: "attempt 4 failed, next in" in caplog.text, "a message is tried again and again")
    refused.clear()
    group.until(lambda: broker.offset() == count, "all is committed")
    member.stop()

    letters = len(broker.values("t.dlq"))
    assert 0 < letters <= LEAST
    assert broker.values("t.dlq") == numbers(0, letters)
    assert broker.values("out") == numbers(letters, count)


def test_a_coordinator_that_never_answers_is_left_behind(broker: FakeBroker, group: Group) -> None:
    """The client waits for it for ever, whatever time it was given."""
    broker.produce(numbers(0, 10))

    def answer(call: str) -> KafkaError | None:
        if call == "offsets" and len(broker.producers) == 1:
            group.gate.wait(60)
        return None

    broker.answer = answer
    member = group.member(forward, **ONCE, properties={"transaction.timeout.ms": "200"}).start()
    group.until(lambda: broker.offset() == 10, "another producer goes on")
    member.stop()
    assert broker.values("out") == numbers(0, 10)


def test_messages_that_are_refused_with_a_neighbour_are_written(broker: FakeBroker, group: Group) -> None:
    """Brokers take or refuse as a whole what is written together."""
    broker.produce(numbers(0, 50))

    def outcome(message: Message) -> int | None:
        if message.topic() != "out":
            return None
        together = {each.value() for each, _, _ in broker.producers[-1].at_hand}
        return KafkaError.MSG_SIZE_TOO_LARGE if b"7" in together else None

    broker.outcome = outcome
    finish(group)
    assert broker.values("out") == [each for each in numbers(0, 50) if each != b"7"]
    assert [record.value for record in broker.logs["t.dlq", 0].records] == [b"7"]


def test_one_refused_commit_and_a_slow_handler_do_not_have_the_group_joined_again(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FORGOTTEN_S", 0.2)
    broker.produce(numbers(0, 1))
    answers = Answers(broker, offsets=[ABORT])

    def handler(message: Message) -> Outgoing:
        if "offsets" in answers.calls:
            time.sleep(0.5)
        return forward(message)

    group.member(handler, **ONCE).start()
    group.until(lambda: broker.offset() == 1, "it is committed")
    assert broker.clients[-1].joins == 1


def test_commits_that_go_on_to_be_refused_have_the_group_joined_again(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FORGOTTEN_S", 0.2)
    broker.produce(numbers(0, 1))
    broker.answer = lambda call: ABORT if call == "offsets" else None
    group.member(forward, **ONCE).start()
    group.until(lambda: broker.clients[-1].joins > 1, "it joins again")


def test_messages_of_lost_partitions_do_not_count_for_the_limit(broker: FakeBroker, group: Group) -> None:
    member = with_outputs_under_way(broker, group, numbers(0, 60), [], max_messages=100)
    broker.lose(("t", 0))
    group.until(lambda: member.consumer.status.rebalances["lost"], "it has heard of that")
    broker.outcome = lambda _: None
    broker.produce(numbers(100, 300), partition=1)
    member.finish()
    assert broker.values("out") == numbers(100, 200)


def test_what_a_client_reports_that_was_replaced_is_of_no_transaction(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 50))
    mapping = KafkaError(KafkaError.INVALID_PRODUCER_ID_MAPPING, "unknown producer", False, False, False)
    broker.outcome = lambda _: LATER if len(broker.producers) == 1 else None
    broker.answer = lambda call: mapping if call == "offsets" and len(broker.producers) == 1 else None
    member = finish(group)
    assert broker.values("out") == numbers(0, 50)
    assert member.consumer.status.commits["failure"] == 1
    assert member.consumer.status.outputs_in_flight == 0


def test_partitions_that_begin_anew_after_an_abort_are_not_assigned_anew(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between rebalances, librdkafka would take that for the answer to one that is to come."""
    broker.produce(numbers(0, 10))
    Answers(broker, commit=[ABORT])
    unassigned: list[Any] = []
    monkeypatch.setattr(Membership, "_reassign", lambda *each: unassigned.append(each))
    group.member(forward, **ONCE).start()
    group.until(lambda: broker.offset() == 10, "all is committed")
    assert unassigned == []
    assert broker.clients[-1].seeks == [(("t", 0), 0)]


def test_a_group_that_begins_at_the_end_begins_there_again_when_its_first_transaction_is_aborted(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 10))
    answers = Answers(broker, offsets=[ABORT] * 2)
    member = group.member(forward, **{**ONCE, "properties": {"auto.offset.reset": "latest"}}).start()
    group.until(lambda: "offsets" in answers.calls, "it has tried to commit where it begins")
    broker.produce(numbers(10, 20))
    group.until(lambda: broker.offset() == 20, "all that came is committed")
    assert broker.values("out") == numbers(10, 20)
    member.stop()


def test_outputs_that_are_held_are_bounded_and_the_message_they_wait_for_goes_on(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 20_000)
    monkeypatch.setattr(calling, "MAX_BYTES", 20_000)
    broker.produce(numbers(0, 300), key=key_of_ten)
    handled = 0

    async def handler(message: Message) -> AsyncIterator[Outgoing]:
        nonlocal handled
        if message.value() == b"0" and not group.gate.is_set():
            raise RuntimeError("away")
        handled += 1
        yield Outgoing((message.value() or b"") + b"x" * 1000, topic="out")

    member = group.member(handler, **{**ONCE, **BY_KEY, "policy": FOR_EVER}).start()
    group.until(lambda: member.consumer.status.outputs_in_flight >= 18, "much is held")
    polls = member.client.polls
    group.until(lambda: member.client.polls > polls + 20, "the loop goes on to poll")
    assert handled < 100
    group.gate.set()
    group.until(lambda: broker.offset() == 300, "all is committed")
    assert [int(value.rstrip(b"x")) for value in broker.values("out")] == [*range(300)]


def test_messages_that_wait_for_the_retry_of_the_one_before_them_are_no_stall(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/livez` failed where the pause was longer than --stall-timeout, and the pod was restarted."""
    monkeypatch.setattr(module, "MAX_MESSAGES", 50)
    monkeypatch.setattr(calling, "MAX_MESSAGES", 50)
    broker.produce(numbers(0, 300), key=key_of_ten)

    def handler(message: Message) -> Outgoing:
        if message.value() == b"0" and not group.gate.is_set():
            raise Retry(after_s=600)
        return forward(message)

    member = group.member(handler, **ONCE, **BY_KEY, stall_timeout_s=0.3).start()
    group.until(lambda: member.consumer.status.outputs_in_flight >= 50, "much is held")
    group.until(lambda: not member.consumer.status.in_flight, "nothing is begun any more")
    since = member.consumer.status.at
    said = set()

    def longer_than_a_stall() -> bool:
        said.add(member.consumer.live())
        return member.consumer.status.at > since + 1.0

    group.until(longer_than_a_stall, "longer than a stall")
    # A busy machine may keep the loop from turning for as long.
    assert {each for each in said if each is not None and "poll loop" not in each} == set()
    assert member.consumer.status.topics["t"].handled < 300


def test_the_limit_of_messages_counts_what_was_committed(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 100))
    Answers(broker, commit=[ABORT])
    group.member(forward, **ONCE, max_messages=60).finish()
    assert broker.values("out") == numbers(0, 60)
    assert broker.offset() == 60


def test_a_whole_batch_that_is_refused_is_written_message_by_message(broker: FakeBroker, group: Group) -> None:
    """A topic takes no batch above its max.message.bytes, however small its messages are."""
    broker.produce(numbers(0, 120))

    def outcome(_: Message) -> int | None:
        return KafkaError.MSG_SIZE_TOO_LARGE if len(broker.producers[-1].at_hand) > 100 else None

    broker.outcome = outcome
    finish(group)
    assert broker.values("out") == numbers(0, 120)
    assert broker.logs["t.dlq", 0].records == []


def test_a_transaction_is_committed_before_a_stop_waits_for_the_handler(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 10))
    begun, hold = group.hold_at(9)

    def handler(message: Message) -> Outgoing:
        hold(message)
        return forward(message)

    broker.outcome = lambda _: LATER
    member = group.member(handler, **{**ONCE, "concurrency": 2, "order": "none", "stop_timeout_s": 15.0}).start()
    assert begun.wait(20)
    group.until(lambda: member.consumer.status.outputs_in_flight == 9, "the others are under way")
    broker.outcome = lambda _: None
    member.shutdown.request()
    group.until(lambda: broker.offset() == 9, "they are committed")
    group.gate.set()
    member.finish()
    assert broker.values("out") == numbers(0, 10)


def test_a_rebalance_inside_of_a_poll_commits_without_waiting_for_that_poll(broker: FakeBroker, group: Group) -> None:
    """A call of the consumer from another thread would wait for it, and the rebalance for that call."""
    member = with_outputs_under_way(broker, group, numbers(0, 10))

    def take_away() -> None:
        broker.outcome = lambda _: None
        broker.revoke(("t", 0))

    member.client.during_consume = take_away
    group.until(lambda: ("t", 0) not in broker.owners, "it has gone")
    assert broker.values("out") == numbers(0, 10)
    assert broker.offset() == 10


class SlowCall:
    """A call of a transaction that stands still once, from `there` on until `go` is set."""

    def __init__(self, broker: FakeBroker, call: str) -> None:
        self.there, self.go = threading.Event(), threading.Event()
        self._call = call
        broker.answer = self._answer

    def _answer(self, call: str) -> KafkaError | None:
        if call == self._call and not self.there.is_set():
            self.there.set()
            self.go.wait(20)
        return None


@pytest.mark.parametrize("call", ["offsets", "commit"])
@pytest.mark.parametrize("options", [{}, BY_KEY], ids=["one call", "by key"])
def test_the_handler_goes_on_while_a_transaction_is_committed(
    broker: FakeBroker, group: Group, options: dict[str, Any], call: str
) -> None:
    broker.produce(numbers(0, 100), key=key_of_ten)
    slow = SlowCall(broker, call)
    member = group.member(forward, **{**ONCE, **options}).start()
    assert slow.there.wait(20)
    broker.produce(numbers(100, 300), key=key_of_ten)
    group.until(lambda: member.consumer.status.topics["t"].handled == 300, "all are handled")
    assert broker.values("out") == []
    slow.go.set()
    group.until(lambda: broker.offset() == 300, "all is committed")
    assert broker.values("out") == numbers(0, 300)
    assert member.consumer.status.commits["failure"] == 0


def test_outputs_that_are_held_while_a_transaction_is_committed_are_bounded(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_MESSAGES", 50)
    monkeypatch.setattr(calling, "MAX_MESSAGES", 50)
    broker.produce(numbers(0, 1))
    slow = SlowCall(broker, "commit")
    member = group.member(forward, **ONCE).start()
    assert slow.there.wait(20)
    broker.produce(numbers(1, 300))
    group.until(lambda: member.consumer.status.outputs_in_flight >= 50, "much is held")
    polls = member.client.polls
    group.until(lambda: member.client.polls > polls + 20, "the loop goes on to poll")
    assert member.consumer.status.topics["t"].handled < 150
    slow.go.set()
    group.until(lambda: broker.offset() == 300, "all is committed")
    assert broker.values("out") == numbers(0, 300)


@pytest.mark.parametrize("refused", [False, True], ids=["committed", "refused"])
def test_partitions_that_are_lost_while_a_transaction_is_committed_count_as_it_ends(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    # On a slow machine it would be over before the outputs are acknowledged.
    monkeypatch.setattr("workers.consumer.transactions.FLUSH_S", 60.0)
    slow = SlowCall(broker, "offsets" if refused else "commit")
    member = with_outputs_under_way(broker, group, numbers(0, 50), numbers(100, 150))
    broker.outcome = lambda _: None
    assert slow.there.wait(20)
    broker.lose(("t", 0))
    group.until(lambda: member.consumer.status.rebalances["lost"], "it has heard of that")
    slow.go.set()
    group.until(lambda: broker.offset(1) == 50, "the other is committed")
    mine = numbers(100, 150) if refused else [*numbers(0, 50), *numbers(100, 150)]
    assert sorted(broker.values("out"), key=int) == mine

    group.until(lambda: handled(member) == len(mine), "what is committed counts")


def test_a_client_that_breaks_while_its_transaction_is_committed_is_replaced_when_the_call_has_ended(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 100))
    slow = SlowCall(broker, "commit")
    member = group.member(forward, **ONCE).start()
    assert slow.there.wait(20)
    [producer] = broker.producers
    producer.own["error_cb"](FENCED)
    polls = member.client.polls
    group.until(lambda: member.client.polls > polls + 20, "the loop goes on")
    assert broker.producers == [producer]
    assert not producer.closed
    slow.go.set()
    group.until(lambda: len(broker.producers) == 2 and broker.offset() == 100, "another one has taken over")
    broker.produce(numbers(100, 200))
    group.until(lambda: broker.offset() == 200, "it goes on")
    assert broker.values("out") == numbers(0, 200)


def test_a_member_that_its_group_has_forgotten_commits_nothing(broker: FakeBroker, group: Group) -> None:
    """Brokers would take offsets without the id of a member, whoever has its partitions by now."""
    member = with_outputs_under_way(broker, group, numbers(0, 100))
    member.client.member_id = None
    broker.outcome = lambda _: None
    group.until(lambda: member.consumer.status.commits["failure"], "a transaction is aborted")
    assert broker.offset() is None
    broker.lose(("t", 0))
    group.until(lambda: member.consumer.status.rebalances["lost"], "it has heard of that")
    assert broker.values("out") == []


def test_a_stop_whose_transaction_is_aborted_ends_well_and_says_why(
    broker: FakeBroker, group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    member = with_outputs_under_way(broker, group, numbers(0, 100))
    Answers(broker, offsets=[ABORT] * 9)
    broker.outcome = lambda _: None
    member.stop()
    assert member.consumer.trouble is None
    assert "the last transaction was aborted, its messages are redelivered: the group has moved on" in caplog.text
    assert broker.values("out") == []
    assert handled(member) == 0
    finish(group)
    assert broker.values("out") == numbers(0, 100)


def test_a_stop_fails_when_the_brokers_do_not_say_how_the_last_transaction_ended(
    broker: FakeBroker, group: Group
) -> None:
    member = with_outputs_under_way(broker, group, numbers(0, 100))
    broker.answer = lambda call: TIMED_OUT if call in ("offsets", "abort") else None
    broker.outcome = lambda _: None
    member.stop()
    assert member.consumer.trouble == (
        "the brokers have not confirmed the end of the last transaction: timed out; its messages are redelivered if it "
        "was not committed"
    )


@pytest.mark.parametrize("replaced", [False, True], ids=["at once", "while it is replaced"])
def test_a_stop_of_an_idle_member_whose_producer_has_broken_ends_well(
    broker: FakeBroker, group: Group, replaced: bool
) -> None:
    broker.produce(numbers(0, 10))
    member = group.member(forward, **ONCE).start()
    group.until(lambda: broker.offset() == 10 and member.consumer.status.commits["success"], "it is idle")
    broker.answer = lambda call: TIMED_OUT if call == "init" else None
    if not replaced:
        member.shutdown.request()
    broker.producers[-1].own["error_cb"](FENCED)
    if replaced:
        group.until(lambda: len(broker.producers) == 2, "another one is made")
    member.stop()
    assert member.consumer.trouble is None
    assert member.consumer.status.commits["failure"] == 0
    assert member.consumer.status.topics["t"].rolled_back == 0


def test_a_member_that_is_handling_goes_on_when_its_producer_breaks_between_transactions(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 10))
    member = group.member(forward, **ONCE).start()
    group.until(lambda: broker.offset() == 10 and member.consumer.status.commits["success"], "it is idle")
    broker.producers[-1].own["error_cb"](FENCED)
    broker.produce(numbers(10, 20))
    group.until(lambda: broker.offset() == 20, "all is committed")
    assert broker.values("out") == numbers(0, 20)
    assert member.consumer.status.topics["t"].rolled_back == 0


def test_producers_that_never_end_to_close_end_the_worker(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.produce(numbers(0, 10))
    monkeypatch.setattr(FakeProducer, "close", lambda _: group.gate.wait(60))
    broker.answer = lambda call: TIMED_OUT if call == "offsets" else None
    with pytest.raises(WorkerError, match=r"5 replaced producers of transactional id id have not closed: .*; check"):
        group.member(forward, **ONCE).finish()
    assert len(broker.producers) == 6


def test_producers_that_end_to_close_are_replaced_as_often_as_it_takes(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 10))
    Answers(broker, offsets=[TIMED_OUT] * 8)
    finish(group)
    assert len(broker.producers) == 9
    assert broker.values("out") == numbers(0, 10)


def without_a_producer(broker: FakeBroker, group: Group) -> tuple[Member, SlowCall]:
    """A member that has committed 10 messages, and whose next producer is taken up when the call may go on."""
    broker.produce(numbers(0, 10))
    member = group.member(forward, **ONCE).start()
    group.until(lambda: broker.offset() == 10, "all is committed")
    slow = SlowCall(broker, "init")
    broker.producers[-1].own["error_cb"](FENCED)
    assert slow.there.wait(20)
    return member, slow


def test_the_loop_goes_on_while_brokers_take_up_the_next_producer(broker: FakeBroker, group: Group) -> None:
    """Each of these calls may take a second."""
    member, slow = without_a_producer(broker, group)
    polls = member.client.polls
    group.until(lambda: member.client.polls > polls + 20, "the loop goes on to poll")
    assert not slow.go.is_set()
    slow.go.set()
    broker.produce(numbers(10, 20))
    group.until(lambda: broker.offset() == 20, "the next one has taken over")


def test_a_backlog_waits_at_the_brokers_while_no_coordinator_takes_up_a_producer(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn took one message more, and the next turn began at once."""
    monkeypatch.setattr("workers.consumer.flow.MAX_WAITING_MESSAGES", 0)
    member, slow = without_a_producer(broker, group)
    broker.produce(numbers(10, 20_000))
    group.check_backlog_waits(member)
    slow.go.set()
    group.until(lambda: broker.offset() == 20_000, "all is committed")


class Unanswered:
    """Has the next commit made without an answer; until `over` no other producer is taken up, which would tell."""

    def __init__(self, broker: FakeBroker) -> None:
        self.over = threading.Event()
        self._broker = broker
        broker.late_commits = 1
        broker.answer = self._answer
        broker.outcome = lambda _: None

    def _answer(self, call: str) -> KafkaError | None:
        return TIMED_OUT if call == "init" and len(self._broker.producers) > 1 and not self.over.is_set() else None


def handled(member: Member) -> int:
    """How many messages count as handled."""
    topic = member.consumer.status.topics["t"]
    return topic.handled - topic.rolled_back


def outcomes(member: Member, topic: str = "out") -> tuple[int, int]:
    """How many outputs count as committed, and how many as unknown."""
    deliveries = member.consumer.status.outputs[topic]
    assert deliveries.enqueued == deliveries.acknowledged + deliveries.unknown
    return deliveries.acknowledged, deliveries.unknown


def test_outputs_count_when_their_transaction_was_committed_though_nobody_said_so(
    broker: FakeBroker, group: Group
) -> None:
    member = with_outputs_under_way(broker, group, numbers(0, 50), numbers(50, 100))
    unanswered = Unanswered(broker)
    group.until(lambda: len(broker.producers) == 2, "the client is given up")
    assert broker.offset() == 50
    polls = member.client.polls
    group.until(lambda: member.client.polls > polls + 20, "the loop goes on to poll")
    assert outcomes(member) == (0, 0)
    unanswered.over.set()
    group.until(lambda: member.consumer.status.commits["success"] == 1, "it has learnt that it was committed")
    assert (handled(member), outcomes(member)) == (100, (100, 0))
    assert member.consumer.status.commits["failure"] == 0


@pytest.mark.parametrize("gone", ["the member stops", "partitions go"])
def test_a_transaction_of_unknown_outcome_is_counted_as_that_where_it_stays_unknown(
    broker: FakeBroker, group: Group, gone: str
) -> None:
    member = with_outputs_under_way(broker, group, numbers(0, 50), numbers(50, 100))
    unanswered = Unanswered(broker)
    group.until(lambda: len(broker.producers) == 2, "the client is given up")
    if gone == "partitions go":
        broker.lose(("t", 0), ("t", 1))
        group.until(lambda: member.consumer.status.rebalances["lost"] == 2, "it has heard of that")
        unanswered.over.set()
        group.until(lambda: member.consumer.status.commits["failure"] == 1, "nobody can tell it any more")
    member.stop()
    trouble = member.consumer.trouble
    assert trouble is None if gone == "partitions go" else "have not confirmed the end of the last" in (trouble or "")
    assert (handled(member), outcomes(member)) == (0, (0, 100))
    assert member.consumer.status.commits == {"success": 0, "failure": 1}


def test_one_partition_tells_what_became_of_a_transaction_in_doubt(broker: FakeBroker, group: Group) -> None:
    member = with_outputs_under_way(broker, group, numbers(0, 50), numbers(50, 100))
    unanswered = Unanswered(broker)
    group.until(lambda: len(broker.producers) == 2, "the client is given up")
    broker.lose(("t", 0))
    group.until(lambda: member.consumer.status.rebalances["lost"], "it has heard of that")
    unanswered.over.set()
    group.until(lambda: member.consumer.status.commits["success"] == 1, "it has learnt that it was committed")
    assert (handled(member), outcomes(member)) == (100, (100, 0))


def test_dead_letters_of_a_transaction_of_unknown_outcome_are_not_counted_as_done(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 3))
    Unanswered(broker)

    def reject(_: Message) -> None:
        raise Reject

    member = group.member(reject, **ONCE).start()
    group.until(lambda: len(broker.producers) == 2, "the client is given up")
    member.stop()
    assert member.consumer.status.topics["t"].dead_lettered == 0
    assert (handled(member), outcomes(member, "t.dlq")) == (0, (0, 3))


def test_a_dead_letter_counts_when_its_transaction_was_committed_though_nobody_said_so(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 3))
    broker.late_commits = 1

    def reject(_: Message) -> None:
        raise Reject

    member = finish(group, reject)
    assert [record.value for record in broker.logs["t.dlq", 0].records] == numbers(0, 3)
    assert member.consumer.status.topics["t"].dead_lettered == 3


@pytest.mark.parametrize("end", ["it is unanswered", "it is answered, and the partition goes"])
def test_messages_that_an_earlier_owner_has_handled_are_of_no_transaction(
    broker: FakeBroker, group: Group, end: str
) -> None:
    """A group with --order key, whose members have handled messages beyond the low-water mark, is now exactly-once."""
    broker.produce(numbers(0, 100), key=key_of_ten)

    def forward_but(failing: int) -> Any:
        def handler(message: Message) -> Outgoing | None:
            if message.offset() == failing:
                raise ValueError
            return forward(message) if failing > 3 else None

        return handler

    member = group.member(forward_but(3), policy=FOR_EVER, **BY_KEY).start()
    beyond = [offset for offset in range(4, 100) if offset % 10 != 3]
    group.until(lambda: (broker.offset(), broker.ahead()) == (3, beyond), "all but one key are done")
    member.stop()
    broker.late_commits = int(end == "it is unanswered")
    member = group.member(forward_but(13), policy=FOR_EVER, **ONCE, **BY_KEY).start()
    group.until(lambda: sum(member.consumer.status.commits.values()), "the transaction has its outcome")
    assert (broker.values("out"), outcomes(member)) == ([b"3"], (1, 0))
    if end != "it is unanswered":
        broker.lose(("t", 0))
        group.until(lambda: member.consumer.status.rebalances["lost"], "the partition goes")
        assert handled(member) == 1


def test_messages_that_an_earlier_owner_has_handled_stay_handled_after_a_commit(
    broker: FakeBroker, group: Group
) -> None:
    """As above; the commit of the first transaction dropped them, so the next owner wrote outputs of them."""
    broker.produce(numbers(0, 100), key=key_of_ten)

    def fail_at(offset: int) -> Any:
        def handler(message: Message) -> Outgoing:
            if message.offset() == offset:
                raise ValueError
            return forward(message)

        return handler

    member = group.member(Handled(fail_at(3)), policy=FOR_EVER, **BY_KEY).start()
    group.until(lambda: broker.offset() == 3 and len(broker.ahead()) == 87, "all but one key are done")
    member.stop()
    member = group.member(fail_at(13), policy=FOR_EVER, **ONCE, **BY_KEY).start()
    group.until(lambda: broker.offset() == 13, "a transaction is committed")
    member.stop()
    group.member(forward, **ONCE, **BY_KEY).start()
    group.until(lambda: broker.offset() == 100, "all is committed")

    assert broker.values("out") == [b"%d" % each for each in range(3, 100, 10)]


# Where partitions begin: the fake allows no assignment between rebalances, which may be taken for the answer to one


def test_partitions_whose_offset_is_not_known_at_the_assignment_are_sought_when_it_is(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 20))
    finish(group)
    broker.produce(numbers(20, 40))
    broker.committed_timeouts = 1
    member = finish(group)
    assert broker.values("out") == numbers(0, 40)
    assert member.client.seeks == [(("t", 0), 20)]
    assert member.client.joins == 1


def test_a_log_that_was_cut_is_written_from_the_cut_though_the_committed_offset_came_late(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 100))
    finish(group)
    with broker.lock:
        broker.truncate(80)
        broker.produce(numbers(200, 250))
    broker.committed_timeouts = 1
    finish(group)
    assert broker.values("out") == [*numbers(0, 100), *numbers(200, 250)]


@pytest.mark.parametrize("options", [{}, BY_KEY], ids=["one call", "by key"])
def test_a_member_joins_again_to_go_on_behind_messages_that_were_deleted(
    broker: FakeBroker, group: Group, options: dict[str, Any]
) -> None:
    broker.produce(numbers(0, 20), key=key_of_ten)
    finish(group, **options)
    broker.produce(numbers(20, 60), key=key_of_ten)
    broker.delete_before(30)
    member = finish(group, **options)
    assert broker.values("out") == [*numbers(0, 20), *numbers(30, 60)]
    assert member.consumer.status.topics["t"].deleted == 10
    assert member.client.joins == 2


def test_messages_that_were_received_are_committed_before_the_member_goes_on_behind_deleted_ones(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 10))
    begun, hold = group.hold_at(5)

    def handler(message: Message) -> Outgoing:
        hold(message)
        return forward(message)

    member = group.member(handler, **{**ONCE, **BY_KEY}).start()
    assert begun.wait(20)
    with broker.lock:
        broker.produce(numbers(10, 60))
        broker.delete_before(30)
    polls = member.client.polls
    group.until(lambda: member.client.polls > polls + 20, "the loop goes on to poll")
    assert member.client.joins == 1
    group.gate.set()
    group.until(lambda: broker.offset() == 60, "all is committed")
    assert broker.values("out") == [*numbers(0, 10), *numbers(30, 60)]
    group.until(lambda: member.consumer.status.topics["t"].deleted == 20, "they are counted once")


def test_a_member_joins_again_once_for_all_partitions_whose_messages_were_deleted(
    broker: FakeBroker, group: Group
) -> None:
    """Brokers say so one after the other, and some partitions have messages that were received before."""
    for partition in range(3):
        if partition:
            broker.add_partition("t")
        broker.produce(numbers(0, 20), partition=partition)
    begun, hold = group.hold_at(9)

    def handler(message: Message) -> Outgoing:
        if message.partition() == 2:
            hold(message)
        return forward(message)

    member = group.member(handler, **{**ONCE, **BY_KEY}).start()
    assert begun.wait(20)
    group.until(lambda: broker.offset(0) == broker.offset(1) == 20, "the others are committed")
    with broker.lock:
        broker.hung["t", 1] = "the test"
        for partition in range(3):
            broker.produce(numbers(20, 60), partition=partition)
            broker.delete_before(30, partition=partition)
    polls = member.client.polls
    group.until(lambda: member.client.polls > polls + 20, "the loop goes on to poll")
    del broker.hung["t", 1]
    group.until(lambda: member.consumer.status.topics["t"].deleted == 20, "those without messages at hand are known")
    group.gate.set()
    group.until(lambda: [broker.offset(each) for each in range(3)] == [60] * 3, "all is committed")
    assert member.client.joins == 2
    assert member.consumer.status.topics["t"].deleted == 30


@pytest.mark.parametrize("options", [{}, BY_KEY], ids=["one call", "by key"])
@pytest.mark.parametrize("offset", [5, 39])
@pytest.mark.parametrize("refused", [False, True])
def test_outputs_of_messages_that_were_at_hand_when_their_log_was_cut_are_written(
    broker: FakeBroker, group: Group, offset: int, options: dict[str, Any], refused: bool
) -> None:
    """The cut is known while messages before it are handled: it waits until their outputs are committed."""
    broker.produce(numbers(0, 40), key=key_of_ten)
    begun, hold = group.hold_at(offset)

    def held(message: Message) -> Outgoing:
        hold(message)
        if refused and message.value() == b"%d" % offset:
            raise Reject("no")
        return forward(message)

    member = group.member(held, **{**ONCE, **options}).start()
    group.until(begun.is_set, "the handler has begun")
    polls = member.client.polls
    with broker.lock:
        broker.truncate(30)
        broker.produce(numbers(100, 110))
    group.until(lambda: member.client.polls > polls + 20, "the client has told the cut")
    group.gate.set()

    def written() -> list[bytes]:
        return [*broker.values("out"), *broker.values("t.dlq")]

    # Those behind the cut were at hand too, and are not in the log any more.
    group.until(lambda: set(written()) >= {*numbers(0, 30), *numbers(100, 110)}, "all is written")
    assert len(written()) == len(set(written()))
    counts = member.consumer.status.topics["t"]
    group.until(lambda: counts.handled - counts.rolled_back == len(written()), "the account is right")
    assert counts.dead_lettered == len(broker.values("t.dlq")) == refused


def test_a_log_that_is_cut_before_its_first_transaction_is_aborted_is_read_from_where_it_began(
    broker: FakeBroker, group: Group
) -> None:
    member = with_outputs_under_way(broker, group, numbers(0, 40), numbers(500, 510))
    assert broker.offset() is None
    with broker.lock:
        broker.lose(("t", 1))
        broker.truncate(30)
        broker.produce(numbers(100, 110))
    group.until(lambda: member.consumer.status.rebalances["lost"], "a partition is lost")
    polls = member.client.polls
    group.until(lambda: member.client.polls > polls + 20, "the client has told the cut")
    broker.outcome = lambda _: None
    wanted = {*numbers(0, 30), *numbers(100, 110)}
    group.until(lambda: set(broker.values("out")) >= wanted, "all is written")
    assert len(broker.values("out")) == len(set(broker.values("out")))


def test_messages_of_a_topic_that_was_created_again_count_when_their_outputs_are_written(
    broker: FakeBroker, group: Group
) -> None:
    """Of the old topic the messages beyond the one at hand are done, and their outputs cannot be committed any more."""
    broker.produce(numbers(0, 40), key=key_of_ten)
    _, hold = group.hold_at(5)
    done = set()

    def held(message: Message) -> Outgoing:
        if message.value() == b"5":
            hold(message)
        done.add(message.value())
        return forward(message)

    member = group.member(held, **ONCE, **BY_KEY).start()
    group.until(lambda: broker.offset() == 5 and len(done) == 36, "the other keys are done")
    group.until(lambda: member.lag() is not None, "the brokers have told the end")
    with broker.lock:
        broker.create("t")
        # It is longer than the old one was, so that only its id tells.
        broker.produce(numbers(100, 140), key=key_of_ten)
    group.until(lambda: member.client.seeks or len(done) > 36, "the new topic is read")
    group.gate.set()
    group.until(lambda: set(broker.values("out")) >= {*numbers(100, 140)}, "the new topic is written")
    counts = member.consumer.status.topics["t"]
    group.until(lambda: counts.handled - counts.rolled_back == len(broker.values("out")), "the account is right")


def test_deleted_messages_count_once_though_the_first_commit_behind_them_is_refused(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 20))
    finish(group)
    broker.produce(numbers(20, 60))
    broker.delete_before(30)
    Answers(broker, offsets=[ABORT])
    member = finish(group)
    assert broker.values("out") == [*numbers(0, 20), *numbers(30, 60)]
    assert member.consumer.status.topics["t"].deleted == 10


def test_a_topic_that_was_created_again_is_written_from_its_beginning(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 30))
    member = group.member(forward, **ONCE).start()
    group.until(lambda: broker.offset() == 30, "all is committed")
    group.until(lambda: member.lag() == 0, "ends are known")
    with broker.lock:
        broker.create("t")
        broker.produce(numbers(100, 140))
    # Until it is known as another one its offsets seem to go on: what comes behind the old end is written before.
    wanted = {*numbers(0, 30), *numbers(100, 140)}
    group.until(lambda: set(broker.values("out")) == wanted and broker.offset() == 40, "the new log is written")


@pytest.mark.parametrize("place", ["at the assignment", "after an abort"])
def test_a_partition_whose_offset_a_transaction_has_does_not_hold_up_the_others(
    broker: FakeBroker, group: Group, place: str
) -> None:
    broker.add_partition("t")
    broker.produce(numbers(0, 50))
    broker.produce(numbers(100, 150), partition=1)

    def refuse(call: str) -> KafkaError | None:
        if call != "offsets" or broker.unstable:
            return None
        broker.unstable = {("t", 0)}
        return ABORT

    if place == "at the assignment":
        broker.unstable = {("t", 0)}
    else:
        broker.answer = refuse
    member = group.member(forward, **ONCE).start()
    group.until(lambda: broker.offset(1) == 50, "the other goes on")
    assert broker.values("out") == numbers(100, 150)
    assert broker.offset() is None
    broker.answer = lambda _: None
    broker.unstable = set()
    group.until(lambda: broker.offset() == 50, "it goes on when that has ended")
    assert sorted(broker.values("out"), key=int) == [*numbers(0, 50), *numbers(100, 150)]
    assert member.client.joins == 1


def test_a_partition_of_a_topic_that_was_created_again_begins_there_again_when_its_first_transaction_is_aborted() -> (
    None
):
    """And not at the end, with --from-end; and what it is of is known, should it be created a third time."""
    assignment = Assignment(["t"])
    [state] = assignment.assign([TopicPartition("t", 0, 50)])
    fresh = assignment.reset(state, 0)
    assert assignment.of_other_topics({"t": "second"}, time.monotonic()) == []
    aborted = assignment.rewind(fresh)
    assert aborted.commit.restart_at is not None
    again = assignment.adopt(aborted.commit.restart_at)
    assert again.next_offset == 0
    assert assignment.of_other_topics({"t": "third"}, time.monotonic()) == [again]
    assert assignment.rewind(again).commit.restart_at is aborted.commit.restart_at
