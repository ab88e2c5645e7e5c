"""Messages whose outputs brokers refuse, with exactly-once: which they are, and what becomes of them.

Called by the loop's thread.

A refused output aborts its transaction, so its message is handled again. Where several were refused, as they were
written together, each is committed alone at first, to find out which one brokers do not take. At its last attempt the
policy decides, as for a handler that fails.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from confluent_kafka import KafkaError, Message

from workers.consumer.answers import Output
from workers.consumer.assignment import Key, PartitionState
from workers.consumer.failures import ErrorPolicy, RetryLater, SendDeadLetter, Stop, decide, random_jitter
from workers.consumer.scheduling import Work
from workers.deadletters.writer import too_large
from workers.errors import WorkerError
from workers.kafka.client import TOO_LARGE
from workers.kafka.messages import MessagePlace
from workers.producer.deliveries import DeliveriesByTopic

log = logging.getLogger(__name__)

# A message: its partition and its offset.
Place = tuple[Key, int]


class Verdict(NamedTuple):
    """The consequence of refused outputs: a pause in seconds, and the error that ends the worker, or None."""

    pause_s: float = 0.0
    fatal: WorkerError | None = None


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why brokers do not take an output of a message."""

    output: Output
    error: KafkaError
    failure: Exception


@dataclass(frozen=True, slots=True)
class _Failure:
    """How often the outputs of a message were refused, why, and whether it is to become a dead letter."""

    attempts: int
    error: Exception
    condemned: bool


class Refusals:
    """The refused outputs of the open transaction, and the messages that failed by them and are not committed."""

    def __init__(self, policy: ErrorPolicy, topics: DeliveriesByTopic) -> None:
        self._policy = policy
        self._topics = topics
        # Of the open transaction.
        self._refused: dict[Place, _Refusal] = {}
        # Messages whose output is their dead letter.
        self._dead_letters: set[Place] = set()
        self._failures: dict[Place, _Failure] = {}
        # Messages of which one was refused: each is in a transaction of its own, to know which.
        self._suspects: set[Place] = set()

    @property
    def one_by_one(self) -> bool:
        """Whether each message is to be committed alone: one may be refused, or is to become a dead letter."""
        return bool(self._suspects) or any(failure.condemned for failure in self._failures.values())

    # Before a transaction

    def fail_again(self, state: PartitionState, work: Work, *, batch: bool) -> None:
        """Have a work fail at a message whose outputs brokers have refused before, where that was the last attempt; and
        a batch that has others besides it, which are tried one by one then.
        """
        if not self._failures:
            return
        if batch:
            places = [(state.key, work.received.offset(place)) for place in range(work.handled)]
            known = [self._failures[place] for place in places if place in self._failures]
            if known and (known[0].condemned or len(work) > 1):
                _fail(work, 0, known[0])
            return
        for answer in work.answers:
            failure = self._failures.get((state.key, work.received.offset(answer.place)))
            if failure is not None and failure.condemned:
                _fail(work, answer.place, failure)
                return

    def try_again(self, work: Work) -> None:
        """A dead letter was due for messages of `work`, and is held back."""
        for place in range(len(work)):
            at = work.partition.key, work.received.offset(place)
            if at in self._failures:
                self._failures[at] = replace(self._failures[at], condemned=False)

    def expect_dead_letter(self, place: Place) -> None:
        """Note that the output of a message is its dead letter."""
        self._dead_letters.add(place)

    # In a transaction

    def note(self, place: Place, output: Output, error: KafkaError, failure: Exception) -> None:
        """Note that brokers refused an output, and what its message fails with: the first of each message counts."""
        self._refused.setdefault(place, _Refusal(output, error, failure))

    def count_dead_letters(self, ends: Mapping[Key, int]) -> Counter[Key]:
        """The dead letters of messages before `ends`, by partition."""
        return Counter(key for key, offset in self._dead_letters if offset < ends.get(key, 0))

    # After a transaction

    def pass_over(self, ends: Mapping[Key, int]) -> None:
        """Forget messages before `ends`, which are committed."""

        def remains(place: Place) -> bool:
            return place[1] >= ends.get(place[0], 0)

        if self._failures or self._dead_letters or self._suspects:
            self._failures = {place: failure for place, failure in self._failures.items() if remains(place)}
            self._dead_letters = set(filter(remains, self._dead_letters))
            self._suspects = set(filter(remains, self._suspects))

    def forget(self, key: Key) -> None:
        """Forget the messages of a partition that has gone."""
        for places in (self._dead_letters, self._suspects):
            places.difference_update([place for place in places if place[0] == key])
        self._failures = {place: failure for place, failure in self._failures.items() if place[0] != key}

    def end(self) -> None:
        """Forget the refused outputs: their transaction is over."""
        self._refused.clear()

    def judge(self, touched: Mapping[Key, PartitionState]) -> Verdict:
        """Decide what becomes of the message whose output was refused in a transaction that was aborted. `touched` are
        the partitions of that transaction.
        """
        # Of a partition that has gone meanwhile nothing is kept: no commit of this member would ever end that.
        refused = {place: refusal for place, refusal in self._refused.items() if touched[place[0]].owned}
        verdict = Verdict()
        if len(refused) > 1 and not self._suspects.issuperset(refused):
            self._suspects.update(refused)
        else:
            for place, refusal in refused.items():
                pause_s, fatal = self._judge(place, refusal)
                verdict = Verdict(max(verdict.pause_s, pause_s), fatal or verdict.fatal)
        # All of them are handled again.
        self._dead_letters.clear()
        return verdict

    def _judge(self, place: Place, refusal: _Refusal) -> Verdict:
        (topic, partition), offset = place
        where = MessagePlace(topic, partition, offset)
        known = self._failures.get(place)
        attempts = 1 if known is None else known.attempts + 1
        deliveries = self._topics[refusal.output.topic]
        deliveries.enqueued += 1
        deliveries.on_delivery(refusal.error, Message(topic=refusal.output.topic))
        decision = decide(
            self._policy, refusal.failure, messages=1, attempts=attempts, backoff_step=attempts, jitter=random_jitter()
        )
        log.warning("%s: attempt %d failed, its transaction is aborted: %s", where, attempts, refusal.failure)
        self._failures[place] = _Failure(attempts, refusal.failure, isinstance(decision, SendDeadLetter))
        if place in self._dead_letters:
            fatal = None
            if refusal.error.code() in TOO_LARGE:
                fatal = too_large(where, refusal.output.topic, refusal.error.str())
            return Verdict(self._policy.pause_s(attempts, random_jitter()), fatal)
        if isinstance(decision, Stop):
            return Verdict(
                fatal=WorkerError(f"stopping as --on-error says: {where}, attempt {attempts}: {refusal.failure}")
            )
        return Verdict(decision.pause_s) if isinstance(decision, RetryLater) else Verdict()


def _fail(work: Work, place: int, failure: _Failure) -> None:
    work.given, work.handled, work.error = work.handled, place, failure.error
    work.earlier_attempts = failure.attempts - 1
    while work.answers and work.answers[-1].place >= place:
        work.answers.pop()
