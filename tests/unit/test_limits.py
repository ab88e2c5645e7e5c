"""The limits of a handler's rate (--max-rate) and of the share of dead letters (--max-dead-letter-share)."""

import time
from typing import Any

import pytest
from confluent_kafka import Message

from tests.unit.members import BY_KEY, Group, Handled, key_of_ten, numbers
from workers.consumer import breaker as module
from workers.consumer.breaker import LEAST, DeadLetterBreaker
from workers.consumer.failures import ErrorPolicy
from workers.handlers import Reject, batch
from workers.testing.memory import FakeBroker

ONE_ATTEMPT = ErrorPolicy(max_attempts=1, backoff_s=0.01, backoff_max_s=0.02)


@pytest.mark.parametrize("options", [{}, BY_KEY], ids=["one call", "by key"])
def test_a_handler_is_given_no_more_in_a_second_than_its_rate(
    broker: FakeBroker, group: Group, options: dict[str, Any]
) -> None:
    times: list[float] = []
    broker.produce(numbers(0, 500), key=key_of_ten)
    group.member(lambda _: times.append(time.monotonic()), max_rate=250, idle_timeout_s=0.5, **options).finish()

    assert len(times) == 500
    # A pause may be made up for within a second.
    assert times[-1] - times[0] >= 0.95
    assert broker.offset() == 500


def test_a_backlog_waits_at_the_brokers_while_the_rate_lets_few_messages_through(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn took one message more, and the next turn began at once."""
    monkeypatch.setattr("workers.consumer.flow.MAX_WAITING_MESSAGES", 0)
    broker.produce(numbers(0, 20_000))
    member = group.member(Handled(), max_rate=5).start()
    group.check_backlog_waits(member)


def test_batches_have_no_more_messages_than_the_rate_lets_through(broker: FakeBroker, group: Group) -> None:
    sizes: list[int] = []

    @batch
    def handler(messages: list[Message]) -> None:
        sizes.append(len(messages))

    broker.produce(numbers(0, 300))
    group.member(handler, max_rate=200, idle_timeout_s=0.5).finish()
    assert sum(sizes) == 300
    assert max(sizes) <= 201


@pytest.mark.parametrize("error", [ValueError("away"), Reject("not valid")], ids=["any error", "Reject"])
@pytest.mark.parametrize("options", [{}, BY_KEY], ids=["one call", "by key"])
def test_dead_letters_are_held_back_while_all_messages_fail(
    broker: FakeBroker, group: Group, options: dict[str, Any], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    broker.produce(numbers(0, 200), key=key_of_ten)
    away = [True]

    def fail(_: Message) -> None:
        if away:
            raise error

    handled = Handled(fail)
    member = group.member(handled, policy=ONE_ATTEMPT, max_dead_letter_share=0.1, **options).start()
    group.until(lambda: member.consumer.status.topics["t"].retried > 20, "messages are tried again")
    assert len(member.dead_letters.sent) == LEAST
    assert "more messages fail than --max-dead-letter-share allows" in caplog.text
    away.clear()
    group.until(lambda: broker.offset() == 200, "all the others are handled")
    member.stop()

    assert len(member.dead_letters.sent) == LEAST
    assert sorted({*handled.offsets, *(each.offset for each in member.dead_letters.sent)}) == [*range(200)]


def test_some_are_let_through_again_after_a_while(
    broker: FakeBroker, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_S", 0.3)
    broker.produce(numbers(0, 50))

    def fail(_: Message) -> None:
        raise ValueError("never")

    member = group.member(fail, policy=ONE_ATTEMPT, max_dead_letter_share=0.5).start()
    group.until(lambda: broker.offset() == 50, "each becomes a dead letter in the end")
    member.stop()
    assert len(member.dead_letters.sent) == 50


def test_a_share_below_the_limit_becomes_dead_letters() -> None:
    breaker = DeadLetterBreaker(0.1)
    for handled in range(0, 10_000, 20):
        assert breaker.allows(handled)
        breaker.note(handled)


def test_a_share_above_the_limit_does_not() -> None:
    breaker = DeadLetterBreaker(0.1)
    written = 0
    for handled in range(0, 10_000, 5):
        if breaker.allows(handled):
            breaker.note(handled)
            written += 1
    assert 950 <= written <= 1050


def test_without_a_limit_all_become_dead_letters() -> None:
    breaker = DeadLetterBreaker(None)
    for _ in range(1000):
        assert breaker.allows(0)
        breaker.note(0)
