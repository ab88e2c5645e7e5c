"""The full-screen view of dead letters: a table, and all of the chosen one. Needs textual, which the extra `tui` has.

The terminal's own colours are used, so that a light and a dark one are both readable; nothing is said by colour alone.

The event loop never waits for brokers. One thread makes the calls of the desk in the order of the keys, and posts the
outcome of each to the view.
"""

import logging
import queue
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import ClassVar

from confluent_kafka import KafkaException
from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Static

from workers.columns import counted
from workers.deadletters.listing import Desk, Listing, Row
from workers.deadletters.stored import Place
from workers.deadletters.text import HEADS
from workers.errors import ConfigError, WorkerError
from workers.lifecycle import BROWSING_THREAD, Shutdown

MARK = "*"
# At most this many dead letters are named in a question, and error classes in the first line.
MAX_NAMED = 5
# Characters of the name of an error class there.
MAX_CLASS = 30
READING = "reading"
SIGNAL_INTERVAL_S = 0.2
EXPECTED = (ConfigError, WorkerError, KafkaException)


class Read(Message):
    """The dead letters were read, or that failed."""

    def __init__(self, listing: Listing | None, error: Exception | None) -> None:
        super().__init__()
        self.listing = listing
        self.error = error


class Treated(Message):
    """Dead letters were replayed or discarded, or that failed."""

    def __init__(self, places: Collection[Place], outcome: str, error: Exception | None) -> None:
        super().__init__()
        self.places = places
        self.outcome = outcome
        self.error = error


