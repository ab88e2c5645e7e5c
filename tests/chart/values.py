"""The table of values in the chart's README, from the comments of values.yaml; run as a program it prints it."""

import json
import re
from typing import Any

from tests.chart.rendering import CHART
from tests.documents import load

_ENTRY = re.compile(r"^(?P<indent> *)(?P<name>[\w.]+):")


def table() -> str:
    """One row for each value that has a `##` comment above it."""
    text = (CHART / "values.yaml").read_text()
    values = load(text)
    rows = ["| value | meaning | default |", "| --- | --- | --- |"]
    path: list[str] = []
    meaning = ""
    for line in text.splitlines():
        if line.lstrip().startswith("## "):
            meaning = line.strip().removeprefix("## ")
        elif entry := _ENTRY.match(line):
            path = [*path[: len(entry["indent"]) // 2], entry["name"]]
            if meaning:
                default = json.dumps(_at(values, path), separators=(",", ":"))
                rows.append(f"| `{'.'.join(path)}` | {meaning} | `{default}` |")
                meaning = ""
    return "\n".join(rows) + "\n"


def _at(values: Any, path: list[str]) -> Any:
    for name in path:
        values = values[name]
    return values


if __name__ == "__main__":
    print(table(), end="")
