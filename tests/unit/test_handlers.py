"""Handlers: how they are declared, loaded and run in their thread."""

import contextlib
import functools
import io
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message

from tests.processes import eventually
from workers.consumer.execution import HandlerThread, Job
from workers.consumer.printer import printer
from workers.errors import ConfigError, WorkerError
from workers.handlers import Handler, OutputClosedError, Retry, batch, check_handler, is_batch, lifespan, load_handler
from workers.lifecycle import Shutdown


class Partition:
    owned = True


def messages(count: int) -> list[Message]:
    return [Message(topic="t", partition=0, offset=n, value=b"%d" % n) for n in range(count)]


def thread_of(handler: Handler) -> HandlerThread:
    @lifespan
    def once() -> Iterator[Handler]:
        yield handler

    thread = HandlerThread(once)
    thread.start(Shutdown(5))
    return thread


def finish(thread: HandlerThread) -> None:
    eventually(lambda: thread.wait(0.05), "the jobs are done", 10)


def test_messages_are_handled_in_order_and_progress_shows_where_it_failed() -> None:
    seen: list[bytes | None] = []

    def handle(message: Message) -> None:
        if message.value() == b"3":
            raise ValueError("three")
        seen.append(message.value())

    thread = thread_of(handle)
    job = Job(Partition(), messages(5))
    thread.submit([job])
    finish(thread)

    assert seen == [b"0", b"1", b"2"]
    assert (job.handled, str(job.error), job.finished) == (3, "three", True)
    # Or else the error would keep the job and its messages alive, and they would keep it.
    assert job.error is not None
    assert job.error.__traceback__ is None
    assert thread.stop(5) is None


def test_what_a_batch_handler_does_to_its_list_changes_nothing() -> None:
    @batch
    def consume_all(batch_of: list[Message]) -> None:
        batch_of.clear()

    thread = thread_of(consume_all)
    job = Job(Partition(), messages(5))
    thread.submit([job])
    finish(thread)

    assert (job.handled, job.count, len(job.values)) == (5, 5, 5)
    assert thread.stop(5) is None


def test_a_partition_that_is_taken_away_stops_after_the_message_at_hand() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def handle(message: Message) -> None:
        begun.set()
        go_on.wait(10)

    thread = thread_of(handle)
    partition = Partition()
    job = Job(partition, messages(5))
    thread.submit([job])
    assert begun.wait(10)
    partition.owned = False
    go_on.set()
    finish(thread)

    assert job.handled == 1
    assert thread.stop(5) is None


def test_an_interrupted_handler_finishes_its_message_and_goes_on_at_the_next_submit() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def handle(message: Message) -> None:
        begun.set()
        go_on.wait(10)

    thread = thread_of(handle)
    first, second = Job(Partition(), messages(5)), Job(Partition(), messages(5))
    thread.submit([first, second])
    assert begun.wait(10)
    thread.interrupt()
    go_on.set()
    finish(thread)
    assert (first.handled, second.handled) == (1, 0)

    thread.submit([second])
    finish(thread)
    assert second.handled == 5
    assert thread.stop(5) is None


def test_a_batch_counts_as_handled_only_as_a_whole() -> None:
    @batch
    def handle(batch_of: list[Message]) -> None:
        if len(batch_of) > 2:
            raise ValueError("too many")

    thread = thread_of(handle)
    large, small = Job(Partition(), messages(3)), Job(Partition(), messages(2))
    thread.submit([large, small])
    finish(thread)

    assert (large.handled, small.handled) == (0, 2)
    assert thread.stop(5) is None


def test_the_lifespan_begins_and_ends_in_the_handlers_own_thread() -> None:
    threads: list[int] = []

    @lifespan
    def mine() -> Iterator[Handler]:
        threads.append(threading.get_ident())
        yield lambda _: threads.append(threading.get_ident())
        threads.append(threading.get_ident())

    thread = HandlerThread(mine)
    thread.start(Shutdown(5))
    thread.submit([Job(Partition(), messages(1))])
    finish(thread)

    assert thread.stop(5) is None
    assert len(threads) == 3
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


def test_a_lifespan_that_fails_to_begin_is_named() -> None:
    @lifespan
    def broken() -> Iterator[Handler]:
        raise ConnectionError("no database")
        yield print

    with pytest.raises(WorkerError, match="did not start: ConnectionError: no database"):
        HandlerThread(broken).start(Shutdown(5))


