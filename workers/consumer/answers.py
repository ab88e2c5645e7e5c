"""The messages that a handler gives back: they are written before the message that they are of is done.

The handler's thread makes and checks them. From `Work.finished` on they belong to the loop's thread, which sends them.
"""

from collections.abc import AsyncIterable, Coroutine, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeGuard

from workers.accounting.stamps import without_stamp
from workers.errors import ConfigError
from workers.handlers import name_of
from workers.kafka.messages import is_topic_name
from workers.loading import kind_of
from workers.sources import Outgoing, Record, record_of, size_of

# Outputs under way, about: no work begins while there are more, and a work ends early when it has given its share.
MAX_MESSAGES = 100_000
MAX_BYTES = 64 * 1024 * 1024

_REMEDY = "return None or messages to write: an Outgoing with a topic, or an iterable of them"
_is_topic_name = lru_cache(1000)(is_topic_name)


class FailedOutputError(Exception):
    """An output was not written, so its message was not handled; the text says which, why, and what to do."""


class Output(NamedTuple):
    """One message to write; `size` is in bytes."""

    topic: str
    record: Record
    size: int


class Answer:
    """The outputs of one call, whose first message is at `place` in its work.

    `pending` is how many are not acknowledged, `error` what one of them has failed with.
    """

    __slots__ = ("error", "outputs", "pending", "place")

    def __init__(self, place: int, outputs: list[Output]) -> None:
        self.place = place
        self.outputs = outputs
        self.pending = len(outputs)
        self.error: Exception | None = None


def outputs_of(handler: Any, answer: object) -> list[Output]:
    """The messages that a call gave back.

    Raises ConfigError for what is no message, FailedOutputError for a message that cannot be sent, and whatever the
    handler raises while it yields.
    """
    if isinstance(answer, Outgoing):
        return [_output(answer)]
    if isinstance(answer, Coroutine | AsyncIterable):
        if isinstance(answer, Coroutine):
            answer.close()  # or else Python says, besides, that it was never awaited
        raise ConfigError(
            f"handler {name_of(handler)} returned {kind_of(answer)}, so nothing was done; a handler is a plain "
            "function or an async def one"
        )
    if not _are_messages(answer):
        raise ConfigError(f"handler {name_of(handler)} returned {kind_of(answer)}; {_REMEDY}")
    outputs = []
    for each in answer:
        if not isinstance(each, Outgoing):
            raise ConfigError(f"handler {name_of(handler)} gave back {kind_of(each)}; {_REMEDY}")
        outputs.append(_output(each))
    return outputs


def listed(answer: object) -> object:
    """The messages that a call gave back, as a list. Anything else as it is: `outputs_of` reports it."""
    if isinstance(answer, Outgoing):
        return [answer]
    return [*answer] if _are_messages(answer) else answer


def _are_messages(answer: object) -> TypeGuard[Iterable[Any]]:
    return isinstance(answer, Iterable) and not isinstance(answer, str | bytes | Mapping)


def _output(outgoing: Outgoing) -> Output:
    topic: object = outgoing.topic
    if topic is None:
        raise FailedOutputError('an output has no topic: give it one, Outgoing(..., topic="orders")')
    if not isinstance(topic, str) or not _is_topic_name(topic):
        raise FailedOutputError(f"an output cannot go to {topic!r}: that is no name of a topic; correct it")
    if outgoing.on_delivery is not None:
        raise FailedOutputError(
            f"an output to topic {topic} has on_delivery, which is for sources: leave it out, as the message that is "
            "handled waits for its outputs"
        )
    try:
        record = record_of(outgoing)
    except ValueError as error:
        raise FailedOutputError(f"an output to topic {topic} cannot be sent: its {error}; correct it") from None
    if "headers" in record:
        # A handler that passes headers on: the stamp counts the message in the topic that it came from.
        record["headers"] = without_stamp(record["headers"])
    return Output(topic, record, size_of(record))
