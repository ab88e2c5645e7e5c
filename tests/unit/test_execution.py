"""The user's handler at work: in one thread, in a pool of threads, in an event loop."""

import asyncio
import contextlib
import functools
import gc
import re
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from confluent_kafka import Message

from workers.consumer.answers import MAX_BYTES
from workers.consumer.execution import Executor
from workers.consumer.failing import described
from workers.consumer.received import Received
from workers.consumer.scheduling import Shard, Work
from workers.errors import ConfigError, WorkerError
from workers.handlers import Handler, Lifespan, batch, lifespan
from workers.lifecycle import Shutdown
from workers.sources import Outgoing
from workers.testing.processes import eventually

WAIT_S = 30


class Partition:
    owned = True
    key = ("t", 0)
    next_offset = 0

    def __str__(self) -> str:
        return "t[0]"


def work_of(count: int, partition: Partition | None = None) -> Work:
    partition = partition or Partition()
    messages = [Message(topic="t", partition=0, offset=n, value=b"%d" % n) for n in range(count)]
    return Work(partition, [Shard(partition, None)], [Received(messages)])


def always(handler: Any) -> Lifespan:
    @lifespan
    def once() -> Iterator[Handler]:
        yield handler

    return once


def started(handler: Lifespan, concurrency: int = 1) -> Executor:
    executor = Executor(handler, concurrency)
    executor.start(Shutdown(5))
    return executor


def finish(executor: Executor) -> list[Work]:
    """All that is in flight, when it has finished."""
    works: list[Work] = []

    def all_back() -> bool:
        works.extend(executor.collect(0.05))
        return not executor.in_flight

    eventually(all_back, "the works are finished", WAIT_S)
    return works


def run(executor: Executor, *works: Work) -> None:
    executor.submit([*works])
    finish(executor)


async def nothing(message: Message) -> None: ...


# One thread


def test_messages_are_handled_in_order_and_progress_shows_where_it_failed() -> None:
    seen: list[bytes | None] = []

    def handle(message: Message) -> None:
        if message.value() == b"3":
            raise ValueError("three")
        seen.append(message.value())

    executor = started(always(handle))
    work = work_of(5)
    run(executor, work)

    assert seen == [b"0", b"1", b"2"]
    assert (work.handled, str(work.error), work.finished) == (3, "three", True)
    assert work.begun_at is not None
    assert executor.stop(5) is None


def test_works_begin_in_the_order_in_which_they_were_handed_over_and_come_back_once() -> None:
    seen: list[object] = []
    partitions = [Partition() for _ in range(4)]
    works = [work_of(1, partition) for partition in partitions]
    executor = started(always(lambda message: seen.append(message)))
    executor.submit(works)

    assert finish(executor) == works
    assert seen == [work.received.messages[0] for work in works]
    assert executor.collect(0) == []
    assert executor.stop(5) is None


def test_what_a_batch_handler_does_to_its_list_changes_nothing() -> None:
    @batch
    def consume_all(batch_of: list[Message]) -> None:
        batch_of.clear()

    executor = started(always(consume_all))
    work = work_of(5)
    run(executor, work)

    assert executor.batch
    assert (work.handled, len(work), len(work.received.messages)) == (5, 5, 5)
    assert executor.stop(5) is None


def test_a_batch_counts_as_handled_only_as_a_whole() -> None:
    @batch
    def handle(batch_of: list[Message]) -> None:
        if len(batch_of) > 2:
            raise ValueError("too many")

    executor = started(always(handle))
    large, small = work_of(3), work_of(2)
    run(executor, large, small)

    assert (large.handled, small.handled) == (0, 2)
    assert executor.stop(5) is None


