"""Outputs of handlers: written before the offset of their message is committable, whatever happens meanwhile."""

import logging
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from confluent_kafka import KafkaError, Message

from tests.unit.members import BY_KEY, FOR_EVER, Group, Handled, key_of_ten, numbers
from workers.accounting.stamps import STAMP_HEADER, encode, stream_of
from workers.config import PRODUCER_DEFAULTS, ClientConfig, Precedence, Setting
from workers.consumer import outputs as module
from workers.consumer.answers import Answer, outputs_of
from workers.consumer.failures import ErrorPolicy
from workers.consumer.outputs import Outputs
from workers.consumer.received import Received
from workers.consumer.scheduling import Shard, Work
from workers.errors import ConfigError, WorkerError
from workers.handlers import batch
from workers.kafka.messages import headers_of
from workers.sources import Outgoing
from workers.testing.memory import LATER, FakeBroker
from workers.testing.processes import eventually


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker(t=1, out=1)


def forward(message: Message) -> Outgoing:
    return Outgoing(message.value(), key=message.key(), topic="out")


def twice(message: Message) -> Iterator[Outgoing]:
    yield forward(message)
    yield forward(message)


async def forward_async(message: Message) -> Outgoing:
    return forward(message)


async def yield_async(message: Message) -> AsyncIterator[Outgoing]:
    yield forward(message)


@batch
def forward_batch(messages: list[Message]) -> list[Outgoing]:
    return [*map(forward, messages)]


@batch
async def yield_batch_async(messages: list[Message]) -> AsyncIterator[Outgoing]:
    for message in messages:
        yield forward(message)


@pytest.mark.parametrize("options", [{}, BY_KEY], ids=["one call", "eight calls by key"])
@pytest.mark.parametrize("handler", [forward, forward_async, yield_async, forward_batch, yield_batch_async])
def test_what_a_handler_gives_back_is_written_in_order_and_its_messages_are_committed(
    broker: FakeBroker, group: Group, handler: Any, options: dict[str, Any]
) -> None:
    broker.produce(numbers(0, 300), key=key_of_ten)
    member = group.member(handler, idle_timeout_s=0.3, **options).finish()

    written = broker.values("out")
    assert sorted(written) == sorted(numbers(0, 300))
    for key in range(10):
        of_key = [int(value) for value in written if int(value) % 10 == key]
        assert of_key == sorted(of_key)
    assert broker.offset() == 300
    told = member.consumer.status.outputs["out"]
    assert (told.enqueued, told.acknowledged, told.failed, told.unknown) == (300, 300, 0, 0)
    assert member.consumer.status.outputs_in_flight == 0


def test_headers_of_a_message_that_are_passed_on_do_not_count_it_in_another_topic(
    broker: FakeBroker, group: Group
) -> None:
    def pass_on(message: Message) -> Outgoing:
        return Outgoing(message.value(), topic="out", headers=headers_of(message))

    broker.produce([b"0"], headers=[("mine", b"x"), (STAMP_HEADER, encode(stream_of("run", 0, 0), 0, 1))])
    group.member(pass_on, idle_timeout_s=0.3).finish()

    assert broker.values("out") == [b"0"]
    [written] = broker.logs["out", 0].records
    assert written.headers == [("mine", b"x")]


def test_a_handler_that_gives_nothing_back_needs_no_producer(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 10))
    group.member(Handled(), idle_timeout_s=0.2).finish()
    assert broker.offset() == 10
    assert broker.producers == []


def test_outputs_of_a_work_are_sent_together_and_awaited_once(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 500))
    group.member(forward, idle_timeout_s=0.3).finish()
    [producer] = broker.producers
    assert producer.most >= 100
    assert producer.closed


