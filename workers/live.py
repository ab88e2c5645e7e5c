"""A table that changes in place on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_Moment = TypeVar("_Moment")


def has_tables() -> bool:
    """Whether rich is installed, which draws the table."""
    return find_spec("rich") is not None


@contextmanager
def live_table(
    draw: "Callable[[_Moment, Console], RenderableType]", *, screen: bool = False
) -> Iterator[Callable[[_Moment], None]]:
    """Give a function that shows a moment as `draw` makes a table of it, for a terminal. Needs rich.

    With `screen` the table has the whole terminal, which is as before when the block ends.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(console=console, screen=screen, auto_refresh=False) as view:
        yield lambda moment: view.update(draw(moment, console), refresh=True)
