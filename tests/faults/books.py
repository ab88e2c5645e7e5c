"""The books kept on workers from outside: what producers said was acknowledged, what handlers wrote down."""

import time
from collections import Counter, defaultdict
from pathlib import Path

from workers.accounting.stamps import decode
from workers.accounting.verify import Observations

# A longer time without an acknowledgement counts as unavailable.
UNAVAILABLE_S = 1.0


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
    """What the producers of one topic printed with `--verbose`, and how long nothing was acknowledged."""

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


class Handled:
    """What all members of one group handled.

    The log is what they saw of it, in the order of offsets: `next[partition]` is the first offset that nobody handled,
    and everything before it was given to `log`.
    """

    def __init__(self) -> None:
        self.total = 0
        self.redelivered = 0
        self.backwards = 0
        self.log = Observations()
        self.next: dict[int, int] = defaultdict(int)
        self._times: dict[int, bytearray] = defaultdict(bytearray)
        self._early: dict[int, dict[int, bytes]] = defaultdict(dict)
        self._last: dict[tuple[str, int], int] = {}

    def observe(self, member: str, lines: list[bytes]) -> None:
        for line in lines:
            partition, offset, stamp = line.split(b" ", 2)
            self._add(member, int(partition), int(offset), stamp)

    def _add(self, member: str, partition: int, offset: int, stamp: bytes) -> None:
        self.total += 1
        if _set(self._times[partition], offset):
            self.redelivered += 1
        else:
            # A member that goes back to what nobody has handled yet had skipped it.
            self.backwards += offset < self._last.get((member, partition), -1)
            self._early[partition][offset] = stamp
        self._last[member, partition] = offset
        early = self._early[partition]
        while (following := self.next[partition]) in early:
            self.log.add(partition, decode(early.pop(following)))
            self.next[partition] = following + 1

    def missing(self, acknowledged: Acknowledged, ends: dict[int, int]) -> int:
        """How many messages before `ends` were acknowledged and not handled."""
        return sum(
            acknowledged.offsets[partition][offset] and not self._was_handled(partition, offset)
            for partition, end in ends.items()
            for offset in range(self.next[partition], end)
        )

    def _was_handled(self, partition: int, offset: int) -> bool:
        return offset < self.next[partition] or offset in self._early[partition]

    @property
    def duplicated(self) -> int:
        return sum(stream.duplicated for stream in self.log.streams.values())

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
