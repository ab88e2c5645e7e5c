"""Tables and counts as text."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of a table as text, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def counted(number: int, noun: str) -> str:
    """The number with its noun, which forms its plural with an s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def or_dash(number: int | None) -> str:
    """The number as text, "-" where it is not known."""
    return "-" if number is None else str(number)
