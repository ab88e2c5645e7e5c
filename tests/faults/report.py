"""Writes the table of faults in docs/guarantees.md: `python -m tests.faults.report soak.json`, the record of a soak."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tests.faults.faults import FAULTS

PAGE = Path(__file__).parents[2] / "docs" / "guarantees.md"
BEGIN, END = "<!-- made by tests/faults/report.py: begin -->", "<!-- end -->"
MEMORY = {
    "producer, resident": "producer_rss_mib",
    "consumer, resident": "consumer_rss_mib",
    "consumer, allocated": "consumer_allocated_mib",
}
TITLES = ("fault", "injected", "rounds", "acknowledged", "lost", "duplicated", "reordered", "redelivered",
          "unavailable, s", "stalled, s", "recovered, s")  # fmt: skip


@click.command()
@click.argument("record", type=click.Path(exists=True, path_type=Path))
def main(record: Path) -> None:
    """Puts the table between the two markers."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{report(json.loads(record.read_text()))}{END}{after}")


def report(soak: dict[str, Any]) -> str:
    """The table, and what surrounds it: how long, how many, how much memory."""
    rounds = soak["rounds"]
    rows = [_row(fault.name, fault.injected, [each for each in rounds if each["fault"] == fault.name])
            for fault in FAULTS]  # fmt: skip
    table = [TITLES, ["---", "---", *["---:"] * (len(TITLES) - 2)], *rows]
    return f"{_summary(soak)}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in table) + f"\n{_memory(soak)}\n\n"


def _summary(soak: dict[str, Any]) -> str:
    producers = [account["producer"] for account in soak["accounts"]]
    loads = "".join(f"- `{name}`: {text}\n" for name, text in soak["loads"].items())
    accounts = ", ".join(f"{sum(producer[name] for producer in producers):,} {name}"
                         for name in ("sent", "acknowledged", "failed", "unknown"))  # fmt: skip
    lost = sum(run["lost"] for account in soak["accounts"] for run in account["verified"])
    return (
        f"A soak of {soak['minutes']:.0f} minutes on {soak['at'][:10]} had {len(soak['loads'])} loads of "
        f"{soak['rate_per_load']} messages/s, with handlers that fail at times:\n\n{loads}\n"
        f"The account of the producers that ran throughout: {accounts}; {lost} lost.\n\n"
        "A round of a fault counts once for each load. Session timeouts and commit intervals are the shipped ones. "
        "The last three columns are the longest times of all rounds:\n\n"
        "- *Unavailable*: no message was acknowledged.\n"
        "- *Stalled*: a partition with messages made no progress.\n"
        "- *Recovered*: from the injection, with the duration of the fault, until every partition accepts messages and "
        "all of them are handled."
    )


def _row(name: str, injected: str, rounds: Sequence[dict[str, Any]]) -> list[str]:
    counts = [f"{sum(each[key] for each in rounds):,}" for key in
              ("acknowledged", "missing", "duplicated", "reordered", "redelivered")]  # fmt: skip
    longest = [
        f"{max((each[key] for each in rounds), default=0):.1f}"
        for key in ("longest_unavailable_s", "longest_stall_s", "recovery_s")
    ]
    return [name, injected, str(len(rounds)), *counts, *longest]


def _memory(soak: dict[str, Any]) -> str:
    lines = []
    for load in soak["loads"]:
        rounds = [each for each in soak["rounds"] if each["load"] == load]
        for what, key in MEMORY.items():
            sizes = [each[key] for each in rounds]
            at = [sizes[len(sizes) * part // 4] for part in range(4)] + [sizes[-1]]
            lines.append(f"- `{load}` {what}: " + " → ".join(f"{size:.1f}" for size in at))
    return "Memory in MiB at the beginning, after each quarter and at the end:\n\n" + "\n".join(lines)


if __name__ == "__main__":
    main()
