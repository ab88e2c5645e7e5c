"""Groups at a glance: lag, rates and health, from the pictures that the lag exporter's rounds make."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from workers.kafka.groups import Group, Member, PartitionKey
from workers.monitoring.group_lag import Picture

# Rates are of this time. A member commits about once a second, others every five.
WINDOW_S = 10.0
# Messages that wait no longer than this are no backlog.
FRESH_S = 10.0
_REBALANCING = frozenset({"preparing_rebalancing", "completing_rebalancing"})
_Key = tuple[str, PartitionKey]


@dataclass(frozen=True, slots=True)
class MemberRow:
    """A member. `out_per_s` is None before two rounds have looked at it, and so it is in a group."""

    member: Member
    lag: int
    out_per_s: float | None
    idle: bool


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A group; rates are messages a second: `in_per_s` is written, `out_per_s` committed.

    `lag_s` is the age of the oldest message that is not committed; None where nothing was committed, too.
    """

    group: Group
    health: str
    lag_s: float | None
    in_per_s: float | None
    out_per_s: float | None
    members: tuple[MemberRow, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """All groups at the end of a round, those with the largest lag first.

    `missing` are groups that were asked for by name and are not there, `missing_brokers` brokers that the others do not
    list; `problem` says what was not answered.
    """

    at_s: float
    rows: tuple[GroupRow, ...]
    missing: tuple[str, ...]
    problem: str | None
    missing_brokers: tuple[int, ...] = ()


class _Offsets(NamedTuple):
    committed: int
    end: int


class Rates:
    """Makes overviews of pictures; remembers those of WINDOW_S. Called from one thread."""

    def __init__(self, group_ids: Sequence[str] = ()) -> None:
        self._group_ids = group_ids
        self._rounds: deque[tuple[float, dict[_Key, _Offsets]]] = deque()

    def look(self, picture: Picture, problem: str | None, now: float, now_s: float) -> Overview:
        """Return the overview of a picture that was made at `now` (monotonic) and `now_s` (Unix time), in seconds."""
        offsets = {
            (group.group_id, (each.topic, each.partition)): _Offsets(each.committed, each.end)
            for group in picture.groups
            for each in group.partitions
            if each.committed is not None
        }
        # The oldest that is left began the window.
        while len(self._rounds) > 1 and self._rounds[1][0] <= now - WINDOW_S:
            self._rounds.popleft()
        began, before = self._rounds[0] if self._rounds else (now, {})
        self._rounds.append((now, offsets))
        span_s = now - began
        rows = [
            _row(group, picture.lag_s, _changes(group, offsets, before, span_s), span_s) for group in picture.groups
        ]
        rows.sort(key=lambda row: (-row.group.total_lag, row.group.group_id))
        there = {group.group_id for group in picture.groups}
        missing = tuple(each for each in self._group_ids if each not in there)
        return Overview(now_s, tuple(rows), missing, problem)


def _changes(
    group: Group, offsets: Mapping[_Key, _Offsets], before: Mapping[_Key, _Offsets], span_s: float
) -> dict[PartitionKey, tuple[float, float]]:
    """Messages a second that were written and committed, by partition. A reset to a lower offset counts as none."""
    keys = [(group.group_id, (each.topic, each.partition)) for each in group.partitions]
    return {
        key[1]: (
            max(0, offsets[key].end - before[key].end) / span_s,
            max(0, offsets[key].committed - before[key].committed) / span_s,
        )
        for key in keys
        if span_s > 0 and key in offsets and key in before
    }


def _row(
    group: Group,
    lag_s: Mapping[_Key, float],
    changes: Mapping[PartitionKey, tuple[float, float]],
    span_s: float,
) -> GroupRow:
    ages = [lag_s.get((group.group_id, (each.topic, each.partition))) for each in group.partitions]
    known = [age for age in ages if age is not None]
    oldest_s = max(known, default=None)
    in_per_s, out_per_s = (_sum(change[at] for change in changes.values()) for at in (0, 1))
    lags = {(each.topic, each.partition): each.lag_messages or 0 for each in group.partitions}
    members = tuple(
        MemberRow(
            member,
            sum(lags.get(key, 0) for key in member.partitions),
            _sum(changes[key][1] for key in member.partitions if key in changes),
            member in group.idle,
        )
        for member in group.members
    )
    health = _health(group, oldest_s, in_per_s, out_per_s, span_s)
    return GroupRow(group, health, oldest_s, in_per_s, out_per_s, members)


def _sum(numbers: Iterable[float]) -> float | None:
    """The sum, None of nothing."""
    found = [*numbers]
    return sum(found) if found else None


def _health(group: Group, lag_s: float | None, in_per_s: float | None, out_per_s: float | None, span_s: float) -> str:
    """How the group gets on, in a word or two."""
    behind = bool(group.total_lag or group.unread)
    if group.state in _REBALANCING:
        return "rebalancing"
    if not group.members:
        return "no members" if behind else "empty"
    if not group.total_lag:
        return "nothing committed" if group.unread else "ok"
    if lag_s is not None and lag_s <= FRESH_S:
        return "ok"
    if in_per_s is None or out_per_s is None or (not out_per_s and span_s < WINDOW_S):
        return "behind"
    if not out_per_s:
        return "no progress"
    return "falling behind" if in_per_s > out_per_s else "catching up"
