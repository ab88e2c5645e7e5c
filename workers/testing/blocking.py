"""Finds where calls of an `async` handler keep their event loop from turning: they wait in it, or compute for long."""

import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Coroutine, Generator
from typing import Any, NamedTuple, Self

from workers.handlers import name_of

# The watch samples a step every SAMPLE_S. The step waits when BLOCKED_SAMPLES in a row, none LATE_S late, are equal.
SAMPLE_S = 0.001
LATE_S = 0.005
BLOCKED_SAMPLES = 10
# A step computes for long when it uses this CPU time.
BUSY_S = 0.03


class LoopWatch:
    """Watches the calls of one handler, step by step: from one `await` that gives up the event loop to the next.

    The loop's thread measures the CPU time of each step, which other processes do not change. A thread of the watch
    looks where the step stands. `found` has the lines of the handler, when the context has ended.
    """

    def __init__(self) -> None:
        self.found: set[str] = set()
        # The loop's thread and the number of the step, while there is one.
        self._at: tuple[int, int] | None = None
        self._steps = 0
        self._busy: dict[int, str] = {}
        self._seen: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loop-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for step, name in self._busy.items():
            lines = self._seen[step].most_common(1)
            # A function in C that keeps the GIL is not seen.
            self.found.add(lines[0][0] if lines else name)

    def begin(self) -> None:
        """A step begins; called in the loop's thread."""
        self._steps += 1
        self._at = threading.get_ident(), self._steps

    def end(self, cpu_s: float, handler: object) -> None:
        """The step of a handler has ended, and has used `cpu_s` seconds of CPU time; called in the loop's thread."""
        self._at = None
        if cpu_s >= BUSY_S:
            self._busy[self._steps] = name_of(handler)

    def _run(self) -> None:
        standing: _Standing | None = None
        samples = 0
        looked_at = time.monotonic()
        while not self._over.wait(SAMPLE_S):
            before, standing = standing, self._look()
            now = time.monotonic()
            # Where this thread has to wait for the CPU, the loop's may do so too.
            late, looked_at = now - looked_at > LATE_S, now
            samples = samples + 1 if standing is not None and standing == before and not late else 0
            if standing is None:
                continue
            self._seen[standing.step][standing.where] += 1
            if samples >= BLOCKED_SAMPLES:
                self.found.add(standing.where)

    def _look(self) -> "_Standing | None":
        at = self._at
        if at is None:
            return None
        thread, step = at
        innermost = frame = sys._current_frames().get(thread)
        inner = None
        while frame is not None and frame.f_code is not Steps.__await__.__code__:
            frame, inner = frame.f_back, frame
        if frame is None or inner is None or innermost is None:
            return None
        return _Standing(step, id(innermost), innermost.f_lasti, f"{inner.f_code.co_filename}:{inner.f_lineno}")


class _Standing(NamedTuple):
    """Where a step stands: the instruction, and the line of the handler."""

    step: int
    frame: int
    instruction: int
    where: str


class Steps:
    """A call of an `async` handler, awaited step by step under a watch."""

    def __init__(self, watch: LoopWatch, handler: object, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._watch = watch
        self._handler = handler
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        advance: Any = self._coroutine.send
        value: Any = None
        while True:
            self._watch.begin()
            begun_s = time.thread_time()
            try:
                awaited = advance(value)
            except StopIteration as stop:
                return stop.value
            finally:
                self._watch.end(time.thread_time() - begun_s, self._handler)
            try:
                value = yield awaited
                advance = self._coroutine.send
            except BaseException as error:  # a cancellation, for one, which is the call's to handle
                value, advance = error, self._coroutine.throw
