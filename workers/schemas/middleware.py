"""The middleware that gives a handler decoded messages, and writes the objects that it gives back.

It sets key and value of the message that the handler gets, as confluent-kafka's DeserializingConsumer does. The
consumer keeps what was received, so accounts, retries and dead letters are of the original bytes. It runs in the
handler's threads. For an `async` handler another thread asks the schema registry, so that the event loop turns.
"""

import asyncio
import functools
from typing import Any

from confluent_kafka import Message

from workers.consumer.answers import FailedOutputError, listed
from workers.errors import RegistryAwayError, UndecodableError, UnencodableError
from workers.handlers import Handler, Middleware, Reject, Retry, gathered, is_async, is_batch
from workers.kafka.messages import headers_of
from workers.schemas.codecs import Codecs
from workers.sources import Outgoing


def coding(incoming: Codecs, outgoing: Codecs) -> Middleware:
    """The middleware: messages are read with `incoming`, and what the handler gives back is written with `outgoing`.

    A message that cannot be read raises Reject, one whose schema cannot be had now Retry.
    """

    def middleware(handler: Any) -> Handler:
        as_batch = is_batch(handler)

        def messages_of(given: Any) -> list[Message]:
            return given if as_batch else [given]

        def decode(given: Any) -> list[tuple[Any, Any]]:
            return [_decoded(incoming, message) for message in messages_of(given)]

        def put(given: Any, decoded: list[tuple[Any, Any]]) -> None:
            for message, (key, value) in zip(messages_of(given), decoded, strict=True):
                message.set_key(key)
                message.set_value(value)

        @functools.wraps(handler)
        def call(given: Any) -> object:
            put(given, decode(given))
            return _encoded_answer(outgoing, handler(given))

        @functools.wraps(handler)
        async def call_async(given: Any) -> object:
            known = all(_is_known(incoming, message) for message in messages_of(given))
            put(given, decode(given) if known else await asyncio.to_thread(decode, given))
            answer = await gathered(await handler(given))
            if not outgoing or answer is None:
                return answer
            answer = listed(answer)
            if _is_prepared(outgoing, answer):
                return _encoded_answer(outgoing, answer)
            return await asyncio.to_thread(_encoded_answer, outgoing, answer)

        return call_async if is_async(handler) else call

    return middleware


def _decoded(codecs: Codecs, message: Message) -> tuple[Any, Any]:
    topic, headers = message.topic() or "", headers_of(message)
    decoded = []
    for field, codec, data in (("key", codecs.key, message.key()), ("value", codecs.value, message.value())):
        if codec is None or not isinstance(data, bytes):
            decoded.append(data)
            continue
        try:
            decoded.append(codec.decode(data, topic, headers))
        except UndecodableError as error:
            raise Reject(f"the {field} cannot be decoded: {error}") from None
        except RegistryAwayError as error:
            raise Retry(str(error)) from None
    return decoded[0], decoded[1]


def _is_known(codecs: Codecs, message: Message) -> bool:
    topic, headers = message.topic() or "", headers_of(message)
    return all(
        codec is None or not isinstance(data, bytes) or codec.knows(data, topic, headers)
        for codec, data in ((codecs.key, message.key()), (codecs.value, message.value()))
    )


def _is_prepared(codecs: Codecs, answer: Any) -> bool:
    topics = {each.topic for each in answer if isinstance(each, Outgoing) and each.topic is not None}
    return all(each.prepared(topic) for topic in topics for each in (codecs.key, codecs.value) if each is not None)


def _encoded_answer(codecs: Codecs, answer: Any) -> object:
    if not codecs or answer is None:
        return answer
    answer = listed(answer)
    return [_encoded_output(codecs, each) for each in answer] if isinstance(answer, list) else answer


def _encoded_output(codecs: Codecs, output: Any) -> Any:
    if not isinstance(output, Outgoing) or not isinstance(output.topic, str):
        return output
    try:
        return codecs.encode(output, output.topic)
    except UnencodableError as error:
        raise FailedOutputError(f"an output to topic {output.topic} cannot be sent: {error}") from None
    except RegistryAwayError as error:
        raise Retry(str(error)) from None
