"""Writes RESULTS.md and its plot from what was measured."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import confluent_kafka

from bench.measure import Sample
from workers.cluster import KAFKA_VERSION

DIRECTORY = Path(__file__).parent


def comparison(samples: Sequence[Sample], count: int) -> list[str]:
    """A table of programs; the ratios say how much more the first one takes than each of the others."""
    ours = samples[0]
    lines = ["| program | median s | min-max s | messages/s | CPU-s | peak MB | first ÷ this, time | CPU |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for sample in samples:
        low, high = sample.spread("seconds")
        seconds = sample.median("seconds")
        cells = [sample.program, f"{seconds:.2f}", f"{low:.2f}-{high:.2f}", f"{count / seconds:,.0f}" if count else ""]
        cells += [f"{sample.median('cpu_seconds'):.2f}", f"{sample.median('peak_mb'):.0f}"]
        same = sample is ours
        cells += ["" if same else f"{ours.ratio(sample, what):.2f}" for what in ("seconds", "cpu_seconds")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def rows(found: Sequence[dict[str, Any]]) -> list[str]:
    titles = list(found[0])
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    return [*lines, *("| " + " | ".join(_cell(row[title]) for title in titles) + " |" for row in found)]


def _cell(value: object) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


def machine() -> str:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cores = f"{len(models)} cores of {models[0].partition(':')[2].strip()}, shared with the brokers"
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {cores}, "
        f"Python {platform.python_version()}, confluent-kafka {version('confluent-kafka')}, librdkafka "
        f"{confluent_kafka.libversion()[0]}, Kafka {KAFKA_VERSION} (three brokers on the same machine, replication 3)"
    )


def plot(throughputs: dict[str, tuple[list[Sample], int]]) -> None:
    """Bars of messages per second, ours in colour, with the spread of the runs."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    heights = [len(samples) for samples, _ in throughputs.values()]
    figure, axes = pyplot.subplots(
        len(throughputs), 1, figsize=(9, 0.9 + 0.55 * sum(heights)), height_ratios=heights, layout="constrained"
    )
    for axis, (title, (samples, count)) in zip(axes, throughputs.items(), strict=True):
        names = [sample.program for sample in samples]
        medians = [count / sample.median("seconds") / 1000 for sample in samples]
        spreads = [[count / seconds / 1000 for seconds in sample.spread("seconds")] for sample in samples]
        errors = [
            [middle - low for middle, (_, low) in zip(medians, spreads, strict=True)],
            [high - middle for middle, (high, _) in zip(medians, spreads, strict=True)],
        ]
        colours = ["#1f77b4" if name.startswith("kafka-workers") else "#c4c9d0" for name in names]
        bars = axis.barh(names, medians, xerr=errors, color=colours, ecolor="#555555", capsize=3, height=0.65)
        axis.bar_label(bars, labels=[f" {value:,.0f} k/s" for value in medians], padding=12, fontsize=9)
        axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axis.invert_yaxis()
        axis.set_xlim(0, max(high for high, _ in spreads) * 1.18)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(left=False, labelsize=9)
    axes[-1].set_xlabel("thousand messages of 100 bytes per second, whole processes; whiskers: slowest and fastest run")
    figure.savefig(DIRECTORY / "throughput.png", dpi=150)


def write(sections: dict[str, list[str]]) -> None:
    text = ["# Results", "", f"Made by `make bench`: {machine()}.", ""]
    text += ["![Messages per second](throughput.png)", ""]
    for title, lines in sections.items():
        text += [f"## {title}", "", *lines, ""]
    (DIRECTORY / "RESULTS.md").write_text("\n".join(text))
