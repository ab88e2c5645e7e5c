"""Runs the user's handler: in one thread, in a pool of threads, or in one event loop.

A handler may take as long as it likes, and a consumer that does not poll for `max.poll.interval.ms` loses its
partitions. So the handler never runs in the thread that polls. A plain function runs in `concurrency` threads; an
`async def` function runs in one event loop, `concurrency` calls at once. The lifespan begins and ends in the first
thread; a lifespan `per_thread` does so in each. `calling.py` has the calls themselves.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from workers.consumer.calling import Calls
from workers.consumer.event_loop import EventLoop
from workers.consumer.scheduling import Work
from workers.errors import ConfigError, WorkerError
from workers.handlers import (
    Lifespan,
    Middleware,
    check_handler,
    is_async,
    is_async_lifespan,
    is_batch,
    is_per_thread,
    name_of,
    wrap,
)
from workers.lifecycle import HANDLER_THREAD, Shutdown
from workers.loading import located

log = logging.getLogger(__name__)

# How often a signal is looked for while the handler starts.
LOOK_S = 0.1
# Results that arrive within this time are collected together: to wake the loop for each would cost more than to wait.
GATHER_S = 0.001
# Cancelled calls may take this long to clean up.
CANCEL_S = 1.0


class Executor:
    """The handler at work: `start`, then `submit` and `collect` in turn, then `stop`, all from the loop's thread."""

    def __init__(self, lifespan: Lifespan, concurrency: int = 1, middlewares: Sequence[Middleware] = ()) -> None:
        self.concurrency = concurrency
        self._middlewares = middlewares
        self._calls = Calls(concurrency)
        # Submitted and not collected yet.
        self.in_flight: list[Work] = []
        self._lifespan = lifespan
        self._inbox: SimpleQueue[Work | None] = SimpleQueue()
        self._outbox: SimpleQueue[Work | None] = SimpleQueue()
        self._started: SimpleQueue[bool] = SimpleQueue()
        self._broken: BaseException | None = None
        self._handler: Any = None
        # Of an `async` handler, once it is ready.
        self._event_loop: EventLoop | None = None
        self._threads = [self._thread(self._first_thread)]

    # From the loop's thread

    @property
    def loop_lag_s(self) -> float | None:
        """How late the event loop is, in seconds; None where there is none. Any thread may ask."""
        return None if self._event_loop is None else self._event_loop.lag_s

    @property
    def batch(self) -> bool:
        """Whether the handler takes batches; known from `start` on."""
        return self._calls.batch

    def start(self, shutdown: Shutdown) -> None:
        """Enter the handler's lifespan; return when it is ready, or a stop was asked for.

        Raises WorkerError when the lifespan fails, ConfigError when what it yields is no handler.
        """
        self._threads[0].start()
        if not self._await_start(shutdown):
            return
        if self._event_loop is None and self.concurrency > 1:
            others = [self._thread(self._other_thread) for _ in range(self.concurrency - 1)]
            self._threads += others
            for thread in others:
                thread.start()
            for _ in others:
                if not self._await_start(shutdown):
                    return

    def submit(self, works: list[Work]) -> None:
        """Hand over works; they begin in this order as threads or calls become free."""
        self._calls.interrupted = False
        self.in_flight += works
        if self._event_loop is not None:
            self._event_loop.submit(works)
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
        self._calls.interrupted = True

    def forsake(self, works: list[Work]) -> None:
        """Cancel calls of an `async` handler for works whose partition has gone; threads cannot be cancelled."""
        if works and self._event_loop is not None:
            self._event_loop.cancel(set(works))

    def warn_if_blocked(self) -> None:
        """Name the handler, and where it stands, when it keeps its event loop from turning."""
        if self._event_loop is not None:
            self._event_loop.warn_if_blocked()

    def stop(self, timeout_s: float) -> str | None:
        """Leave the lifespan and end the threads; return what went wrong, or None.

        Calls of an `async` handler that take longer than `timeout_s` are cancelled; threads are left behind.
        """
        self.interrupt()
        self._calls.stopping = True
        deadline = time.monotonic() + timeout_s
        if self._event_loop is not None:
            self._event_loop.end()
        for _ in self._threads:
            self._inbox.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        if self._event_loop is not None and self._threads[0].is_alive():
            self._event_loop.cancel()
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
        self._calls.batch = is_batch(self._handler)
        return self._handler

    def _wrapped(self, inner: Any) -> Any:
        """The function to call: made once for each handler, so with a lifespan `per_thread` once in each thread."""
        check_handler(inner)
        return wrap(inner, self._middlewares)

    def _work(self, handler: Any) -> None:
        while (work := self._inbox.get()) is not None:
            self._calls.make(handler, work)
            self._outbox.put(work)

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
        event_loop = EventLoop(self._handler, self._calls, self.concurrency, self._outbox)

        def ready() -> None:
            self._event_loop = event_loop
            if self._calls.stopping:
                # `stop` came before there was an event loop to tell.
                event_loop.end()
            self._started.put(True)

        await event_loop.serve(ready)


def _check_end(asked_to_end: bool) -> None:
    if not asked_to_end:
        raise RuntimeError("the lifespan swallowed an exception")
