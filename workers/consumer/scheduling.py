"""Which messages may be handled now, and in which order. Called by the loop's thread.

A shard is a sequence of messages that are handled one after the other. The order says what it is: a partition, the
messages of one key in a partition, or a single message. Shards are independent of each other: one that waits for a
retry or for its dead letter holds up no other one. Partitions take turns, and so do the shards of one.
"""

import heapq
import itertools
import time
from collections import deque
from collections.abc import Collection
from typing import Literal, Protocol

from workers.consumer.answers import Answer
from workers.consumer.received import Received

Order = Literal["partition", "key", "none"]

# A work has at most this many messages of one key: others get their turn, and a stop need not wait for many.
MESSAGES_OF_A_KEY = 32


class Partition(Protocol):
    """The part of a partition's state that the scheduler and the executor look at."""

    owned: bool

    @property
    def key(self) -> tuple[str, int]: ...

    @property
    def next_offset(self) -> int | None: ...


class Shard:
    """Messages of one partition that are handled one after the other, and what became of the first of them.

    Invariant: `queue` has what was not handled yet, without the `in_work` messages in the hands of the handler. The
    first `begun` of both together were given to the handler before, in a call that failed.
    """

    __slots__ = (
        "attempts",
        "backoff_step",
        "begun",
        "dead_letter",
        "error",
        "held",
        "in_work",
        "isolating",
        "key",
        "partition",
        "queue",
        "retry_at",
    )

    def __init__(self, partition: Partition, key: bytes | None) -> None:
        self.partition = partition
        self.key = key
        self.queue: deque[Received] = deque()
        self.in_work = 0
        self.begun = 0
        # How many of its messages the scheduler counts as blocked.
        self.held = 0
        # How often the first message failed: calls that count, and all calls.
        self.attempts = 0
        self.backoff_step = 0
        self.retry_at = 0.0
        # A batch failed: this many messages are handled one by one, to find those that fail.
        self.isolating = 0
        # The first message is to become a dead letter, which is under way or waits for its next try.
        self.error: Exception | None = None
        self.dead_letter: object | None = None

    @property
    def blocked(self) -> bool:
        """Whether its first message waits for a retry or for its dead letter."""
        return self.error is not None or self.retry_at > time.monotonic()

    def __len__(self) -> int:
        return sum(map(len, self.queue))

    def take(self, limit: int) -> Received:
        """At most `limit` of its messages, from the first on; the queue is not empty.

        Messages that arrived together are split only above `limit`: a split copies them.
        """
        first = self.queue.popleft()
        if len(first) > limit:
            self.queue.appendleft(first.part(limit))
            return first.part(0, limit)
        parts = [first]
        room = limit - len(first)
        while self.queue and len(self.queue[0]) <= room:
            parts.append(self.queue.popleft())
            room -= len(parts[-1])
        return Received.joined(parts)

    def forget_failures(self) -> None:
        """The first message is done with; what comes after it begins anew."""
        self.attempts = self.backoff_step = 0
        self.retry_at = 0.0


