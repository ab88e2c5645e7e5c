"""The metadata that the consumer commits with an offset: the order ledger, and which later offsets are done already.

Kafka keeps at most `offset.metadata.max.bytes` (4,096) with a committed offset. The text is an envelope with a version:

    kw1|TOPIC_ID|PARTITIONS|EPOCH|TIME_MS|RANGES|LEDGER

TOPIC_ID is the id of the topic, empty where it is not known: a topic that is created again has another. PARTITIONS is
how many the topic had when a group with --from-end began, 0 for any other: later ones were added. EPOCH is the
highest leader epoch of the offsets in RANGES, TIME_MS when they were done (Unix time). RANGES are
half-open and relative to the committed offset: `3-7,9-10`. Metadata of anybody else, or of another version, is no
envelope, and is ignored.
"""

import re
from typing import NamedTuple

VERSION = "kw1"
MAX_BYTES = 4096
# The ledger gets the rest.
MAX_RANGES_BYTES = 1536
# More do not fit: the shortest range is `1-2,`.
MAX_RANGES = MAX_RANGES_BYTES // 4
_RANGE = r"\d{1,19}-\d{1,19}"
_ENVELOPE = re.compile(
    rf"kw1\|([A-Za-z0-9+/=_-]{{0,36}})\|(\d{{1,10}})\|(-?\d{{1,10}})\|(\d{{1,16}})\|((?:{_RANGE}(?:,{_RANGE})*)?)\|(.*)",
    re.ASCII | re.DOTALL,
)


class OffsetMetadata(NamedTuple):
    """Decoded metadata. `ahead` are half-open ranges of absolute offsets, in order, all above the committed one."""

    topic_id: str = ""
    partitions: int = 0
    ahead: tuple[tuple[int, int], ...] = ()
    leader_epoch: int = -1
    time_ms: int = 0
    ledger: str = ""

    def furthest(self, offset: int) -> int:
        """The end of the last range, or `offset` where there is none."""
        return self.ahead[-1][1] if self.ahead else offset


def encode(offset: int, metadata: OffsetMetadata) -> str:
    """The text to commit with `offset`. Ranges that do not fit are left out, the furthest first: those offsets are
    delivered again after a crash.
    """
    ranges: list[str] = []
    room = MAX_RANGES_BYTES
    for begin, end in metadata.ahead:
        text = f"{begin - offset}-{end - offset}"
        room -= len(text) + 1
        if room < 0:
            break
        ranges.append(text)
    fields = (
        VERSION,
        metadata.topic_id,
        metadata.partitions,
        metadata.leader_epoch,
        metadata.time_ms,
        ",".join(ranges),
    )
    return "|".join(map(str, (*fields, metadata.ledger)))


def decode(offset: int, text: str | None) -> OffsetMetadata:
    """Read the metadata committed with `offset`; never raises, as anybody may have written the text."""
    found = _ENVELOPE.fullmatch(text or "")
    if found is None:
        return OffsetMetadata()
    topic_id, partitions, epoch, time_ms, ranges, ledger = found.groups()
    ahead = []
    last = 1
    for each in ranges.split(",") if ranges else ():
        begin, end = map(int, each.split("-"))
        if not last <= begin < end:
            return OffsetMetadata(topic_id, int(partitions), ledger=ledger)
        ahead.append((offset + begin, offset + end))
        last = end
    return OffsetMetadata(topic_id, int(partitions), tuple(ahead), int(epoch), int(time_ms), ledger)


def room_for_ledger(metadata: OffsetMetadata, offset: int) -> int:
    """Bytes that the ledger may take."""
    return MAX_BYTES - len(encode(offset, metadata._replace(ledger="")))
