"""Handlers: how they are declared and loaded."""

import asyncio
import contextlib
import functools
import io
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message

from workers.consumer.printer import printer
from workers.errors import ConfigError
from workers.handlers import (
    Handler,
    OutputClosedError,
    Retry,
    around,
    batch,
    check_handler,
    is_async,
    is_async_lifespan,
    is_batch,
    lifespan,
    load_handler,
    load_middlewares,
    wrap,
)


def messages(count: int) -> list[Message]:
    return [Message(topic="t", partition=0, offset=n, value=b"%d" % n) for n in range(count)]


def test_marks_are_explicit() -> None:
    def plain(messages: object) -> None:
        """Its parameter's name says nothing."""

    assert not is_batch(plain)
    assert is_batch(batch(plain))


MODULE = """
from workers import batch
from workers import lifespan

def plain(message): ...

@batch
def many(messages): ...

@lifespan
def opened():
    yield many

class Nested:
    @staticmethod
    def handle(message): ...
"""


def test_each_kind_of_handler_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "handler_kinds.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    kinds = {}
    for name in ("plain", "many", "opened", "Nested.handle"):
        manager: Any = load_handler(f"handler_kinds:{name}")()
        with manager as handler:
            kinds[name] = is_batch(handler)

    assert kinds == {"plain": False, "many": True, "opened": True, "Nested.handle": False}


@pytest.mark.parametrize(
    "reference", ["", "module", ":name", "module:", "no_such_module:x", "workers:nothing", "workers:__version__"]
)
def test_what_does_not_load_is_named_with_its_option(reference: str) -> None:
    with pytest.raises(ConfigError, match=f"--handler {reference}"):
        load_handler(reference)


def test_a_closed_output_is_told_from_a_failing_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.BytesIO):
        broken = True

        def write(self, data: Any) -> int:
            if self.broken:
                raise BrokenPipeError
            return len(data)

    closed = Closed()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(closed), write_through=True))
    manager: Any = printer("text")()
    with manager as handler, pytest.raises(OutputClosedError):
        handler(messages(1))
    # Or Python reports that it could not be flushed when it was thrown away.
    closed.broken = False


def generating() -> Iterator[int]:
    yield 1


def of_two(message: Message, other: object) -> None: ...


class Handling:
    def __init__(self, config: object = None) -> None: ...

    def __call__(self, message: Message) -> None: ...


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (generating, "does not take one argument, .*; mark what yields a handler with @lifespan"),
        (of_two, "does not take one argument"),
        (None, "None"),
        (Handling, "is a class"),
    ],
)
def test_what_would_handle_nothing_is_refused(handler: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_handler(handler)


def test_a_mark_for_batches_on_a_lifespan_is_refused() -> None:
    with pytest.raises(ConfigError, match="@batch"):
        batch(lifespan(generating))  # type: ignore[arg-type]


def test_a_lifespan_without_a_yield_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no yield"):
        lifespan(lambda: None)  # type: ignore[arg-type]


async def asynchronous(message: Message) -> None: ...


class Asynchronous:
    async def __call__(self, message: Message) -> None: ...


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (asynchronous, True),
        (batch(asynchronous), True),
        (functools.partial(asynchronous), True),
        (Asynchronous(), True),
        (print, False),
        (lambda message: asynchronous(message), False),
    ],
)
def test_an_async_handler_is_one_whose_call_makes_a_coroutine(handler: object, expected: bool) -> None:
    check_handler(handler)
    assert is_async(handler) == expected


def test_an_async_lifespan_has_one_event_loop_and_none_per_thread() -> None:
    async def opened() -> AsyncIterator[Handler]:
        yield asynchronous

    assert is_async_lifespan(lifespan(opened))
    assert not is_async_lifespan(lambda: contextlib.nullcontext(asynchronous))
    with pytest.raises(ConfigError, match="an async handler has one event loop"):
        lifespan(per_thread=True)(opened)


@pytest.mark.parametrize("handler", [print, batch(lambda _: None), [].append])
def test_what_takes_a_message_is_a_handler(handler: object) -> None:
    check_handler(handler)


@pytest.mark.parametrize("after_s", [-1, float("nan"), float("inf")])
def test_a_pause_without_an_end_is_an_error_of_the_handler(after_s: float) -> None:
    with pytest.raises(ValueError, match="after_s"):
        Retry("the database is away", after_s)


# Middleware


async def await_nothing(message: Message) -> None: ...


def note(handler: Any) -> Any:
    @functools.wraps(handler)
    def call(message: Any) -> object:
        return ("noted", handler(message))

    return call


def double(handler: Any) -> Any:
    @functools.wraps(handler)
    def call(message: Any) -> object:
        return ("doubled", handler(message))

    return call


def yielding(message: Any) -> Iterator[Any]:
    yield message
    yield message


@batch
def batch_yielding(messages: Any) -> Iterator[Any]:
    yield messages


@batch
async def batch_yielding_async(message: Any) -> AsyncIterator[Any]:
    yield message
    yield message


class Yielding:
    def __call__(self, message: Any) -> Iterator[Any]:
        yield message


def await_it(handler: Any) -> Any:
    @functools.wraps(handler)
    async def call(message: Any) -> object:
        return await handler(message)

    return call


