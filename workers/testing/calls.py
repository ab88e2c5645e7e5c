"""The outermost middleware of a handler on trial: it notes what each call gave back, and has retries come at once."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from confluent_kafka import Message

from workers.consumer.answers import Output, outputs_of
from workers.handlers import Handler, Retry, gathered, is_async, is_batch
from workers.kafka.messages import headers_of
from workers.testing.blocking import LoopWatch, Steps


class Content(NamedTuple):
    """The fields that distinguish messages, wherever they stand in their log."""

    key: Any
    value: Any
    headers: tuple[tuple[str, bytes | None], ...]


class Call(NamedTuple):
    """A call that returned: the messages that it was given, and the outputs that it gave back."""

    messages: tuple[Content, ...]
    outputs: list[Output]


# Topic, partition (None for any), key, value and headers of an output: what other runs must give back too.
Given = tuple[Any, ...]


class Calls:
    """The calls of one trial that returned, in `made`. The handler's threads append to it.

    `placed` makes the message that a handler of single messages gets of the one in the log.
    """

    def __init__(self) -> None:
        self.made: list[Call] = []
        # Of an `async` handler.
        self.watch: LoopWatch | None = None
        self.placed: Callable[[Message], Message] = lambda message: message
        self._batches = False

    def outputs(self) -> dict[Content | None, set[Given]]:
        """The outputs of each message, each output once. Runs may make different batches, so for a handler of batches
        all outputs stand under None.
        """
        found: dict[Content | None, set[Given]] = {}
        for call in self.made:
            given = {
                (each.topic, each.record.get("partition"), each.record["key"], each.record["value"],
                 tuple(each.record.get("headers", ())))
                for each in call.outputs
            }  # fmt: skip
            found.setdefault(None if self._batches else call.messages[0], set()).update(given)
        return found

    def middleware(self, handler: Handler) -> Handler:
        """The handler, whose calls are noted."""
        function: Any = handler
        self._batches = is_batch(handler)

        if is_async(handler):

            @functools.wraps(function)
            async def call_async(given: Any) -> object:
                messages = self._contents(given)
                with _retried_at_once():
                    called = function(self._placed(given))
                    if self.watch is not None:
                        called = Steps(self.watch, handler, called)
                    return self._note(handler, messages, await gathered(await called))

            return call_async

        @functools.wraps(function)
        def call(given: Any) -> object:
            messages = self._contents(given)
            with _retried_at_once():
                return self._note(handler, messages, function(self._placed(given)))

        return call

    def _placed(self, given: Any) -> Any:
        return given if self._batches else self.placed(given)

    def _contents(self, given: Any) -> tuple[Content, ...]:
        # Before the call, which may change its messages.
        return tuple(map(content_of, given if self._batches else [given]))

    def _note(self, handler: Handler, messages: tuple[Content, ...], answer: Any) -> object:
        if isinstance(answer, Iterator):
            # It can be read once only.
            answer = [*answer]
        self.made.append(Call(messages, [] if answer is None else outputs_of(handler, answer)))
        return answer


def content_of(message: Message) -> Content:
    """The content of a message."""
    return Content(message.key(), message.value(), tuple(headers_of(message)))


@contextmanager
def _retried_at_once() -> Iterator[None]:
    try:
        yield
    except Retry as retry:
        retry.after_s = None
        raise
