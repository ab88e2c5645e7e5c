"""Carries out what is decided about messages whose handler raised: retries, dead letters, stops. Called by the loop's
thread.
"""

import logging
import time

from confluent_kafka import Message

from workers.consumer.assignment import PartitionState
from workers.consumer.breaker import DeadLetterBreaker
from workers.consumer.failures import (
    Decision,
    ErrorPolicy,
    Isolate,
    OnDecision,
    RetryLater,
    SendDeadLetter,
    Stop,
    decide,
    random_jitter,
)
from workers.consumer.flow import FlowControl
from workers.consumer.parts import DeadLetterWriter, Parts
from workers.consumer.received import Received
from workers.consumer.scheduling import Shard, Work
from workers.deadletters.headers import dead_letter_topic
from workers.deadletters.writer import DeadLetter, too_large
from workers.errors import WorkerError
from workers.handlers import OutputClosedError, OutputError, Retry
from workers.kafka.messages import MessagePlace
from workers.loading import located, named

log = logging.getLogger(__name__)

# How long a stop waits for dead letters that are under way.
DEAD_LETTERS_TIMEOUT_S = 5.0


def described(error: BaseException) -> str:
    """An error in one line for the log, with the remedy for one that a new user meets: sqlite3 among threads."""
    text = located(error)
    if "can only be used in that same thread" not in text:
        return text
    return f"{text}; open it in each thread, in a lifespan marked with @lifespan(per_thread=True)"