def test_the_first_middleware_is_the_outermost() -> None:
    handler: Any = wrap(lambda message: message, [note, double])
    assert handler("m") == ("noted", ("doubled", "m"))


def test_without_a_middleware_the_handler_is_called_as_it_is() -> None:
    assert wrap(asynchronous, []) is asynchronous


@pytest.mark.parametrize(
    ("handler", "middleware", "kind"),
    [
        (lambda _: None, note, (False, False)),
        (batch(lambda _: None), note, (True, False)),
        (await_nothing, await_it, (False, True)),
        (Asynchronous(), await_it, (False, True)),
    ],
)
def test_a_middleware_keeps_the_kind_of_its_handler(handler: Any, middleware: Any, kind: tuple[bool, bool]) -> None:
    wrapped = wrap(handler, [middleware, middleware])
    assert (is_batch(wrapped), is_async(wrapped)) == kind


async def answering_a_generator(message: Any) -> object:
    return batch_yielding_async(message)


@pytest.mark.parametrize(
    ("handler", "kind", "answer"),
    [
        (yielding, (False, False), ["m", "m"]),
        (batch_yielding, (True, False), ["m"]),
        (batch_yielding_async, (True, True), ["m", "m"]),
        (answering_a_generator, (False, True), ["m", "m"]),
        (await_nothing, (False, True), None),
    ],
)
def test_around_makes_each_call_of_any_kind_inside_of_its_scope(
    handler: Any, kind: tuple[bool, bool], answer: object
) -> None:
    events: list[object] = []

    @contextlib.contextmanager
    def scope(given: Any) -> Iterator[str]:
        events.append(given)
        yield "entered"
        events.append("left")

    def answered(entered: str, given_back: Any) -> object:
        events.append(given_back)
        return entered, given_back

    wrapped: Any = wrap(handler, [lambda inner: around(inner, scope, answered)])
    found = asyncio.run(wrapped("m")) if kind[1] else wrapped("m")
    assert (is_batch(wrapped), is_async(wrapped)) == kind
    assert found == ("entered", answer)
    assert events == ["m", answer, "left"]


@pytest.mark.parametrize("handler", [yielding, batch_yielding, functools.partial(yielding), Yielding()])
def test_a_middleware_gets_a_generator_as_a_function_that_is_done_when_it_returns(handler: Any) -> None:
    found: list[Any] = []

    def inspecting(inner: Any) -> Any:
        @functools.wraps(inner)
        def call(message: Any) -> object:
            answer = inner(message)
            found.append(answer)
            return answer

        return call

    wrapped: Any = wrap(handler, [inspecting])

    assert is_batch(wrapped) == is_batch(handler)
    assert wrapped("m") == found[0] == [*handler("m")]


def test_a_middleware_gets_an_async_generator_as_an_async_function() -> None:
    wrapped: Any = wrap(batch_yielding_async, [await_it])

    assert (is_batch(wrapped), is_async(wrapped)) == (True, True)
    assert asyncio.run(wrapped("m")) == ["m", "m"]


def test_a_middleware_may_yield_itself() -> None:
    def twice(handler: Any) -> Any:
        def call(message: Any) -> Iterator[Any]:
            yield from handler(message)
            yield from handler(message)

        return call

    wrapped: Any = wrap(yielding, [note, twice])
    assert wrapped("m") == ("noted", ["m"] * 4)


def raises(handler: Any) -> Any:
    raise ValueError("not today")


def forgets_the_mark(handler: Any) -> Any:
    return lambda messages: handler(messages)


@pytest.mark.parametrize(
    ("handler", "middleware", "says"),
    [
        (print, lambda _: None, r"middleware <lambda> returned None for handler print; return a function"),
        (print, lambda _: 5, "returned an int for handler print; return a function"),
        (print, lambda _: of_two, "handler of_two does not take one argument"),
        (print, lambda: print, "raised TypeError"),
        (
            print,
            raises,
            r"middleware raises raised ValueError: not today \(\S*handlers\.py:\d+\) for handler print",
        ),
        (batch(lambda _: None), forgets_the_mark, r"of single messages .* one of batches; mark .* functools.wraps"),
        (print, lambda _: batch(lambda _: None), "returned a handler of batches"),
        (asynchronous, note, "returned a plain function for handler asynchronous, which is async; return an async def"),
        (print, await_it, "returned an async function for handler print, which is plain; return a plain function"),
    ],
)
def test_what_is_no_middleware_is_named_with_what_to_do(handler: Any, middleware: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        wrap(handler, [middleware])


class Counting:
    def __call__(self, message: Message, to: object = None) -> None: ...


@pytest.mark.parametrize(
    ("handler", "name"),
    [(Counting(), "Counting"), (functools.partial(Counting(), to=1), "Counting"), (functools.partial(print), "print")],
)
def test_a_handler_without_a_name_of_its_own_is_named_as_its_class_or_function(handler: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"raises raised ValueError: not today \(\S*\) for handler {name};"):
        wrap(handler, [raises])


@pytest.mark.parametrize("reference", ["module", "no_such_module:x", "workers:nothing", "workers:__version__"])
def test_a_middleware_that_does_not_load_is_named_with_its_option(reference: str) -> None:
    with pytest.raises(ConfigError, match=f"--middleware {reference}"):
        load_middlewares([reference])
