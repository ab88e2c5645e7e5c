"""The written account of a run of the producer, and its verification against what was seen in a log.

The producer writes one JSON document at its end. With it, a message that is not there can be told apart: lost
(acknowledged, yet missing), failed (the producer said so), or unknown (it timed out under way and did not arrive).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.config import ConfigError
from workers.ledger import Ranges, StreamSeen, StreamSent
from workers.messages import SEQUENCE, Stamp, StreamName, is_bound
from workers.producer import Deliveries

PERCENTILES = (50, 95, 99)
# How the lines of `--verbose` begin, which can stand before an account.
DELIVERY_LINES = ("delivered ", "failure ", "unknown ")
# As many as a stamp has room for.
MAX_SEQUENCES = 10 ** (SEQUENCE.stop - SEQUENCE.start)


def summarize(
    deliveries: Deliveries, run: str, duration_s: float, dead_letters: Deliveries | None = None
) -> dict[str, Any]:
    """The account of one run, ready for JSON. Times are seconds, ranges are half-open."""
    latencies = deliveries.latencies
    letters = {} if dead_letters is None else {"dead_letters": _outcomes(dead_letters)}
    return {
        "run": run,
        **_outcomes(deliveries),
        **letters,
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


def _outcomes(deliveries: Deliveries) -> dict[str, Any]:
    return {
        "topic": deliveries.topic,
        "sent": deliveries.enqueued,
        "acknowledged": deliveries.acknowledged,
        "failed": deliveries.failed,
        "unknown": deliveries.unknown,
        "errors": dict(deliveries.errors),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def as_text(summary: Mapping[str, Any]) -> str:
    """The account in a few lines for a person."""
    latency = summary["latency_s"]
    lines = [
        _outcomes_as_text(summary),
        f"{summary['rate_per_s']:,.0f} messages/s over {summary['duration_s']:.1f} s",
    ]
    if latency["p50"] is not None:
        lines[1] += "; latency " + ", ".join(f"{name} {seconds * 1000:.1f} ms" for name, seconds in latency.items())
    lines += _errors_as_text(summary)
    letters = summary.get("dead_letters", {"sent": 0})
    if letters["sent"]:
        lines += [f"dead letters to {letters['topic']}: {_outcomes_as_text(letters)}", *_errors_as_text(letters)]
    if summary["unknown"] and summary["streams"]:
        lines.append("unknown messages may or may not be in the log: `kafka-workers verify --account` tells which")
    return "\n".join(lines)


def _outcomes_as_text(account: Mapping[str, Any]) -> str:
    return (
        f"sent {account['sent']:,}: {account['acknowledged']:,} acknowledged, {account['failed']:,} failed, "
        f"{account['unknown']:,} unknown"
    )


def _errors_as_text(account: Mapping[str, Any]) -> list[str]:
    errors = ", ".join(f"{name} {count:,}" for name, count in account["errors"].items())
    return [f"errors: {errors}"] if errors else []


def read_accounts(text: str, origin: str, topic: str) -> dict[bytes, StreamSent]:
    """What was sent to `topic`, by stream, from the JSON lines of one or several runs. Deliveries that `--verbose` has
    printed before them are passed over.

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
            for entry in document["streams"]:
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
    deleted: int = 0
    from_account: bool = False
    examples: list[str] = field(default_factory=list)


class Observations:
    """Stamped messages seen in a log or by consumers, by stream.

    `trimmed` are the partitions whose beginning is not there any more: retention has deleted it.
    """

    def __init__(self) -> None:
        self.streams: dict[bytes, StreamSeen] = {}
        self.unstamped = 0
        self.trimmed: set[int] = set()

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
        missing = seen.missing(expected.sent)
        unexcused = missing.without(expected.failed).without(expected.unknown)
        lost = unexcused.without(Ranges([(0, self._deleted_below(stream, seen, expected.sent))]))
        report.deleted += len(unexcused) - len(lost)
        if sent is None and not is_bound(stream):
            # Its partitions were read to ends of different moments, and its producer may have been at work.
            lost = Ranges()
        report.sent += expected.sent
        report.present += seen.present
        report.missing += len(missing)
        report.lost += len(lost)
        report.failed += len(expected.failed)
        report.failed_present += len(expected.failed.without(missing))
        report.unknown += len(expected.unknown)
        report.unknown_present += len(expected.unknown.without(missing))
        report.duplicated += seen.duplicated
        report.reordered += seen.reordered
        report.examples += [f"{stream.decode()} {start}-{end - 1}" for start, end in lost.merged()[:3]]

    def _deleted_below(self, stream: bytes, seen: StreamSeen, sent: int) -> int:
        """What is missing below this sequence may have been in what retention has deleted."""
        bound = StreamName.of(stream).partition
        trimmed = self.trimmed if bound is None else self.trimmed & {bound}
        return max((seen.first.get(partition, sent) for partition in trimmed), default=0)
