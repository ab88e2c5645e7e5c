"""Dead letters for people, on a terminal of 80 columns, and for machines."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from textwrap import indent
from typing import Any

from workers.columns import aligned
from workers.deadletters.stored import StoredDeadLetter
from workers.deadletters.treated import Record, State
from workers.escaping import escaped, one_line
from workers.kafka.messages import json_field

# Of a value that is shown. JSON has all of it.
MAX_SHOWN_BYTES = 4096
HEX_COLUMNS = 16
# Columns of a terminal, so that of 80 some are left for the error.
MAX_SOURCE = 20
MAX_KEY = 10
INDENT = "    "
HEADS: tuple[str, ...] = ("LETTER", "STATE", "SINCE", "SOURCE", "KEY", "ERROR")


def time_of(timestamp_ms: int | None) -> str:
    """A timestamp in ms of Unix time, in UTC; a dash where there is none."""
    if timestamp_ms is None or timestamp_ms <= 0:
        return "-"
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):  # beyond what a calendar has
        return str(timestamp_ms)


def source_of(letter: StoredDeadLetter) -> str:
    """TOPIC[PARTITION]@OFFSET, as far as it is known; "a line" for one that `produce` could not send."""
    origin = letter.origin
    if origin is None:
        return "a line" if letter.is_invalid_line else "-"
    partition = "?" if origin.partition < 0 else origin.partition
    return f"{origin.topic}[{partition}]@{'?' if letter.origin_offset is None else letter.origin_offset}"


def key_of(letter: StoredDeadLetter) -> str:
    key = letter.message.key()
    return "-" if key is None else escaped(key).decode()


def cells_of(letter: StoredDeadLetter, state: State, *, cut: bool) -> tuple[str, ...]:
    """A row of a table with the columns HEADS; `cut` leaves room for the error on a terminal of 80 columns."""
    source, key = source_of(letter), key_of(letter)
    if cut:
        source, key = _cut(source, MAX_SOURCE), _cut(key, MAX_KEY)
    return str(letter.place), state, time_of(letter.timestamp_ms), source, key, error_of(letter)


def as_table(rows: Sequence[tuple[StoredDeadLetter, State]], *, show_state: bool, width: int | None) -> str:
    """A line for each, for a terminal of `width` columns, None for no terminal."""
    lines = [HEADS, *(cells_of(letter, state, cut=width is not None) for letter, state in rows)]
    return _fitted([line if show_state else (line[0], *line[2:]) for line in lines], width)


def error_of(letter: StoredDeadLetter) -> str:
    return one_line(": ".join(filter(None, (letter.error_class, letter.error_message)))) or "-"


def _fitted(rows: Sequence[Sequence[str]], width: int | None) -> str:
    """Rows of a table as text; lines that a terminal of `width` columns would fold are cut."""
    table = aligned(rows)
    return table if width is None else "\n".join(_cut(line, width) for line in table.splitlines())


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


@dataclass(slots=True)
class Tally:
    """The dead letters that have something in common."""

    count: int = 0
    oldest_ms: int | None = None
    newest_ms: int | None = None
    sources: Counter[str] = field(default_factory=Counter)
    example: str = ""

    def add(self, letter: StoredDeadLetter) -> None:
        self.count += 1
        at = letter.timestamp_ms
        self.oldest_ms = at if self.oldest_ms is None else min(at, self.oldest_ms)
        self.newest_ms = at if self.newest_ms is None else max(at, self.newest_ms)
        self.sources[letter.origin.topic if letter.origin is not None else "-"] += 1
        self.example = self.example or str(letter.place)

    def document(self, by: str, value: str) -> dict[str, Any]:
        return {
            by: value,
            "count": self.count,
            "oldest": self.oldest_ms,
            "newest": self.newest_ms,
            "source_topics": dict(self.sources.most_common()),
            "example": self.example,
        }


# Properties by which `dead-letters list --by` counts.
BY: dict[str, Callable[[StoredDeadLetter], str]] = {
    "error": lambda letter: one_line(letter.error_class) or "-",
    "message": error_of,
    "source-topic": lambda letter: letter.origin.topic if letter.origin is not None else "-",
    "key": key_of,
}


def tallies_as_table(by: str, tallies: Iterable[tuple[str, Tally]], width: int | None) -> str:
    rows = [["COUNT", "OLDEST", "NEWEST", "EXAMPLE", by.upper()]]
    rows += [
        [str(tally.count), time_of(tally.oldest_ms), time_of(tally.newest_ms), tally.example, value]
        for value, tally in tallies
    ]
    return _fitted(rows, width)


def as_text(topic: str, letter: StoredDeadLetter, state: State, record: Record | None) -> str:
    """All of one dead letter."""
    origin = letter.origin
    source = source_of(letter) + (f", written {time_of(letter.origin_timestamp_ms)}" if origin else "")
    attempts = f"{one_line(letter.group) or '-'}, after {'?' if letter.attempts is None else letter.attempts} attempts"
    line = letter.is_invalid_line
    facts = [
        ("state", _state(state, record)),
        ("since", time_of(letter.timestamp_ms)),
        ("source", "a line that `produce` could not send; mend it and produce it again" if line else source),
        *([] if line else [("group", attempts)]),
        ("error", error_of(letter)),
        ("key", key_of(letter)),
    ]
    lines = [f"dead letter {letter.place} of {topic}"]
    lines += [f"  {name:9} {value}" for name, value in facts]
    if letter.own_headers:
        lines.append("  headers")
        lines += [
            f"{INDENT}{one_line(name)}: {'null' if value is None else escaped(value).decode()}"
            for name, value in letter.own_headers
        ]
    if letter.error_traceback:
        lines += ["  traceback", indent(_lines(letter.error_traceback.rstrip()), INDENT)]
    value = letter.message.value()
    if value is None:
        return "\n".join([*lines, "  value     null"])
    shown = value[:MAX_SHOWN_BYTES]
    lines += [f"  value     {len(value):,} bytes", indent(_readable(shown, whole=len(shown) == len(value)), INDENT)]
    if len(shown) < len(value):
        lines.append(f"{INDENT}… {len(value) - len(shown):,} bytes more; `dead-letters show --format json` has them")
    return "\n".join(lines)


def _state(state: State, record: Record | None) -> str:
    if record is None or state is State.WAITING:
        return state
    reason = f": {one_line(record.reason)}" if record.reason else ""
    return f"{state} {one_line(record.at)} by {one_line(record.by)}{reason}"


def _readable(value: bytes, *, whole: bool) -> str:
    """Text where it is UTF-8, or else bytes in hexadecimal and what of them is ASCII."""
    try:
        return _lines(value.decode())
    except UnicodeDecodeError as error:
        # Cut within a character.
        if not whole and error.start > len(value) - 4:
            return _lines(value[: error.start].decode())
    return "\n".join(
        f"{at:08x}  {row.hex(' '):{3 * HEX_COLUMNS - 1}}  {''.join(chr(b) if 32 <= b < 127 else '.' for b in row)}"
        for at in range(0, len(value), HEX_COLUMNS)
        for row in (value[at : at + HEX_COLUMNS],)
    )


def _lines(text: str) -> str:
    """Lines stay lines; all else that a terminal would act on is escaped."""
    return "\n".join(one_line(line) for line in text.replace("\r\n", "\n").split("\n"))


def as_document(topic: str, letter: StoredDeadLetter, state: State, record: Record | None) -> dict[str, Any]:
    """All of one dead letter for JSON; times are Unix time in milliseconds."""
    origin = letter.origin
    document: dict[str, Any] = {
        "letter": str(letter.place),
        "topic": topic,
        "partition": letter.place.partition,
        "offset": letter.place.offset,
        "timestamp": letter.timestamp_ms,
        "state": state,
        "source": None
        if origin is None
        else {
            "topic": origin.topic,
            "partition": origin.partition,
            "offset": letter.origin_offset,
            "timestamp": letter.origin_timestamp_ms,
        },
        "group": letter.group or None,
        "attempts": letter.attempts,
        "error": {
            "class": letter.error_class or None,
            "message": letter.error_message or None,
            "traceback": letter.error_traceback or None,
        },
        **json_field("key", letter.message.key()),
        **json_field("value", letter.message.value()),
        "headers": [{"name": name, **json_field("value", value)} for name, value in letter.own_headers],
    }
    if record is not None:
        document["record"] = {"at": record.at, "by": record.by, "group": record.group, "reason": record.reason}
    return document
