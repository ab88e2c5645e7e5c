"""Rounds over groups where brokers do not answer at will: what stays, what goes, how often they are asked."""

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupState, ConsumerGroupType, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec

from workers.monitoring.group_lag import GroupLag, Selection

GROUP, TOPIC = "orders", "teste"


class Brokers:
    """The administrative client of a cluster with one group, which has committed 10 of 25 in each partition."""

    def __init__(self, partitions: int = 3) -> None:
        self.groups = {GROUP}
        self.ends = dict.fromkeys(range(partitions), 25)
        self.beginnings = dict.fromkeys(self.ends, 0)
        self.committed = dict.fromkeys(self.ends, 10)
        # Of groups that have not committed the same.
        self.committed_by_group: dict[str, dict[int, int]] = {}
        self.timestamps_ms: dict[int, int] = {}
        # Parts that do not answer: the name of a call, a partition's number, or a broker that lists groups.
        self.away: set[object] = set()
        self.asked: Counter[str] = Counter()

    def list_consumer_groups(self, **_: Any) -> Any:
        # confluent-kafka 2.16 gives KafkaError here, and says KafkaException.
        errors = [KafkaError(KafkaError._TRANSPORT)] if "broker 2" in self.away else []
        listed = [] if errors else [SimpleNamespace(group_id=each) for each in self.groups]
        return self._answer("list", lambda: SimpleNamespace(valid=listed, errors=errors))

    def describe_consumer_groups(self, group_ids: list[str], **_: Any) -> Any:
        return {each: self._answer("describe", partial(self._description, each)) for each in group_ids}

    def _description(self, group_id: str) -> Any:
        state = ConsumerGroupState.EMPTY if group_id in self.groups else ConsumerGroupState.DEAD
        return SimpleNamespace(group_id=group_id, state=state, type=ConsumerGroupType.CLASSIC, members=[])

    def list_consumer_group_offsets(self, requests: list[Any], **_: Any) -> Any:
        return {each.group_id: self._answer("committed", partial(self._committed, each.group_id)) for each in requests}

    def _committed(self, group_id: str) -> Any:
        committed = self.committed_by_group.get(group_id, self.committed)
        return SimpleNamespace(topic_partitions=[TopicPartition(TOPIC, *each) for each in committed.items()])

    def list_topics(self, **_: Any) -> Any:
        topic = SimpleNamespace(partitions=dict.fromkeys(self.ends))
        return self._answer("topics", lambda: SimpleNamespace(topics={TOPIC: topic})).result()

    def list_offsets(self, wanted: dict[TopicPartition, OffsetSpec], **_: Any) -> Any:
        self.asked["offsets"] += 1
        return {each: self._answer(each.partition, partial(self._offset, each.partition, spec))
                for each, spec in wanted.items()}  # fmt: skip

    def _offset(self, number: int, spec: OffsetSpec) -> Any:
        if spec is OffsetSpec.earliest():
            return SimpleNamespace(offset=self.beginnings[number], timestamp=-1)
        if spec is OffsetSpec.latest():
            return SimpleNamespace(offset=self.ends[number], timestamp=-1)
        newer = [item for item in sorted(self.timestamps_ms.items()) if item[1] >= spec._value]
        offset, timestamp = newer[0] if newer else (-1, -1)
        return SimpleNamespace(offset=offset, timestamp=timestamp)

    def _answer(self, what: object, make: Callable[[], Any]) -> "Future[Any]":
        if isinstance(what, str):
            self.asked[what] += 1
        future: Future[Any] = Future()
        if what in self.away:
            future.set_exception(_error(KafkaError._TIMED_OUT))
        else:
            future.set_result(make())
        return future


def _error(code: int) -> KafkaException:
    return KafkaException(KafkaError(code))


class Clock:
    now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


def looking(brokers: Brokers, keep_s: float = 300, interval_s: float = 15, **selection: Any) -> GroupLag:
    group_lag = GroupLag(brokers, Selection(**selection), interval_s, keep_s, Clock())  # type: ignore[arg-type]
    group_lag.look()
    return group_lag


def lags(group_lag: GroupLag) -> list[int | None]:
    return [each.lag_messages for group in group_lag.picture.groups for each in group.partitions]


@pytest.mark.parametrize("away", ["list", "describe", "committed", "topics", 1, "broker 2"])
def test_what_is_not_answered_keeps_its_last_value_and_is_told_to_the_probe(away: object) -> None:
    brokers = Brokers()
    group_lag = looking(brokers)
    assert group_lag.ready() is None
    complete_at_s = group_lag.picture.complete_at_s
    brokers.away.add(away)
    group_lag.look()

    assert lags(group_lag) == [15, 15, 15]
    assert "brokers have not answered everything" in (group_lag.ready() or "")
    assert group_lag.live() is None
    assert group_lag.picture.complete_at_s == complete_at_s
    brokers.away.clear()
    group_lag.look()
    assert group_lag.ready() is None


@pytest.mark.parametrize(("away", "left"), [("describe", []), ("committed", []), ("topics", []), (1, [15, 15])])
def test_a_value_that_was_kept_for_its_time_is_dropped(away: object, left: list[int]) -> None:
    brokers = Brokers()
    group_lag = looking(brokers, keep_s=0)
    brokers.away.add(away)
    group_lag.look()

    assert lags(group_lag) == left