def test_nothing_is_committed_before_its_outputs_are_acknowledged_and_a_crash_redelivers_it(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 10))
    broker.outcome = lambda message: LATER if message.value() == b"4" else None
    member = group.member(forward).start()
    group.until(lambda: len(broker.values("out")) == 9, "all others are written")
    polls = member.client.polls
    group.until(lambda: member.client.polls > polls + 5, "the loop goes on to poll")
    group.until(lambda: broker.offset() == 4, "what is before it is committed")
    broker.kill()

    broker.outcome = lambda _: None
    group.member(forward, idle_timeout_s=0.3).finish()
    assert broker.values("out")[-6:] == numbers(4, 10)
    assert broker.offset() == 10


@pytest.mark.parametrize("options", [{}, BY_KEY])
def test_a_later_message_of_a_key_is_not_handled_before_the_outputs_of_an_earlier_one_are_acknowledged(
    broker: FakeBroker, group: Group, options: dict[str, Any]
) -> None:
    handled: list[tuple[Any, int]] = []

    def handler(message: Message) -> Outgoing:
        handled.append((message.key(), message.offset() or 0))
        return forward(message)

    broker.add_partition("t")
    broker.produce([b"first"], key=b"a")
    broker.outcome = lambda message: LATER if message.value() == b"first" else None
    member = group.member(handler, **options).start()
    group.until(lambda: member.consumer.status.outputs_in_flight == 1, "its output is under way")
    broker.produce([b"second"], key=b"a")
    broker.produce([b"other"], key=b"b", partition=1 if not options else 0)
    group.until(lambda: broker.values("out") == [b"other"], "another key goes on: its call is free")
    assert (b"a", 1) not in handled
    broker.outcome = lambda _: None
    group.until(lambda: broker.values("out") == [b"other", b"first", b"second"], "the key goes on")
    member.stop()


@pytest.mark.parametrize("options", [{}, BY_KEY])
@pytest.mark.parametrize("code", [KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.MSG_SIZE_TOO_LARGE])
def test_an_output_that_fails_is_a_failed_attempt_and_its_message_becomes_a_dead_letter(
    broker: FakeBroker, group: Group, options: dict[str, Any], code: int
) -> None:
    broker.produce(numbers(0, 20), key=lambda value: value)
    broker.outcome = lambda message: code if message.value() == b"7" else None
    member = group.member(forward, idle_timeout_s=0.3, **options).finish()

    assert {*broker.values("out")} == {*numbers(0, 20)} - {b"7"}
    [letter] = member.dead_letters.sent
    assert (letter.topic, letter.offset, letter.value, letter.attempts) == ("t.dlq", 7, b"7", 5)
    assert "an output to topic out was not written: " in letter.error
    assert broker.offset() == 20
    topic = member.consumer.status.topics["t"]
    assert (topic.handled, topic.retried, topic.dead_lettered) == (20, 4, 1)
    assert member.consumer.status.outputs["out"].failed == 5


def test_after_a_failed_output_a_work_counts_as_handled_up_to_its_message(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 10))
    failures = [KafkaError.UNKNOWN_TOPIC_OR_PART]
    broker.outcome = lambda message: failures.pop() if message.value() == b"4" and failures else None
    calls: list[int] = []

    def handler(message: Message) -> Outgoing:
        calls.append(message.offset() or 0)
        return forward(message)

    group.member(handler, idle_timeout_s=0.3).finish()

    assert calls.count(3) == 1
    assert calls.count(4) == 2
    assert [value for value in broker.values("out") if value in numbers(0, 5)] == numbers(0, 5)
    assert broker.offset() == 10


def test_a_failed_output_stops_the_worker_that_is_told_to_stop(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 10))
    broker.outcome = lambda message: KafkaError._UNKNOWN_TOPIC if message.value() == b"4" else None
    says = r"t\[0\] offset 4, attempt 2: FailedOutputError: .* topic out .* does not exist; create it, or correct"
    with pytest.raises(WorkerError, match=says):
        group.member(forward, policy=ErrorPolicy("stop", max_attempts=2, backoff_s=0.01)).finish()
    assert broker.offset() == 4


