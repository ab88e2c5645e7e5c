"""The contract of a handler: its kinds, its results and its errors.

A handler is a function of one message, or, marked with `batch`, of a list of messages of one partition in the order of
their offsets. It is a plain function or an `async def` one. Returning means handled; raising means not handled.
Messages that it returns, or yields, are written before its own is done. A handler that needs something opened before
and closed after is yielded by a generator marked with `lifespan`:

    @lifespan
    def orders():
        with sqlite3.connect("orders.db") as database:
            def store(message):
                database.execute("insert or replace ...", (message.key(), message.value()))
                database.commit()
            yield store

A middleware is a function that gets a handler and returns one of the same kind, which does something more.

With --concurrency 1 all calls come from one thread, in which the lifespan begins and ends too. With more, a plain
handler is called from as many threads, so what it uses must be thread-safe, or be opened in each thread by a
`lifespan(per_thread=True)`; an `async def` handler runs in one event loop, as many calls at once.
"""

import functools
import inspect
import traceback
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from typing import Any, TypeAlias, TypeVar, overload

# confluent-kafka's own message: copying it into one of ours costs more than all else that a consumer does.
from confluent_kafka import Message as Message

from workers.errors import ConfigError
from workers.loading import kind_of, load, located

Handler: TypeAlias = Callable[[Message], object] | Callable[[list[Message]], object]
# A middleware for any kind of handler; one that is only for messages one by one may say so in its own types.
Middleware: TypeAlias = Callable[[Any], Handler]
Lifespan: TypeAlias = Callable[[], AbstractContextManager[Handler] | AbstractAsyncContextManager[Handler]]
_Generator: TypeAlias = Callable[[], Iterator[Handler]] | Callable[[], AsyncIterator[Handler]]
_Function = TypeVar("_Function", bound=Callable[..., object])
_Scope = TypeVar("_Scope")
_BATCH = "_kafka_workers_batch"
_LIFESPAN = "_kafka_workers_lifespan"
_PER_THREAD = "_kafka_workers_per_thread"


class Retry(Exception):  # noqa: N818  (it is a request, not an error)
    """Raised by a handler: not now, try this message again in `after_s` seconds, or with the usual back-off.

    For an unavailable dependency: the attempt is not counted, so it never makes a dead letter of the message.
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


@overload
def lifespan(generator: _Generator) -> Lifespan: ...


@overload
def lifespan(*, per_thread: bool) -> Callable[[_Generator], Lifespan]: ...


def lifespan(
    generator: _Generator | None = None, *, per_thread: bool = False
) -> Lifespan | Callable[[_Generator], Lifespan]:
    """Mark a generator that opens what a handler needs, yields the handler once, and closes it again.

    An `async` generator yields an `async def` handler, and runs in its event loop. With `per_thread`, each of the
    --concurrency threads runs the generator and has a handler of its own: for connections that belong to one thread.
    Raises ConfigError for what is no generator.
    """
    if generator is None:
        return lambda function: _lifespan(function, per_thread)
    return _lifespan(generator, per_thread)


def _lifespan(generator: Any, per_thread: bool) -> Lifespan:
    is_async = inspect.isasyncgenfunction(generator)
    if not is_async and not inspect.isgeneratorfunction(generator):
        raise ConfigError(f"@lifespan marks a generator, and {name_of(generator)} has no yield")
    if is_async and per_thread:
        raise ConfigError(
            f"@lifespan(per_thread=True): {name_of(generator)} is async, and an async handler has one event loop; "
            "leave per_thread out"
        )
    manager: Any = _async_manager(generator) if is_async else _manager(generator)
    setattr(manager, _LIFESPAN, "async" if is_async else "plain")
    setattr(manager, _PER_THREAD, per_thread)
    marked: Lifespan = manager
    return marked


def _manager(generator: Any) -> Any:
    entered = contextmanager(generator)

    @contextmanager
    @functools.wraps(generator)
    def manager() -> Iterator[Handler]:
        with _yields_once(generator), entered() as handler:
            yield handler

    return manager


def _async_manager(generator: Any) -> Any:
    entered = asynccontextmanager(generator)

    @asynccontextmanager
    @functools.wraps(generator)
    async def manager() -> AsyncIterator[Handler]:
        with _yields_once(generator):
            async with entered() as handler:
                yield handler

    return manager


@contextmanager
def _yields_once(generator: Any) -> Iterator[None]:
    """Raise ConfigError with the generator's name where contextlib says, without one, that it does not yield once."""
    try:
        yield
    except RuntimeError as error:
        code = getattr(generator, "__code__", None)
        # The user's code may use such a generator too, and have its error.
        own = all(frame.f_code is not code for frame, _ in traceback.walk_tb(error.__traceback__))
        if not own or not str(error).startswith("generator didn't "):
            raise
        problem = "ended without a yield" if str(error) == "generator didn't yield" else "yielded more than once"
        raise ConfigError(
            f"@lifespan: {name_of(generator)} {problem}; a lifespan yields its handler exactly once"
        ) from None


def is_async_lifespan(lifespan: Lifespan) -> bool:
    return bool(getattr(lifespan, _LIFESPAN, "") == "async")


def is_per_thread(lifespan: Lifespan) -> bool:
    return bool(getattr(lifespan, _PER_THREAD, False))


