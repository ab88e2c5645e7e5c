"""Between the scheduler and the executor: gives the handler what may be handled now, and accounts for what is done.
Called by the loop's thread.
"""

import logging
import time

from workers.consumer.assignment import Key, PartitionState
from workers.consumer.batching import BatchSize
from workers.consumer.failing import FailedMessages, described
from workers.consumer.flow import BATCH_MESSAGES, FlowControl
from workers.consumer.options import Limits
from workers.consumer.parts import Parts
from workers.consumer.scheduling import Work
from workers.kafka.messages import MessagePlace
from workers.producer.rate_limit import RateLimiter

log = logging.getLogger(__name__)

# While the handler is busy the loop turns at this interval.
KEEP_ALIVE_S = 0.1
# The loop turns at this interval while outputs are under way.
OUTPUTS_POLL_S = 0.01
# With --max-rate, messages are let go at this interval.
LEAST_WAIT_S = 0.01
# After so long the handler is to come back when it is done with its message: a retry may be due, or other partitions.
SLICE_S = 0.5
# When nothing was handled for so long and enough waits, all partitions are paused: each turn takes a message from the
# client, and these would pile up. Not sooner, as a client that pauses throws away what it has fetched.
PAUSE_AFTER_S = 10.0


class Dispatcher:
    """Works on their way to the handler and back."""

    def __init__(self, parts: Parts, flow: FlowControl, failed: FailedMessages, limits: Limits) -> None:
        self._parts = parts
        self._flow = flow
        self._failed = failed
        self._batch_size = BatchSize(limits.batch_size)
        self._max_messages = limits.max_messages
        self._rate_limiter = None if limits.max_rate is None else RateLimiter(limits.max_rate)

    # To the handler

    def dispatch(self) -> None:
        """Give the handler what may be handled now; it works while the loop goes on to receive."""
        works: list[Work] = []
        room, new = self._room(), self._new()
        only_next = self._parts.outputs.only_next
        size = 1 if only_next else self._work_size()
        held = self._held()
        for _ in range(self._free_slots()):
            work = self._parts.scheduler.take(size, room, held, new=new, only_next=only_next)
            if work is None:
                break
            works.append(work)
            if room is not None:
                room -= len(work)
            if new is not None:
                new -= len(work) - work.repeated
        if works:
            if self._rate_limiter is not None:
                self._rate_limiter.took(sum(map(len, works)))
            if not self._parts.executor.in_flight:
                self._parts.assignment.progress_at = time.monotonic()
            self._parts.executor.submit(works)

    def _held(self) -> set[Key]:
        """Partitions that went and came back while a message of theirs is still in the handler's hands: it must not be
        handled a second time beside that.
        """
        works = self._parts.executor.in_flight
        return {work.partition.key for work in works if not work.partition.owned and work.begun_at is not None}

    def _work_size(self) -> int:
        """How many messages a work may have."""
        if not self._parts.executor.batch:
            return BATCH_MESSAGES
        # Several batches at once share what waits.
        waiting = sum(state.count for state in self._parts.assignment.partitions.values())
        return max(1, min(self._batch_size.messages, -(-waiting // self._parts.executor.concurrency)))

    def _free_slots(self) -> int:
        """How many works the handler can be given: one for each partition to one thread, two for each call to more, so
        that the next is there when one ends. None while too many outputs are under way.
        """
        if self._parts.outputs.full:
            return 0
        if self._parts.outputs.only_next:
            return 0 if self._parts.executor.in_flight else 1
        concurrency = self._parts.executor.concurrency
        most = len(self._parts.assignment.partitions) if concurrency == 1 else 2 * concurrency
        return max(0, most - len(self._parts.executor.in_flight))

    def _room(self) -> int | None:
        """How many messages --max-rate lets the handler be given now, None without a limit."""
        return None if self._rate_limiter is None else self._rate_limiter.allowance()

    def _new(self) -> int | None:
        """How many messages may be begun beside those that were begun already, None without a limit."""
        if self._max_messages is None:
            return None
        works = (*self._parts.executor.in_flight, *self._parts.outputs.works)
        at_work = sum(len(work) - work.accounted for work in works)
        return self._max_messages - self._parts.assignment.handled - at_work - self._parts.scheduler.begun

    # Queries of other parts

    @property
    def finished(self) -> bool:
        """Whether as many messages were handled as may be."""
        return self._max_messages is not None and self._parts.assignment.handled >= self._max_messages

    @property
    def may_begin(self) -> bool:
        """Whether the limits let the handler be given another message, or one again."""
        new = self._new()
        return self._room() != 0 and (new is None or new > 0 or self._parts.scheduler.may_repeat)

    @property
    def waits(self) -> bool:
        """Whether messages at hand wait for the handler, for their outputs or for a limit; not where all that is at
        hand waits for a retry or a dead letter, which others need not wait for.
        """
        works = self._parts.executor.in_flight or self._parts.outputs.works
        return bool(works) or self._parts.scheduler.runnable

    @property
    def next_s(self) -> float:
        """In how many seconds --max-rate lets another message be begun; without a limit, nothing waits for that."""
        if self._rate_limiter is None or not self._parts.scheduler.runnable:
            return float("inf")
        return max(LEAST_WAIT_S, self._rate_limiter.wait_s())

    @property
    def wants_more(self) -> bool:
        """Whether handlers are at work, and more could be."""
        return self._parts.executor.concurrency > 1 and self._free_slots() > 0

    # Back from the handler

    def collect(self) -> None:
        """Account for what is done; while the handler is busy, or outputs are under way, wait for them a moment."""
        executor, outputs = self._parts.executor, self._parts.outputs
        if executor.in_flight:
            self._collect_handled()
        if outputs.works:
            self._collect_written()
        else:
            outputs.poll(0.0)
        if executor.in_flight:
            self._keep_alive()
        self._hold_back()

    def _collect_handled(self) -> None:
        """Send the outputs of works that the handler is done with, or settle those that have none."""
        outputs = self._parts.outputs
        wait = self._parts.executor.concurrency == 1 or not self._free_slots() or not self._parts.scheduler.runnable
        # Where more could be at work, messages are waited for, in `poll`, and not results.
        polls = self.wants_more and not self._flow.full()
        longest_s = min(OUTPUTS_POLL_S if outputs.works else KEEP_ALIVE_S, self._parts.committer.due_s)
        finished = self._parts.executor.collect(longest_s if wait and not polls else 0.0)
        for work in finished:
            # All of them first: what one has failed with may end the worker.
            self._note_pace(work)
            if self._rate_limiter is not None:
                # Messages that it was given and has not begun.
                self._rate_limiter.took(work.handled - len(work) + (work.error is not None))
            if work.answers and work.partition.owned:
                outputs.send(work)
            self.account(work)
        # Those that were not handled yet are first again: their partitions have waited while the others' were.
        for work in sorted(finished, key=lambda work: work.handled > 0):
            if work not in outputs.works:
                self._settle(work)

    def _collect_written(self) -> None:
        """Account for works whose outputs have their outcomes."""
        outputs, scheduler = self._parts.outputs, self._parts.scheduler
        idle = not self._parts.executor.in_flight and (outputs.full or not scheduler.runnable or not self.may_begin)
        outputs.poll(OUTPUTS_POLL_S if idle else 0.0)
        written = outputs.take()
        for work in (*written, *outputs.works):
            self.account(work)
        for work in sorted(written, key=lambda work: work.handled > 0):
            self._settle(work)
        if outputs.full:
            # Works under way end with their message at hand; the rest waits until there is room.
            self._parts.executor.interrupt()

    def account(self, work: Work, revoked: bool = False) -> None:
        """Count what is done of `work` since the last call; `revoked` as for Assignment.complete."""
        done = work.done
        if done == work.accounted:
            return
        work.progress_at = time.monotonic()
        state = work.partition
        assert isinstance(state, PartitionState)
        self._parts.assignment.complete(state, work.received, work.accounted, done, revoked=revoked)
        work.accounted = done

    def finish(self) -> str | None:
        """Account for what is done when the handler has ended, and wait for its outputs while there is time to stop;
        return what went wrong, or None.
        """
        outputs = self._parts.outputs
        for work in self._parts.executor.in_flight:
            if work.finished and work.answers and work.partition.owned:
                outputs.send(work)
            self.account(work)
        missing = outputs.await_outcomes(self._parts.shutdown.remaining_s)
        for work in outputs.works:
            self.account(work)
        for work in outputs.take():
            if work.error is not None:
                place = MessagePlace(*work.partition.key, work.received.offset(work.handled))
                log.warning("%s is redelivered: %s", place, described(work.error))
        return f"{missing} outputs were not acknowledged in time; their messages are redelivered" if missing else None

    def _note_pace(self, work: Work) -> None:
        if self._parts.executor.batch and work.begun_at is not None and work.handled and work.error is None:
            self._batch_size.took(len(work), time.monotonic() - work.begun_at)

    def _settle(self, work: Work) -> None:
        """Let the shards of a finished work run again, or decide about what failed."""
        self._parts.scheduler.release(work)
        if work.error is not None:
            on_failure = self._failed.on_failure if work.partition.owned else self._failed.leave_to_next_owner
            on_failure(work, work.error)
            return
        if not work.partition.owned:
            return
        for shard in work.shards:
            self._parts.scheduler.resume(shard)

    def _keep_alive(self) -> None:
        """One turn while the handler is busy: progress is accounted for, and others get their turn."""
        now = time.monotonic()
        for work in self._parts.executor.in_flight:
            self.account(work)
            if work.begun_at is not None and now - work.begun_at > SLICE_S:
                work.interrupted = True
        self._parts.executor.warn_if_blocked()
        if self._parts.shutdown.requested:
            self._parts.executor.interrupt()

    def _hold_back(self) -> None:
        """Receive no more than can wait here."""
        still_s = time.monotonic() - self._parts.assignment.progress_at
        self._flow.hangs = still_s > PAUSE_AFTER_S and self._flow.full() and self.waits
        self._flow.pause_what_holds_too_much()