def test_an_output_that_brokers_did_not_answer_for_is_no_attempt_of_its_message(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 3))
    failures = [KafkaError._MSG_TIMED_OUT] * 8
    broker.outcome = lambda message: failures.pop() if message.value() == b"1" and failures else None
    member = group.member(forward, idle_timeout_s=0.3).finish()

    assert member.dead_letters.sent == []
    assert member.consumer.status.outputs["out"].unknown == 8
    assert broker.offset() == 3


def test_a_batch_whose_output_fails_is_taken_apart(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 10))
    broker.outcome = lambda message: KafkaError.TOPIC_AUTHORIZATION_FAILED if message.value() == b"4" else None
    member = group.member(forward_batch, idle_timeout_s=0.3).finish()

    assert {*broker.values("out")} == {*numbers(0, 10)} - {b"4"}
    assert [letter.offset for letter in member.dead_letters.sent] == [4]
    assert broker.offset() == 10


def test_an_output_that_is_too_large_for_the_client_says_what_to_do(
    broker: FakeBroker, group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    broker.produce([b"x"])

    def enlarge(_: Message) -> Outgoing:
        return Outgoing(b"x" * 2_000_000, topic="out")

    with caplog.at_level(logging.WARNING):
        member = group.member(enlarge, idle_timeout_s=0.3).finish()
    assert "2000000 bytes are too large; raise message.max.bytes (--property) and the topic's max" in caplog.text
    assert len(member.dead_letters.sent) == 1
    assert broker.offset() == 1


def test_an_output_without_a_topic_is_a_failed_attempt(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 2))
    member = group.member(lambda message: Outgoing(message.value()), idle_timeout_s=0.3).finish()
    assert [letter.error.partition(":")[0] for letter in member.dead_letters.sent] == ["an output has no topic"] * 2


def test_a_wrong_thing_given_back_ends_the_member_and_what_came_before_it_is_written_and_committed(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 10))

    def handler(message: Message) -> object:
        return forward(message) if message.offset() != 4 else 42

    with pytest.raises(ConfigError, match="handler handler returned an int; return None or messages to write"):
        group.member(handler).finish()
    assert broker.values("out") == numbers(0, 4)
    assert broker.offset() == 4


def test_a_revocation_waits_for_outputs_and_commits_their_messages(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 5))
    broker.outcome = lambda _: LATER
    member = group.member(forward).start()
    group.until(lambda: member.consumer.status.outputs_in_flight == 5, "outputs are under way")
    broker.revoke(("t", 0))
    threading.Timer(0.3, partial(setattr, broker, "outcome", lambda _: None)).start()
    group.until(lambda: broker.owners.get(("t", 0)) is None, "the partition is given up")

    group.until(lambda: broker.offset() == 5, "what was written is committed")
    assert broker.values("out") == numbers(0, 5)
    member.stop()


def test_a_revocation_does_not_wait_longer_than_it_may_and_leaves_the_messages_to_the_next_owner(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.consumer.membership.REVOKE_WAIT_S", 0.5)
    broker.produce(numbers(0, 5))
    broker.outcome = lambda message: None if message.value() in (b"0", b"1") else LATER
    member = group.member(forward).start()
    group.until(lambda: member.consumer.status.outputs_in_flight == 3, "outputs are under way")
    broker.revoke(("t", 0))
    group.until(lambda: broker.owners.get(("t", 0)) is None, "the partition is given up")

    group.until(lambda: broker.offset() == 2, "what is acknowledged is committed, and no more")
    broker.outcome = lambda _: None
    group.until(lambda: member.consumer.status.outputs_in_flight == 0, "they are written all the same")
    assert broker.offset() == 2
    member.stop()
    assert broker.offset() == 2


def test_outputs_of_a_lost_partition_commit_nothing(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 5))
    broker.outcome = lambda _: LATER
    member = group.member(forward).start()
    group.until(lambda: member.consumer.status.outputs_in_flight == 5, "outputs are under way")
    broker.lose(("t", 0))
    group.until(lambda: broker.owners.get(("t", 0)) is None, "the partition is lost")
    broker.outcome = lambda _: None
    group.until(lambda: member.consumer.status.outputs_in_flight == 0, "they are written")
    member.stop()

    assert not broker.offset()


