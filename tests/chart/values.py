"""The meaning of each value of the chart, from the comments of values.yaml: a table in the chart's README, and the
descriptions in values.schema.json, which editors show. Run as a program it writes both.
"""

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
    """One row for each value."""
    values = load((CHART / "values.yaml").read_text())
    rows = []
    for path, meaning in meanings().items():
        default: Any = values
        for name in path:
            default = default[name]
        rows.append(f"| `{'.'.join(path)}` | {meaning} | `{json.dumps(default, separators=(',', ':'))}` |\n")
    return _HEAD + "".join(rows)


def schema() -> str:
    """The schema as it stands, with the descriptions that values.yaml has, and no others; notes of the schema's own are
    `$comment`. Raises KeyError where it does not know a value.
    """
    document = json.loads(SCHEMA.read_text(), object_hook=_without_description)
    for path, meaning in meanings().items():
        node = document
        for name in path:
            node = _resolved(document, node)["properties"][name]
        # First in the object, where a reader looks.
        members = dict(node)
        node.clear()
        node.update(description=meaning, **members)
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _without_description(node: dict[str, Any]) -> dict[str, Any]:
    """A property may have that name too: its schema is no text."""
    return {key: value for key, value in node.items() if key != "description" or not isinstance(value, str)}


def _resolved(document: Any, node: Any) -> Any:
    """The definition that `node` refers to, or `node`. Two values of one definition get the later texts."""
    if "$ref" in node:
        return document["definitions"][node["$ref"].removeprefix("#/definitions/")]
    return node


if __name__ == "__main__":
    SCHEMA.write_text(schema())
    before, _, rest = README.read_text().partition(_HEAD)
    _, gap, after = rest.partition("\n\n")
    README.write_text(before + table() + (f"\n{after}" if gap else ""))
