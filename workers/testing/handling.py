"""Runs a handler on messages without a broker: the consumer is the one that is shipped, its client is in memory."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

from confluent_kafka import Message

from workers.config import CONSUMER_DEFAULTS, PRODUCER_DEFAULTS, ClientConfig, Precedence, Setting
from workers.consumer.failures import ErrorPolicy
from workers.consumer.held_dead_letters import HeldDeadLetters
from workers.consumer.loop import Consumer
from workers.consumer.options import Handling, Limits
from workers.consumer.outputs import Outputs
from workers.consumer.parts import DeadLetterWriter, OutputSender
from workers.consumer.scheduling import Order
from workers.consumer.status import PartitionStatus
from workers.consumer.transactions import Transaction
from workers.handlers import Handler, Lifespan, Middleware, lifespan_of, load_handler
from workers.kafka.messages import is_topic_name
from workers.lifecycle import Shutdown
from workers.sources import Outgoing, record_of
from workers.testing.calls import Calls
from workers.testing.importing import imported_anew
from workers.testing.memory import FakeBroker, FakeClient, FakeDeadLetters, FakeWatermarks, Letter

# pytest shows no frames of this module: a fault is the handler's, and stands in the error's message.
__tracebackhide__ = True

TOPIC = "t"
TIMEOUT_S = 10.0
ON_ERROR = ("retry", "dead-letter", "stop")
# Retries come at once: a test waits for nothing.
AT_ONCE = ErrorPolicy(backoff_s=0.001, backoff_max_s=0.001)
LOOK_S = 0.002


class Member:
    """A consumer on a broker in memory, in a thread of its own."""

    def __init__(
        self,
        broker: FakeBroker,
        lifespan: Lifespan,
        *,
        properties: dict[str, str] | None = None,
        dead_letters: FakeDeadLetters | None = None,
        policy: ErrorPolicy = AT_ONCE,
        stop_timeout_s: float = 5.0,
        exactly_once: bool = False,
        stop_on_deleted: bool = False,
        topic: str = TOPIC,
        **options: Any,
    ) -> None:
        """`options` are those of Handling and of Limits."""
        handling = {name: options.pop(name) for name in Handling.__slots__ if name in options}
        told = {"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "log_level": "0", **(properties or {})}
        settings = [Setting(*each, Precedence.COMMAND_LINE, "") for each in told.items()]
        self.shutdown = Shutdown(stop_timeout_s)
        self.dead_letters = dead_letters or FakeDeadLetters()
        producer_config = ClientConfig(PRODUCER_DEFAULTS, settings)
        outputs: OutputSender = Outputs(producer_config, connect=broker.connect_producer)
        letters: DeadLetterWriter = self.dead_letters
        if exactly_once:
            transaction = Transaction(producer_config, "id", 0.02, policy, connect=broker.connect_producer)
            outputs, letters = transaction, HeldDeadLetters(None, "g", transaction)
        watermarks: Any = FakeWatermarks(broker)
        self.consumer = Consumer(
            ClientConfig(CONSUMER_DEFAULTS, settings),
            [topic],
            Handling(lifespan, policy=policy, **handling),
            Limits(**options),
            self.shutdown,
            dead_letters=letters,
            outputs=outputs,
            watermarks=watermarks,
            stop_on_deleted=stop_on_deleted,
            connect=broker.connect,
        )
        self.error: BaseException | None = None
        self._broker = broker
        self._thread = threading.Thread(target=self._run, name="member", daemon=True)

    @property
    def client(self) -> FakeClient:
        return self._broker.clients[-1]

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def start(self) -> "Member":
        self._thread.start()
        return self

    def finish(self, timeout_s: float = 30.0) -> "Member":
        """Wait until it ends by itself; raises what has ended it."""
        if not self._thread.ident:
            self.start()
        self._thread.join(timeout_s)
        assert self.ended, f"it still runs after {timeout_s:g} s"
        if self.error is not None:
            raise self.error
        return self

    def stop(self) -> "Member":
        self.shutdown.request()
        return self.finish()

    def partition(self, number: int = 0) -> PartitionStatus | None:
        """The status of a partition of it, None where it has none."""
        return next((each for each in self.consumer.status.partitions if each.partition == number), None)

    def lag(self, number: int = 0) -> int | None:
        """The lag of a partition in messages, None where it is not known."""
        known = self.partition(number)
        return None if known is None else known.lag_messages

    def _run(self) -> None:
        try:
            self.consumer.start(5.0)
            self.consumer.run()
        except BaseException as error:
            self.error = error


@dataclass
class Handled:
    """The outcome of messages: the dead letters, in the order in which they were written, and the handler's outputs, by
    topic.

    `retried` is how many calls failed and were tried again.
    """

    dead_letters: list[Letter] = field(default_factory=list)
    outputs: dict[str, list[Message]] = field(default_factory=dict)
    retried: int = 0


def message(
    value: Any, key: Any = None, headers: Any = None, *, topic: str = TOPIC, offset: int = 0, timestamp_ms: int = 0
) -> Message:
    """A message as a handler gets it; text becomes UTF-8. `timestamp_ms` is Unix time in milliseconds, now for 0.

    `handle` and `check` give the messages offsets of their own. Raises ValueError that names the argument.
    """
    for name, number in (("offset", offset), ("timestamp_ms", timestamp_ms)):
        require_whole(f"message: {name}", number, least=0)
    name_of_topic: object = topic
    if not isinstance(name_of_topic, str) or not is_topic_name(topic):
        raise ValueError(f"message: topic is {topic!r}; give the name of a topic")
    if isinstance(headers, Mapping):
        headers = [*headers.items()]
    try:
        record = record_of(Outgoing(value, key, headers))
    except ValueError as error:
        raise ValueError(f"message: {error}") from None
    return Message(
        topic=topic,
        partition=0,
        offset=offset,
        key=record["key"],
        value=record["value"],
        headers=[(name, text.encode() if isinstance(text, str) else text) for name, text in headers or ()] or None,
        timestamp=(1, timestamp_ms or int(time.time() * 1000)),
    )


def handle(
    handler: Handler | Lifespan | str,
    messages: Iterable[Message],
    *,
    middlewares: Sequence[Middleware] = (),
    concurrency: int = 1,
    order: str | None = None,
    on_error: str = "dead-letter",
    max_attempts: int = 5,
    timeout_s: float = TIMEOUT_S,
) -> Handled:
    """Have messages handled, with the options and the defaults of `kafka-workers consume`; retries come at once.

    `handler` is a function, a lifespan, or MODULE:NAME as --handler takes it. The messages are those of one partition,
    in their order, and get their offsets here. `timeout_s` is in seconds.

    Raises AssertionError when they are not all handled within `timeout_s`; what would end the worker, WorkerError and
    ConfigError; and TypeError and ValueError that name a wrong argument.
    """
    given = require_messages("handle", handler, messages)
    for name, number in (("concurrency", concurrency), ("max_attempts", max_attempts)):
        require_whole(f"handle: {name}", number, least=1)
    require_seconds("handle: timeout_s", timeout_s)
    for name, chosen, choices in (("order", order, get_args(Order)), ("on_error", on_error, ON_ERROR)):
        if chosen is not None and chosen not in choices:
            raise ValueError(f"handle: {name} is {chosen!r}; give one of {', '.join(choices)}")
    functions: object = middlewares
    if not isinstance(functions, list | tuple) or not all(map(callable, functions)):
        raise TypeError(f"handle: middlewares is {middlewares!r}; give a list of functions")
    with Trial(
        handler,
        topic=topic_of(given),
        middlewares=middlewares,
        concurrency=concurrency,
        order=order or ("partition" if concurrency == 1 else "key"),
        policy=ErrorPolicy(on_error, max_attempts, AT_ONCE.backoff_s, AT_ONCE.backoff_max_s),
    ) as trial:
        trial.deliver(given)
        trial.finish(timeout_s)
    return trial.handled


def require_messages(caller: str, handler: object, messages: Iterable[Message]) -> list[Message]:
    """The messages; raises TypeError and ValueError, naming `caller`, for a handler or messages that cannot be any."""
    if not callable(handler) and not isinstance(handler, str):
        raise TypeError(f"{caller}: handler is {handler!r}; give a function, a lifespan, or the text MODULE:NAME")
    if isinstance(messages, str | bytes | Message) or not isinstance(messages, Iterable):
        raise TypeError(f"{caller}: messages is {messages!r}; give a list of what message(...) returns")
    given = [*messages]
    for place, each in enumerate(given):
        if not isinstance(each, Message):
            raise TypeError(f"{caller}: messages[{place}] is {each!r}; give what message(...) returns")
    topics = sorted({topic_of([each]) for each in given})
    if len(topics) > 1:
        raise ValueError(
            f"{caller}: messages are of topics {' and '.join(topics)}; give those of one topic, and call {caller} for "
            "each"
        )
    return given


def topic_of(messages: Sequence[Message]) -> str:
    """The topic of messages that have the same one."""
    return (messages[0].topic() if messages else None) or TOPIC


def require_whole(name: str, number: object, *, least: int) -> None:
    """Raises ValueError, naming the argument, for what is no whole number from `least` on."""
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        raise ValueError(f"{name} is {number!r}; give a whole number from {least} on")


def require_seconds(name: str, number: object) -> None:
    """Raises ValueError, naming the argument, for what is no number above 0."""
    if not isinstance(number, int | float) or isinstance(number, bool) or not number > 0:
        raise ValueError(f"{name} is {number!r}; give a number of seconds above 0")


class Trial:
    """One partition in memory, and members of a group that handle its messages one after the other.

    Leaving the `with` block ends the member, and its handler's lifespan. With `anew`, each member imports a handler
    MODULE:NAME for itself, as a process does.
    """

    def __init__(
        self,
        handler: Handler | Lifespan | str,
        *,
        topic: str = TOPIC,
        policy: ErrorPolicy = AT_ONCE,
        middlewares: Sequence[Middleware] = (),
        anew: bool = False,
        **options: Any,
    ) -> None:
        self.topic = topic
        self.calls = Calls()
        self.broker = _Broker(**{topic: 1})
        self.dead_letters = FakeDeadLetters()
        self._lifespan: Callable[[], AbstractContextManager[Lifespan]]
        if anew and isinstance(handler, str):
            self._lifespan = partial(imported_anew, handler)
        else:
            found = load_handler(handler) if isinstance(handler, str) else lifespan_of(handler)
            self._lifespan = lambda: nullcontext(found)
        self._imported = ExitStack()
        self._policy = policy
        self._options = {**options, "middlewares": (self.calls.middleware, *middlewares)}
        self._members: list[Member] = []

    def __enter__(self) -> "Trial":
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            member.shutdown.request()
        self.broker.over = True
        with self._imported:
            for member in self._members:
                if member.error is None:
                    member.finish()

    @property
    def handled(self) -> Handled:
        """The outcome of the messages so far."""
        with self.broker.lock:
            outputs = {
                topic: [message(each.value, each.key, each.headers, topic=topic, offset=at,
                                timestamp_ms=each.timestamp_ms)
                        for at, each in enumerate(log.records)]
                for (topic, _), log in self.broker.logs.items()
                if topic != self.topic
            }  # fmt: skip
        return Handled([*self.dead_letters.sent], outputs, self.retried)

    @property
    def retried(self) -> int:
        """How many calls have failed and are tried again."""
        return sum(member.consumer.status.topics[self.topic].retried for member in self._members)

    @property
    def done(self) -> int:
        """How many messages are handled or dead letters, counted each time."""
        return sum(member.consumer.status.topics[self.topic].handled for member in self._members)

    @property
    def committed(self) -> int:
        """The offset that the group has committed."""
        return self.broker.offset(topic=self.topic) or 0

    def deliver(self, messages: Iterable[Message]) -> None:
        """Append messages to the partition."""
        for each in messages:
            self.broker.produce(
                [each.value()],
                topic=self.topic,
                key=each.key(),
                headers=each.headers(),
                timestamp_ms=each.timestamp()[1] or None,
            )

    def start(self, timeout_s: float = TIMEOUT_S) -> None:
        """Start a member, which goes on from what is committed, and wait until it has joined; raises as `wait_for`."""
        member = Member(
            self.broker,
            self._imported.enter_context(self._lifespan()),
            policy=self._policy,
            dead_letters=self.dead_letters,
            topic=self.topic,
            **self._options,
        )
        self._members.append(member.start())
        self.wait_for(lambda: member.consumer.status.joined, timeout_s, "its lifespan has not begun")

    def kill(self) -> None:
        """Let the member vanish as if its process was killed: it commits nothing more."""
        self.broker.kill()

    def redeliver(self, offset: int) -> None:
        """Set the group back to `offset`."""
        with self.broker.lock:
            self.broker.committed[self.topic, 0].offset = offset

    def forget(self) -> None:
        """Delete all messages, and the notes about them."""
        with self.broker.lock:
            self.broker.commits.clear()
            self.dead_letters.sent.clear()
            self.calls.made.clear()
            for (topic, number), log in self.broker.logs.items():
                self.broker.delete_before(log.end, topic, number)

    def finish(self, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until all messages are handled and committed; raises AssertionError, and what has ended the member."""
        if not self._members or self._members[-1].client.dead:
            self.start(timeout_s)
        with self.broker.lock:
            end = self.broker.logs[self.topic, 0].end
        self.wait_for(lambda: self.committed >= end, timeout_s)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = TIMEOUT_S, failure: str | None = None) -> None:
        """Wait; raises AssertionError, which says `failure` or what is not handled, and what has ended the member."""
        deadline = time.monotonic() + timeout_s
        member = self._members[-1]
        while not condition():
            if member.error is not None:
                raise member.error
            if time.monotonic() > deadline:
                at = self.committed
                if failure is not None:
                    raise AssertionError(f"{failure} within {timeout_s:g} s")
                raise AssertionError(
                    f"not handled within {timeout_s:g} s: offset {at} and what comes after it; "
                    f"{self.retried} calls failed and were tried again"
                )
            time.sleep(LOOK_S)


class _Broker(FakeBroker):
    """Makes the topics that outputs go to."""

    def produce(self, values: Iterable[Any], *, topic: str = TOPIC, **options: Any) -> None:
        with self.lock:
            if (topic, 0) not in self.logs:
                self.create(topic)
            super().produce(values, topic=topic, **{**options, "partition": 0})
