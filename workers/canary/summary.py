"""The canary's account of a run, for machines and for people."""

from collections.abc import Mapping
from typing import Any

from workers.accounting.histogram import LatencyHistogram
from workers.canary.loop import Canary
from workers.canary.probes import COUNTS
from workers.columns import aligned

_PERCENTILES = (50, 99)


def summarize(canary: Canary, topic: str) -> dict[str, Any]:
    """The account of one run, ready for JSON. Times are seconds."""
    rows = [
        {
            "partition": partition,
            "broker": broker,
            **{name: getattr(counts, name) for name in COUNTS},
            "produce_latency_s": _percentiles(counts.produce_latency),
            "end_to_end_latency_s": _percentiles(counts.end_to_end_latency),
        }
        for (partition, broker), counts in sorted(canary.probes.counts.items())
    ]
    return {
        "topic": topic,
        "run": canary.run_name,
        "duration_s": round(canary.duration_s, 3),
        **{name: sum(row[name] for row in rows) for name in COUNTS},
        "partitions": rows,
    }


def as_text(summary: Mapping[str, Any]) -> str:
    """The account in a few lines for a person."""
    head = ", ".join(f"{summary[name]:,} {name}" for name in COUNTS)
    rows = [("PARTITION", "BROKER", *(name.upper() for name in COUNTS), "PRODUCE P50/P99", "END TO END P50/P99")]
    rows += [
        (
            str(row["partition"]),
            "-" if row["broker"] < 0 else str(row["broker"]),
            *(str(row[name]) for name in COUNTS),
            _as_text(row["produce_latency_s"]),
            _as_text(row["end_to_end_latency_s"]),
        )
        for row in summary["partitions"]
    ]
    return f"{summary['topic']} over {summary['duration_s']:.1f} s: {head}\n{aligned(rows)}"


def _percentiles(latency: LatencyHistogram) -> dict[str, float | None]:
    found = {f"p{percent}": latency.percentile(percent) for percent in _PERCENTILES}
    return {name: None if seconds is None else round(seconds, 6) for name, seconds in found.items()}


def _as_text(percentiles: Mapping[str, float | None]) -> str:
    return "/".join("-" if seconds is None else f"{seconds * 1000:.1f}" for seconds in percentiles.values()) + " ms"
