"""What is done with a message: the contract of a handler, and the built-in ones that print.

A handler is a function of one message, or, marked with `batch`, of a list of messages of one partition in the order of
their offsets. Returning means handled; raising means not handled. All calls come from one thread. A handler
that needs something opened before and closed after is yielded by a generator marked with `lifespan`:

    @lifespan
    def orders():
        with sqlite3.connect("orders.db") as database:
            def store(message):
                database.execute("insert or replace ...", (message.key(), message.value()))
                database.commit()
            yield store
"""

import base64
import inspect
import json
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncContextDecorator, ContextDecorator, contextmanager, nullcontext
from typing import Any, TypeAlias, TypeVar

# confluent-kafka's own message: copying it into one of ours costs more than all else that a consumer does.
from confluent_kafka import Message as Message

from workers.config import ConfigError
from workers.loading import load
from workers.messages import headers_of

Handler: TypeAlias = Callable[[Message], object] | Callable[[list[Message]], object]
Lifespan: TypeAlias = Callable[[], AbstractContextManager[Handler]]
_Function = TypeVar("_Function", bound=Callable[..., object])

_PRINTABLE = bytes(range(ord(" "), ord("~") + 1))
_BATCH = "_kafka_workers_batch"
_LIFESPAN = "_kafka_workers_lifespan"
# Of what a call returns: the call itself has only made these. The last two are what @contextmanager makes.
_NOT_BEGUN = (Coroutine, Generator, AsyncGenerator, ContextDecorator, AsyncContextDecorator)


class Retry(Exception):  # noqa: N818  (it is a request, not an error)
    """Raised by a handler: not now, try this message again in `after_s` seconds, or with the usual back-off.

    For a dependency that is away: such a try is not counted, so the message never goes to the dead-letter topic for it.
    """

    def __init__(self, reason: str = "", after_s: float | None = None) -> None:
        super().__init__(reason)
        if after_s is not None and not 0 <= after_s < float("inf"):
            raise ValueError(f"Retry: after_s is a number of seconds, not {after_s}")
        self.after_s = after_s


class Reject(Exception):  # noqa: N818
    """Raised by a handler: this message will never work, so do not try again."""


class OutputClosedError(Exception):
    """Whoever read our standard output has gone; there is nobody left to print for."""


class OutputError(Exception):
    """Our standard output cannot be written, which is not the message's fault."""


def batch(function: _Function) -> _Function:
    """Marks a handler that takes a list of messages of one partition."""
    if getattr(function, _LIFESPAN, False):
        raise ConfigError("@batch marks the handler that a @lifespan yields, not the lifespan")
    setattr(function, _BATCH, True)
    return function


def lifespan(generator: Callable[[], Iterator[Handler]]) -> Lifespan:
    """Marks a generator that opens what a handler needs, yields the handler once, and closes it again."""
    marked: Any = generator
    if not inspect.isgeneratorfunction(marked):
        raise ConfigError(f"@lifespan marks a generator, and {marked.__name__} has no yield")
    manager = contextmanager(generator)
    setattr(manager, _LIFESPAN, True)
    return manager


def is_batch(handler: Handler) -> bool:
    return getattr(handler, _BATCH, False)


def load_handler(reference: str) -> Lifespan:
    """The handler that `--handler` names; raises ConfigError when it cannot be imported."""
    found = load("--handler", reference)
    if getattr(found, _LIFESPAN, False):
        manager: Lifespan = found
        return manager
    check_handler(found)
    return lambda: nullcontext(found)


def check_handler(handler: Any) -> None:
    """Raises ConfigError for what cannot be a handler: to call it would do nothing, or fail for every message."""
    name = getattr(handler, "__name__", repr(handler))
    if not callable(handler):
        raise ConfigError(f"a handler is a function, not {name}")
    if inspect.isclass(handler):
        raise ConfigError(f"handler {name} is a class; a handler is a function, or an object that can be called")
    called = handler if inspect.isroutine(handler) else type(handler).__call__
    if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
        raise ConfigError(f"handler {name} is async; a handler is a plain function")
    if inspect.isgeneratorfunction(called):
        raise ConfigError(f"handler {name} has a yield; a handler is a plain function, or marked with @lifespan")
    try:
        inspect.signature(handler).bind(None)
    except TypeError:
        raise ConfigError(f"handler {name} does not take one argument, the message or the batch") from None
    except ValueError:
        pass  # written in C, without a signature


def check_answer(handler: Any, answer: object) -> None:
    """Raises ConfigError for what a handler has returned that did nothing: what cannot be seen before, as in a partial
    or behind a decorator.
    """
    if isinstance(answer, _NOT_BEGUN):
        if isinstance(answer, Coroutine):
            answer.close()  # or else Python says, besides, that it was never awaited
        name = getattr(handler, "__name__", repr(handler))
        raise ConfigError(
            f"handler {name} returned a {type(answer).__name__}, so nothing was done; a handler is a plain function"
        )


def printer(name: str) -> Lifespan:
    """The handler that prints messages on standard output as text, json or value."""
    lines = FORMATS.get(name)
    if lines is None:
        raise ConfigError(f"--format {name}: expected one of {', '.join(FORMATS)}")

    @batch
    def print_batch(messages: Sequence[Message]) -> None:
        try:
            sys.stdout.buffer.write(lines(messages))
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise OutputClosedError from None
        except OSError as error:
            raise OutputError(error.strerror) from None

    return lambda: nullcontext(print_batch)


def _as_value(messages: Sequence[Message]) -> bytes:
    return b"".join([(value or b"") + b"\n" for value in map(Message.value, messages)])


def _as_text(messages: Sequence[Message]) -> bytes:
    where = f"{messages[0].topic()}[{messages[0].partition()}]@".encode()
    offsets = map(Message.offset, messages)
    keys, values = (_readable([*map(field, messages)]) for field in (Message.key, Message.value))
    rows = zip(offsets, keys, values, strict=True)
    return b"".join([b"%b%d key=%b %b\n" % (where, offset or 0, key, value) for offset, key, value in rows])


def _readable(fields: list[bytes | None]) -> list[bytes]:
    """What a terminal can show in one line, whatever is in it."""
    # Nothing but printable ASCII, as nearly always: to look at all of them at once takes a tenth of the time.
    if not b"".join(filter(None, fields)).translate(None, _PRINTABLE):
        return [b"null" if field is None else field for field in fields]
    return [b"null" if field is None else _escaped(field) for field in fields]


def _escaped(data: bytes) -> bytes:
    text = data.decode("utf-8", "backslashreplace")
    return (text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)).encode()


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _as_json(messages: Sequence[Message]) -> bytes:
    return b"".join(map(_json_line, messages))


def _json_line(message: Message) -> bytes:
    document: dict[str, Any] = {
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "timestamp": message.timestamp()[1],
        **_json_field("key", message.key()),
        **_json_field("value", message.value()),
    }
    headers = headers_of(message)
    if headers:
        document["headers"] = [{"name": name, **_json_field("value", value)} for name, value in headers]
    return json.dumps(document, ensure_ascii=False).encode() + b"\n"


def _json_field(name: str, data: bytes | None) -> dict[str, str | None]:
    """JSON strings hold text; anything else is said to be base64 in the field's name."""
    if data is None:
        return {name: None}
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


FORMATS: dict[str, Callable[[Sequence[Message]], bytes]] = {"text": _as_text, "json": _as_json, "value": _as_value}
