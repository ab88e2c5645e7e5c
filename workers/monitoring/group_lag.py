"""The lag of consumer groups from the brokers' view, in messages and in seconds, also of groups with no member left.

A round asks the brokers for everything at once and makes one immutable picture of it; scrapes and probes only read
that picture. A value that a broker did not answer is kept for `keep_s` (--keep) and dropped then.
"""

import logging
import re
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from confluent_kafka import KafkaError
from confluent_kafka.admin import AdminClient, ConsumerGroupDescription, OffsetSpec

from workers.kafka import groups
from workers.kafka.groups import Answers, Group, PartitionKey, PartitionLag
from workers.monitoring.offset_times import Found, OffsetTimes, search

log = logging.getLogger("workers")
# Longer than a broker takes to restart and a leader to move; shorter than it takes to trust an old number.
KEEP_S = 300.0
# Rounds may not take longer than this beside the interval; more than all requests of a round that time out.
STUCK_S = 180.0

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
# An offset of a partition whose time is looked for.
_Sought = tuple[PartitionKey, int]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which groups and topics to look at: without names and patterns, all. A pattern matches a whole name."""

    group_ids: tuple[str, ...] = ()
    group_filter: re.Pattern[str] | None = None
    topics: tuple[str, ...] = ()
    topic_filter: re.Pattern[str] | None = None

    def has_group(self, group_id: str) -> bool:
        return _is_wanted(group_id, self.group_ids, self.group_filter)

    def has_topic(self, topic: str) -> bool:
        return _is_wanted(topic, self.topics, self.topic_filter)


def _is_wanted(name: str, names: tuple[str, ...], pattern: re.Pattern[str] | None) -> bool:
    return (not names or name in names) and (pattern is None or pattern.fullmatch(name) is not None)


@dataclass(frozen=True, slots=True)
class Picture:
    """The groups at the end of a round; what is by partition has the key of the group first."""

    groups: tuple[Group, ...] = ()
    lag_s: Mapping[tuple[str, PartitionKey], float] = field(default_factory=dict)
    deleted: Mapping[tuple[str, PartitionKey], int] = field(default_factory=dict)
    ranges: Mapping[PartitionKey, tuple[int, int]] = field(default_factory=dict)
    rounds: int = 0
    round_s: float = 0.0
    # Unix time of the last round in which every broker answered, 0 before.
    complete_at_s: float = 0.0


class _LastAnswers(Generic[_Key, _Value]):
    """The last answer for each key, while it is not too old."""

    def __init__(self) -> None:
        self.values: dict[_Key, _Value] = {}
        self._answered_at: dict[_Key, float] = {}

    def update(self, answers: Answers[_Key, _Value], now: float, keep_s: float) -> None:
        self.values |= answers.values
        self._answered_at |= dict.fromkeys(answers.values, now)
        self.retain(
            key for key, at in list(self._answered_at.items()) if key not in answers.gone and now - at <= keep_s
        )

    def retain(self, keys: Iterable[_Key]) -> None:
        """Drop all but `keys`."""
        kept = set(keys)
        self.values = {key: value for key, value in self.values.items() if key in kept}
        self._answered_at = {key: at for key, at in self._answered_at.items() if key in kept}


class GroupLag:
    """Looks at groups round by round. One thread runs `look`; any may read `picture`, `ready` and `live`. The thread of
    `look` may replace `admin` between two rounds.

    Memory grows with groups and partitions only: what is not there any more is forgotten in the same round.
    """

    def __init__(
        self,
        admin: AdminClient,
        selection: Selection,
        interval_s: float,
        keep_s: float = KEEP_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.picture = Picture()
        self.admin = admin
        self._selection = selection
        self._interval_s = interval_s
        self._keep_s = keep_s
        self._clock = clock
        self._descriptions: _LastAnswers[str, ConsumerGroupDescription] = _LastAnswers()
        self._committed: _LastAnswers[str, dict[PartitionKey, groups.Committed]] = _LastAnswers()
        self._numbers: _LastAnswers[str, list[int]] = _LastAnswers()
        self._ranges: _LastAnswers[PartitionKey, tuple[int, int]] = _LastAnswers()
        self._times: dict[PartitionKey, OffsetTimes] = {}
        self._deleted: dict[tuple[str, PartitionKey], _Deleted] = {}
        self._problem: str | None = None
        self._incomplete_since: float | None = None
        self._looked_at = time.monotonic()

    def ready(self) -> str | None:
        """Why the picture is not whole, None when it is."""
        if not self.picture.rounds:
            return "no answer from the brokers yet"
        problem, since = self._problem, self._incomplete_since
        if problem is None or since is None:
            return None
        return f"brokers have not answered everything for {time.monotonic() - since:.0f} s: {problem}"

    def live(self) -> str | None:
        """Why no round ends any more, None while they do. Unreachable brokers end a round too."""
        silent_s = time.monotonic() - self._looked_at
        if silent_s > self._interval_s + STUCK_S:
            return f"no round has ended for {silent_s:.0f} s"
        return None

    def look(self) -> None:
        """Run one round. Raises nothing for a broker that does not answer; `ready` says so."""
        started = time.monotonic()
        problems: dict[str, KafkaError] = {}
        group_ids = self._find_groups(problems)
        self._ask_groups(group_ids, started, problems)
        self._ask_topics(started, problems)
        now_s = self._clock()
        found = self._combine()
        self._find_times(found, now_s)
        self._note_problems(problems)
        complete_at_s = self.picture.complete_at_s if problems else now_s
        self.picture = Picture(
            found,
            self._lag_in_seconds(found, now_s),
            self._count_deleted(found),
            dict(self._ranges.values),
            self.picture.rounds + 1,
            time.monotonic() - started,
            complete_at_s,
        )
        self._looked_at = time.monotonic()

    def _find_groups(self, problems: dict[str, KafkaError]) -> list[str]:
        if self._selection.group_ids:
            # Asked for by name, which needs no right to list.
            return sorted(filter(self._selection.has_group, set(self._selection.group_ids)))
        listed = groups.list_groups(self.admin)
        problems |= {f"list of groups {broker}".strip(): error for broker, error in listed.errors.items()}
        known = set(filter(self._selection.has_group, listed.values))
        if listed.errors:
            # Groups of a coordinator that did not answer are not gone.
            known |= self._descriptions.values.keys() | self._committed.values.keys()
        return sorted(known)

    def _ask_groups(self, group_ids: list[str], now: float, problems: dict[str, KafkaError]) -> None:
        described = groups.describe_groups(self.admin, group_ids)
        there = [group_id for group_id in group_ids if group_id not in described.gone]
        committed = groups.committed_offsets(self.admin, described)
        for answers in (described, committed):
            problems |= {f"group {group_id}": error for group_id, error in answers.errors.items()}
        self._descriptions.update(described, now, self._keep_s)
        self._committed.update(committed, now, self._keep_s)
        self._descriptions.retain(there)
        self._committed.retain(there)

    def _ask_topics(self, now: float, problems: dict[str, KafkaError]) -> None:
        topics = {
            topic
            for group_id, description in self._descriptions.values.items()
            for topic in self._topics(group_id, description)
        }
        numbers = groups.partitions_of(self.admin, topics)
        problems |= {f"topic {topic}": error for topic, error in numbers.errors.items()}
        self._numbers.update(numbers, now, self._keep_s)
        self._numbers.retain(topics)
        keys = [(topic, number) for topic, found in self._numbers.values.items() for number in found]
        ranges = groups.find_ranges(self.admin, keys)
        problems |= {f"{topic}[{number}]": error for (topic, number), error in ranges.errors.items()}
        self._ranges.update(ranges, now, self._keep_s)
        self._ranges.retain(keys)
        self._times = {key: times for key, times in self._times.items() if key in self._ranges.values}
        now_s = self._clock()
        for key, (_, end) in ranges.values.items():
            self._times.setdefault(key, OffsetTimes()).add_end(end, now_s)

    def _topics(self, group_id: str, description: ConsumerGroupDescription) -> list[str]:
        touched = groups.topics_of(description, self._committed.values.get(group_id, {}))
        return list(filter(self._selection.has_topic, touched))

    def _combine(self) -> tuple[Group, ...]:
        ranges = self._ranges.values
        found = []
        for group_id, description in sorted(self._descriptions.values.items()):
            keys = [
                (topic, number)
                for topic in self._topics(group_id, description)
                for number in self._numbers.values.get(topic, ())
                if (topic, number) in ranges
            ]
            committed = self._committed.values.get(group_id)
            # Not known is not the same as none.
            found.append(groups.combine(description, committed or {}, keys if committed is not None else [], ranges))
        return tuple(found)

    def _find_times(self, found: tuple[Group, ...], now_s: float) -> None:
        """Look up by timestamps what the ends seen so far do not say: all partitions at once, step by step."""
        searches: dict[_Sought, Generator[int, Found, float | None]] = {}
        for _, each in _behind(found):
            key, offset = (each.topic, each.partition), each.next_offset or 0
            times = self._times[key]
            known = times.written(offset)
            if offset != times.untimed_offset and not known.is_good(now_s, self._interval_s):
                searches[key, offset] = search(offset, known, now_s)
        steps: dict[_Sought, int] = {}
        for at in searches:
            self._step(searches, at, None, steps)
        while steps:
            # Two groups may be behind in one partition; a request can look for one time in it.
            batch: dict[PartitionKey, _Sought] = {}
            for at in steps:
                batch.setdefault(at[0], at)
            wanted = {key: OffsetSpec.for_timestamp(steps[at]) for key, at in batch.items()}
            answers = groups.find_offsets(self.admin, wanted)
            # Without an answer the next round tries again: each further request may cost the round its whole timeout.
            steps = {at: wanted_ms for at, wanted_ms in steps.items() if at[0] in answers.values}
            for key, message in answers.values.items():
                at = batch[key]
                del steps[at]
                self._step(searches, at, message if message[0] >= 0 else None, steps)

    def _step(
        self,
        searches: Mapping[_Sought, Generator[int, Found, float | None]],
        at: _Sought,
        message: Found,
        steps: dict[_Sought, int],
    ) -> None:
        """Take one search a step on: the next timestamp to look up goes to `steps`, or its end to the partition."""
        try:
            steps[at] = searches[at].send(message)
            return
        except StopIteration as ended:
            written_s: float | None = ended.value
        key, offset = at
        if written_s is None:
            self._times[key].untimed_offset = offset
        else:
            self._times[key].add_message(offset, written_s)

    def _lag_in_seconds(self, found: tuple[Group, ...], now_s: float) -> dict[tuple[str, PartitionKey], float]:
        lags: dict[tuple[str, PartitionKey], float] = {}
        lowest: dict[PartitionKey, int] = {}
        for group in found:
            for each in group.partitions:
                if each.next_offset is None:
                    continue
                key = (each.topic, each.partition)
                lowest[key] = min(each.next_offset, lowest.get(key, each.next_offset))
                estimate_s = self._times[key].written(each.next_offset).estimate_s if each.lag_messages else now_s
                lags[group.group_id, key] = max(0.0, now_s - estimate_s)
        for key, times in self._times.items():
            times.forget_below(lowest.get(key, self._ranges.values[key][1]))
        return lags

    def _count_deleted(self, found: tuple[Group, ...]) -> dict[tuple[str, PartitionKey], int]:
        counted = {}
        for group in found:
            for each in group.partitions:
                if each.committed is not None:
                    at = (group.group_id, (each.topic, each.partition))
                    counted[at] = self._deleted.get(at, _Deleted()).after(each)
        self._deleted = counted
        return {at: each.messages for at, each in counted.items()}

    def _note_problems(self, problems: Mapping[str, KafkaError]) -> None:
        if not problems:
            if self._problem is not None:
                log.info("all brokers answer again")
            self._problem = self._incomplete_since = None
            return
        what, error = next(iter(problems.items()))
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        problem = f"{what}{more}: {error.name()} {error.str()}".strip()
        if self._problem is None:
            log.warning("last values are kept for %g s: %s", self._keep_s, problem)
            self._incomplete_since = time.monotonic()
        self._problem = problem


@dataclass(frozen=True, slots=True)
class _Deleted:
    """Messages that were deleted before a group committed them, counted up to an offset."""

    messages: int = 0
    up_to: int = 0

    def after(self, seen: PartitionLag) -> "_Deleted":
        # A topic that was made anew begins at 0 again.
        up_to = min(self.up_to, seen.beginning)
        new = max(0, seen.beginning - max(seen.committed or 0, up_to))
        return _Deleted(self.messages + new, seen.beginning)


def _behind(found: Iterable[Group]) -> list[tuple[str, PartitionLag]]:
    """The partitions with messages that can still be read."""
    return [(group.group_id, each) for group in found for each in group.partitions if each.lag_messages]