class Logged(Message):
    """A warning of the client, as that a broker does not answer."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self.line = line


class _ToView(logging.Handler):
    """Posts log lines to the view: on the terminal they would go through it."""

    def __init__(self, view: "DeadLetterView") -> None:
        super().__init__(logging.WARNING)
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        self._view.post_from_thread(Logged(record.getMessage()))


class Question(ModalScreen[str | None]):
    """Asks once whether to do it. Its result is the reason, empty where none is asked for, and None for no."""

    DEFAULT_CSS = """
    Question { align: center middle; background: ansi_default; }
    Question > Vertical { width: 90%; max-width: 100; height: auto; border: round ansi_default; padding: 0 1; }
    Question Static { height: auto; }
    Question Input { margin: 1 0; text-style: underline; }
    """
    AUTO_FOCUS = "Input"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,y", "yes", "Yes"),
        Binding("escape,n", "no", "No"),
    ]

    def __init__(self, question: str, reason_for: str = "") -> None:
        super().__init__()
        self._question = question
        self._reason_for = reason_for

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(self._question, markup=False)
            if self._reason_for:
                yield Input(placeholder=self._reason_for, compact=True)
            yield Static("Enter: yes   Escape: no", markup=False)

    @on(Input.Submitted)
    def action_yes(self) -> None:
        fields = self.query(Input)
        self.dismiss(fields.first().value.strip() if fields else "")

    def action_no(self) -> None:
        self.dismiss(None)


class DeadLetterView(App[None]):
    """The view of one topic. `state` is that of the listed dead letters, or "all".

    `outcomes` says what was done; `fatal` is the error that ended the view.
    """

    CSS = """
    #head { height: auto; max-height: 4; text-style: bold; }
    #status { height: auto; max-height: 8; }
    #panes { height: 1fr; }
    #letters, #pane { scrollbar-size-vertical: 1; scrollbar-size-horizontal: 0; }
    #letters { height: 2fr; background: ansi_default; }
    #letters > .datatable--cursor, #letters:focus > .datatable--cursor {
        background: ansi_default; color: ansi_default; text-style: reverse;
    }
    #letters > .datatable--header { background: ansi_default; color: ansi_default; text-style: bold underline; }
    #pane { height: 3fr; border-top: solid ansi_default; }
    #pane:focus { border-top: double ansi_default; }
    #text { height: auto; }
    #search { display: none; text-style: underline; }
    .-whole #letters { display: none; }
    .-wide #panes { layout: horizontal; }
    .-wide #letters { width: 1fr; height: 100%; }
    .-wide #pane { width: 1fr; height: 100%; border-top: none; border-left: solid ansi_default; padding: 0 1; }
    .-wide #pane:focus { border-left: double ansi_default; }
    """
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (150, "-wide")]  # noqa: RUF012 as the class above declares it
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = "#letters"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "mark", "Mark"),
        Binding("a", "mark_all", "All"),
        Binding("r", "replay", "Replay"),
        Binding("d", "discard", "Discard"),
        Binding("slash", "search", "Search", key_display="/"),
        Binding("g", "read", "Refresh"),
        Binding("escape", "step_back", "Back", show=False),
        Binding("q", "quit", "Quit"),
        # textual has one for ctrl+q. Both work in a question too.
        Binding("ctrl+c", "quit", priority=True, show=False),
    ]

    def __init__(self, desk: Desk, topic: str, state: str, shutdown: Shutdown) -> None:
        # Said here too: without it NO_COLOR would make black of the terminal's own colours, on black.
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self.outcomes: list[str] = []
        self._desk = desk
        self._topic = topic
        self._state = state
        self._worker_shutdown = shutdown
        self._calls: queue.SimpleQueue[Callable[[], Message] | None] = queue.SimpleQueue()
        self._listing: Listing | None = None
        self._shown: tuple[Row, ...] = ()
        self._marked: set[Place] = set()
        # The calls that have not ended, the oldest first.
        self._under_way: list[str] = []
        self._treating = 0
        self._trouble = ""
        self._outcome = ""
        self._leaving = False
        self.fatal: Exception | None = None

    def show(self) -> None:
        """Run until the user leaves or a signal asks for it. Called in the main thread.

        Raises ConfigError when the first reading shows that the topic or a filter cannot be used, and WorkerError when
        the view itself failed, after its traceback.
        """
        with self.logs_in_the_view():
            self.run()
        if self.fatal is not None:
            raise self.fatal
        if self.return_code:
            raise WorkerError("the view failed, as above; report it, and use `dead-letters list` and `show` meanwhile")

    @contextmanager
    def logs_in_the_view(self) -> Iterator[None]:
        """Post warnings to the view while the block runs, in place of what handles log lines."""
        root = logging.getLogger()
        before = root.handlers[:]
        root.handlers[:] = [_ToView(self)]
        try:
            yield
        finally:
            root.handlers[:] = before

    def compose(self) -> ComposeResult:
        yield Static(id="head", markup=False)
        with Container(id="panes"):
            yield DataTable[Text](id="letters", cursor_type="row")
            with VerticalScroll(id="pane") as pane:
                pane.border_title = "Tab: scroll   Enter: full screen"
                yield Static(id="text", markup=False)
        yield Input(id="search", placeholder="text to look for; Enter keeps it, Escape drops it", compact=True)
        yield Static(id="status", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        heads = [head for head in HEADS if head != "STATE" or self._state == "all"]
        self._table.add_column(" ", key=MARK)
        self._table.add_columns(*heads)
        threading.Thread(target=self._make_calls, name=BROWSING_THREAD, daemon=True).start()
        self.set_interval(SIGNAL_INTERVAL_S, self._leave_on_signal)
        self.action_read()

    def on_unmount(self) -> None:
        self._calls.put(None)

    @property
    def _table(self) -> DataTable[Text]:
        return self.screen_stack[0].query_one("#letters", DataTable)

    # The thread.

    def _make_calls(self) -> None:
        while (call := self._calls.get()) is not None:
            self.post_from_thread(call())

    def post_from_thread(self, message: Message) -> None:
        """Give the view a message; from any thread. It is dropped when the view has ended."""
        with suppress(RuntimeError):
            self.post_message(message)

    def _enqueue(self, doing: str, call: Callable[[], Message]) -> None:
        self._under_way.append(doing)
        self._calls.put(call)
        self._say_status()

    def _read(self) -> Message:
        try:
            return Read(self._desk.read(), None)
        except Exception as error:
            return Read(None, error)

    def _treat(self, doing: str, places: Collection[Place], call: Callable[[], str]) -> None:
        def treat() -> Message:
            try:
                return Treated(places, call(), None)
            except Exception as error:
                return Treated(places, "", error)

        self._outcome = ""
        self._treating += 1
        self._enqueue(doing, treat)
        self.action_read()

    # The outcomes of the calls.

    @on(Read)
    def _take_listing(self, message: Read) -> None:
        self._under_way.pop(0)
        if message.error is not None:
            first = self._listing is None and isinstance(message.error, ConfigError)
            if first or not isinstance(message.error, EXPECTED):
                self._end_with(message.error)
            self._trouble = f"the dead letters could not be read: {_reason(message.error)}; g reads them again"
        if message.listing is not None:
            self._trouble = ""
            self._listing = message.listing
            self._marked &= {row.place for row in message.listing.rows}
            self._show_rows()
        self._say_status()

    @on(Treated)
    def _take_outcome(self, message: Treated) -> None:
        doing = self._under_way.pop(0)
        self._treating -= 1
        if message.error is not None and not isinstance(message.error, EXPECTED):
            self._end_with(message.error)
        if message.error is None:
            self._marked.difference_update(message.places)
        self._outcome = message.outcome or f"{doing}: {_reason(message.error)}"
        self.outcomes.append(self._outcome)
        self._say_status()
        if self._leaving and not self._treating:
            self.exit()

    @on(Logged)
    def _take_log_line(self, message: Logged) -> None:
        self._trouble = message.line
        self._say_status()

    def _end_with(self, error: Exception) -> None:
        self.fatal = error
        self.exit()

    # The screen.

    def _show_rows(self) -> None:
        """Fill the table anew; the cursor stays on its dead letter, or else on its line."""
        listing = self._listing or Listing()
        wanted = self.screen_stack[0].query_one("#search", Input).value.casefold()
        line, current = self._table.cursor_row, self._current
        self._shown = tuple(row for row in listing.rows if wanted in row.text.casefold())
        self._table.clear()
        for row in self._shown:
            self._table.add_row(*self._cells(row), key=str(row.place))
        places = [row.place for row in self._shown]
        found = places.index(current.place) if current is not None and current.place in places else line
        self._table.move_cursor(row=max(0, min(found, len(places) - 1)))
        self._show_head()
        self._show_letter()

    def _cells(self, row: Row) -> Iterator[Text]:
        yield Text(MARK if row.place in self._marked else " ")
        for head, cell in zip(HEADS, row.cells, strict=True):
            if head != "STATE" or self._state == "all":
                yield Text(cell, no_wrap=True)

    def _show_head(self) -> None:
        listing = self._listing or Listing()
        kind = "dead letter" if self._state == "all" else f"{self._state} dead letter"
        named = listing.errors.most_common(MAX_NAMED)
        errors = ", ".join(f"{count} {name[:MAX_CLASS]}" for name, count in named)
        if others := listing.count - sum(count for _, count in named):
            errors += f", {others} others"
        parts = [f"{self._topic}: {counted(listing.count, kind)}{f' ({errors})' if errors else ''}"]
        if len(listing.rows) < listing.count:
            parts.append(f"{len(listing.rows)} are listed, the oldest, --limit lists more")
        if len(self._shown) < len(listing.rows):
            parts.append(f"{len(self._shown)} of {len(listing.rows)} hold the text")
        if marked := len(self._marked_rows):
            parts.append(f"{marked} marked")
        self.screen_stack[0].query_one("#head", Static).update("; ".join(parts))

    def _show_letter(self) -> None:
        row = self._current
        empty = "" if self._listing is None else "no dead letter"
        screen = self.screen_stack[0]
        screen.query_one("#text", Static).update(row.text if row is not None else empty)
        screen.query_one("#pane", VerticalScroll).scroll_home(animate=False)

    def _say_status(self) -> None:
        doing = f"{self._under_way[0]} …" if self._under_way else ""
        if self._leaving:
            doing = f"{doing} the view ends with it"
        lines = filter(None, (self._outcome, self._trouble, doing))
        self.screen_stack[0].query_one("#status", Static).update("\n".join(lines))

    # The keys.

    @property
    def _current(self) -> Row | None:
        """The dead letter at the cursor."""
        line = self._table.cursor_row
        return self._shown[line] if 0 <= line < len(self._shown) else None

    @property
    def _marked_rows(self) -> list[Row]:
        """Those that are marked and shown: a search may hide marked ones, and nobody acts on unseen ones."""
        return [row for row in self._shown if row.place in self._marked]

    def _chosen(self) -> list[Row]:
        """The marked ones, or the one at the cursor."""
        return self._marked_rows or ([self._current] if self._current is not None else [])

    @on(DataTable.RowHighlighted)
    def _on_cursor(self) -> None:
        self._show_letter()

    @on(DataTable.RowSelected)
    def _enlarge(self) -> None:
        self.query_one("#panes", Container).add_class("-whole")
        self.query_one("#pane", VerticalScroll).focus()

    def action_mark(self) -> None:
        row = self._current
        if row is not None:
            self._mark([row], marked=row.place not in self._marked)
            self._table.action_cursor_down()

    def action_mark_all(self) -> None:
        self._mark(self._shown, marked=len(self._marked_rows) < len(self._shown))

    def _mark(self, rows: Sequence[Row], *, marked: bool) -> None:
        for row in rows:
            (self._marked.add if marked else self._marked.discard)(row.place)
            self._table.update_cell(str(row.place), MARK, Text(MARK if marked else " "))
        self._show_head()

    def action_replay(self) -> None:
        rows = self._chosen()
        if not rows:
            return
        places = [row.place for row in rows]
        topics = sorted({row.source_topic for row in rows if row.source_topic})
        question = f"Send {self._named(places)} back to {', '.join(topics) or 'no topic'}?"
        if lost := sum(not row.source_topic for row in rows):
            question += f" {lost} of them without a source topic will be recorded as discarded."

        def answer(reason: str | None) -> None:
            if reason is not None:
                self._treat(
                    f"replaying {counted(len(places), 'dead letter')}", places, lambda: self._desk.replay(places)
                )

        self.push_screen(Question(question), answer)

    def action_discard(self) -> None:
        places = [row.place for row in self._chosen()]
        if not places:
            return

        def answer(reason: str | None) -> None:
            if reason is not None:
                doing = f"discarding {counted(len(places), 'dead letter')}"
                self._treat(doing, places, lambda: self._desk.discard(places, reason))

        question = Question(f"Discard {self._named(places)}?", "the reason, which is recorded; it may be empty")
        self.push_screen(question, answer)

    def _named(self, places: Collection[Place]) -> str:
        names = [str(place) for place in places]
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        return f"{counted(len(names), 'dead letter')} of {self._topic} ({', '.join(names[:MAX_NAMED])}{more})"

    def action_search(self) -> None:
        self.query_one("#panes", Container).remove_class("-whole")
        search = self.query_one("#search", Input)
        search.display = True
        search.focus()

    @on(Input.Changed, "#search")
    def _search(self) -> None:
        self._show_rows()

    @on(Input.Submitted, "#search")
    def _keep_search(self) -> None:
        self._table.focus()

    def action_step_back(self) -> None:
        """Show the table again beside the dead letter, or drop the search."""
        panes = self.query_one("#panes", Container)
        if panes.has_class("-whole"):
            panes.remove_class("-whole")
            self._table.focus()
            return
        search = self.query_one("#search", Input)
        search.value = ""
        search.display = False
        self._table.focus()

    def action_read(self) -> None:
        # One that has not begun will do.
        if self._under_way[1:][-1:] != [READING]:
            self._enqueue(READING, self._read)

    async def action_quit(self) -> None:
        self._leave()

    def _leave(self) -> None:
        """Leave at once, or when the replay or the discard under way has ended: within --shutdown-timeout."""
        self._worker_shutdown.request()
        self._leaving = True
        if self._treating:
            self._say_status()
        else:
            self.exit()

    def _leave_on_signal(self) -> None:
        if self._worker_shutdown.requested and not self._leaving:
            self._leave()


def _reason(error: BaseException | None) -> str:
    text = error.args[0].str() if isinstance(error, KafkaException) else str(error)
    return " ".join(text.split())
