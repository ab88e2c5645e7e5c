"""The pictures beside RESULTS.md."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.report import Row, Section

OURS = "#1f6fb4"
OTHERS = "#c3c9d1"
GREY = "#555b63"
SECOND = "#d9822b"


def draw(sections: dict[str, Section], directory: Path) -> dict[str, str]:
    """Draws what there is data for; returns the names of the files and what they show."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
                         "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY})  # fmt: skip
    pictures = {}
    throughputs = {title: section for title, section in sections.items() if section.count}
    if throughputs:
        _bars(throughputs, directory / "throughput.png")
        pictures["throughput.png"] = "Messages per second and CPU of the workers and their peers"
    curves = {title: curve for title, curve in CURVES.items() if title in sections}
    if curves:
        _curves(sections, curves, directory / "curves.png")
        pictures["curves.png"] = "What settings, members and partitions do"
    return pictures


def _bars(sections: dict[str, Section], path: Path) -> None:
    """For each section messages per second and CPU for a message: ours in colour, whiskers from slowest to fastest."""
    from matplotlib import pyplot

    heights = [len(section.samples) + 0.7 for section in sections.values()]
    figure, rows = pyplot.subplots(
        len(sections), 2, figsize=(11, 0.6 + 0.45 * sum(heights)), squeeze=False, layout="constrained",
        gridspec_kw={"height_ratios": heights, "width_ratios": (3, 2)},
    )  # fmt: skip
    for (left, right), (title, section) in zip(rows, sections.items(), strict=True):
        left.set_title(title)
        speeds = [[section.count / value / 1000 for value in each.values("seconds")] for each in section.samples]
        costs = [[value / section.count * 1e6 for value in each.values("cpu_seconds")] for each in section.samples]
        names = [each.program.replace("\\n", "⏎") for each in section.samples]
        _barh(left, names, speeds, "{:,.0f} k/s")
        _barh(right, names, costs, "{:.1f} us")
        right.set_yticklabels([])
    rows[-1][0].set_xlabel("thousand messages per second, whole processes")
    rows[-1][1].set_xlabel("CPU for a message, us")
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def _barh(axis: Any, names: list[str], values: list[list[float]], label: str) -> None:
    from statistics import median

    middles = [median(each) for each in values]
    errors = [
        [middle - min(each) for middle, each in zip(middles, values, strict=True)],
        [max(each) - middle for middle, each in zip(middles, values, strict=True)],
    ]
    colours = [OURS if name.startswith("kafka-workers") else OTHERS for name in names]
    widest = max(max(each) for each in values)
    places = range(len(names))
    axis.barh(places, middles, xerr=errors, color=colours, height=0.66, error_kw={"ecolor": GREY, "capsize": 2.5})
    for place, middle, each in zip(places, middles, values, strict=True):
        axis.text(max(each) + widest * 0.02, place, label.format(middle), va="center", fontsize=8.5)
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    axis.set_xlim(0, widest * 1.22)
    axis.spines["left"].set_visible(False)
    axis.tick_params(left=False)


def _curves(sections: dict[str, Section], curves: dict[str, Callable[[Any, Section], None]], path: Path) -> None:
    from matplotlib import pyplot

    lines = -(-len(curves) // 2)
    figure, axes = pyplot.subplots(lines, 2, figsize=(11, 3.4 * lines), squeeze=False, layout="constrained")
    for axis, (title, curve) in zip(axes.flat, curves.items(), strict=False):
        curve(axis, sections[title])
        axis.grid(axis="y", color="#e6e8eb")
        axis.set_axisbelow(True)
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def _linger(axis: Any, section: Section) -> None:
    rows = section.tables[0]
    lingers = [str(row["linger.ms"]) for row in rows]
    for name, colour in (("p50 ms", OURS), ("p99 ms", SECOND)):
        key = next(key for key in rows[0] if key.startswith(name))
        axis.plot(lingers, [row[key] for row in rows], "o-", color=colour, label=f"{name[:3]} at a low rate")
    axis.set(title="linger.ms: latency and throughput", xlabel="linger.ms (5 is shipped)", ylabel="end to end, ms")
    axis.set_ylim(bottom=0)
    _second(axis, lingers, rows, "messages/s at full speed")


def _fetch(axis: Any, section: Section) -> None:
    rows = section.tables[0]
    backoffs = [str(row["fetch.queue.backoff.ms"]) for row in rows]
    axis.plot(backoffs, [row["CPU us/message"] for row in rows], "o-", color=OURS, label="CPU")
    axis.set(title="fetch.queue.backoff.ms: CPU and throughput", xlabel="fetch.queue.backoff.ms (10 is shipped)",
             ylabel="CPU us for a message")  # fmt: skip
    axis.set_ylim(0, 1.25 * max(row["CPU us/message"] for row in rows))
    _second(axis, backoffs, rows, "messages/s")


def _second(axis: Any, places: list[str], rows: list[Row], key: str) -> None:
    """Throughput as bars behind the lines, on an axis of its own."""
    bars = axis.twinx()
    bars.bar(places, [row[key] / 1000 for row in rows], width=0.5, color=OTHERS, label="throughput (right)")
    bars.set_ylabel("thousand messages/s")
    bars.set_zorder(0)
    axis.set_zorder(1)
    axis.patch.set_visible(False)
    handles, labels = (a + b for a, b in zip(axis.get_legend_handles_labels(), bars.get_legend_handles_labels(),
                                             strict=True))  # fmt: skip
    axis.legend(handles, labels, frameon=False, loc="upper center", ncols=3, bbox_to_anchor=(0.5, -0.17))


def _members(axis: Any, section: Section) -> None:
    for rows, colour, name in zip(section.tables, (OURS, SECOND), ("sleeps 1 ms", "computes 50 us"), strict=True):
        members = [next(iter(row.values())) for row in rows]
        axis.plot(members, [row["of one member"] for row in rows], "o-", color=colour, label=f"handler {name}")
    axis.plot([1, 2, 3], [1, 2, 3], ":", color=GREY, label="as many times as members")
    axis.set(
        title=f"Scale-out on three partitions, {os.cpu_count()} cores",
        xlabel="members",
        ylabel="throughput, of one member",
    )
    axis.set_xticks(members)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)


def _growth(axis: Any, section: Section) -> None:
    rows = section.tables[0]
    partitions = [f"{row['partitions']:,}" for row in rows]
    axis.plot(partitions, [row["scrape ms"] for row in rows], "o-", color=SECOND, label="scrape, ms")
    axis.plot(partitions, [row["resident MB"] for row in rows], "o-", color=OURS, label="resident memory, MB")
    axis.set(title="Growth with partitions", xlabel="partitions of one consumer", ylabel="ms, MB")
    axis.set_ylim(bottom=0)
    _second(axis, partitions, rows, "messages/s")


CURVES: dict[str, Callable[[Any, Section], None]] = {
    "linger.ms": _linger,
    "fetch.queue.backoff.ms": _fetch,
    "Scale-out": _members,
    "Partitions and topics": _growth,
}
