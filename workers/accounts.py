"""The written account of a run of the producer, and its verification against what was seen in a log.

The producer writes one JSON document at its end. With it, a message that is not there can be told apart: lost
(acknowledged, yet missing), failed (the producer said so), or unknown (it timed out under way and did not arrive).
"""

import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from workers.config import ConfigError
from workers.ledger import Ranges, StreamSeen, StreamSent
from workers.messages import SEQUENCE, Stamp, StreamName
from workers.producer import Deliveries

PERCENTILES = (50, 95, 99)
# As many as a stamp has room for.
MAX_SEQUENCES = 10 ** (SEQUENCE.stop - SEQUENCE.start)


def summarize(deliveries: Deliveries, run: str, duration_s: float) -> dict[str, Any]:
    """The account of one run, ready for JSON. Times are seconds, ranges are half-open."""
    latencies = deliveries.latencies
    return {
        "run": run,
        "topic": deliveries.topic,
        "sent": deliveries.enqueued,
        "acknowledged": deliveries.acknowledged,
        "failed": deliveries.failed,
        "unknown": deliveries.unknown,
        "errors": dict(deliveries.errors),
        "duration_s": round(duration_s, 3),
        "rate_per_s": round(deliveries.acknowledged / duration_s, 1) if duration_s else 0.0,
        "latency_s": {f"p{percent}": _rounded(latencies.percentile(percent)) for percent in PERCENTILES},
        "streams": [
            {
                "stream": name.decode(),
                "sent": sent.sent,
                "failed": sent.failed.merged(),
                "unknown": sent.unknown.merged(),
            }
            for name, sent in sorted(deliveries.streams.items())
        ],
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def as_text(summary: Mapping[str, Any]) -> str:
    """The account in two or three lines for a person."""
    latency = summary["latency_s"]
    lines = [
        f"sent {summary['sent']:,}: {summary['acknowledged']:,} acknowledged, {summary['failed']:,} failed, "
        f"{summary['unknown']:,} unknown",
        f"{summary['rate_per_s']:,.0f} messages/s over {summary['duration_s']:.1f} s",
    ]
    if latency["p50"] is not None:
        lines[1] += "; latency " + ", ".join(f"{name} {seconds * 1000:.1f} ms" for name, seconds in latency.items())
    if summary["errors"]:
        lines.append("errors: " + ", ".join(f"{name} {count:,}" for name, count in summary["errors"].items()))
    if summary["unknown"]:
        lines.append("unknown messages may or may not be in the log: `kafka-workers verify --account` tells which")
    return "\n".join(lines)


def read_accounts(text: str, origin: str) -> dict[bytes, StreamSent]:
    """What was sent, by stream, from the JSON lines of one or several runs. Raises ConfigError naming the line."""
    sent: dict[bytes, StreamSent] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            for entry in json.loads(line)["streams"]:
                stream = entry["stream"].encode()
                StreamName.of(stream)
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


def _ranges(pairs: Iterable[tuple[object, object]], count: int) -> Ranges:
    return Ranges((_whole(start, 0, count), _whole(end, 1, count)) for start, end in pairs)


@dataclass(slots=True)
class RunReport:
    """What a log holds of one run. `sent` is what the account says, or what the highest sequences seen imply."""

    run: str
    sent: int = 0
    present: int = 0
    missing: int = 0
    lost: int = 0
    failed: int = 0
    failed_present: int = 0
    unknown: int = 0
    unknown_present: int = 0
    duplicated: int = 0
    reordered: int = 0
    from_account: bool = False
    examples: list[str] = field(default_factory=list)


class Observations:
    """Stamped messages seen in a log or by consumers, by stream."""

    def __init__(self) -> None:
        self.streams: dict[bytes, StreamSeen] = {}
        self.unstamped = 0

    def add(self, partition: int, stamp: Stamp | None) -> None:
        """Accounts for one message, in the order of offsets within a partition."""
        if stamp is None:
            self.unstamped += 1
        else:
            self.streams.setdefault(stamp.stream, StreamSeen()).add(partition, stamp)

    def report(self, accounts: Mapping[bytes, StreamSent] | None, runs: Iterable[str] = ()) -> list[RunReport]:
        """A report for each run seen or accounted for, in the order of their names; only `runs` if any are given."""
        wanted = set(runs)
        reports: dict[str, RunReport] = {}
        for stream in sorted({*self.streams, *(accounts or {})}):
            run = StreamName.of(stream).run
            if not wanted or run in wanted:
                self._add_stream(reports.setdefault(run, RunReport(run)), stream, accounts)
        return list(reports.values())

    def _add_stream(self, report: RunReport, stream: bytes, accounts: Mapping[bytes, StreamSent] | None) -> None:
        seen = self.streams.get(stream) or StreamSeen()
        sent = accounts.get(stream) if accounts is not None else None
        report.from_account = report.from_account or sent is not None
        expected = sent if sent is not None else StreamSent(seen.highest + 1)
        excused = Ranges([*expected.failed.merged(), *expected.unknown.merged()]).merged()
        lost = Ranges()
        for sequence in seen.missing(expected.sent):
            report.missing += 1
            if not _within(sequence, excused):
                lost.add(sequence)
        report.sent += expected.sent
        report.present += seen.present
        report.lost += len(lost)
        report.failed += len(expected.failed)
        report.failed_present += sum(sequence in seen for sequence in expected.failed)
        report.unknown += len(expected.unknown)
        report.unknown_present += sum(sequence in seen for sequence in expected.unknown)
        report.duplicated += seen.duplicated
        report.reordered += seen.reordered
        report.examples += [f"{stream.decode()} {start}-{end - 1}" for start, end in lost.merged()[:3]]


def _within(number: int, ranges: list[tuple[int, int]]) -> bool:
    at = bisect_right(ranges, number, key=itemgetter(0))
    return at > 0 and number < ranges[at - 1][1]
