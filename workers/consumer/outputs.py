"""Writes what handlers give back; only then is the message done that it is of. Called by the loop's thread.

The outputs of a work are sent in their order, and awaited together. Meanwhile its shards stay at work, so that no later
message of the same key is handled, and its call is free for others.
"""

from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message

from workers.config import ClientConfig
from workers.consumer.answers import MAX_BYTES, MAX_MESSAGES, Answer, FailedOutputError, Output
from workers.consumer.scheduling import Partition, Work
from workers.errors import ConfigError, ExitCode, WorkerError
from workers.handlers import Retry
from workers.kafka.client import BESIDE_A_CONSUMER, reason_of
from workers.kafka.renewed import RenewedProducer
from workers.lifecycle import call_with_timeout
from workers.producer.deliveries import DeliveriesByTopic, outcome_of

# How often outcomes are looked for while a stop or a rebalance waits for them.
LOOK_S = 0.05


class _Sending:
    """The outputs of one work on their way: those that are not sent, and how many were and have no outcome."""

    __slots__ = ("unanswered", "unsent", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self.unsent = deque((answer, output) for answer in work.answers for output in answer.outputs)
        self.unanswered = 0

    @property
    def over(self) -> bool:
        return not self.unsent and not self.unanswered


class Outputs:
    """The outputs under way. Their client is made with the first one: most handlers give nothing back.

    `messages` and `bytes` are those of all outputs without an outcome. `connect` makes the client of its callbacks.
    """

    transaction = None
    only_next = False

    def __init__(
        self,
        config: ClientConfig,
        auth_timeout_s: float = 0.0,
        connect: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        # Outcomes of outputs, by topic; for the metrics and the account.
        self.topics = DeliveriesByTopic()
        self.messages = 0
        self.bytes = 0
        self._producer = RenewedProducer(config, auth_timeout_s, properties=BESIDE_A_CONSUMER, connect=connect)
        self._sendings: dict[Work, _Sending] = {}
        # Those that have something to send, in the order in which they came.
        self._queue: deque[_Sending] = deque()
        self._over: list[Work] = []
        self._closed = False

    @property
    def works(self) -> Collection[Work]:
        return self._sendings.keys()

    @property
    def full(self) -> bool:
        """Whether the outputs under way have reached their bound, so that no other message may begin."""
        return self.messages >= MAX_MESSAGES or self.bytes >= MAX_BYTES

    def send(self, work: Work) -> None:
        """Take the answers of a finished work; `take` returns it when all its outputs have an outcome."""
        if self._closed or work in self._sendings:
            return
        sending = self._sendings[work] = _Sending(work)
        self.messages += len(sending.unsent)
        self.bytes += sum(output.size for _, output in sending.unsent)
        self._queue.append(sending)
        self._send_what_fits()

    def try_again(self, work: Work) -> None:
        """Nothing is remembered of outputs that failed."""

    def poll(self, timeout_s: float) -> None:
        """Serve delivery reports, and send waiting outputs; raises WorkerError when the client cannot go on."""
        self._hear(timeout_s)
        self._producer.state.check()

    def take(self) -> list[Work]:
        """The works whose outputs have their outcomes. Where one has failed, its message was not handled."""
        over, self._over = self._over, []
        for work in over:
            del self._sendings[work]
            failed = next((answer for answer in work.answers if answer.error is not None), None)
            if failed is not None:
                work.given, work.handled, work.error = work.handled, failed.place, failed.error
            work.answers.clear()
        return over

    def forsake(self, partitions: Collection[Partition], *, lost: bool = True) -> None:  # noqa: ARG002  (the interface)
        """Send no more for partitions that have gone, and forget their works."""
        for work in [work for work in self._sendings if work.partition in partitions]:
            self._withdraw(self._sendings.pop(work))
        self._over = [work for work in self._over if work in self._sendings]

    def await_outcomes(self, left_s: Callable[[], float], partitions: Collection[Partition] | None = None) -> int:
        """Wait for the outcomes of all outputs, or of those of some partitions, while `left_s` says that there is time;
        return how many have none. Raises nothing, as rebalance callbacks wait here too.
        """
        of = [each for each in self._sendings.values() if partitions is None or each.work.partition in partitions]
        while not all(each.over for each in of) and self._producer.state.fatal is None:
            longest_s = left_s()
            if longest_s <= 0:
                break
            self._hear(min(LOOK_S, longest_s))
        return sum(len(each.unsent) + each.unanswered for each in of)

    def close(self, timeout_s: float) -> str | None:
        """End the client. Outputs without an outcome get one, and their messages are redelivered; return None."""
        self._closed = True
        for sending in self._sendings.values():
            self._withdraw(sending)
        self._sendings.clear()
        self._queue.clear()
        if self._producer.client is not None:
            self._producer.purge()
            call_with_timeout(self._producer.client.close, timeout_s)
            self._producer.client = None
        return None

    # The client

    def _hear(self, timeout_s: float) -> None:
        self._producer.serve(timeout_s)
        self._send_what_fits()

    def _send_what_fits(self) -> None:
        # A new client is made when nothing is under way, so outputs that come before that wait.
        if not self._queue or self._producer.due:
            return
        try:
            client = self._producer.made()
        except ConfigError as error:
            self._producer.state.fatal = WorkerError(str(error), ExitCode.USAGE)
            return
        while self._queue:
            sending = self._queue[0]
            while sending.unsent:
                if len(client) >= MAX_MESSAGES or not self._produce(sending, *sending.unsent[0]):
                    return
            self._queue.popleft()

    def _produce(self, sending: _Sending, answer: Answer, output: Output) -> bool:
        """Hand one output to the client; False when its queue is full."""
        on_delivery = partial(self._on_delivery, sending, answer, output)
        failed: KafkaError | None = None
        try:
            produce(self._producer.client, output, on_delivery)
        except BufferError:
            return False
        except KafkaException as error:
            failed = error.args[0]
        sending.unsent.popleft()
        sending.unanswered += 1
        self.topics[output.topic].enqueued += 1
        if failed is not None:
            on_delivery(failed, Message(topic=output.topic))
        return True

    def _on_delivery(
        self, sending: _Sending, answer: Answer, output: Output, error: KafkaError | None, message: Message
    ) -> None:
        """The delivery report, once for each output, from inside `poll`."""
        self.topics[output.topic].on_delivery(error, message)
        self.messages -= 1
        self.bytes -= output.size
        sending.unanswered -= 1
        if error is None:
            answer.pending -= 1
        else:
            answer.error = answer.error or failure_of(error, output)
            self._withdraw(sending)
        if sending.over and self._sendings.get(sending.work) is sending:
            self._over.append(sending.work)

    def _withdraw(self, sending: _Sending) -> None:
        """Do not send the rest."""
        self.messages -= len(sending.unsent)
        self.bytes -= sum(output.size for _, output in sending.unsent)
        sending.unsent.clear()


def produce(client: Any, output: Output, on_delivery: Callable[[KafkaError | None, Message], None]) -> None:
    """Hand one output to a producer; raises as its `produce`."""
    record = output.record
    client.produce(
        output.topic,
        record["value"],
        record["key"],
        partition=record.get("partition", -1),
        timestamp=record.get("timestamp", 0),
        headers=record.get("headers", []),
        on_delivery=on_delivery,
    )


def failure_of(error: KafkaError, output: Output) -> Exception:
    """The error of the message whose output this is. Where the output may be in the log all the same, brokers were
    unreachable, which is not the message's fault: such an attempt is not counted.
    """
    text = f"an output to topic {output.topic} was not written: {reason_of(error, output.size)}"
    return Retry(text) if outcome_of(error) == "unknown" else FailedOutputError(text)
