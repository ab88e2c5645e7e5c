"""The producer's account of a run, for machines and for people."""

from collections.abc import Mapping
from typing import Any

from workers.producer.deliveries import Deliveries

PERCENTILES = (50, 95, 99)


def summarize(
    deliveries: Deliveries, run: str, duration_s: float, dead_letters: Deliveries | None = None
) -> dict[str, Any]:
    """The account of one run, ready for JSON. Times are seconds; ranges are half-open, see `CountedRanges`."""
    latencies = deliveries.latencies
    return {
        "run": run,
        **_outcomes(deliveries),
        **({} if dead_letters is None else {"dead_letters": _outcomes(dead_letters)}),
        "duration_s": round(duration_s, 3),
        "rate_per_s": round(deliveries.acknowledged / duration_s, 1) if duration_s else 0.0,
        "latency_s": {f"p{percent}": _rounded(latencies.percentile(percent)) for percent in PERCENTILES},
        "streams": [
            {
                "stream": name.decode(),
                "sent": sent.sent,
                "failed": sent.failed.document(),
                "unknown": sent.unknown.document(),
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
    dead = summary.get("dead_letters", {"sent": 0})
    if dead["sent"]:
        lines += [f"dead letters to {dead['topic']}: {_outcomes_as_text(dead)}", *_errors_as_text(dead)]
    if summary["unknown"] and summary["streams"]:
        lines.append(
            "unknown messages may or may not be in the log: `kafka-workers verify --account` tells which, as a "
            "user who may read the topic"
        )
    return "\n".join(lines)


def _outcomes_as_text(account: Mapping[str, Any]) -> str:
    return (
        f"sent {account['sent']:,}: {account['acknowledged']:,} acknowledged, {account['failed']:,} failed, "
        f"{account['unknown']:,} unknown"
    )


def _errors_as_text(account: Mapping[str, Any]) -> list[str]:
    errors = ", ".join(f"{name} {count:,}" for name, count in account["errors"].items())
    return [f"errors: {errors}"] if errors else []