class Work:
    """Messages of one partition for the handler, one after the other or as one batch.

    The executor's thread writes `begun_at`, `handled`, `answers`, `error` and `finished`; the loop's thread reads them,
    and writes `accounted`. Both set `interrupted`. `handled` grows while messages are handled, and is a prefix of
    `received`. `answers` are outputs of the handler that are not written yet, in the order of its calls.
    """

    __slots__ = (
        "accounted",
        "answers",
        "begun_at",
        "earlier_attempts",
        "error",
        "finished",
        "given",
        "handled",
        "interrupted",
        "output_bytes",
        "output_messages",
        "partition",
        "parts",
        "progress_at",
        "received",
        "repeated",
        "shards",
    )

    def __init__(self, partition: Partition, shards: list[Shard], parts: list[Received]) -> None:
        self.partition = partition
        self.shards = shards
        self.parts = parts
        self.received = Received.merged(parts)
        self.begun_at: float | None = None
        self.progress_at = 0.0
        self.handled = 0
        self.answers: deque[Answer] = deque()
        self.output_messages = self.output_bytes = 0
        self.accounted = 0
        # Where an output has failed: how many messages the handler had been given, `handled` and those behind it.
        self.given = 0
        # How many of its messages were begun before, in a call that failed.
        self.repeated = 0
        # How often its first message that was not handled has failed in transactions that were aborted.
        self.earlier_attempts = 0
        self.error: Exception | None = None
        self.interrupted = False
        self.finished = False

    def __len__(self) -> int:
        return len(self.received)

    @property
    def done(self) -> int:
        """How many messages were handled and have their outputs acknowledged. For the loop's thread."""
        # First: an answer is there before `handled` counts its message.
        handled = self.handled
        answers = self.answers
        while answers and not answers[0].pending:
            answers.popleft()
        return min(handled, answers[0].place) if answers else handled


