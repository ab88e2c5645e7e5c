"""Keep the results of each section as JSON, and make RESULTS.md from them."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import confluent_kafka

from bench.measure import Run, Sample
from workers.kafka.fields import COMPILED
from workers.local.jars import KAFKA_VERSION

Row = dict[str, Any]

# Above this others were at work on the machine when a section began.
QUIET_LOAD = 1.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """One value of the bar, of every round: `limit` is the most its median may be, `least` the least; None where none
    is set.
    """

    what: str
    values: list[float]
    limit: float | None = None
    unit: str = "times"
    least: float | None = None

    @property
    def is_bar(self) -> bool:
        return self.limit is not None or self.least is not None

    def row(self) -> Row:
        middle = median(self.values)
        met = (self.limit is None or middle <= self.limit) and (self.least is None or middle >= self.least)
        bounds = [f"{sign} {bound:,g}" for sign, bound in (("≤", self.limit), ("≥", self.least)) if bound is not None]
        return {
            "what": self.what,
            "median": f"{middle:,.2f} {self.unit}",
            "min-max": f"{min(self.values):,.2f}-{max(self.values):,.2f}",
            "bar": " ".join(bounds),
            "": "" if not self.is_bar else "ok" if met else "**not met**",
        }


@dataclass(frozen=True, slots=True)
class Section:
    """The results of one section. `samples` are of programs that each passed `count` messages (0: it is about time)."""

    note: str
    tables: list[list[Row]] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    count: int = 0
    # Programs that were not compared, with the reason.
    absent: dict[str, str] = field(default_factory=dict)
    conditions: str = ""
    load: float = 0.0


def conditions(scale: float) -> str:
    """The machine and the versions, in a line."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = models[0].partition(":")[2].strip() if models else platform.machine()
    text = (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores of {name}, shared with the brokers; Python "
        f"{platform.python_version()}, confluent-kafka {version('confluent-kafka')}, librdkafka "
        f"{confluent_kafka.libversion()[0]}, Kafka {KAFKA_VERSION} (three brokers on the same machine, replication 3)"
    )
    if not COMPILED:
        text += ", kafka-workers not compiled"
    return text if scale == 1 else f"{text}; numbers of messages times {scale:g}: a trial, not a measurement"


class Results:
    """The sections kept in a directory, in the order of `titles`."""

    def __init__(self, directory: Path, titles: Sequence[str]) -> None:
        self._directory = directory
        self._file = directory / "results.json"
        self._titles = titles

    def keep(self, title: str, section: Section) -> None:
        """Keeps a section at once: what comes after may fail."""
        kept = {**self._kept(), title: asdict(section)}
        self._file.write_text(json.dumps(kept, indent=1) + "\n")

    def sections(self) -> dict[str, Section]:
        kept = self._kept()
        return {title: _section(kept[title]) for title in self._titles if title in kept}

    def write(self) -> None:
        """Renders RESULTS.md and its pictures."""
        from bench import plots

        sections = self.sections()
        pictures = plots.draw(sections, self._directory)
        text = ["# Results", "", *_head(sections), "", *_bar(sections)]
        text += [line for name, title in pictures.items() for line in (f"![{title}]({name})", "")]
        for title, section in sections.items():
            text += [f"## {title}", "", *_body(section)]
        (self._directory / "RESULTS.md").write_text("\n".join(text))

    def _kept(self) -> dict[str, Any]:
        return json.loads(self._file.read_text()) if self._file.exists() else {}


def _section(kept: dict[str, Any]) -> Section:
    samples = [Sample(each["program"], [Run(**run) for run in each["runs"]]) for each in kept.pop("samples")]
    judgements = [Judgement(**each) for each in kept.pop("judgements")]
    return Section(samples=samples, judgements=judgements, **kept)


def _head(sections: dict[str, Section]) -> list[str]:
    """Where and when; sections may have been measured at different times."""
    lines = ["Made by `make bench`; the numbers that it is made from are in results.json.", ""]
    for made in dict.fromkeys(section.conditions for section in sections.values()):
        titles = [title for title, section in sections.items() if section.conditions == made]
        lines.append(f"- {made}" + ("." if len(titles) == len(sections) else f": {', '.join(titles)}."))
    busy = [f"{title} ({section.load:.1f})" for title, section in sections.items() if section.load > QUIET_LOAD]
    if busy:
        lines += ["", f"**The machine was not idle** (load average before the run): {', '.join(busy)}."]
    return lines


def _bar(sections: dict[str, Section]) -> list[str]:
    """Every value that has a limit, first."""
    found = [
        {"section": title, **judgement.row()}
        for title, section in sections.items()
        for judgement in section.judgements
        if judgement.is_bar
    ]
    note = "Ratios are medians of the ratios of each round, in which the two ran one after the other."
    return ["## The bar", "", note, "", *table(found), ""] if found else []


def _body(section: Section) -> list[str]:
    lines = [section.note, ""]
    if section.samples:
        lines += [*table(programs(section)), ""]
    if section.judgements:
        lines += [*table([judgement.row() for judgement in section.judgements]), ""]
    for rows in section.tables:
        lines += [*table(rows), ""]
    return lines


def programs(section: Section) -> list[Row]:
    rows = []
    for sample in section.samples:
        seconds = sample.median("seconds")
        row: Row = {"program": sample.program, "median s": f"{seconds:.2f}"}
        row["min-max s"] = f"{min(sample.values('seconds')):.2f}-{max(sample.values('seconds')):.2f}"
        row |= {"messages/s": f"{section.count / seconds:,.0f}"} if section.count else {}
        row |= {"CPU-s": f"{sample.median('cpu_seconds'):.2f}", "peak MB": f"{sample.median('peak_mb'):.0f}"}
        rows.append(row)
    return rows + [{"program": name, "median s": f"not compared: {why}"} for name, why in section.absent.items()]


def table(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    titles = list(rows[0])
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    return [*lines, *("| " + " | ".join(_cell(row.get(title, "")) for title in titles) + " |" for row in rows)]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