class Gate:
    """A handler that waits in its first message until the test lets it go on."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, _: Message) -> None:
        self.begun.set()
        self.go_on.wait(WAIT_S)


def test_a_partition_that_is_taken_away_stops_after_the_message_at_hand() -> None:
    gate = Gate()
    executor = started(always(gate))
    partition = Partition()
    work, next_work = work_of(5, partition), work_of(5, partition)
    executor.submit([work, next_work])
    assert gate.begun.wait(WAIT_S)
    partition.owned = False
    gate.go_on.set()
    finish(executor)

    assert (work.handled, next_work.handled) == (1, 0)
    assert executor.stop(5) is None


def test_an_interrupted_handler_finishes_its_message_and_goes_on_at_the_next_submit() -> None:
    gate = Gate()
    executor = started(always(gate))
    first, second = work_of(5), work_of(5)
    executor.submit([first, second])
    assert gate.begun.wait(WAIT_S)
    executor.interrupt()
    gate.go_on.set()
    finish(executor)
    assert (first.handled, second.handled) == (1, 0)

    run(executor, second)
    assert second.handled == 5
    assert executor.stop(5) is None


def test_an_interrupted_work_alone_gives_way_to_the_others() -> None:
    gate = Gate()
    executor = started(always(gate))
    first, second = work_of(5), work_of(5)
    executor.submit([first, second])
    assert gate.begun.wait(WAIT_S)
    first.interrupted = True
    gate.go_on.set()
    finish(executor)

    assert (first.handled, second.handled) == (1, 5)
    assert executor.stop(5) is None


def test_progress_is_seen_while_the_handler_is_busy() -> None:
    hold = threading.Event()

    def handle(message: Message) -> None:
        if message.value() == b"2":
            hold.wait(WAIT_S)

    executor = started(always(handle))
    work = work_of(3)
    executor.submit([work])

    eventually(lambda: work.handled == 2, "two are handled", WAIT_S)
    assert not work.finished
    hold.set()
    finish(executor)
    assert work.handled == 3
    assert executor.stop(5) is None


@pytest.mark.parametrize("is_async", [False, True])
def test_an_error_keeps_neither_its_work_nor_its_messages_alive(is_async: bool) -> None:
    def fail() -> None:
        try:
            raise KeyError("the cause")
        except KeyError as error:
            raise ExceptionGroup("several", [ValueError("a part")]) from error

    def handle(message: Message) -> None:
        try:
            fail()
        except ExceptionGroup as error:
            raise ValueError("what is told") from error

    async def handle_async(message: Message) -> None:
        handle(message)

    executor = started(always(handle_async if is_async else handle))
    partition = Partition()
    gone = weakref.ref(partition)
    gc.disable()
    try:
        executor.submit([work_of(1, partition)])
        [work] = finish(executor)
        error = work.error
        assert isinstance(error, ValueError)
        del partition, work
        # The thread lets go of it when it has the next one.
        run(executor, work_of(1))
        eventually(lambda: gone() is None, "the work is gone, and only its error is left", 5)
    finally:
        gc.enable()
    assert isinstance(error.__cause__, ExceptionGroup)
    assert re.fullmatch(r"ValueError: what is told \(\S*test_execution\.py:\d+\)", described(error))
    assert executor.stop(5) is None


def test_a_handler_that_exits_is_reported_not_swallowed() -> None:
    def handle(message: Message) -> None:
        raise SystemExit(3)

    executor = started(always(handle))
    executor.submit([work_of(1)])

    with pytest.raises(WorkerError, match=r"ended its thread: SystemExit: 3 \(\S*test_execution\.py:\d+\)"):
        finish(executor)
    assert "SystemExit: 3" in (executor.stop(5) or "")


def test_a_handler_that_hangs_is_left_behind() -> None:
    gate = Gate()
    executor = started(always(gate))
    executor.submit([work_of(1)])

    assert executor.collect(0.05) == []
    assert executor.stop(0.2) == "the handler did not return in time: t[0] offset 0 is redelivered"
    gate.go_on.set()


# Lifespans


def test_the_lifespan_begins_and_ends_in_the_handlers_own_thread() -> None:
    threads: list[int] = []

    @lifespan
    def mine() -> Iterator[Handler]:
        threads.append(threading.get_ident())
        yield lambda _: threads.append(threading.get_ident())
        threads.append(threading.get_ident())

    executor = started(mine)
    run(executor, work_of(1))

    assert executor.stop(5) is None
    assert len(threads) == 3
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


def test_a_lifespan_that_fails_to_begin_is_named() -> None:
    @lifespan
    def broken() -> Iterator[Handler]:
        raise ConnectionError("no database")
        yield print

    @lifespan
    async def broken_async() -> AsyncIterator[Handler]:
        raise ConnectionError("no database")
        yield nothing

    for each in (broken, broken_async):
        with pytest.raises(WorkerError, match=r"start: ConnectionError: no database \(\S*test_execution\.py:\d+\)"):
            started(each)


def test_a_lifespan_that_fails_to_end_is_reported() -> None:
    @lifespan
    def mine() -> Iterator[Handler]:
        yield print
        raise OSError("disk full")

    @lifespan
    async def mine_async() -> AsyncIterator[Handler]:
        yield nothing
        raise OSError("disk full")

    for each in (mine, mine_async):
        said = started(each).stop(5) or ""
        assert re.fullmatch(r"the handler did not end well: OSError: disk full \(\S*test_execution\.py:\d+\)", said)


@pytest.mark.parametrize("times", [0, 2])
def test_a_lifespan_that_does_not_yield_once_is_named_with_what_to_do(times: int) -> None:
    @lifespan
    def mine() -> Iterator[Handler]:
        for _ in range(times):
            yield print

    @lifespan
    async def mine_async() -> AsyncIterator[Handler]:
        for _ in range(times):
            yield nothing

    for each in (mine, mine_async):
        if times:
            said = started(each).stop(5)
        else:
            with pytest.raises(ConfigError) as raised:
                started(each)
            said = str(raised.value)
        name = each.__name__
        problem = "yielded more than once" if times else "ended without a yield"
        assert said == f"{'the handler did not end well: ' if times else ''}@lifespan: {name} {problem}; a lifespan " \
            "yields its handler exactly once"  # fmt: skip


def test_a_generator_without_a_yield_that_a_lifespan_uses_is_not_taken_for_the_lifespan() -> None:
    @contextlib.contextmanager
    def connection() -> Iterator[None]:
        yield from ()

    @lifespan
    def mine() -> Iterator[Handler]:
        with connection():
            yield print

    with pytest.raises(WorkerError, match="did not start: RuntimeError: generator didn't yield"):
        started(mine)


def test_a_stop_is_heard_while_a_lifespan_begins() -> None:
    never = threading.Event()

    @lifespan
    def stuck() -> Iterator[Handler]:
        never.wait(WAIT_S)
        yield print

    shutdown = Shutdown(5)
    threading.Timer(0.3, shutdown.request).start()
    executor = Executor(stuck)
    executor.start(shutdown)

    assert executor.stop(0.1) == "the handler's lifespan did not end in time"
    never.set()


@pytest.mark.parametrize("is_async", [False, True])
def test_a_lifespan_that_has_begun_after_the_stop_was_asked_for_ends_at_once(is_async: bool) -> None:
    go_on, ended = threading.Event(), threading.Event()

    @lifespan
    def plain() -> Iterator[Handler]:
        go_on.wait(WAIT_S)
        yield print
        ended.set()

    @lifespan
    async def asynchronous() -> AsyncIterator[Handler]:
        go_on.wait(WAIT_S)
        yield nothing
        ended.set()

    shutdown = Shutdown(5)
    shutdown.request()
    executor = Executor(asynchronous if is_async else plain)
    executor.start(shutdown)
    # When `stop` waits already.
    threading.Timer(0.3, go_on.set).start()
    began_at = time.monotonic()

    assert executor.stop(WAIT_S) is None
    assert ended.is_set()
    assert time.monotonic() - began_at < WAIT_S / 2


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_lifespan_that_keeps_an_error_to_itself_is_found_out(concurrency: int) -> None:
    def leave(_: Message) -> None:
        sys.exit(3)

    async def leave_async(_: Message) -> None:
        sys.exit(3)

    @lifespan
    def swallowing() -> Iterator[Handler]:
        with contextlib.suppress(BaseException):
            yield leave

    @lifespan
    async def swallowing_async() -> AsyncIterator[Handler]:
        with contextlib.suppress(BaseException):
            yield leave_async

    for each in (swallowing, swallowing_async):
        executor = started(each, concurrency)
        executor.submit([work_of(1), work_of(1)])
        with pytest.raises(WorkerError, match="ended its thread"):
            finish(executor)
        assert executor.stop(5) is not None


def test_an_error_without_a_text_is_named_all_the_same() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    @lifespan
    def broken() -> Iterator[Handler]:
        raise MuteError
        yield print

    with pytest.raises(WorkerError, match="did not start: MuteError"):
        started(broken)


def generating(message: Message) -> Iterator[int]:
    yield 1


def print_nothing() -> Iterator[int]:
    yield 1


def of_two(message: Message, other: object) -> None: ...


@pytest.mark.parametrize("handler", [None, print_nothing, of_two, Gate])
@pytest.mark.parametrize("per_thread", [False, True])
def test_a_lifespan_that_yields_no_handler_is_refused_at_the_start(handler: object, per_thread: bool) -> None:
    @lifespan(per_thread=per_thread)
    def yields_it() -> Iterator[Any]:
        yield handler

    with pytest.raises(ConfigError, match="handler"):
        started(yields_it)


def test_a_plain_function_in_an_async_lifespan_is_refused_as_it_would_block_the_loop() -> None:
    @lifespan
    async def mine() -> AsyncIterator[Handler]:
        yield print

    with pytest.raises(ConfigError, match="would block the event loop"):
        started(mine)


async def forgets_to_await(message: Message) -> object:
    return nothing(message)


@batch
async def forgets_to_await_a_batch(messages: list[Message]) -> object:
    return nothing(messages[0])


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (lambda message: nothing(message), "so nothing was done"),
        (batch(lambda messages: nothing(messages[0])), "so nothing was done"),
        (lambda message: yields_later(message), "so nothing was done"),
        (forgets_to_await, "so nothing was done"),
        (forgets_to_await_a_batch, "so nothing was done"),
        (contextlib.contextmanager(generating), "returned a _GeneratorContextManager; return None or messages"),
        (functools.partial(generating), "handler .* gave back an int; return None or messages to write"),
        (lambda _: True, "handler <lambda> returned a bool; return None or messages to write"),
        (lambda _: b"value", "returned a bytes; return None or messages to write"),
        (lambda _: {"value": b"1"}, "returned a dict; return None or messages to write"),
        (lambda _: [Outgoing("1", topic="out"), "2"], "gave back a str; return None or messages to write"),
    ],
)
def test_what_a_handler_may_not_give_back_ends_the_worker(handler: Any, says: str) -> None:
    executor = started(always(handler))
    work = work_of(5)
    executor.submit([work])

    with pytest.raises(ConfigError, match=says):
        finish(executor)
    assert (work.handled, work.error, [*work.answers]) == (0, None, [])


async def yields_later(message: Message) -> AsyncIterator[Outgoing]:
    yield Outgoing("later", topic="out")


# Outputs of a handler


def an_output(message: Message) -> Outgoing:
    return Outgoing(message.value(), topic="out")


def values_of(work: Work) -> dict[int, list[Any]]:
    return {answer.place: [output.record["value"] for output in answer.outputs] for answer in work.answers}


async def return_async(message: Message) -> Outgoing:
    return an_output(message)


async def yield_async(message: Message) -> AsyncIterator[Outgoing]:
    yield an_output(message)


async def return_a_generator(message: Message) -> object:
    return yield_async(message)


def yield_one(message: Message) -> Iterator[Outgoing]:
    yield an_output(message)


@pytest.mark.parametrize(
    "handler",
    [
        an_output,
        lambda message: (an_output(message),),
        yield_one,
        functools.partial(yield_one),
        lambda message: yield_one(message),
        return_async,
        yield_async,
        return_a_generator,
    ],
)
def test_each_kind_of_handler_may_give_back_messages(handler: Any) -> None:
    executor = started(always(handler))
    work = work_of(3)
    run(executor, work)

    assert values_of(work) == {0: [b"0"], 1: [b"1"], 2: [b"2"]}
    assert (work.handled, work.done) == (3, 0)
    assert executor.stop(5) is None


@batch
def all_at_once(messages: list[Message]) -> list[Outgoing]:
    return [*map(an_output, messages)]


@batch
async def all_at_once_async(messages: list[Message]) -> AsyncIterator[Outgoing]:
    for message in messages:
        yield an_output(message)


@pytest.mark.parametrize("handler", [all_at_once, all_at_once_async])
def test_what_a_batch_gives_back_is_of_the_batch(handler: Any) -> None:
    executor = started(always(handler))
    work = work_of(3)
    run(executor, work)

    assert values_of(work) == {0: [b"0", b"1", b"2"]}
    assert (work.handled, work.done) == (3, 0)
    assert executor.stop(5) is None


def test_what_was_yielded_before_an_error_is_not_given_back() -> None:
    def fail_at_one(message: Message) -> Iterator[Outgoing]:
        yield an_output(message)
        if message.offset() == 1:
            raise ValueError("no")

    executor = started(always(fail_at_one))
    work = work_of(3)
    run(executor, work)

    assert values_of(work) == {0: [b"0"]}
    assert (work.handled, str(work.error)) == (1, "no")
    assert executor.stop(5) is None


@pytest.mark.parametrize(
    ("outgoing", "says"),
    [
        (Outgoing("x"), "an output has no topic: give it one"),
        (Outgoing("x", topic="a/b"), "cannot go to 'a/b': that is no name of a topic"),
        (Outgoing("x", topic=5), "cannot go to 5"),  # type: ignore[arg-type]
        (Outgoing("x", key=5, topic="out"), "to topic out cannot be sent: its key is an int"),
        (Outgoing("x", topic="out", on_delivery=lambda _: None), "has on_delivery, which is for sources"),
    ],
)
def test_an_output_that_cannot_be_sent_is_a_failed_attempt_of_its_message(outgoing: Outgoing, says: str) -> None:
    executor = started(always(lambda _: outgoing))
    work = work_of(2)
    run(executor, work)

    assert (work.handled, [*work.answers]) == (0, [])
    assert says in str(work.error)
    assert executor.stop(5) is None


def test_a_work_ends_early_when_it_has_given_back_its_share() -> None:
    executor = Executor(always(lambda _: [Outgoing(b"x" * (MAX_BYTES // 20), topic="out")] * 4), 1)
    executor.start(Shutdown(5))
    work = work_of(9)
    run(executor, work)

    assert work.handled == 3
    assert executor.stop(5) is None


def test_nothing_is_kept_of_a_call_that_gives_back_no_message() -> None:
    executor = started(always(lambda _: []))
    work = work_of(3)
    run(executor, work)

    assert (work.handled, work.done, [*work.answers]) == (3, 3, [])
    assert executor.stop(5) is None


# Threads


def test_as_many_threads_handle_messages_at_once() -> None:
    all_in = threading.Barrier(4, timeout=WAIT_S)

    def handle(message: Message) -> None:
        all_in.wait()

    executor = started(always(handle), concurrency=4)
    works = [work_of(1) for _ in range(8)]
    run(executor, *works)

    assert [work.error for work in works] == [None] * 8
    assert executor.stop(5) is None


def test_one_lifespan_serves_all_threads_and_ends_when_the_last_of_them_is_done() -> None:
    gate = Gate()
    entered = 0
    closed = threading.Event()
    used_closed = []

    def handle(message: Message) -> None:
        gate(message)
        used_closed.append(closed.is_set())

    @lifespan
    def mine() -> Iterator[Handler]:
        nonlocal entered
        entered += 1
        yield handle
        closed.set()

    for _ in range(3):
        gate.begun.clear()
        gate.go_on.clear()
        closed.clear()
        executor = started(mine, concurrency=4)
        executor.submit([work_of(1)])
        assert gate.begun.wait(WAIT_S)
        # The others have ended by then, and perhaps the one that entered the lifespan.
        threading.Timer(0.3, gate.go_on.set).start()
        assert executor.stop(WAIT_S) is None
        assert closed.is_set()

    assert entered == 3
    assert used_closed == [False] * 3


def test_a_lifespan_per_thread_is_entered_and_left_in_each_and_serves_only_it() -> None:
    entered: list[int] = []
    left: list[int] = []
    strangers: list[int] = []
    all_in = threading.Barrier(3, timeout=WAIT_S)

    @lifespan(per_thread=True)
    def mine() -> Iterator[Handler]:
        own = threading.get_ident()
        entered.append(own)

        def handle(message: Message) -> None:
            all_in.wait()
            if threading.get_ident() != own:
                strangers.append(own)

        yield handle
        left.append(threading.get_ident())

    executor = started(mine, concurrency=3)
    assert len(set(entered)) == 3
    run(executor, *[work_of(1) for _ in range(6)])

    assert executor.stop(5) is None
    assert sorted(left) == sorted(entered)
    assert strangers == []


@pytest.mark.parametrize(("per_thread", "times"), [(False, 1), (True, 3)])
def test_a_middleware_is_called_once_for_each_handler(per_thread: bool, times: int) -> None:
    wrapped: list[object] = []
    called: list[object] = []

    def middleware(handler: Any) -> Any:
        wrapped.append(handler)

        def call(message: Message) -> None:
            called.append(message)
            handler(message)

        return call

    @lifespan(per_thread=per_thread)
    def mine() -> Iterator[Handler]:
        yield lambda _: None

    executor = Executor(mine, 3, [middleware])
    executor.start(Shutdown(5))
    run(executor, *(work_of(1) for _ in range(9)))

    assert (len(wrapped), len(called)) == (times, 9)
    assert executor.stop(5) is None


@pytest.mark.parametrize("per_thread", [False, True])
def test_what_is_no_middleware_ends_the_start(per_thread: bool) -> None:
    @lifespan(per_thread=per_thread)
    def mine() -> Iterator[Handler]:
        yield lambda _: None

    nothing_at_all: Any = lambda _: None  # noqa: E731
    with pytest.raises(ConfigError, match="middleware <lambda> returned None"):
        Executor(mine, 3, [nothing_at_all]).start(Shutdown(5))


def test_an_async_lifespan_has_its_handler_inside_the_middleware() -> None:
    called: list[object] = []

    def middleware(handler: Any) -> Any:
        async def call(message: Message) -> None:
            called.append(message)
            await handler(message)

        return call

    @lifespan
    async def mine() -> AsyncIterator[Handler]:
        yield nothing

    executor = Executor(mine, 3, [middleware])
    executor.start(Shutdown(5))
    run(executor, work_of(4))

    assert len(called) == 4
    assert executor.stop(5) is None


def test_a_lifespan_that_fails_in_a_later_thread_is_named() -> None:
    entered = []

    @lifespan(per_thread=True)
    def mine() -> Iterator[Handler]:
        entered.append(1)
        if len(entered) == 2:
            raise ConnectionError("too many connections")
        yield print

    executor = Executor(mine, 3)
    with pytest.raises(WorkerError, match="did not start: ConnectionError: too many connections"):
        executor.start(Shutdown(5))
    assert "too many connections" in (executor.stop(5) or "")


def test_a_handler_that_ends_one_of_several_threads_is_reported_while_the_others_work() -> None:
    gate = Gate()

    def handle(message: Message) -> None:
        if message.value() == b"0":
            gate(message)
        else:
            sys.exit(3)

    executor = started(always(handle), concurrency=2)
    partition = Partition()
    second = Work(partition, [Shard(partition, None)], [work_of(2).received.part(1)])
    executor.submit([work_of(1), second])

    with pytest.raises(WorkerError, match="ended its thread: SystemExit: 3"):
        finish(executor)
    gate.go_on.set()
    assert executor.stop(5) is not None


def test_what_is_finished_comes_back_while_others_are_at_work() -> None:
    gate = Gate()

    def handle(message: Message) -> None:
        if message.value() == b"4":
            gate(message)

    executor = started(always(handle), concurrency=2)
    slow, quick = work_of(5), work_of(2)
    executor.submit([slow, quick])

    assert eventually(lambda: executor.collect(0.05), "one is back", WAIT_S) == [quick]
    assert executor.in_flight == [slow]
    gate.go_on.set()
    assert finish(executor) == [slow]
    assert executor.stop(5) is None


# An event loop


def test_as_many_async_calls_are_under_way_at_once_and_no_more() -> None:
    now = most = 0

    async def handle(message: Message) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.05)
        now -= 1

    executor = started(always(handle), concurrency=5)
    works = [work_of(1) for _ in range(20)]
    run(executor, *works)

    assert most == 5
    assert [work.handled for work in works] == [1] * 20
    assert executor.stop(5) is None


def test_the_messages_of_one_async_work_are_awaited_one_after_the_other_up_to_the_one_that_fails() -> None:
    seen: list[str] = []

    async def handle(message: Message) -> None:
        seen.append(f"begin {message.offset()}")
        await asyncio.sleep(0)
        if message.offset() == 2:
            raise ValueError("two")
        seen.append(f"end {message.offset()}")

    executor = started(always(handle), concurrency=3)
    work = work_of(4)
    run(executor, work)

    assert seen == ["begin 0", "end 0", "begin 1", "end 1", "begin 2"]
    assert (work.handled, str(work.error), work.finished) == (2, "two", True)
    assert executor.stop(5) is None


def test_an_async_batch_counts_as_handled_only_as_a_whole() -> None:
    @batch
    async def handle(messages: list[Message]) -> None:
        await asyncio.sleep(0)
        if len(messages) > 2:
            raise ValueError("too many")
        messages.clear()

    executor = started(always(handle), concurrency=2)
    large, small = work_of(3), work_of(2)
    run(executor, large, small)

    assert executor.batch
    assert (large.handled, small.handled, len(small)) == (0, 2, 2)
    assert executor.stop(5) is None


def test_an_async_lifespan_begins_and_ends_in_the_event_loop_of_its_handler() -> None:
    loops: list[object] = []

    @lifespan
    async def mine() -> AsyncIterator[Handler]:
        loops.append(asyncio.get_running_loop())

        async def handle(message: Message) -> None:
            loops.append(asyncio.get_running_loop())

        yield handle
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())

    executor = started(mine, concurrency=2)
    run(executor, work_of(1))

    assert executor.stop(5) is None
    assert len(loops) == 3
    assert len(set(map(id, loops))) == 1


class Endless:
    """An `async` handler that waits until it is cancelled."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = 0

    async def __call__(self, _: Message) -> None:
        self.begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def test_calls_that_outlast_the_stop_are_cancelled_and_the_lifespan_is_left_all_the_same() -> None:
    endless = Endless()
    closed = []

    @lifespan
    async def mine() -> AsyncIterator[Handler]:
        yield endless
        closed.append(1)

    executor = started(mine, concurrency=2)
    works = [work_of(3), work_of(3), work_of(3)]
    executor.submit(works)
    assert endless.begun.wait(WAIT_S)

    assert executor.stop(0.3) is None
    assert endless.cancelled == 2
    assert closed == [1]
    assert [(work.handled, work.error) for work in works] == [(0, None)] * 3


