"""How many messages a batch has."""

from collections.abc import Callable

import pytest

from workers.consumer.batching import FIRST_MESSAGES, MOST_S, BatchSize

MOST = 2000


def after(calls: int, cost_s: Callable[[int], float], size: BatchSize | None = None) -> BatchSize:
    """The size after as many full batches, each of which took what `cost_s` says for its messages."""
    size = size or BatchSize(MOST)
    for _ in range(calls):
        size.took(size.messages, cost_s(size.messages))
    return size


@pytest.mark.parametrize("message_s", [0.003, 0.01, 0.02, 0.1, 0.7, 1.5, 2.4])
def test_a_slow_handler_ends_with_batches_near_five_seconds_that_are_not_over_it(message_s: float) -> None:
    size = after(20, lambda messages: messages * message_s)

    assert MOST_S / 5 <= size.messages * message_s <= MOST_S


def test_a_handler_that_is_slower_than_that_for_one_message_gets_one() -> None:
    assert after(20, lambda messages: messages * 60.0).messages == 1


def test_a_quick_handler_reaches_the_limit_and_not_more() -> None:
    assert after(20, lambda messages: messages * 0.0001).messages == MOST
    assert after(20, lambda messages: messages * 0.0001, BatchSize(50)).messages == 50


@pytest.mark.parametrize("call_s", [5.1, 8.0, 60.0])
def test_a_fixed_cost_of_each_call_does_not_make_batches_of_one(call_s: float) -> None:
    assert after(30, lambda messages: call_s + messages * 0.001).messages >= FIRST_MESSAGES // 2


def test_a_fixed_cost_beside_slow_messages_ends_where_halving_stops_to_help() -> None:
    size = after(30, lambda messages: 4.0 + messages * 0.5)

    # Half of it would take 0.75 of its time or more.
    assert 4.0 + size.messages // 2 * 0.5 > 0.75 * (4.0 + size.messages * 0.5)
    assert size.messages > 1


def test_batches_grow_again_when_the_handler_has_recovered() -> None:
    size = after(20, lambda messages: messages * 1.0)
    assert size.messages <= MOST_S

    assert after(20, lambda messages: messages * 0.0001, size).messages == MOST


def test_a_batch_that_was_not_full_says_nothing_of_a_larger_one() -> None:
    size = BatchSize(MOST)
    for _ in range(20):
        size.took(3, 0.001)

    assert size.messages == FIRST_MESSAGES
