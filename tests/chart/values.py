"""The meaning of each value of the chart, from the comments of values.yaml: a table in the chart's README, and the
descriptions in values.schema.json, which editors show. Run as a program it writes both.
"""

import functools
import json
import re
from typing import Any

from tests.chart.rendering import CHART
from tests.documents import load

README, SCHEMA = CHART / "README.md", CHART / "values.schema.json"
_ENTRY = re.compile(r"^(?P<indent> *)(?P<name>[\w.]+):")
_HEAD = "| value | meaning | default |\n| --- | --- | --- |\n"


def meanings() -> dict[tuple[str, ...], str]:
    """Of each value that has a `##` comment above it, by its path."""
    found: dict[tuple[str, ...], str] = {}
    path: tuple[str, ...] = ()
    meaning = ""
    for line in (CHART / "values.yaml").read_text().splitlines():
        if line.lstrip().startswith("## "):
            meaning = line.strip().removeprefix("## ")
        elif entry := _ENTRY.match(line):
            path = (*path[: len(entry["indent"]) // 2], entry["name"])
            if meaning:
                found[path] = meaning
                meaning = ""
    return found


def table() -> str:
    """One row for each value; that of a map with rows of its own says `below`."""
    values = load((CHART / "values.yaml").read_text())
    described = meanings()
    maps = {path[:length] for path in described for length in range(1, len(path))}
    rows = []
    for path, meaning in described.items():
        default: Any = values
        for name in path:
            default = default[name]
        shown = "below" if path in maps else f"`{json.dumps(default, separators=(',', ':'))}`"
        rows.append(f"| `{'.'.join(path)}` | {meaning} | {shown} |\n")
    return _HEAD + "".join(rows)


def schema() -> str:
    """The schema as it stands, with the descriptions that values.yaml has, and no others; notes of the schema's own are
    `$comment`. Raises KeyError where it does not know a value.
    """
    document = json.loads(SCHEMA.read_text(), object_hook=_without_description)
    for path, meaning in meanings().items():
        node = document
        for name in path:
            node = resolved(document, node)["properties"][name]
        # First in the object, where a reader looks.
        members = dict(node)
        node.clear()
        node.update(description=meaning, **members)
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _without_description(node: dict[str, Any]) -> dict[str, Any]:
    """A property may have that name too: its schema is no text."""
    return {key: value for key, value in node.items() if key != "description" or not isinstance(value, str)}


def resolved(document: Any, node: Any) -> Any:
    """The part of the schema that `node` refers to, or `node`. Two values of one part get the later texts."""
    while "$ref" in node:
        path = node["$ref"].removeprefix("#/").split("/")
        node = functools.reduce(lambda part, name: part[name], path, document)
    return node


if __name__ == "__main__":
    SCHEMA.write_text(schema())
    before, _, rest = README.read_text().partition(_HEAD)
    _, gap, after = rest.partition("\n\n")
    README.write_text(before + table() + (f"\n{after}" if gap else ""))