def is_async(handler: Any) -> bool:
    """Whether calling the handler makes a coroutine."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


def name_of(function: Any) -> str:
    """The name of the user's function in errors; of an object that can be called, that of its class."""
    if isinstance(function, functools.partial):
        return name_of(function.func)
    name: str = getattr(function, "__name__", type(function).__name__ if callable(function) else repr(function))
    return name


def is_batch(handler: Handler) -> bool:
    """Whether the handler takes a list of messages."""
    return getattr(handler, _BATCH, False)


def load_handler(reference: str) -> Lifespan:
    """The handler that `--handler` names; raises ConfigError when it cannot be imported."""
    return lifespan_of(load("--handler", reference))


def lifespan_of(found: Any) -> Lifespan:
    """The lifespan of what a user names: a handler, or a function marked with `lifespan`; raises ConfigError for what
    is neither.
    """
    if getattr(found, _LIFESPAN, False):
        manager: Lifespan = found
        return manager
    check_handler(found)
    return lambda: nullcontext(found)


def check_handler(handler: Any) -> None:
    """Raises ConfigError for what cannot be a handler: to call it would do nothing, or fail for every message."""
    name = name_of(handler)
    if not callable(handler):
        raise ConfigError(f"a handler is a function, not {name}")
    if inspect.isclass(handler):
        raise ConfigError(f"handler {name} is a class; a handler is a function, or an object that can be called")
    try:
        inspect.signature(handler).bind(None)
    except TypeError:
        remedy = "; mark what yields a handler with @lifespan" if _yields(handler) else ""
        raise ConfigError(f"handler {name} does not take one argument, the message or the batch{remedy}") from None
    except ValueError:
        pass  # written in C, without a signature


def as_function(handler: Handler) -> Handler:
    """The handler; in place of one that yields messages, a function that returns them when all is done.

    So a middleware has its call begin and end with that of the handler, whatever kind it is.
    """
    function: Any = handler
    if _yields(handler, inspect.isasyncgenfunction):

        @functools.wraps(function)
        async def gather(message: Any) -> object:
            return [each async for each in function(message)]

        gather.__name__ = name_of(handler)
        return gather
    if _yields(handler, inspect.isgeneratorfunction):

        @functools.wraps(function)
        def collect(message: Any) -> object:
            return [*function(message)]

        collect.__name__ = name_of(handler)
        return collect
    return handler


def _yields(
    handler: Any,
    test: Callable[[object], bool] = lambda each: inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each),
) -> bool:
    return test(handler) or test(getattr(handler, "__call__", None))  # noqa: B004


async def gathered(answer: object) -> object:
    """The messages of an async generator that a handler has returned; anything else as it is."""
    return [each async for each in answer] if isinstance(answer, AsyncIterable) else answer


def around(
    handler: Handler,
    scope: Callable[[Any], AbstractContextManager[_Scope]],
    answered: Callable[[_Scope, Any], object] = lambda _, answer: answer,
) -> Handler:
    """A handler of the same kind, plain or `async`, each call of which is made inside of `scope(message)`; of a batch
    inside of `scope(messages)`.

    `answered` gets what the scope has yielded and what the handler gave back, inside of the scope too, and returns what
    is given back in its place.
    """
    function: Any = handler

    @functools.wraps(function)
    def call(given: Any) -> object:
        with scope(given) as entered:
            return answered(entered, function(given))

    @functools.wraps(function)
    async def call_async(given: Any) -> object:
        with scope(given) as entered:
            return answered(entered, await gathered(await function(given)))

    return call_async if is_async(handler) else call


def load_middlewares(references: Sequence[str]) -> list[Middleware]:
    """The middlewares that `--middleware` names; raises ConfigError when one cannot be imported."""
    return [load("--middleware", reference) for reference in references]


def wrap(handler: Handler, middlewares: Sequence[Middleware]) -> Handler:
    """The handler inside its middlewares, of which the first is the outermost.

    Raises ConfigError for a middleware that returns no handler, or one of another kind.
    """
    handler = as_function(handler)
    for middleware in reversed(middlewares):
        handler = _wrap(handler, middleware)
    return handler


def _wrap(handler: Handler, middleware: Middleware) -> Handler:
    name, of = name_of(middleware), name_of(handler)
    try:
        wrapped = middleware(handler)
    except ConfigError:
        raise
    except Exception as error:  # it is the user's code that runs here
        raise ConfigError(
            f"middleware {name} raised {located(error)} for handler {of}; it gets the handler and returns a function"
        ) from None
    if not callable(wrapped):
        raise ConfigError(
            f"middleware {name} returned {_kind(wrapped)} for handler {of}; return a function that calls the handler"
        )
    check_handler(wrapped)
    wrapped = as_function(wrapped)
    if is_batch(wrapped) != is_batch(handler):
        raise ConfigError(
            f"middleware {name} returned a handler of {'batches' if is_batch(wrapped) else 'single messages'} for "
            f"handler {of}, which is one of {'batches' if is_batch(handler) else 'single messages'}; mark the function "
            "that it returns with functools.wraps(handler)"
        )
    if is_async(wrapped) != is_async(handler):
        raise ConfigError(
            f"middleware {name} returned {'an async' if is_async(wrapped) else 'a plain'} function for handler {of}, "
            f"which is {'async' if is_async(handler) else 'plain'}; return "
            f"{'an async def function' if is_async(handler) else 'a plain function'}"
        )
    return wrapped


def _kind(value: object) -> str:
    return "None" if value is None else kind_of(value)
