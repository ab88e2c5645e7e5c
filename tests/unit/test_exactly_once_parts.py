"""The parts of a transaction, each for itself: the outputs that are held, the refusals, and the counted outcomes."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from workers.consumer.answers import Answer, FailedOutputError, Output
from workers.consumer.assignment import Assignment, PartitionState
from workers.consumer.failures import ErrorPolicy
from workers.consumer.held_outputs import HeldOutputs
from workers.consumer.outcomes import Mark, Outcomes
from workers.consumer.received import Received
from workers.consumer.refusals import Refusals
from workers.consumer.scheduling import Work
from workers.producer.deliveries import DeliveriesByTopic

POLICY = ErrorPolicy(max_attempts=2, backoff_s=0.001)
REFUSED = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
OUTPUT = Output("out", {"value": b"v"}, 10)


def assignment(*numbers: int) -> Assignment:
    owned = Assignment(["t"])
    owned.assign(TopicPartition("t", number, 0) for number in numbers)
    return owned


@pytest.fixture
def state() -> PartitionState:
    return assignment(0).partitions["t", 0]


def work_of(state: PartitionState, *offsets: int) -> Work:
    """A work whose messages were all handled, and which has given an output for each."""
    messages = [Message(topic="t", partition=0, offset=offset, value=b"") for offset in offsets]
    work = Work(state, [], [Received(messages)])
    work.handled = len(messages)
    work.answers.extend(Answer(place, [OUTPUT]) for place in range(len(messages)))
    return work


# Held outputs

numbers = st.integers(0, 1)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("hold"), numbers, st.permutations(range(8))),
        st.tuples(st.just("release"), numbers, st.integers(0, 9)),
        st.tuples(st.sampled_from(["drop", "drop a later state", "begin anew", "clear"]), numbers, st.none()),
    ),
    max_size=20,
)


@given(steps)
def test_outputs_are_released_in_order_once_and_counted(steps: list[Any]) -> None:
    """Against a plain dictionary of what is held, in any order of steps."""
    owned, held = assignment(0, 1), HeldOutputs()
    reference: dict[int, dict[int, list[Output]]] = {0: {}, 1: {}}
    for step, number, argument in steps:
        state = owned.partitions["t", number]
        of = reference[number]
        match step:
            case "hold":
                # The scheduler hands out no message twice, and none before the low-water mark.
                for offset in argument:
                    if offset not in of and offset >= (state.next_offset or 0):
                        of[offset] = [Output("out", {"value": b""}, offset)] * (offset % 3)
                        held.hold(state, offset, of[offset])
            case "release":
                state.advance_to(max(argument, state.next_offset or 0))
                mark = state.next_offset or 0
                expected = [(each, output) for each in sorted(of) if each < mark for output in of.pop(each)]
                assert held.release(state) == expected
            case "drop":
                held.drop(state)
                of.clear()
            case "drop a later state":
                later = owned.rewind(state)
                held.drop(later)
                assert held.release(later) == []
                owned.partitions["t", number] = state
            case "begin anew":
                held.hold(owned.rewind(state), 0, [OUTPUT])
                of.clear()
                of[0] = [OUTPUT]
            case "clear":
                held.clear()
                for each in reference.values():
                    each.clear()
        outputs = [output for of in reference.values() for outputs in of.values() for output in outputs]
        assert (held.messages, held.bytes) == (len(outputs), sum(output.size for output in outputs))


# Refusals


def refuse(refusals: Refusals, state: PartitionState, *offsets: int) -> None:
    for offset in offsets:
        refusals.note((state.key, offset), OUTPUT, REFUSED, FailedOutputError("refused"))


def test_of_several_that_were_refused_together_each_is_tried_alone(state: PartitionState) -> None:
    refusals = Refusals(POLICY, DeliveriesByTopic())
    refuse(refusals, state, 3, 5)
    assert refusals.judge({state.key: state}) == (0.0, None)
    refusals.end()
    assert refusals.one_by_one

    refusals.pass_over({state.key: 4})
    assert refusals.one_by_one
    refusals.pass_over({state.key: 6})
    assert not refusals.one_by_one


def test_at_its_last_attempt_the_message_fails_and_those_after_it_are_not_written(state: PartitionState) -> None:
    topics = DeliveriesByTopic()
    refusals = Refusals(POLICY, topics)
    for attempt in (1, 2):
        refuse(refusals, state, 3)
        verdict = refusals.judge({state.key: state})
        refusals.end()
        assert verdict.fatal is None
        assert (verdict.pause_s > 0) == (attempt == 1)
        assert refusals.one_by_one == (attempt == 2)
    assert topics["out"].failed == 2

    work = work_of(state, 2, 3, 4)
    refusals.fail_again(state, work, batch=False)
    assert (work.handled, work.earlier_attempts, str(work.error)) == (1, 1, "refused")
    assert [answer.place for answer in work.answers] == [0]


def test_a_dead_letter_that_is_held_back_has_its_message_tried_again(state: PartitionState) -> None:
    refusals = Refusals(POLICY, DeliveriesByTopic())
    for _ in range(2):
        refuse(refusals, state, 3)
        refusals.judge({state.key: state})
        refusals.end()
    work = work_of(state, 3)
    refusals.try_again(work)

    refusals.fail_again(state, work, batch=False)
    assert work.error is None
    assert not refusals.one_by_one


def test_nothing_is_kept_of_a_partition_that_has_gone(state: PartitionState) -> None:
    refusals = Refusals(POLICY, DeliveriesByTopic())
    refuse(refusals, state, 3, 5)
    refusals.judge({state.key: state})
    refusals.end()
    refusals.forget(state.key)
    assert not refusals.one_by_one

    refuse(refusals, state, 3, 5)
    state.owned = False
    refusals.judge({state.key: state})
    assert not refusals.one_by_one


def test_a_dead_letter_that_no_topic_takes_ends_the_worker(state: PartitionState) -> None:
    refusals = Refusals(POLICY, DeliveriesByTopic())
    refusals.expect_dead_letter((state.key, 3))
    assert refusals.count_dead_letters({state.key: 3}) == Counter()
    assert refusals.count_dead_letters({state.key: 4}) == Counter({state.key: 1})
    refusals.note((state.key, 3), OUTPUT, KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), FailedOutputError("large"))

    fatal = refusals.judge({state.key: state}).fatal
    assert "t[0] offset 3, as nothing is skipped: topic out takes no dead letter of that size" in str(fatal)
    # The transaction was aborted: its dead letters were not written.
    assert refusals.count_dead_letters({state.key: 4}) == Counter()


# Outcomes


def marked(owned: Assignment, number: int, offset: int, messages: int) -> Mark:
    state = owned.partitions["t", number]
    state.commit.uncommitted = messages
    owned.handled += messages
    return Mark(state, TopicPartition("t", number, offset), messages, 0)


@pytest.mark.parametrize(
    ("confirmed", "successes", "failures", "acknowledged"), [(7, 1, 0, 3), (5, 0, 1, 0), (None, 0, 0, 0)]
)
def test_a_committed_offset_tells_what_became_of_a_commit_without_an_answer(
    confirmed: int | None, successes: int, failures: int, acknowledged: int
) -> None:
    owned, outcomes = assignment(0, 1), Outcomes()
    marks = [marked(owned, 0, 7, 2), marked(owned, 1, 9, 0)]
    outcomes.doubt(marks, Counter(out=3), "_TIMED_OUT")
    fresh = owned.rewind(owned.partitions["t", 0])
    assert fresh.awaits_committed
    assert owned.handled == 0
    if confirmed is not None:
        owned.adopt(TopicPartition("t", 0, confirmed))

    assert outcomes.settle(owned) == ([marks] if successes else [])
    assert (outcomes.successes, outcomes.failures) == (successes, failures)
    assert outcomes.topics["out"].acknowledged == acknowledged
    assert owned.handled == 2 * successes


def test_an_outcome_that_nothing_tells_any_more_is_unknown() -> None:
    enders: list[Callable[[Outcomes], None]] = [lambda each: each.forget(("t", 0)), Outcomes.close]
    for ended in enders:
        owned, outcomes = assignment(0), Outcomes()
        outcomes.doubt([marked(owned, 0, 7, 2)], Counter(out=3), "_TIMED_OUT")
        owned.partitions["t", 0].awaits_committed = True
        ended(outcomes)
        assert outcomes.settle(owned) == []
        assert (outcomes.successes, outcomes.failures) == (0, 1)
        assert outcomes.topics["out"].unknown == 3
        assert outcomes.topics["out"].errors == {"_TIMED_OUT": 3}
