"""The written account of a run of the producer, which verify.py compares with the messages in a log.

The producer writes one JSON document at its end. With it, `verify` classifies a message that is not in the log: lost
(the brokers acknowledged it), failed (its delivery failed), or unknown (its delivery timed out without a response).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from workers.accounting.ranges import CountedRanges, Entry
from workers.accounting.stamps import SEQUENCE, StreamName
from workers.errors import ConfigError


@dataclass(slots=True)
class StreamSent:
    """The outcomes of the messages 0 to `sent` - 1 of one stream: those neither failed nor unknown are acknowledged."""

    sent: int = 0
    failed: CountedRanges = field(default_factory=CountedRanges)
    unknown: CountedRanges = field(default_factory=CountedRanges)


# How the lines of `--verbose` begin, which can stand before an account.
DELIVERY_LINES = ("delivered ", "failure ", "unknown ")
# As many as a stamp has room for.
MAX_SEQUENCES = 10 ** (SEQUENCE.stop - SEQUENCE.start)


def read_accounts(text: str, origin: str, topic: str) -> dict[bytes, StreamSent]:
    """Read the messages sent to `topic`, by stream, from the JSON lines of one or several runs. Deliveries that
    `--verbose` has printed before them are passed over.

    Raises ConfigError naming the line.
    """
    sent: dict[bytes, StreamSent] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith(DELIVERY_LINES):
            continue
        try:
            document = json.loads(line)
            if document["topic"] != topic:
                raise ConfigError(
                    f"{origin} line {number}: the account of topic {document['topic']}, and --topic is {topic}"
                )
            streams = document["streams"]
            # Without --stamp there are none.
            if streams and document.get("sent") not in (None, total := sum(entry["sent"] for entry in streams)):
                raise ConfigError(
                    f"{origin} line {number}: the account contradicts itself: {document['sent']} sent in all, and "
                    f"{total} in its streams; use the account as `produce --summary json` wrote it"
                )
            for entry in streams:
                stream = entry["stream"].encode()
                StreamName.of(stream)
                if stream in sent:
                    raise ConfigError(
                        f"{origin} line {number}: a second account of run {document['run']}; give each run one"
                    )
                count = _whole(entry["sent"], 0, MAX_SEQUENCES)
                failed, unknown = (_ranges(entry[key], count) for key in ("failed", "unknown"))
                sent[stream] = StreamSent(count, failed, unknown)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(
                f"{origin} line {number}: not an account; write it with `produce --summary json`"
            ) from None
    if not sent:
        raise ConfigError(f"{origin}: no account in it; write it with `produce --summary json`")
    return sent


def _whole(number: object, least: int, most: int) -> int:
    if type(number) is not int or not least <= number <= most:
        raise ValueError
    return number


def _ranges(entries: Iterable[Sequence[object]], sent: int) -> CountedRanges:
    return CountedRanges(_entry(entry, sent) for entry in entries)


def _entry(entry: Sequence[object], sent: int) -> Entry:
    """Raises ValueError for what `CountedRanges.document` does not write."""
    first, last, *counts = entry
    end = _whole(last, 1, sent)
    start = _whole(first, 0, end - 1)
    if len(counts) > 1:
        raise ValueError
    return start, end, _whole(counts[0], 1, end - start) if counts else end - start
