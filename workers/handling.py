"""Runs the user's handler in a thread of its own.

A handler may take as long as it likes, and a consumer that does not poll for `max.poll.interval.ms` loses its
partitions. So the handler has one thread, in which its lifespan begins and ends too, and the consumer's loop polls on.
"""

import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Protocol

from confluent_kafka import Message

from workers.handlers import Lifespan, is_batch
from workers.lifecycle import HANDLER_THREAD, WorkerError


class Owned(Protocol):
    """The part of a partition that the handler's thread looks at."""

    owned: bool


class Job:
    """Messages of one partition to handle, in order. `handled` grows while they are; `error` is what stopped it."""

    __slots__ = ("accounted", "error", "finished", "handled", "messages", "partition")

    def __init__(self, partition: Owned, messages: Sequence[Message]) -> None:
        self.partition = partition
        self.messages = messages
        self.handled = 0
        self.accounted = 0
        self.error: Exception | None = None
        self.finished = False


class HandlerThread:
    """One thread that handles jobs one after the other: `submit` a list of them, then `wait`."""

    def __init__(self, lifespan: Lifespan) -> None:
        self._lifespan = lifespan
        self._inbox: SimpleQueue[list[Job] | None] = SimpleQueue()
        self._outbox: SimpleQueue[bool] = SimpleQueue()
        self._interrupted = False
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=HANDLER_THREAD, daemon=True)
        self._started = False
        self.batch = False

    def start(self) -> None:
        """Enters the handler's lifespan; raises WorkerError when that fails."""
        self._thread.start()
        self._outbox.get()
        if self._broken is not None:
            raise WorkerError(f"the handler did not start: {type(self._broken).__name__}: {self._broken}")
        self._started = True

    def submit(self, jobs: list[Job]) -> None:
        self._interrupted = False
        self._inbox.put(jobs)

    def wait(self, timeout_s: float) -> bool:
        """Whether the jobs that were submitted are done. Raises WorkerError when the thread has ended instead."""
        try:
            self._outbox.get(timeout=timeout_s)
        except Exception:  # queue.Empty, or its C twin
            return False
        if self._broken is not None:
            raise WorkerError(f"the handler ended its thread: {type(self._broken).__name__}: {self._broken}")
        return True

    def interrupt(self) -> None:
        """Lets the message at hand, or the batch, be finished and no other begun before the next `submit`."""
        self._interrupted = True

    def stop(self, timeout_s: float) -> bool:
        """Leaves the lifespan and ends the thread; False when it took longer than `timeout_s` and was left behind."""
        self.interrupt()
        if self._started:
            self._inbox.put(None)
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with self._lifespan() as handler:
                self.batch = is_batch(handler)
                self._outbox.put(True)
                while (jobs := self._inbox.get()) is not None:
                    for job in jobs:
                        self._handle(handler, job)
                    self._outbox.put(True)
        except BaseException as error:  # SystemExit too: the consumer must hear of it
            self._broken = error
            self._outbox.put(False)

    def _handle(self, handler: object, job: Job) -> None:
        assert callable(handler)
        try:
            if self.batch:
                if job.partition.owned and not self._interrupted:
                    handler(job.messages)
                    job.handled = len(job.messages)
            else:
                for message in job.messages:
                    if not job.partition.owned or self._interrupted:
                        break
                    handler(message)
                    job.handled += 1
        except Exception as error:
            job.error = error
        finally:
            job.finished = True
