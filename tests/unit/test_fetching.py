"""When a partition counts as one whose fetch hangs, on a clock that the tests turn."""

from typing import Any

import pytest
from confluent_kafka import TopicPartition

from workers.consumer.assignment import PartitionState, TopicCounts
from workers.consumer.fetching import ANSWER_S, DRAINED_S, REJOIN_S, REMEMBERED_S, SEEK_S, STUCK_S, FetchWatch
from workers.kafka.watermarks import INTERVAL_S, Watermark


class Watermarks:
    """Has what `FetchWatch` reads of workers.kafka.watermarks.Watermarks."""

    def __init__(self) -> None:
        self.latest: dict[tuple[str, int], Watermark] = {}
        self.round = 0


class Bed:
    """A partition that ends at 10, of which nothing from offset 5 on is received; brokers say so in each round."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.state = PartitionState(TopicCounts("t"), 0, TopicPartition("t", 0, 5), in_order=True)
        self.partitions = {self.state.key: self.state}
        self.watch = FetchWatch()
        self.answers = self.drained = True
        self.watermarks: Any = Watermarks()
        self.seeks: list[float] = []
        self.rejoins: list[float] = []

    def turn(self, seconds: float) -> None:
        """Let the time pass, with a round of the brokers and a look in each INTERVAL_S."""
        until = self.now + seconds
        while self.now < until:
            self.now += INTERVAL_S
            if self.drained:
                self.watch.drained_at = self.now
            if self.answers:
                self.watermarks.round += 1
                self.watermarks.latest = {self.state.key: Watermark(0, 10)}
            self.watch.note(self.partitions, self.watermarks, self.now)
            self.seeks += [self.now for _ in self.watch.to_seek(self.partitions, self.now)]
            if self.watch.rejoin_due(self.partitions, self.now):
                self.rejoins.append(self.now)

    @property
    def stuck(self) -> str | None:
        return self.watch.stuck(self.partitions, self.now)

    @property
    def stalled_s(self) -> float:
        return self.watch.stalled_s(self.state.key, self.now)


def test_an_answer_of_before_a_deletion_takes_the_beginning_not_back() -> None:
    """Messages that are known as deleted would be counted a second time."""
    bed = Bed()
    bed.state.begin_offset = 7
    bed.turn(INTERVAL_S)
    assert bed.state.begin_offset == 7


def test_a_partition_that_is_behind_and_receives_nothing_is_sought_then_rejoined_then_stuck() -> None:
    bed = Bed()
    bed.turn(INTERVAL_S)
    begun = bed.now
    bed.turn(STUCK_S)
    assert bed.stalled_s == STUCK_S
    assert bed.stuck is None
    bed.turn(INTERVAL_S)

    assert bed.seeks == [begun + SEEK_S + INTERVAL_S]
    assert bed.rejoins == [begun + REJOIN_S + INTERVAL_S]
    assert bed.watch.recoveries == {"seek": 1, "rejoin": 1}
    assert bed.stuck == "t[0] is not fetched: nothing has come from offset 5 for 95 s"


@pytest.mark.parametrize("reason", ["paused", "the client's queue holds others", "brokers do not answer", "at its end"])
def test_a_partition_that_has_a_reason_to_receive_nothing_is_not_stalled(reason: str) -> None:
    bed = Bed()
    bed.turn(INTERVAL_S)
    bed.state.paused = reason == "paused"
    bed.drained = reason != "the client's queue holds others"
    bed.answers = reason != "brokers do not answer"
    if reason == "at its end":
        bed.state.position = 10
    bed.turn(max(DRAINED_S, ANSWER_S) + 2 * INTERVAL_S)
    assert bed.stalled_s == 0.0
    bed.turn(STUCK_S + 2 * INTERVAL_S)

    assert (bed.seeks, bed.rejoins, bed.stuck) == ([], [], None)


def test_each_message_that_is_received_begins_the_time_anew() -> None:
    bed = Bed()
    for _ in range(10):
        bed.turn(SEEK_S)
        bed.state.received_at = bed.now

    assert (bed.seeks, bed.rejoins, bed.stuck) == ([], [], None)


def test_the_time_goes_on_while_a_rejoin_takes_the_partition_away_and_is_forgotten_later() -> None:
    bed = Bed()
    bed.turn(REJOIN_S + 2 * INTERVAL_S)
    owned = bed.partitions
    bed.partitions = {}
    bed.turn(REMEMBERED_S)
    assert bed.stuck is None
    bed.partitions = owned
    bed.turn(INTERVAL_S)
    assert bed.stuck is not None
    assert bed.watch.recoveries == {"seek": 1, "rejoin": 1}

    bed.partitions = {}
    bed.turn(REMEMBERED_S + INTERVAL_S)
    bed.partitions = owned
    bed.turn(INTERVAL_S)
    assert (bed.stuck, bed.stalled_s) == (None, 0.0)


def test_a_partition_without_a_position_is_behind_where_it_begins_and_is_not_sought() -> None:
    bed = Bed()
    bed.state.position = None
    bed.turn(SEEK_S + 3 * INTERVAL_S)

    assert bed.stalled_s > SEEK_S
    assert bed.seeks == []
    assert bed.watch.recoveries["seek"] == 0
