"""Runs the user's handler: in one thread, in a pool of threads, or in one event loop.

A handler may take as long as it likes, and a consumer that does not poll for `max.poll.interval.ms` loses its
partitions. So the handler never runs in the thread that polls. A plain function runs in `concurrency` threads; an
`async def` function runs in one event loop, `concurrency` calls at once. The lifespan begins and ends in the first
thread; a lifespan `per_thread` does so in each.
"""

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from workers.consumer.answers import MAX_BYTES, MAX_MESSAGES, Answer, outputs_of
from workers.consumer.scheduling import Work
from workers.errors import ConfigError, WorkerError
from workers.handlers import (
    Lifespan,
    Middleware,
    check_handler,
    gathered,
    is_async,
    is_async_lifespan,
    is_batch,
    is_per_thread,
    name_of,
    wrap,
)
from workers.lifecycle import HANDLER_THREAD, Shutdown
from workers.loading import located, remember_traceback

log = logging.getLogger(__name__)

# How often a signal is looked for while the handler starts.
LOOK_S = 0.1
# How often the event loop shows that it turns; and how long it may not before the handler is named in a warning.
HEARTBEAT_S = 0.1
BLOCKED_LOOP_S = 1.0
# The same warning again only after this long.
REPEAT_S = 30.0
# Results that arrive within this time are collected together: to wake the loop for each would cost more than to wait.
GATHER_S = 0.001
# Cancelled calls may take this long to clean up.
CANCEL_S = 1.0


