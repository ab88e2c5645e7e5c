"""A picture of the demo as a terminal shows it, made of what was seen."""

import re
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from rich.console import Console, RenderableType

from workers.errors import WorkerError

COLUMNS = 80
# The picture would load a font from elsewhere; the reader's own monospace font does.
_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def draw(path: Path, table: RenderableType, account: Sequence[str]) -> None:
    """Write an SVG of a terminal with the table and the account below it; raises WorkerError."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, legacy_windows=False)
    console.print("$ make demo", highlight=False)
    console.print(table)
    console.print("\n".join(account), highlight=False)
    try:
        path.write_text(_FONT.sub("", console.export_svg(title="kafka-workers")))
    except OSError as error:
        raise WorkerError(
            f"--svg: {path} was not written: {error.strerror}; name a file on a disk with space, and run the demo again"
        ) from None