def test_a_coordinator_that_has_not_answered_is_not_asked_for_offsets() -> None:
    """The process ends with SIGSEGV in librdkafka when a broker refuses that because it is not the coordinator."""
    brokers = Brokers()
    group_lag = looking(brokers)
    asked = brokers.asked["committed"]
    assert asked == 1
    brokers.away.add("describe")
    group_lag.look()

    assert brokers.asked["committed"] == asked
    assert lags(group_lag) == [15, 15, 15]


def test_an_offset_that_is_not_answered_makes_no_time_known() -> None:
    """Or else an old end would count as the end of now, and what was written meanwhile as new."""
    brokers, clock = Brokers(1), Clock()
    group_lag = GroupLag(brokers, Selection(), 15, 300, clock)  # type: ignore[arg-type]
    brokers.committed[0] = 25
    group_lag.look()
    brokers.away.add(0)
    clock.now_s += 100
    group_lag.look()
    brokers.away.clear()
    brokers.ends[0], brokers.committed[0] = 26, 25
    clock.now_s += 0.001
    group_lag.look()

    # Written between the first look and the last.
    assert group_lag.picture.lag_s[GROUP, (TOPIC, 0)] == pytest.approx(50, abs=1)


def test_a_group_that_is_gone_is_gone_at_once_by_either_way_of_asking() -> None:
    for group_ids in ((), (GROUP,)):
        brokers = Brokers()
        group_lag = looking(brokers, group_ids=group_ids)
        assert lags(group_lag) == [15, 15, 15]
        brokers.groups.clear()
        group_lag.look()

        assert group_lag.picture.groups == ()
        assert group_lag.picture.ranges == {}
        assert group_lag.ready() is None


def test_a_round_asks_in_batches_however_many_partitions_there_are() -> None:
    few, many = Brokers(1), Brokers(1000)
    for brokers in (few, many):
        looking(brokers)

    assert len(many.ends) == 1000
    assert few.asked == many.asked


def test_a_group_that_stands_still_is_looked_up_once() -> None:
    brokers = Brokers()
    hour_ago_ms = int(Clock.now_s * 1000) - 3_600_000
    brokers.timestamps_ms = {number: hour_ago_ms + number for number in range(25)}
    group_lag = looking(brokers)
    assert group_lag.picture.lag_s[GROUP, (TOPIC, 0)] == pytest.approx(3600, rel=0.05)
    asked = brokers.asked["offsets"]
    group_lag.look()

    assert brokers.asked["offsets"] == asked + 2


def test_a_partition_that_does_not_answer_is_looked_up_once_a_round_however_many_groups_are_behind_in_it() -> None:
    brokers = Brokers(1)
    hour_ago_ms = int(Clock.now_s * 1000) - 3_600_000
    brokers.timestamps_ms = {number: hour_ago_ms + number for number in range(25)}
    group_lag = looking(brokers)
    brokers.groups = {f"group {number}" for number in range(20)}
    brokers.committed_by_group = {group: {0: 11 + at % 12} for at, group in enumerate(brokers.groups)}
    brokers.away.add(0)
    asked = brokers.asked["offsets"]
    group_lag.look()

    # Beginnings, ends, and one time.
    assert brokers.asked["offsets"] == asked + 3
    brokers.away.clear()
    group_lag.look()
    ages_s = [group_lag.picture.lag_s[group, (TOPIC, 0)] for group in brokers.groups]
    assert ages_s == pytest.approx([3600] * 20, rel=0.05)


def test_messages_without_timestamps_are_as_old_as_the_first_look() -> None:
    brokers, clock = Brokers(1), Clock()
    group_lag = GroupLag(brokers, Selection(), 15, 300, clock)  # type: ignore[arg-type]
    group_lag.look()
    clock.now_s += 60
    group_lag.look()
    asked = brokers.asked["offsets"]
    group_lag.look()

    assert group_lag.picture.lag_s[GROUP, (TOPIC, 0)] == 60
    assert brokers.asked["offsets"] == asked + 2


def test_deleted_messages_are_counted_once_also_when_the_topic_begins_anew() -> None:
    brokers = Brokers(1)
    group_lag = looking(brokers)
    counts = []
    for beginning, committed in ((0, 10), (15, 10), (18, 10), (18, 20), (22, 20), (0, 0), (3, 0)):
        brokers.beginnings[0], brokers.committed[0] = beginning, committed
        group_lag.look()
        counts.append(group_lag.picture.deleted[GROUP, (TOPIC, 0)])

    assert counts == [0, 5, 8, 8, 10, 10, 13]


def test_what_is_gone_is_forgotten() -> None:
    brokers = Brokers(100)
    group_lag = looking(brokers)
    brokers.ends = brokers.committed = {}
    group_lag.look()

    sizes = [len(each) for each in _stores(group_lag)]
    assert max(sizes) <= 1


def _stores(group_lag: GroupLag) -> Iterable[Any]:
    state = vars(group_lag)
    yield from (state["_times"], state["_deleted"], state["_ranges"].values, state["_committed"].values[GROUP])
