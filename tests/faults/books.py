"""The books kept on workers from outside: what producers said was acknowledged, what handlers wrote down."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from workers.accounting.stamps import decode
from workers.accounting.verify import Observations

# A longer time without an acknowledgement counts as unavailable.
UNAVAILABLE_S = 1.0
# Stands for the key of a message that has none.
NO_KEY = b"-"


class Tail:
    """The whole lines that were added to a file since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def lines(self) -> list[bytes]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._at)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        self._at += len(text)
        return text.splitlines()


class Acknowledged:
    """The deliveries that the producers of one topic printed (`--verbose`), and how long none was acknowledged."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.offsets: dict[int, bytearray] = defaultdict(bytearray)
        self.pauses: list[float] = []
        self._last_at = time.monotonic()

    def observe(self, lines: list[bytes]) -> None:
        before = self.outcomes["delivered"]
        for line in lines:
            outcome, _, rest = line.decode().partition(" ")
            if outcome in ("delivered", "failure", "unknown"):
                self.outcomes[outcome] += 1
            if outcome == "delivered":
                partition, offset = rest.split("[")[1].split("]@")
                # A retry that the brokers had already; that such a message is there, `verify` says at the end.
                if offset != "unknown":
                    _set(self.offsets[int(partition)], int(offset))
        now = time.monotonic()
        if self.outcomes["delivered"] > before:
            if now - self._last_at > UNAVAILABLE_S:
                self.pauses.append(now - self._last_at)
            self._last_at = now

    def ends(self) -> dict[int, int]:
        """Behind the last acknowledged offset of each partition."""
        return {partition: len(offsets) for partition, offsets in self.offsets.items()}

    def truncate(self, partition: int, end: int) -> None:
        """Forgets what was acknowledged from `end` on: an unclean election has cut it off the log."""
        del self.offsets[partition][end:]


class Handled:
    """The messages that the handlers of one group recorded, in the order of each member.

    `by_key` says which messages have to be handled in order: those of one key, or all of a partition. By key, those
    without one may be handled in any order. With `once`, a message that is recorded again counts as a duplicate.
    """

    def __init__(self, by_key: bool = False, *, once: bool = False) -> None:
        self.total = 0
        self.redelivered = 0
        self.repeated = 0
        self.backwards = 0
        self.log = Observations()
        self.next: dict[int, int] = defaultdict(int)
        self.longest_stall_s = 0.0
        self._by_key = by_key
        self._once = once
        self._times: dict[int, bytearray] = defaultdict(bytearray)
        self._early: dict[int, dict[int, bytes]] = defaultdict(dict)
        # By partition and key: the highest offset, the member that handled it, and in which look that was seen.
        self._highest: dict[tuple[int, bytes], tuple[int, str, int]] = {}
        self._looks = 0
        self._moved: dict[int, tuple[int, float]] = {}

    def look(self, acknowledged: Acknowledged, lines: Iterable[tuple[str, list[bytes]]]) -> None:
        """Reads what the members have written since the last look, and notes which partitions stand still."""
        self._looks += 1
        for member, written in lines:
            for line in written:
                partition, offset, key, stamp = line.split(b" ", 3)
                self._add(member, int(partition), int(offset), key, stamp)
        self._note_stalls(acknowledged)

    def _add(self, member: str, partition: int, offset: int, key: bytes, stamp: bytes) -> None:
        self.total += 1
        if _set(self._times[partition], offset):
            self.redelivered += not self._once
            self.repeated += self._once
            return
        # One that was forgiven and handled all the same has missed its turn in the log.
        if offset >= self.next[partition]:
            self._early[partition][offset] = stamp
            self._advance(partition)
        if self._by_key and key == NO_KEY:
            return
        unit = partition, key if self._by_key else b""
        highest, by, look = self._highest.get(unit, (-1, member, 0))
        if offset > highest:
            self._highest[unit] = offset, member, self._looks
        elif member == by or self._looks > look + 1:
            # Of two members, one may have been read before it wrote: that the next look makes good.
            self.backwards += 1

    def _advance(self, partition: int) -> None:
        early = self._early[partition]
        while (following := self.next[partition]) in early:
            self.log.add(partition, decode(early.pop(following)))
            self.next[partition] = following + 1

    def _note_stalls(self, acknowledged: Acknowledged) -> None:
        now = time.monotonic()
        for partition, end in acknowledged.ends().items():
            following = self.next[partition]
            before, moved_at = self._moved.get(partition, (-1, now))
            if following != before or following >= end:
                self._moved[partition] = following, now
            else:
                self.longest_stall_s = max(self.longest_stall_s, now - moved_at)

    def missing(self, acknowledged: Acknowledged, ends: dict[int, int]) -> int:
        """How many messages before `ends` were acknowledged and not handled."""
        return sum(
            acknowledged.offsets[partition][offset] and not self._was_handled(partition, offset)
            for partition, end in ends.items()
            for offset in range(self.next[partition], end)
        )

    def breaches(self, acknowledged: Acknowledged) -> list[str]:
        """The promises that were not kept for the messages of these books, in words; that there are any is one."""
        wrong = [f"nothing was {name}" for name, count in
                 (("acknowledged", acknowledged.outcomes["delivered"]), ("handled", self.total))
                 if not count]  # fmt: skip
        counts = (
            ("missing", self.missing(acknowledged, acknowledged.ends())),
            ("duplicated", self.duplicated),
            ("reordered", self.reordered),
        )
        return wrong + [f"{name} {count}" for name, count in counts if count]

    def _was_handled(self, partition: int, offset: int) -> bool:
        return offset < self.next[partition] or offset in self._early[partition]

    def forgive(self, partition: int, beginning: int) -> None:
        """Record that messages before `beginning` were deleted from the log: the group need not handle them."""
        early = self._early[partition]
        for offset in sorted(offset for offset in early if offset < beginning):
            self.log.add(partition, decode(early.pop(offset)))
        self.next[partition] = max(self.next[partition], beginning)
        self._advance(partition)

    def never_handled(self, partition: int, end: int) -> int:
        """How many offsets before `end` were never handled, forgiven or not."""
        return end - sum(self._times[partition][:end])

    def truncate(self, partition: int, end: int) -> None:
        """Forgets what was handled from `end` on: other messages get these offsets."""
        del self._times[partition][end:]
        self.next[partition] = min(self.next[partition], end)
        self._early[partition] = {at: stamp for at, stamp in self._early[partition].items() if at < end}
        for unit, (highest, member, look) in self._highest.items():
            if unit[0] == partition:
                self._highest[unit] = min(highest, end - 1), member, look

    @property
    def duplicated(self) -> int:
        return self.repeated + sum(stream.duplicated for stream in self.log.streams.values())

    @property
    def reordered(self) -> int:
        return self.backwards + sum(stream.reordered for stream in self.log.streams.values())


def _set(flags: bytearray, at: int) -> bool:
    """Sets one flag, and says whether it was set before."""
    if at >= len(flags):
        flags.extend(bytes(at + 1 - len(flags)))
    before = bool(flags[at])
    flags[at] = 1
    return before