def test_a_stop_waits_for_outputs_and_commits_their_messages(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 5))
    looks: list[Message] = []

    def under_way(message: Message) -> int:
        looks.append(message)
        return LATER

    broker.outcome = under_way
    member = group.member(forward).start()
    group.until(lambda: member.consumer.status.outputs_in_flight == 5, "outputs are under way")
    member.shutdown.request()
    before = len(looks)
    # More than in the turn that the loop may have begun.
    group.until(lambda: len(looks) > before + 10 * 5, "the stop looks for their outcomes")
    broker.outcome = lambda _: None
    member.finish()

    assert member.consumer.trouble is None
    assert (broker.values("out"), broker.offset()) == (numbers(0, 5), 5)


def test_a_stop_takes_no_longer_than_it_may_and_says_what_was_not_acknowledged(
    broker: FakeBroker, group: Group
) -> None:
    broker.produce(numbers(0, 5))
    broker.outcome = lambda message: None if message.value() in (b"0", b"1") else LATER
    member = group.member(forward, stop_timeout_s=0.5).start()
    group.until(lambda: member.consumer.status.outputs_in_flight == 3, "outputs are under way")
    member.stop()

    assert member.consumer.trouble == "3 outputs were not acknowledged in time; their messages are redelivered"
    assert broker.offset() == 2
    told = member.consumer.status.outputs["out"]
    assert (told.enqueued, told.acknowledged, told.unknown) == (5, 2, 3)


@pytest.mark.parametrize("options", [{}, BY_KEY])
def test_a_member_handles_no_more_than_it_is_asked_for_while_outputs_are_under_way(
    broker: FakeBroker, group: Group, options: dict[str, Any]
) -> None:
    broker.produce(numbers(0, 300), key=key_of_ten)
    group.member(forward, max_messages=123, **options).finish()
    assert len(broker.values("out")) == 123


def test_messages_behind_one_whose_output_failed_are_not_replaced_by_others_of_the_last_messages(
    broker: FakeBroker, group: Group
) -> None:
    broker.add_partition("t")
    for partition in range(2):
        broker.produce(numbers(0, 50), partition=partition)
    begun: set[tuple[int, int]] = set()
    refused: list[bytes] = []

    def outcome(message: Message) -> int | None:
        if message.value() == b"3" and len(refused) < 4:
            refused.append(b"3")
            return KafkaError.TOPIC_AUTHORIZATION_FAILED
        return None

    def note(message: Message) -> Outgoing:
        begun.add((message.partition() or 0, message.offset() or 0))
        return forward(message)

    broker.outcome = outcome
    group.member(note, max_messages=12).finish()

    assert len(begun) == 12


def test_waiting_for_brokers_to_acknowledge_is_no_stall(broker: FakeBroker, group: Group) -> None:
    broker.produce(numbers(0, 5))
    broker.outcome = lambda _: LATER
    member = group.member(forward, stall_timeout_s=0.2, policy=FOR_EVER).start()
    group.until(lambda: member.consumer.status.outputs_in_flight == 5, "outputs are under way")
    broker.produce(numbers(5, 10))
    at = member.consumer.status.at
    group.until(lambda: member.consumer.status.at > at + 0.6, "it waits for longer than a stall")
    assert member.consumer.live() is None