def test_a_lifespan_that_fails_to_end_is_reported() -> None:
    @lifespan
    def mine() -> Iterator[Handler]:
        yield print
        raise OSError("disk full")

    thread = HandlerThread(mine)
    thread.start(Shutdown(5))

    assert thread.stop(5) == "the handler did not end well: OSError: disk full"


def test_a_stop_is_heard_while_a_lifespan_begins() -> None:
    never = threading.Event()

    @lifespan
    def stuck() -> Iterator[Handler]:
        never.wait(20)
        yield print

    shutdown = Shutdown(5)
    threading.Timer(0.3, shutdown.request).start()
    thread = HandlerThread(stuck)
    thread.start(shutdown)

    assert thread.stop(0.1) == "the handler did not end in time"
    never.set()


def test_a_handler_that_exits_is_reported_not_swallowed() -> None:
    def handle(message: Message) -> None:
        raise SystemExit(3)

    thread = thread_of(handle)
    thread.submit([Job(Partition(), messages(1))])

    with pytest.raises(WorkerError, match="SystemExit: 3"):
        finish(thread)


def test_a_handler_that_hangs_is_left_behind() -> None:
    never = threading.Event()
    thread = thread_of(lambda _: never.wait(20))
    thread.submit([Job(Partition(), messages(1))])

    assert not thread.wait(0.05)
    assert thread.stop(0.2) == "the handler did not end in time"
    never.set()


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
        with load_handler(f"handler_kinds:{name}")() as handler:
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
        def write(self, data: object) -> int:  # noqa: ARG002  (the signature of the base class)
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Closed()), write_through=True))
    with printer("text")() as handler, pytest.raises(OutputClosedError):
        handler(messages(1))  # type: ignore[arg-type]


async def asynchronous(message: Message) -> None: ...


def generating(message: Message) -> Iterator[int]:
    yield 1


def of_two(message: Message, other: object) -> None: ...


class Handling:
    def __init__(self, config: object = None) -> None: ...

    def __call__(self, message: Message) -> None: ...


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (asynchronous, "is async"),
        (generating, "has a yield"),
        (of_two, "does not take one argument"),
        (None, "None"),
        (Handling, "is a class"),
    ],
)
def test_what_would_handle_nothing_is_refused(handler: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_handler(handler)

    @lifespan
    def yields_it() -> Iterator[Any]:
        yield handler

    with pytest.raises(ConfigError, match=says):
        HandlerThread(yields_it).start(Shutdown(5))


@pytest.mark.parametrize(
    "handler",
    [lambda message: asynchronous(message), functools.partial(generating), contextlib.contextmanager(generating)],
)
def test_a_call_that_only_made_something_to_be_run_is_no_handling(handler: Any) -> None:
    thread = thread_of(handler)
    job = Job(Partition(), messages(5))
    thread.submit([job])

    with pytest.raises(ConfigError, match="so nothing was done"):
        finish(thread)
    assert (job.handled, job.error) == (0, None)


def test_a_lifespan_that_keeps_an_error_to_itself_is_found_out() -> None:
    def leave(_: Message) -> None:
        sys.exit(3)

    @lifespan
    def swallowing() -> Iterator[Handler]:
        with contextlib.suppress(BaseException):
            yield leave

    thread = HandlerThread(swallowing)
    thread.start(Shutdown(5))
    thread.submit([Job(Partition(), messages(1))])

    with pytest.raises(WorkerError, match="ended its thread"):
        finish(thread)


def test_an_error_without_a_text_is_named_all_the_same() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    @lifespan
    def broken() -> Iterator[Handler]:
        raise MuteError
        yield print

    with pytest.raises(WorkerError, match="did not start: MuteError"):
        HandlerThread(broken).start(Shutdown(5))


def test_a_mark_for_batches_on_a_lifespan_is_refused() -> None:
    with pytest.raises(ConfigError, match="@batch"):
        batch(lifespan(generating))  # type: ignore[arg-type]


def test_a_lifespan_without_a_yield_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no yield"):
        lifespan(lambda: None)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("handler", [print, batch(lambda _: None), [].append])
def test_what_takes_a_message_is_a_handler(handler: object) -> None:
    check_handler(handler)


@pytest.mark.parametrize("after_s", [-1, float("nan"), float("inf")])
def test_a_pause_without_an_end_is_an_error_of_the_handler(after_s: float) -> None:
    with pytest.raises(ValueError, match="after_s"):
        Retry("the database is away", after_s)