class FailedMessages:
    """Messages that wait for a retry or for their dead letter, of which the scheduler keeps the shards."""

    def __init__(
        self,
        parts: Parts,
        flow: FlowControl,
        policy: ErrorPolicy,
        dead_letters: DeadLetterWriter,
        breaker: DeadLetterBreaker,
        on_decision: OnDecision | None = None,
    ) -> None:
        self._parts = parts
        self._flow = flow
        self._policy = policy
        self._dead_letters = dead_letters
        self._breaker = breaker
        self._on_decision = on_decision
        self._on_decision_failed = False

    def on_failure(self, work: Work, error: Exception) -> None:
        """Decide what becomes of the messages for which the handler raised: the first that was not handled, or all of a
        batch.
        """
        if isinstance(error, OutputClosedError):
            self._parts.shutdown.request()
            return
        if isinstance(error, OutputError):
            raise WorkerError(f"standard output cannot be written: {error}; unprinted messages are redelivered")
        state = work.partition
        assert isinstance(state, PartitionState)
        work.received.part(work.handled).restore(state.topic.name)
        where = MessagePlace(*state.key, work.received.offset(work.handled))
        messages = len(work) if self._parts.executor.batch else 1
        isolated = False
        for shard, part in zip(work.shards, work.parts, strict=True):
            self._count_attempt(work, shard, part, error)
            withheld = not self._breaker.allows(self._parts.assignment.handled)
            decision = decide(
                self._policy,
                error,
                messages=messages,
                attempts=shard.attempts,
                backoff_step=shard.backoff_step,
                jitter=random_jitter(),
                withheld=withheld,
            )
            self._tell(shard.queue[0].messages[0], error, decision, shard.attempts)
            match decision:
                case Isolate():
                    isolated = True
                    self._isolate(shard, part)
                case RetryLater(pause_s):
                    if withheld:
                        self._say_withheld()
                        self._parts.outputs.try_again(work)
                    self._retry_later(state, shard, pause_s, error, where)
                case SendDeadLetter():
                    self._condemn(state, shard, error, where)
                case Stop():
                    raise WorkerError(
                        f"stopping as --on-error says: handler failed at {where}, attempt {shard.attempts}: "
                        f"{described(error)}"
                    )
        if isolated:
            log.info("%s: a batch of %d failed, trying its messages one by one: %s", state, messages, described(error))

    def _count_attempt(self, work: Work, shard: Shard, part: Received, error: Exception) -> None:
        # The shard may be new: an aborted transaction has its messages handled again.
        shard.attempts = max(shard.attempts, work.earlier_attempts)
        shard.backoff_step = max(shard.backoff_step, work.earlier_attempts) + 1
        shard.attempts += not isinstance(error, Retry)
        given = len(part) if self._parts.executor.batch else max(1, work.given - work.handled)
        self._parts.scheduler.note_failed(shard, given)

    def _isolate(self, shard: Shard, part: Received) -> None:
        # The batch's failure is nobody's own yet.
        shard.forget_failures()
        shard.isolating = len(part)
        self._parts.scheduler.resume(shard)

    def _retry_later(
        self, state: PartitionState, shard: Shard, pause_s: float, error: Exception, where: MessagePlace
    ) -> None:
        state.topic.retried += 1
        log.warning("%s: attempt %d failed, next in %.1f s: %s", where, shard.backoff_step, pause_s, described(error))
        self._parts.scheduler.block(shard, time.monotonic() + pause_s)
        if state.in_order:
            self._flow.pause([state])
            self._flow.give_back(state)

    def _say_withheld(self) -> None:
        self._parts.client_state.say(
            "dead letters",
            "more messages fail than --max-dead-letter-share allows, so they are tried again and none becomes a dead "
            "letter; look at what the handler needs",
        )

    def _condemn(self, state: PartitionState, shard: Shard, error: Exception, where: MessagePlace) -> None:
        log.warning("%s: to the dead-letter topic after %d attempts: %s", where, shard.attempts, described(error))
        self._breaker.note(self._parts.assignment.handled)
        self._parts.scheduler.condemn(shard, error)
        self._send(state, shard)

    def leave_to_next_owner(self, work: Work, error: Exception) -> None:
        """Decide nothing, and say so: the partition has gone, or begins again after an aborted transaction."""
        self._tell(work.received.messages[work.handled], error, None, work.shards[0].attempts)

    def _tell(self, message: Message, error: Exception, decision: Decision | None, attempts: int) -> None:
        if self._on_decision is None:
            return
        try:
            self._on_decision(message, error, decision, attempts)
        except Exception as raised:  # a span calls the samplers and processors of the user
            if not self._on_decision_failed:
                self._on_decision_failed = True
                log.error(
                    "the span of a failed call cannot be written: %s; the message is treated as without tracing, and "
                    "later errors are not logged; check the samplers and span processors of OpenTelemetry",
                    named(raised),
                )

    def _send(self, state: PartitionState, shard: Shard) -> None:
        assert shard.error is not None
        if state.in_order:
            self._flow.pause([state])
        shard.dead_letter = self._dead_letters.send(shard.queue[0].messages[0], shard.error, shard.attempts)

    def look_after_dead_letters(self) -> None:
        """Serve delivery reports of dead letters, and send again those that were not written."""
        self._dead_letters.poll(0)
        for shard in [*self._parts.scheduler.dead_letters]:
            state = shard.partition
            assert isinstance(state, PartitionState)
            if isinstance(shard.dead_letter, DeadLetter):
                self._on_dead_letter(state, shard, shard.dead_letter)
            elif shard.retry_at <= time.monotonic():
                self._send(state, shard)

    def _on_dead_letter(self, state: PartitionState, shard: Shard, dead_letter: DeadLetter) -> None:
        if dead_letter.delivered is None:
            return
        shard.dead_letter = None
        if dead_letter.delivered:
            first = self._parts.scheduler.absolve(shard)
            state.topic.dead_lettered += not self._dead_letters.held
            self._parts.assignment.complete(state, first, 0, 1)
            return
        message = shard.queue[0].messages[0]
        where = MessagePlace(*state.key, message.offset())
        topic = dead_letter_topic(message.topic() or "", self._dead_letters.named)
        if dead_letter.too_large:
            raise too_large(where, topic, dead_letter.error)
        shard.backoff_step += 1
        pause_s = self._policy.pause_s(shard.backoff_step, random_jitter())
        log.error(
            "%s: not written to the dead-letter topic %s, next try in %.1f s, nothing is skipped: %s",
            where, topic, pause_s, dead_letter.error,
        )  # fmt: skip
        shard.retry_at = time.monotonic() + pause_s
        if state.in_order:
            self._flow.give_back(state)

    def await_dead_letters(self) -> None:
        """A dead letter that is under way is written all the same, so its message shall not be redelivered."""
        until = time.monotonic() + min(DEAD_LETTERS_TIMEOUT_S, self._parts.shutdown.remaining_s())
        while self._under_way() and time.monotonic() < until and self._parts.client_state.fatal is None:
            self._dead_letters.poll(0.05)
        for shard in [*self._parts.scheduler.dead_letters]:
            state = shard.partition
            assert isinstance(state, PartitionState)
            if isinstance(shard.dead_letter, DeadLetter) and shard.dead_letter.delivered:
                self._on_dead_letter(state, shard, shard.dead_letter)

    def _under_way(self) -> bool:
        dead_letters = [shard.dead_letter for shard in self._parts.scheduler.dead_letters]
        return any(
            isinstance(dead_letter, DeadLetter) and dead_letter.delivered is None for dead_letter in dead_letters
        )