def test_what_is_under_way_is_bounded_and_all_is_written(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_MESSAGES", 50)
    broker.produce(numbers(0, 500), key=key_of_ten)
    member = group.member(twice, idle_timeout_s=0.3, **BY_KEY).start()
    most = 0

    def watch() -> bool:
        nonlocal most
        most = max(most, member.consumer.status.outputs_in_flight)
        return member.ended

    eventually(watch, "the member ends", 30)
    member.finish()

    assert len(broker.values("out")) == 1000
    assert broker.producers[0].most <= 50
    assert broker.offset() == 500


# Without a consumer


class Partition:
    owned = True
    key = ("t", 0)
    next_offset = 0


def work_with(*handed: list[Outgoing]) -> Work:
    received = Received([Message(topic="t", partition=0, offset=n, value=b"%d" % n) for n in range(len(handed))])
    partition = Partition()
    work = Work(partition, [Shard(partition, None)], [received])
    for place, outgoing in enumerate(handed):
        if outgoing:
            work.answers.append(Answer(place, outputs_of(forward, outgoing)))
        work.handled = place + 1
    work.finished = True
    return work


def config(**properties: str) -> ClientConfig:
    told = {"bootstrap.servers": "127.0.0.1:1", "log_level": "0"}
    settings = {**told, **{name.replace("__", "."): value for name, value in properties.items()}}
    return ClientConfig(PRODUCER_DEFAULTS, [Setting(*each, Precedence.COMMAND_LINE, "") for each in settings.items()])


def to_out(*values: bytes) -> list[Outgoing]:
    return [Outgoing(value, topic="out") for value in values]


def is_empty(outputs: Outputs) -> bool:
    outputs.poll(0.01)
    return not outputs.messages


def test_a_full_queue_of_the_client_delays_outputs_and_loses_none(broker: FakeBroker) -> None:
    outputs = Outputs(config(), connect=broker.connect_producer)
    outputs.send(work_with(to_out(b"1")))
    eventually(lambda: is_empty(outputs), "the first is written", 5)
    broker.producers[0].room = 2
    work = work_with(to_out(*numbers(2, 9)), [], to_out(b"9"))
    outputs.send(work)
    eventually(lambda: is_empty(outputs), "all are written", 5)

    assert broker.values("out") == numbers(1, 10)
    assert work.done == 3
    assert outputs.take()[-1] is work
    assert not outputs.works


def test_the_first_output_that_fails_keeps_the_later_ones_of_its_work_from_being_sent(broker: FakeBroker) -> None:
    outputs = Outputs(config(), connect=broker.connect_producer)
    work = work_with(to_out(b"1"), to_out(b"x" * 2_000_000), to_out(b"3"))
    outputs.send(work)
    eventually(lambda: is_empty(outputs), "all have an outcome", 5)

    assert outputs.take() == [work]
    assert (work.handled, work.done) == (1, 1)
    assert "too large" in str(work.error)
    assert broker.values("out") == [b"1"]
    assert outputs.bytes == 0


def test_a_client_that_cannot_be_made_ends_the_worker_with_its_reason(broker: FakeBroker) -> None:
    def refuse(_: dict[str, Any]) -> Any:
        raise ConfigError("--property: linger.ms cannot be used")

    outputs = Outputs(config(), connect=refuse)
    outputs.send(work_with(to_out(b"1")))
    with pytest.raises(WorkerError, match="--property: linger"):
        outputs.poll(0)


def test_a_changed_certificate_is_taken_up_when_nothing_is_under_way(
    broker: FakeBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.kafka.credentials.INTERVAL_S", 0.0)
    certificates = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(certificates)
    told = config(security__protocol="ssl", ssl__ca__location=str(certificates))
    outputs = Outputs(told, connect=broker.connect_producer)
    broker.outcome = lambda _: LATER
    outputs.send(work_with(to_out(b"1")))
    trustme.CA().cert_pem.write_to_path(certificates)
    outputs.poll(0.01)
    outputs.send(work_with(to_out(b"2")))
    assert len(broker.producers) == 1
    broker.outcome = lambda _: None
    eventually(lambda: is_empty(outputs), "all are written", 5)

    assert len(broker.producers) == 2
    assert broker.producers[0].closed
    assert broker.values("out") == [b"1", b"2"]
