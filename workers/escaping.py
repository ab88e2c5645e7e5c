"""Text of others, made safe to show: it may hold what ends a line or changes a terminal."""


def escaped(data: bytes) -> bytes:
    """Escape `data` so that a terminal shows it in one line, as UTF-8."""
    text = data.decode("utf-8", "backslashreplace")
    return (text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)).encode()


def one_line(text: str) -> str:
    """Escape `text` so that a terminal shows it in one line."""
    return escaped(text.encode(errors="backslashreplace")).decode()


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