def test_a_stop_lets_async_calls_finish_the_message_at_hand() -> None:
    begun = threading.Event()

    async def handle(message: Message) -> None:
        begun.set()
        await asyncio.sleep(0.3)

    executor = started(always(handle), concurrency=2)
    work = work_of(5)
    executor.submit([work])
    assert begun.wait(WAIT_S)

    assert executor.stop(WAIT_S) is None
    assert (work.handled, work.finished) == (1, True)


def test_the_calls_of_a_partition_that_has_gone_are_cancelled_and_the_others_go_on() -> None:
    endless = Endless()

    async def handle(message: Message) -> None:
        if message.offset() == 0:
            await endless(message)

    executor = started(always(handle), concurrency=1)
    partition = Partition()
    gone, other = work_of(3, partition), work_of(3)
    other = Work(Partition(), [Shard(Partition(), None)], [other.received.part(1)])
    executor.submit([gone, other])
    assert endless.begun.wait(WAIT_S)
    partition.owned = False
    executor.forsake([gone])
    finish(executor)

    assert (gone.handled, str(gone.error), other.handled) == (0, "the call was cancelled", 2)
    # Whoever was cancelled once can take part in the next.
    run(executor, other)
    assert executor.stop(5) is None


def test_an_async_handler_that_cancels_itself_has_failed_and_no_more() -> None:
    async def handle(message: Message) -> None:
        if message.offset() == 1:
            raise asyncio.CancelledError
        async with asyncio.timeout(WAIT_S):
            await asyncio.sleep(0)

    executor = started(always(handle))
    work, other = work_of(3), work_of(1)
    run(executor, work, other)

    assert (work.handled, str(work.error), other.handled) == (1, "the call was cancelled", 1)
    assert executor.stop(5) is None