class Executor:
    """The handler at work: `start`, then `submit` and `collect` in turn, then `stop`, all from the loop's thread."""

    def __init__(self, lifespan: Lifespan, concurrency: int = 1, middlewares: Sequence[Middleware] = ()) -> None:
        self.batch = False
        self.concurrency = concurrency
        self._middlewares = middlewares
        # The outputs of a work after which it ends early: its share, with as much under way already.
        self._output_messages = max(1, MAX_MESSAGES // (2 * concurrency))
        self._output_bytes = MAX_BYTES // (2 * concurrency)
        # Submitted and not collected yet.
        self.in_flight: list[Work] = []
        self._lifespan = lifespan
        self._inbox: SimpleQueue[Work | None] = SimpleQueue()
        self._outbox: SimpleQueue[Work | None] = SimpleQueue()
        self._started: SimpleQueue[bool] = SimpleQueue()
        self._interrupted = False
        self._stopping = False
        self._broken: BaseException | None = None
        self._handler: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._async_inbox: asyncio.Queue[Work | None] | None = None
        self._beat_at = 0.0
        self._loop_lag_s = 0.0
        self._warned_at = float("-inf")
        self._tasks: dict[asyncio.Task[None], Work | None] = {}
        self._threads = [self._thread(self._first_thread)]

    # From the loop's thread

    @property
    def loop_lag_s(self) -> float | None:
        """How late the event loop is, in seconds; None where there is none. Any thread may ask."""
        if self._loop is None:
            return None
        return max(self._loop_lag_s, time.monotonic() - self._beat_at - HEARTBEAT_S, 0.0)

    def start(self, shutdown: Shutdown) -> None:
        """Enter the handler's lifespan; return when it is ready, or a stop was asked for.

        Raises WorkerError when the lifespan fails, ConfigError when what it yields is no handler.
        """
        self._threads[0].start()
        if not self._await_start(shutdown):
            return
        if self._loop is None and self.concurrency > 1:
            others = [self._thread(self._other_thread) for _ in range(self.concurrency - 1)]
            self._threads += others
            for thread in others:
                thread.start()
            for _ in others:
                if not self._await_start(shutdown):
                    return

    def submit(self, works: list[Work]) -> None:
        """Hand over works; they begin in this order as threads or calls become free."""
        self._interrupted = False
        self.in_flight += works
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._put_async, works)
        else:
            for work in works:
                self._inbox.put(work)

    def collect(self, timeout_s: float) -> list[Work]:
        """The works that have finished, at the latest after `timeout_s`. With one thread, it waits for all of them.

        Raises WorkerError when a handler's thread has ended.
        """
        if not self.in_flight:
            return []
        finished: list[Work] = []
        deadline = time.monotonic() + timeout_s
        while len(finished) < len(self.in_flight):
            try:
                work = self._outbox.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                break
            if work is None:
                self._check("ended its thread")
                continue
            finished.append(work)
            if self.concurrency > 1 and self._outbox.empty():
                if len(finished) >= self.concurrency or time.monotonic() + GATHER_S >= deadline:
                    break
                deadline = time.monotonic() + GATHER_S
        if finished:
            done = set(map(id, finished))
            self.in_flight = [work for work in self.in_flight if id(work) not in done]
        return finished

    def interrupt(self) -> None:
        """Let the messages at hand be finished and no other begun before the next `submit`."""
        self._interrupted = True

    def forsake(self, works: list[Work]) -> None:
        """Cancel calls of an `async` handler for works whose partition has gone; threads cannot be cancelled."""
        if works and self._loop is not None:
            self._call(self._cancel, set(works))

    def warn_if_blocked(self) -> None:
        """Name the handler, and where it stands, when it keeps its event loop from turning."""
        lag_s = self.loop_lag_s
        now = time.monotonic()
        if lag_s is None or lag_s < BLOCKED_LOOP_S or now - self._warned_at < REPEAT_S:
            return
        self._warned_at = now
        frame = sys._current_frames().get(self._threads[0].ident or 0)
        stack = traceback.extract_stack(frame) if frame is not None else []
        where = next((f"{each.filename}:{each.lineno}" for each in reversed(stack)), "an unknown place")
        log.warning(
            "handler %s has kept its event loop from turning for %.1f s, at %s: no other message is handled meanwhile; "
            "await what waits, or call it with asyncio.to_thread", name_of(self._handler), lag_s, where,
        )  # fmt: skip

    def stop(self, timeout_s: float) -> str | None:
        """Leave the lifespan and end the threads; return what went wrong, or None.

        Calls of an `async` handler that take longer than `timeout_s` are cancelled; threads are left behind.
        """
        self.interrupt()
        self._stopping = True
        deadline = time.monotonic() + timeout_s
        if self._loop is not None:
            self._call(self._end_async)
        for _ in self._threads:
            self._inbox.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        if self._loop is not None and self._threads[0].is_alive():
            self._call(self._cancel, None)
            self._threads[0].join(CANCEL_S)
        if any(thread.is_alive() for thread in self._threads):
            return self._late()
        if self._broken is None:
            return None
        error = str(self._broken) if isinstance(self._broken, ConfigError) else located(self._broken)
        return f"the handler did not end well: {error}"

    def _late(self) -> str:
        """Name the first call that has not returned."""
        for work in self.in_flight:
            if work.begun_at is not None and not work.finished:
                offset = work.received.offset(min(work.handled, len(work) - 1))
                return f"the handler did not return in time: {work.partition} offset {offset} is redelivered"
        return "the handler's lifespan did not end in time"

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.debug("the event loop has ended already")

    def _thread(self, body: Callable[[], None]) -> threading.Thread:
        return threading.Thread(target=self._guarded, args=(body,), name=HANDLER_THREAD, daemon=True)

    def _await_start(self, shutdown: Shutdown) -> bool:
        while not shutdown.requested:
            try:
                self._started.get(timeout=LOOK_S)
            except Empty:
                continue
            self._check("did not start")
            return True
        return False

    def _check(self, what: str) -> None:
        if isinstance(self._broken, ConfigError):
            raise self._broken
        if self._broken is not None:
            raise WorkerError(f"the handler {what}: {located(self._broken)}")

    # In the handler's threads

    def _guarded(self, body: Callable[[], None]) -> None:
        """Tell the loop's thread when this one ends in any other way than by being asked to."""
        try:
            body()
        except BaseException as error:  # SystemExit too: the consumer must end as well
            self._broken = error
            self._started.put(False)
            self._outbox.put(None)

    def _first_thread(self) -> None:
        if is_async_lifespan(self._lifespan):
            asyncio.run(self._in_async_lifespan())
            return
        asked_to_end = False
        lifespan: Any = self._lifespan()
        with lifespan as inner:
            handler = self._take(inner)
            if is_async(handler):
                asyncio.run(self._serve())
            else:
                self._started.put(True)
                self._work(handler)
                if not is_per_thread(self._lifespan):
                    # They use what this lifespan has opened.
                    for thread in self._threads[1:]:
                        thread.join()
            asked_to_end = True
        _check_end(asked_to_end)

    def _other_thread(self) -> None:
        if not is_per_thread(self._lifespan):
            self._started.put(True)
            self._work(self._handler)
            return
        asked_to_end = False
        lifespan: Any = self._lifespan()
        with lifespan as inner:
            handler = self._wrapped(inner)
            self._started.put(True)
            self._work(handler)
            asked_to_end = True
        _check_end(asked_to_end)

    def _take(self, inner: Any) -> Any:
        self._handler = self._wrapped(inner)
        self.batch = is_batch(self._handler)
        return self._handler

    def _wrapped(self, inner: Any) -> Any:
        """The function to call: made once for each handler, so with a lifespan `per_thread` once in each thread."""
        check_handler(inner)
        return wrap(inner, self._middlewares)

    def _work(self, handler: Any) -> None:
        while (work := self._inbox.get()) is not None:
            self._handle(handler, work)
            self._outbox.put(work)

    def _handle(self, handler: Any, work: Work) -> None:
        partition = work.partition
        work.begun_at = work.progress_at = time.monotonic()
        try:
            if self.batch:
                if partition.owned and not self._interrupted:
                    # The list is the handler's, which may change it.
                    answer = handler([*work.received.messages])
                    if answer is not None:
                        self._note_answer(work, 0, answer)
                    work.handled = len(work)
            else:
                for handled, message in enumerate(work.received.messages, start=1):
                    if not partition.owned or work.interrupted or self._interrupted:
                        break
                    answer = handler(message)
                    if answer is not None:
                        self._note_answer(work, handled - 1, answer)
                    work.handled = handled
        except ConfigError:
            raise
        except Exception as error:
            _note(work, error)
        finally:
            work.finished = True

    def _note_answer(self, work: Work, place: int, answer: object) -> None:
        """Keep what a call gave back, for the loop's thread to send; end the work early where that is much."""
        outputs = outputs_of(self._handler, answer)
        if not outputs:
            return
        work.answers.append(Answer(place, outputs))
        work.output_messages += len(outputs)
        work.output_bytes += sum(output.size for output in outputs)
        if work.output_messages >= self._output_messages or work.output_bytes >= self._output_bytes:
            work.interrupted = True

    # In the event loop's thread

    async def _in_async_lifespan(self) -> None:
        asked_to_end = False
        lifespan: Any = self._lifespan()
        async with lifespan as inner:
            if not is_async(self._take(inner)):
                raise ConfigError(
                    f"handler {name_of(inner)} is a plain function, and its lifespan is async: every message would "
                    "block the event loop; write `async def`, or a plain lifespan"
                )
            await self._serve()
            asked_to_end = True
        _check_end(asked_to_end)

    async def _serve(self) -> None:
        self._async_inbox = asyncio.Queue()
        self._beat_at = time.monotonic()
        loop = asyncio.get_running_loop()
        beat = loop.call_later(HEARTBEAT_S, self._beat, loop)
        self._tasks |= {loop.create_task(self._work_async()): None for _ in range(self.concurrency)}
        self._loop = loop
        if self._stopping:
            # `stop` came before there was a loop to tell.
            self._end_async()
        self._started.put(True)
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        beat.cancel()
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        self._loop_lag_s = max(0.0, now - self._beat_at - HEARTBEAT_S)
        self._beat_at = now
        loop.call_later(HEARTBEAT_S, self._beat, loop)

    def _put_async(self, works: list[Work]) -> None:
        assert self._async_inbox is not None
        for work in works:
            self._async_inbox.put_nowait(work)

    def _end_async(self) -> None:
        assert self._async_inbox is not None
        for _ in range(self.concurrency):
            self._async_inbox.put_nowait(None)

    async def _work_async(self) -> None:
        assert self._async_inbox is not None
        task = asyncio.current_task()
        assert task is not None
        try:
            while (work := await self._async_inbox.get()) is not None:
                self._tasks[task] = work
                await self._handle_async(work)
                self._tasks[task] = None
                self._outbox.put(work)
        except asyncio.CancelledError:
            raise
        except BaseException:
            # The others wait for works that nobody will submit.
            self._cancel(None)
            raise

    def _cancel(self, works: set[Work] | None) -> None:
        for task, work in self._tasks.items():
            if works is None or work in works:
                task.cancel()

    async def _handle_async(self, work: Work) -> None:
        partition, handler = work.partition, self._handler
        work.begun_at = work.progress_at = time.monotonic()
        try:
            if self.batch:
                if partition.owned and not self._interrupted:
                    answer = await handler([*work.received.messages])
                    if answer is not None:
                        self._note_answer(work, 0, await gathered(answer))
                    work.handled = len(work)
            else:
                for handled, message in enumerate(work.received.messages, start=1):
                    if not partition.owned or work.interrupted or self._interrupted:
                        break
                    answer = await handler(message)
                    if answer is not None:
                        self._note_answer(work, handled - 1, await gathered(answer))
                    work.handled = handled
        except asyncio.CancelledError:
            if self._stopping:
                raise
            # The consumer forsakes works whose partition has gone; any other cancellation is the handler's own.
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            _note(work, RuntimeError("the call was cancelled"))
        except ConfigError:
            raise
        except Exception as error:
            _note(work, error)
        finally:
            work.finished = True


def _check_end(asked_to_end: bool) -> None:
    if not asked_to_end:
        raise RuntimeError("the lifespan swallowed an exception")


def _note(work: Work, error: Exception) -> None:
    log.debug("the handler raised", exc_info=error)
    remember_traceback(error)
    _forget_frames(error, set())
    work.error = error


def _forget_frames(error: BaseException | None, seen: set[int]) -> None:
    """Take the tracebacks from an error and its causes: they hold frames, and so the work and its messages, in a circle
    that is seldom looked for.
    """
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    error.__traceback__ = None
    for each in (
        error.__cause__,
        error.__context__,
        *(error.exceptions if isinstance(error, BaseExceptionGroup) else ()),
    ):
        _forget_frames(each, seen)
