"""The event loop of an `async` handler: `concurrency` tasks, each of which takes one work after the other."""

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from queue import SimpleQueue
from typing import Any

from workers.consumer.calling import Calls
from workers.consumer.scheduling import Work
from workers.handlers import name_of

log = logging.getLogger(__name__)

# How often the event loop shows that it turns; and how long it may not before the handler is named in a warning.
HEARTBEAT_S = 0.1
BLOCKED_LOOP_S = 1.0
# The same warning again only after this long.
REPEAT_S = 30.0


class EventLoop:
    """Made inside of the event loop. `serve` runs there until `end`; the loop's thread calls all else that is public.

    Finished works go to `outbox`.
    """

    def __init__(self, handler: Any, calls: Calls, concurrency: int, outbox: "SimpleQueue[Work | None]") -> None:
        self._handler = handler
        self._calls = calls
        self._concurrency = concurrency
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._inbox: asyncio.Queue[Work | None] = asyncio.Queue()
        self._tasks: dict[asyncio.Task[None], Work | None] = {}
        self._beat_at = time.monotonic()
        self._lag_s = 0.0
        self._warned_at = float("-inf")

    @property
    def lag_s(self) -> float:
        """How late the event loop is, in seconds. Any thread may ask."""
        return max(self._lag_s, time.monotonic() - self._beat_at - HEARTBEAT_S, 0.0)

    def submit(self, works: list[Work]) -> None:
        """Hand over works; they begin in this order as tasks become free. Raises RuntimeError when it has ended."""
        self._loop.call_soon_threadsafe(self._put, works)

    def cancel(self, works: Collection[Work] | None = None) -> None:
        """Cancel the calls of some works, or all of them."""
        self._call(self._cancel, works)

    def end(self) -> None:
        """Have each task end when it is done with its work."""
        self._call(self._put, [None] * self._concurrency)

    def warn_if_blocked(self) -> None:
        """Name the handler, and where it stands, when it keeps the event loop from turning."""
        lag_s, now = self.lag_s, time.monotonic()
        if lag_s < BLOCKED_LOOP_S or now - self._warned_at < REPEAT_S:
            return
        self._warned_at = now
        frame = sys._current_frames().get(self._thread_id)
        stack = traceback.extract_stack(frame) if frame is not None else []
        where = next((f"{each.filename}:{each.lineno}" for each in reversed(stack)), "an unknown place")
        log.warning(
            "handler %s has kept its event loop from turning for %.1f s, at %s: no other message is handled meanwhile; "
            "await what waits, or call it with asyncio.to_thread", name_of(self._handler), lag_s, where,
        )  # fmt: skip

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.debug("the event loop has ended already")

    # In the event loop

    async def serve(self, ready: Callable[[], object]) -> None:
        """Call `ready`, then handle works until the end; raises what has ended a task, but no cancellation."""
        beat = self._loop.call_later(HEARTBEAT_S, self._beat)
        self._tasks |= {self._loop.create_task(self._work()): None for _ in range(self._concurrency)}
        ready()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        beat.cancel()
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result

    def _beat(self) -> None:
        now = time.monotonic()
        self._lag_s = max(0.0, now - self._beat_at - HEARTBEAT_S)
        self._beat_at = now
        self._loop.call_later(HEARTBEAT_S, self._beat)

    def _put(self, works: Sequence[Work | None]) -> None:
        for work in works:
            self._inbox.put_nowait(work)

    def _cancel(self, works: Collection[Work] | None) -> None:
        for task, work in self._tasks.items():
            if works is None or work in works:
                task.cancel()

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            while (work := await self._inbox.get()) is not None:
                self._tasks[task] = work
                await self._calls.make_async(self._handler, work)
                self._tasks[task] = None
                self._outbox.put(work)
        except asyncio.CancelledError:
            raise
        except BaseException:
            # The others wait for works that nobody will submit.
            self._cancel(None)
            raise
