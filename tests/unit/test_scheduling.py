"""Which messages may be handled now, and in which order."""

from collections import defaultdict
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Message
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workers.consumer import scheduling
from workers.consumer.received import Received
from workers.consumer.scheduling import MESSAGES_OF_A_KEY, Order, Scheduler, Shard, Work

PARTITIONS = 3
KEYS = st.sampled_from([None, b"", b"a", b"b"])
# A partition, and what tells its shards apart: nothing, a key, or the offset of a message that stands alone.
ShardId = tuple["Partition", object]


class Partition:
    owned = True

    def __init__(self, number: int) -> None:
        self.number = number
        self.key = ("t", number)
        self.next_offset = 0


def received_of(keys: Iterable[bytes | None], begin: int = 0) -> Received:
    return Received(
        [Message(topic="t", partition=0, offset=at, key=key, value=b"v") for at, key in enumerate(keys, start=begin)]
    )


def offsets_of(work: Work | Received) -> list[int]:
    received = work.received if isinstance(work, Work) else work
    return [received.offset(place) for place in range(len(received))]


class SchedulerMachine(RuleBasedStateMachine):
    """The scheduler, used as the consumer's loop uses it, beside a reference that looks at every message each time."""

    @initialize(order=st.sampled_from(["partition", "key", "none"]), batches=st.booleans())
    def begin(self, order: Order, batches: bool) -> None:
        self.order: Order = order
        self.scheduler = Scheduler(order, batches=batches)
        self.now = 1000.0
        self.monkeypatch = pytest.MonkeyPatch()
        self.monkeypatch.setattr(scheduling, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.partitions = [Partition(number) for number in range(PARTITIONS)]
        # Waiting offsets of each shard, in order; and all offsets that were added and handled.
        self.waiting: defaultdict[ShardId, list[int]] = defaultdict(list)
        self.added: defaultdict[Partition, list[int]] = defaultdict(list)
        self.handled: defaultdict[Partition, list[int]] = defaultdict(list)
        self.works: list[tuple[Work, list[ShardId]]] = []
        self.late: list[Work] = []
        self.retry_at: dict[ShardId, float] = {}
        self.condemned: dict[ShardId, Shard] = {}
        self.isolating: dict[ShardId, int] = {}
        # How many of the others may still have their turn before this one.
        self.turns: dict[object, int] = {}

    # The reference

    def shard_id(self, partition: Partition, offset: int, key: bytes | None) -> ShardId:
        if self.order == "partition":
            return partition, None
        return (partition, offset) if key is None or self.order == "none" else (partition, key)

    def ids_of(self, work: Work) -> list[ShardId]:
        partition = work.partition
        assert isinstance(partition, Partition)
        return [self.shard_id(partition, part.offset(0), part.keys[0]) for part in work.parts]

    def at_work(self) -> set[ShardId]:
        return {each for _, ids in self.works for each in ids}

    def eligible(self) -> list[ShardId]:
        busy = self.at_work()
        return [
            each
            for each, offsets in self.waiting.items()
            if offsets
            and each not in busy
            and each not in self.condemned
            and self.retry_at.get(each, self.now) <= self.now
        ]

    def pass_turn(self, candidates: set[Any], taken: set[Any]) -> None:
        """Each that could have been taken and was not has one of those before it less."""
        for each in candidates:
            left = self.turns.setdefault(each, len(candidates) - 1)
            if each in taken:
                del self.turns[each]
            else:
                assert left > 0, "passed over though all others had their turn"
                self.turns[each] = left - 1

    def progress(self, shard: ShardId, offsets: list[int]) -> None:
        assert self.waiting[shard][: len(offsets)] == offsets
        del self.waiting[shard][: len(offsets)]
        self.handled[shard[0]] += offsets
        self.isolating[shard] = max(0, self.isolating.get(shard, 0) - len(offsets))

    # Actions of the loop

    @rule(number=st.integers(0, PARTITIONS - 1), keys=st.lists(KEYS, min_size=1, max_size=8), gap=st.integers(0, 2))
    def add(self, number: int, keys: list[bytes | None], gap: int) -> None:
        partition = self.partitions[number]
        received = received_of(keys, partition.next_offset + gap)
        partition.next_offset += gap + len(keys)
        self.scheduler.add(partition, received)
        self.added[partition] += offsets_of(received)
        for offset, key in zip(offsets_of(received), keys, strict=True):
            self.waiting[self.shard_id(partition, offset, key)].append(offset)

    @rule(batch_size=st.integers(1, 6), room=st.none() | st.integers(-1, 4))
    def take(self, batch_size: int, room: int | None) -> None:
        eligible = self.eligible()
        work = self.scheduler.take(batch_size, room)
        if room is not None and room <= 0:
            assert work is None
            return
        assert (work is None) == (not eligible)
        if work is None:
            return
        ids = self.ids_of(work)
        assert set(ids) <= set(eligible)
        assert len(set(ids)) == len(ids) == len(work.shards)
        assert {each[0] for each in ids} == {work.partition}
        assert 0 < len(work) <= min(batch_size, batch_size if room is None else room)
        assert offsets_of(work) == sorted(offset for part in work.parts for offset in offsets_of(part))
        for each, part in zip(ids, work.parts, strict=True):
            assert offsets_of(part) == self.waiting[each][: len(part)]
            if self.isolating.get(each):
                assert (len(ids), len(work)) == (1, 1)
        if not self.scheduler.batches:
            assert len(ids) == 1
        self.pass_turn({each[0] for each in eligible}, {work.partition})
        # Within a partition the shards take turns too.
        self.pass_turn({each for each in eligible if each[0] is work.partition}, set(ids))
        self.works.append((work, ids))

    @precondition(lambda self: self.works)
    @rule(data=st.data(), what=st.sampled_from(["done", "interrupted", "blocked", "condemned"]))
    def finish(self, data: st.DataObject, what: str) -> None:
        work, ids = self.works.pop(data.draw(st.integers(0, len(self.works) - 1), "work"))
        self.settle(work, ids, what, data)

    def settle(self, work: Work, ids: list[ShardId], what: str, data: st.DataObject | None) -> None:
        if what == "done":
            work.handled = len(work)
        elif not self.scheduler.batches:
            assert data is not None
            # The one that fails is not handled; an interruption can also come just after the last.
            work.handled = data.draw(st.integers(0, len(work) - (what != "interrupted")), "handled")
        work.finished = True
        self.scheduler.release(work)
        for shard, each, part in zip(work.shards, ids, work.parts, strict=True):
            done = offsets_of(part)[: work.handled if len(ids) == 1 else len(part) if work.handled else 0]
            self.progress(each, done)
            if done:
                assert (shard.attempts, shard.backoff_step, shard.error) == (0, 0, None)
            assert shard.isolating == self.isolating.get(each, 0)
            if what in ("done", "interrupted"):
                self.scheduler.resume(shard)
                continue
            shard.attempts += 1
            if what == "blocked":
                assert data is not None
                until = self.now + data.draw(st.sampled_from([0, 1, 5]), "pause")
                self.retry_at[each] = until
                self.scheduler.block(shard, until)
            elif len(work) > 1 and self.scheduler.batches:
                shard.forget_failures()
                shard.isolating = self.isolating[each] = len(part)
                self.scheduler.resume(shard)
            else:
                self.condemned[each] = shard
                self.scheduler.condemn(shard, ValueError("it failed"))

    @precondition(lambda self: self.condemned)
    @rule(data=st.data())
    def absolve(self, data: st.DataObject) -> None:
        ids = list(self.condemned)
        self.absolve_one(ids[data.draw(st.integers(0, len(ids) - 1), "which")])

    def absolve_one(self, each: ShardId) -> None:
        first = self.scheduler.absolve(self.condemned.pop(each))
        assert len(first) == 1
        self.progress(each, offsets_of(first))

    @rule(seconds=st.sampled_from([0.5, 1, 10]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(number=st.integers(0, PARTITIONS - 1))
    def drop(self, number: int) -> None:
        """The partition is revoked, and assigned again: with it comes another state."""
        partition = self.partitions[number]
        gone = self.scheduler.drop(partition)
        assert sorted(map(id, gone)) == sorted(
            id(shard) for each, shard in self.condemned.items() if each[0] is partition
        )
        partition.owned = False
        self.late += [work for work, _ in self.works if work.partition is partition]
        self.works = [each for each in self.works if each[0].partition is not partition]
        for known in (self.waiting, self.retry_at, self.condemned, self.isolating):
            for each in [each for each in known if each[0] is partition]:
                del known[each]
        self.partitions[number] = Partition(number)
        self.turns.clear()

    @precondition(lambda self: self.late)
    @rule()
    def a_work_of_a_dropped_partition_comes_back(self) -> None:
        work = self.late.pop()
        work.handled = len(work) // 2 if not self.scheduler.batches else 0
        work.finished = True
        self.scheduler.release(work)

    @rule(number=st.integers(0, PARTITIONS - 1), keep=st.integers(1, 5))
    def cut(self, number: int, keep: int) -> None:
        """A blocked partition leaves to the client what is beyond its first messages, to be received again."""
        partition = self.partitions[number]
        each = (partition, None)
        if self.order != "partition" or not self.scheduler.blocks(partition):
            return
        beyond = self.scheduler.cut(partition, keep)
        offsets = self.waiting[each][keep:]
        assert (offsets_of(beyond) if beyond is not None else []) == offsets
        if offsets:
            del self.waiting[each][keep:]
            self.added[partition] = self.added[partition][: -len(offsets)]
            partition.next_offset = offsets[0]

    # Invariants

    @invariant()
    def what_others_ask_is_true(self) -> None:
        eligible = self.eligible()
        scheduler = self.scheduler
        assert scheduler.runnable == bool(eligible)
        assert scheduler.waiting_shards() == len(eligible)
        for each in [each for each, until in self.retry_at.items() if until <= self.now]:
            del self.retry_at[each]
        assert scheduler.blocked_shards() == len(self.retry_at) + len(self.condemned)
        blocked = {*self.retry_at, *self.condemned}
        assert scheduler.blocked_messages == sum(len(self.waiting[each]) for each in blocked)
        waits = min((until - self.now for until in self.retry_at.values()), default=None)
        assert scheduler.next_retry_s() == waits
        for partition in self.partitions:
            held = (partition, None) in self.retry_at or (partition, None) in self.condemned
            assert scheduler.blocks(partition) == (self.order == "partition" and held)

    @invariant()
    def shards_that_have_nothing_left_are_forgotten(self) -> None:
        if self.order == "partition":
            assert self.scheduler.shards() <= PARTITIONS
        elif self.order == "none":
            assert self.scheduler.shards() == 0
        else:
            alive = {each for each, offsets in self.waiting.items() if offsets} | self.at_work()
            assert self.scheduler.shards() == sum(isinstance(each[1], bytes) for each in alive)

    def teardown(self) -> None:
        """Whatever happened before, each message is handled exactly once in the end."""
        if not hasattr(self, "scheduler"):
            return
        try:
            self.drain()
        finally:
            self.monkeypatch.undo()

    def drain(self) -> None:
        while self.works or self.condemned or self.eligible() or self.retry_at:
            for work, ids in [*self.works]:
                self.works.remove((work, ids))
                self.settle(work, ids, "done", None)
            for each in [*self.condemned]:
                self.absolve_one(each)
            self.now = max([self.now, *self.retry_at.values()])
            self.what_others_ask_is_true()
            self.take(100, None)
        self.shards_that_have_nothing_left_are_forgotten()
        for partition in self.partitions:
            assert sorted(self.handled[partition]) == self.added[partition]
            if self.order == "partition":
                assert self.handled[partition] == self.added[partition]


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


# Examples that say what the machine checks


def take_all(scheduler: Scheduler, batch_size: int = 100, room: int | None = None) -> list[list[int]]:
    works = []
    while (work := scheduler.take(batch_size, room)) is not None:
        works.append(offsets_of(work))
    return works


@pytest.mark.parametrize(
    ("order", "batches", "expected"),
    [
        ("partition", False, [[0, 1, 2, 3, 4, 5]]),
        ("partition", True, [[0, 1, 2, 3, 4, 5]]),
        # Messages 2 and 4 have no key: they wait for nobody.
        ("key", False, [[2], [4], [0, 3], [1, 5]]),
        ("key", True, [[0, 1, 2, 3, 4, 5]]),
        ("none", False, [[0], [1], [2], [3], [4], [5]]),
        ("none", True, [[0, 1, 2, 3, 4, 5]]),
    ],
)
def test_each_order_hands_out_its_works(order: Order, batches: bool, expected: list[list[int]]) -> None:
    scheduler = Scheduler(order, batches=batches)
    scheduler.add(Partition(0), received_of([b"a", b"b", None, b"a", None, b"b"]))

    assert take_all(scheduler) == expected


def test_a_key_at_work_holds_back_only_its_own_messages() -> None:
    scheduler = Scheduler("key", batches=True)
    partition = Partition(0)
    scheduler.add(partition, received_of([b"a"]))
    first = scheduler.take(10)
    assert first is not None
    scheduler.add(partition, received_of([b"a", b"b"], begin=1))

    assert take_all(scheduler) == [[2]]
    first.handled = 1
    scheduler.release(first)
    scheduler.resume(first.shards[0])
    assert take_all(scheduler) == [[1]]


def test_the_same_key_of_two_partitions_is_two_keys() -> None:
    scheduler = Scheduler("key")
    for number in range(2):
        scheduler.add(Partition(number), received_of([b"a"]))

    assert take_all(scheduler) == [[0], [0]]


def test_a_key_with_many_messages_lets_others_have_their_turn() -> None:
    scheduler = Scheduler("key")
    partition = Partition(0)
    scheduler.add(partition, received_of([b"a"] * 100 + [b"b"]))

    work = scheduler.take(1000)
    assert work is not None
    assert len(work) == MESSAGES_OF_A_KEY
    work.handled = len(work)
    scheduler.release(work)
    scheduler.resume(work.shards[0])
    assert take_all(scheduler) == [[100], [*range(MESSAGES_OF_A_KEY, 2 * MESSAGES_OF_A_KEY)]]


def test_partitions_take_turns_however_much_one_has() -> None:
    scheduler = Scheduler("none")
    many, few = Partition(0), Partition(1)
    scheduler.add(many, received_of([None] * 6))
    scheduler.add(few, received_of([None] * 2))
    works = [scheduler.take(1) for _ in range(5)]

    assert [work.partition for work in works if work is not None] == [many, few, many, few, many]


def test_no_more_is_handed_out_than_there_is_room_for() -> None:
    scheduler = Scheduler("partition")
    scheduler.add(Partition(0), received_of([None] * 10))

    assert scheduler.take(100, 0) is None
    assert scheduler.runnable
    assert take_all(scheduler, room=3) == [[0, 1, 2]]


def test_a_poisoned_key_blocks_only_its_key() -> None:
    scheduler = Scheduler("key")
    partition = Partition(0)
    scheduler.add(partition, received_of([b"bad", b"bad", b"good", b"good"]))
    work = scheduler.take(100)
    assert work is not None
    scheduler.release(work)
    scheduler.block(work.shards[0], float("inf"))
    scheduler.add(partition, received_of([b"bad", b"other"], begin=4))

    assert take_all(scheduler) == [[2, 3], [5]]
    assert (scheduler.blocked_shards(), scheduler.runnable, scheduler.blocks(partition)) == (1, False, False)


def test_the_next_message_of_a_partition_may_come_behind_offsets_that_hold_none() -> None:
    """Transaction markers and compaction leave such offsets."""
    scheduler = Scheduler("partition")
    partition = Partition(0)
    scheduler.add(partition, received_of([None, None], begin=12))
    partition.next_offset = 11

    work = scheduler.take(1, only_next=True)
    assert work is not None
    assert offsets_of(work) == [12]
    assert scheduler.take(1, only_next=True) is None


@pytest.mark.parametrize("handled", [0, 1])
def test_messages_of_a_partition_that_has_gone_are_not_to_be_tried_again(handled: int) -> None:
    """A message of a batch that is taken apart comes back when its partition was revoked."""
    scheduler = Scheduler("partition", batches=True)
    partition = Partition(0)
    scheduler.add(partition, received_of([None] * 5))
    batch = scheduler.take(5)
    assert batch is not None
    [shard] = batch.shards
    scheduler.release(batch)
    shard.isolating = 5
    scheduler.note_failed(shard, 5)
    scheduler.resume(shard)
    assert scheduler.begun == 5
    single = scheduler.take(5)
    assert single is not None
    assert offsets_of(single) == [0]

    partition.owned = False
    scheduler.drop(partition)
    single.handled = handled
    scheduler.release(single)
    assert (scheduler.begun, scheduler.may_repeat) == (0, False)


def test_a_message_is_tried_again_though_more_were_begun_than_may_be() -> None:
    scheduler = Scheduler("partition")
    scheduler.add(Partition(0), received_of([None] * 3))
    work = scheduler.take(1)
    assert work is not None
    scheduler.release(work)
    scheduler.note_failed(work.shards[0], 1)
    scheduler.resume(work.shards[0])

    again = scheduler.take(10, new=-2)
    assert again is not None
    assert (offsets_of(again), again.repeated) == ([0], 1)
