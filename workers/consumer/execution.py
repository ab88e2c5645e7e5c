"""Runs the user's handler in a thread of its own.

A handler may take as long as it likes, and a consumer that does not poll for `max.poll.interval.ms` loses its
partitions. So the handler has one thread, in which its lifespan begins and ends too, and the consumer's loop polls on.
"""

import logging
import threading
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from confluent_kafka import Message

from workers.errors import ConfigError, WorkerError
from workers.handlers import Lifespan, check_answer, check_handler, is_batch
from workers.lifecycle import HANDLER_THREAD, Shutdown
from workers.loading import named

log = logging.getLogger(__name__)
# How often a signal is looked for while the handler starts.
LOOK_S = 0.1


class Owned(Protocol):
    """The part of a partition that the handler's thread looks at."""

    owned: bool


_Partition = TypeVar("_Partition", bound=Owned)


class Job(Generic[_Partition]):
    """Messages of one partition to handle, in order. `handled` grows while they are; `error` is what stopped it.

    The list and its messages are the handler's, which can change both. `count` and `values` are as they were received.
    """

    __slots__ = ("accounted", "begun", "count", "error", "finished", "handled", "messages", "partition", "values")

    def __init__(self, partition: _Partition, messages: list[Message]) -> None:
        self.begun = False
        self.partition = partition
        self.messages = messages
        self.count = len(messages)
        self.values = [*map(Message.value, messages)]
        self.handled = 0
        self.accounted = 0
        self.error: Exception | None = None
        self.finished = False


class HandlerThread:
    """One thread that handles jobs one after the other: `submit` a list of them, then `wait`."""

    def __init__(self, lifespan: Lifespan) -> None:
        self._lifespan = lifespan
        self._inbox: SimpleQueue[list[Job[Any]] | None] = SimpleQueue()
        self._outbox: SimpleQueue[bool] = SimpleQueue()
        self._interrupted = False
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=HANDLER_THREAD, daemon=True)
        self.batch = False

    def start(self, shutdown: Shutdown) -> None:
        """Enters the handler's lifespan, for which it waits until a stop is asked for; raises WorkerError when that
        fails.
        """
        self._thread.start()
        while not shutdown.requested:
            try:
                self._outbox.get(timeout=LOOK_S)
            except Empty:
                continue
            self._check("did not start")
            return

    def submit(self, jobs: list[Job[Any]]) -> None:
        self._interrupted = False
        self._inbox.put(jobs)

    def wait(self, timeout_s: float) -> bool:
        """Whether the jobs that were submitted are done. Raises WorkerError when the thread has ended instead."""
        try:
            self._outbox.get(timeout=timeout_s)
        except Empty:
            return False
        self._check("ended its thread")
        return True

    def _check(self, what: str) -> None:
        if isinstance(self._broken, ConfigError):
            raise self._broken
        if self._broken is not None:
            raise WorkerError(f"the handler {what}: {named(self._broken)}")

    def interrupt(self) -> None:
        """Lets the message at hand, or the batch, be finished and no other begun before the next `submit`."""
        self._interrupted = True

    def stop(self, timeout_s: float) -> str | None:
        """Leaves the lifespan and ends the thread; returns what went wrong, or None.

        A thread that takes longer than `timeout_s` is left behind.
        """
        self.interrupt()
        self._inbox.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            return "the handler did not end in time"
        return f"the handler did not end well: {named(self._broken)}" if self._broken is not None else None

    def _run(self) -> None:
        asked_to_end = False
        try:
            with self._lifespan() as handler:
                check_handler(handler)
                self.batch = is_batch(handler)
                self._outbox.put(True)
                while (jobs := self._inbox.get()) is not None:
                    for job in jobs:
                        self._handle(handler, job)
                    self._outbox.put(True)
                asked_to_end = True
            if not asked_to_end:
                raise RuntimeError("what it raised, its lifespan has kept to itself")
        except BaseException as error:  # SystemExit too: the consumer must hear of it
            self._broken = error
            self._outbox.put(False)

    def _handle(self, handler: object, job: Job[Any]) -> None:
        assert callable(handler)
        job.begun = True
        try:
            if self.batch:
                if job.partition.owned and not self._interrupted:
                    answer = handler(job.messages)
                    if answer is not None:
                        check_answer(handler, answer)
                    job.handled = job.count
            else:
                partition = job.partition
                for handled, message in enumerate(job.messages, start=1):
                    if not partition.owned or self._interrupted:
                        break
                    answer = handler(message)
                    if answer is not None:
                        check_answer(handler, answer)
                    job.handled = handled
        except ConfigError:
            raise
        except Exception as error:
            log.debug("the handler raised", exc_info=True)
            # Its traceback holds this frame, and so the job and its messages, in a circle that is seldom looked for.
            job.error = error.with_traceback(None)
        finally:
            job.finished = True