class Scheduler:
    """Shards that have something to do, by partition. With `batches`, a work may have messages of several shards."""

    def __init__(self, order: Order, *, batches: bool = False) -> None:
        self.order = order
        self.batches = batches
        # Partitions with a runnable shard, and those shards; both in the order of their turns.
        self._turns: deque[Partition] = deque()
        self._runnable: dict[Partition, deque[Shard]] = {}
        # The shards of each partition by key; keyless messages have a shard each, which is in no dictionary.
        self._shards: dict[Partition, dict[bytes | None, Shard]] = {}
        self._retries: list[tuple[float, int, Shard]] = []
        self._numbers = itertools.count()
        # Shards whose first message is to become a dead letter.
        self.dead_letters: list[Shard] = []
        # Shards with messages that were begun before.
        self._begun: set[Shard] = set()
        # How many messages wait behind a retry or a dead letter, with the one that failed.
        self.blocked_messages = 0

    # Adding and removing messages

    def add(self, partition: Partition, received: Received) -> None:
        """Take messages of a partition, in the order of their offsets."""
        if self.order == "partition":
            self._append(self._shard(partition, None), received)
            return
        places: dict[bytes | None, list[int]] = {}
        for place, key in enumerate(received.keys):
            if key is None or self.order == "none":
                self._append(Shard(partition, None), received.pick([place]))
            else:
                places.setdefault(key, []).append(place)
        for key, chosen in places.items():
            self._append(self._shard(partition, key), received.pick(chosen))

    def drop(self, partition: Partition) -> list[Shard]:
        """Forget a partition, and return its shards that have failed or a dead letter under way."""
        self._shards.pop(partition, None)
        if self._runnable.pop(partition, None) is not None:
            self._turns.remove(partition)
        for shard in (*(entry[2] for entry in self._retries), *self.dead_letters):
            if shard.partition is partition:
                self._hold(shard, 0)
        self._retries = [entry for entry in self._retries if entry[2].partition is not partition]
        heapq.heapify(self._retries)
        gone = [shard for shard in self.dead_letters if shard.partition is partition]
        self.dead_letters = [shard for shard in self.dead_letters if shard.partition is not partition]
        self._begun = {shard for shard in self._begun if shard.partition is not partition}
        return gone

    def cut(self, partition: Partition, keep: int) -> Received | None:
        """Take out what a blocked partition has beyond its first `keep` messages (order "partition" only), None where
        there is nothing.
        """
        shard = self._shards.get(partition, {}).get(None)
        if shard is None or len(shard) <= keep:
            return None
        waiting = Received.joined([*shard.queue])
        shard.queue.clear()
        shard.queue.append(waiting.part(0, keep))
        self._hold(shard, min(keep, shard.held))
        return waiting.part(keep)

    # Choosing and finishing works

    def take(
        self,
        batch_size: int,
        room: int | None = None,
        held: Collection[tuple[str, int]] = (),
        *,
        new: int | None = None,
        only_next: bool = False,
    ) -> Work | None:
        """The next work, of at most `batch_size` messages and `room`, of which `new` were not begun before (None is
        without a limit); None when none may run.

        Nothing is taken of partitions in `held`; with `only_next`, only messages at the low-water marks. Its shards are
        at work until `release`.
        """
        if room is not None and room <= 0:
            return None
        self._wake()
        if not self._turns:
            return None
        if new is not None:
            # More may be begun than was allowed: messages that were discounted count again when their commit is known.
            new = max(0, new)
        only_begun = new == 0
        if only_next or only_begun:
            if not self._turn_to(held, only_next=only_next, only_begun=only_begun):
                return None
        elif held:
            free = next((each for each in self._turns if each.key not in held), None)
            if free is None:
                return None
            self._turns.remove(free)
            self._turns.appendleft(free)
        partition = self._turns.popleft()
        shards = self._runnable[partition]
        limit = batch_size if room is None else min(batch_size, room)
        chosen: list[Shard] = []
        parts: list[Received] = []
        repeated = 0
        while shards and limit > 0:
            shard = shards[0]
            alone = bool(shard.isolating)
            if chosen and alone:
                break
            most = 1 if alone else limit
            if self.order != "partition" and not self.batches:
                most = min(most, MESSAGES_OF_A_KEY)
            if new is not None:
                most = min(most, shard.begun + new)
                if most <= 0:
                    break
            shards.popleft()
            part = shard.take(most)
            shard.in_work = len(part)
            if shard.begun:
                repeated += min(shard.begun, len(part))
            if new is not None:
                new -= max(0, len(part) - shard.begun)
            chosen.append(shard)
            parts.append(part)
            limit -= len(part)
            if alone or not self.batches or self.order == "partition":
                break
        if shards:
            self._turns.append(partition)
        else:
            del self._runnable[partition]
        work = Work(partition, chosen, parts)
        work.repeated = repeated
        return work

    def _turn_to(self, held: Collection[tuple[str, int]], *, only_next: bool, only_begun: bool) -> bool:
        """Make a shard the next one whose first message is at the low-water mark, was begun before, or both; return
        whether there is one.
        """
        if only_begun and not self._begun:
            return False
        # A shard that is the whole partition has no work: its first message comes next, behind a gap too.
        at_mark = only_next and self.order != "partition"
        for partition in self._turns:
            shards = self._runnable[partition]
            for shard in [] if partition.key in held else shards:
                if (shard.begun or not only_begun) and (
                    not at_mark or shard.queue[0].offset(0) == partition.next_offset
                ):
                    self._turns.remove(partition)
                    self._turns.appendleft(partition)
                    shards.remove(shard)
                    shards.appendleft(shard)
                    return True
        return False

    def release(self, work: Work) -> None:
        """Put back what a finished work has not handled. Its shards run again with `resume`, or are blocked."""
        for shard, part in zip(work.shards, work.parts, strict=True):
            shard.in_work = 0
            done = min(len(part), work.handled) if len(work.shards) == 1 else (len(part) if work.handled else 0)
            if done:
                shard.forget_failures()
                shard.isolating = max(0, shard.isolating - done)
                if shard.begun:
                    self._mark_begun(shard, shard.begun - done)
            if done < len(part):
                shard.queue.appendleft(part.part(done) if done else part)

    def resume(self, shard: Shard) -> None:
        """Let a shard run that was released; it is forgotten where it has nothing left."""
        if shard.queue:
            self._run(shard)
        elif shard.key is not None:
            self._shards.get(shard.partition, {}).pop(shard.key, None)

    def note_failed(self, shard: Shard, messages: int) -> None:
        """The first `messages` of a shard that was released were given to the handler, and the first has failed."""
        self._mark_begun(shard, max(shard.begun, messages))

    def block(self, shard: Shard, until: float) -> None:
        """Let a shard that was released run at `until` (time.monotonic), not before."""
        shard.retry_at = until
        self._hold(shard, len(shard))
        heapq.heappush(self._retries, (until, next(self._numbers), shard))

    def condemn(self, shard: Shard, error: Exception) -> None:
        """Hold a shard that was released until its first message is in the dead-letter topic."""
        shard.error = error
        self._hold(shard, len(shard))
        self.dead_letters.append(shard)

    def absolve(self, shard: Shard) -> Received:
        """The first message of a condemned shard is in the dead-letter topic: take it out and go on behind it."""
        self.dead_letters.remove(shard)
        self._hold(shard, 0)
        first = shard.take(1)
        shard.error = shard.dead_letter = None
        shard.forget_failures()
        shard.isolating = max(0, shard.isolating - 1)
        self._mark_begun(shard, shard.begun - 1)
        self.resume(shard)
        return first

    # Queries of other parts

    def next_retry_s(self) -> float | None:
        """Seconds until a blocked shard may run again, None where none is."""
        return max(0.0, self._retries[0][0] - time.monotonic()) if self._retries else None

    @property
    def runnable(self) -> bool:
        """Whether a work could be taken now."""
        self._wake()
        return bool(self._turns)

    @property
    def begun(self) -> int:
        """How many messages were begun, are not done, and are not at work now."""
        return sum(max(0, shard.begun - shard.in_work) for shard in self._begun)

    @property
    def may_repeat(self) -> bool:
        """Whether a message that was begun before could be taken now."""
        now = time.monotonic()
        return any(not shard.in_work and shard.error is None and shard.retry_at <= now for shard in self._begun)

    def waiting_shards(self) -> int:
        """How many shards could run now."""
        return sum(map(len, self._runnable.values()))

    def shards(self) -> int:
        """How many shards have messages or are at work, without those of keyless messages."""
        return sum(map(len, self._shards.values()))

    def blocked_shards(self) -> int:
        """How many shards wait for a retry or for their dead letter."""
        return len(self._retries) + len(self.dead_letters)

    def blocks(self, partition: Partition) -> bool:
        """Whether the partition as a whole waits for a retry or a dead letter (order "partition" only)."""
        if self.order != "partition":
            return False
        shard = self._shards.get(partition, {}).get(None)
        return shard is not None and shard.blocked

    def _shard(self, partition: Partition, key: bytes | None) -> Shard:
        shards = self._shards.setdefault(partition, {})
        shard = shards.get(key)
        if shard is None:
            shard = shards[key] = Shard(partition, key)
        return shard

    def _mark_begun(self, shard: Shard, messages: int) -> None:
        shard.begun = max(0, messages)
        # A work can come back when its partition has gone: nothing would take its shard out again.
        if shard.begun and shard.partition.owned:
            self._begun.add(shard)
        else:
            self._begun.discard(shard)

    def _append(self, shard: Shard, received: Received) -> None:
        was_empty = not shard.queue
        shard.queue.append(received)
        if shard.held:
            self._hold(shard, shard.held + len(received))
        if was_empty and not shard.in_work and not shard.blocked:
            self._run(shard)

    def _run(self, shard: Shard) -> None:
        shards = self._runnable.get(shard.partition)
        if shards is None:
            shards = self._runnable[shard.partition] = deque()
            self._turns.append(shard.partition)
        shards.append(shard)

    def _wake(self) -> None:
        """Let those run whose pause is over."""
        now = time.monotonic()
        while self._retries and self._retries[0][0] <= now:
            shard = heapq.heappop(self._retries)[2]
            if shard.error is None:
                self._hold(shard, 0)
                self._run(shard)

    def _hold(self, shard: Shard, messages: int) -> None:
        """Count this many messages of a shard as blocked."""
        self.blocked_messages += messages - shard.held
        shard.held = messages