def test_an_async_handler_that_exits_is_reported_and_its_lifespan_is_left() -> None:
    left = []

    async def handle(message: Message) -> None:
        raise SystemExit(3)

    @lifespan
    async def mine() -> AsyncIterator[Handler]:
        try:
            yield handle
        finally:
            left.append(1)

    executor = started(mine, concurrency=3)
    executor.submit([work_of(1)])

    with pytest.raises(WorkerError, match="ended its thread: SystemExit: 3"):
        finish(executor)
    assert "SystemExit: 3" in (executor.stop(5) or "")
    assert left == [1]


def test_a_handler_that_blocks_its_event_loop_is_named_with_its_line(caplog: pytest.LogCaptureFixture) -> None:
    hold, begun = threading.Event(), threading.Event()

    async def blocking(message: Message) -> None:
        begun.set()
        while not hold.is_set():
            pass_the_time()

    def pass_the_time() -> None:
        time.sleep(0.001)

    executor = started(always(blocking))
    executor.warn_if_blocked()
    assert not caplog.records
    executor.submit([work_of(1)])
    assert begun.wait(WAIT_S)
    eventually(lambda: (executor.loop_lag_s or 0) > 1.0, "the loop is late", WAIT_S)
    executor.warn_if_blocked()
    executor.warn_if_blocked()
    hold.set()
    finish(executor)

    # Once, not at each turn.
    [record] = caplog.records
    assert "handler blocking has kept its event loop from turning for" in record.getMessage()
    lines = {line + 1 for line in range(blocking.__code__.co_firstlineno, pass_the_time.__code__.co_firstlineno + 2)}
    assert any(f"{__file__}:{line}:" in record.getMessage() for line in lines)
    eventually(lambda: (executor.loop_lag_s or 0) < 1.0, "the loop turns again", WAIT_S)
    assert executor.stop(5) is None


def test_without_an_event_loop_there_is_no_lag_of_one_and_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    executor = started(always(lambda _: None))
    executor.warn_if_blocked()

    assert executor.loop_lag_s is None
    assert not caplog.records
    assert executor.stop(5) is None


def test_an_async_handler_that_hangs_where_it_cannot_be_cancelled_is_left_behind() -> None:
    hold, begun = threading.Event(), threading.Event()

    async def stuck(message: Message) -> None:
        begun.set()
        hold.wait(WAIT_S)

    executor = started(always(stuck))
    executor.submit([work_of(1)])
    assert begun.wait(WAIT_S)

    assert executor.stop(0.2) == "the handler did not return in time: t[0] offset 0 is redelivered"
    hold.set()


def test_a_work_for_an_event_loop_that_has_ended_ends_the_worker() -> None:
    """A handler that cancels the task that calls it takes the task with it; works would wait for ever."""

    async def leaves(_message: Message) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    executor = started(always(leaves))
    executor.submit([work_of(1)])
    eventually(lambda: not executor._threads[0].is_alive(), "its event loop has ended")
    with pytest.raises((RuntimeError, WorkerError)):
        executor.submit([work_of(1)])
