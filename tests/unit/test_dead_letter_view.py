"""The view of dead letters, with the keys of a user on a terminal that is not there."""

import asyncio
import html
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from threading import Event

import pytest
from confluent_kafka import KafkaError, KafkaException, Message
from textual.pilot import Pilot

from tests.unit.test_dead_letters import letter
from workers.deadletters.headers import ERROR_MESSAGE
from workers.deadletters.listing import MAX_CELL, MAX_TEXT, Listing, Row, row_of
from workers.deadletters.stored import Place, StoredDeadLetter
from workers.deadletters.treated import Record, State
from workers.deadletters.view import DeadLetterView
from workers.errors import ConfigError, WorkerError
from workers.lifecycle import Shutdown

TOPIC = "orders.dlq"
DEADLINE_S = 30
Scenario = Callable[["User"], Awaitable[None]]


class Letters:
    """A desk with dead letters in memory, which takes notes of what is done with them."""

    def __init__(self, *texts: str) -> None:
        self.letters = {Place(0, offset): self._letter(offset, text) for offset, text in enumerate(texts)}
        # Of dead letters that are not listed.
        self.hidden: Counter[str] = Counter()
        self.notes: list[tuple[object, ...]] = []
        self.reads = 0
        self.read_errors: list[Exception] = []
        self.errors: list[Exception] = []
        # While it is not set, no replay and no discard ends.
        self.answers = Event()
        self.answers.set()

    @staticmethod
    def _letter(offset: int, text: str) -> StoredDeadLetter:
        found = letter(b'{"n": %d}' % offset, b"k%d" % offset, text)
        found.place = Place(0, offset)
        return found

    def read(self) -> Listing:
        self.reads += 1
        if self.read_errors:
            raise self.read_errors.pop(0)
        errors = Counter(each.error_class for each in self.letters.values())
        return Listing(tuple(map(self._row, self.letters.values())), errors + self.hidden)

    def _row(self, found: StoredDeadLetter) -> Row:
        return row_of(TOPIC, found, State.WAITING, None)

    def replay(self, places: Collection[Place]) -> str:
        return self._treat("replayed", places)

    def discard(self, places: Collection[Place], reason: str) -> str:
        return self._treat("discarded", places, reason)

    def _treat(self, what: str, places: Collection[Place], *more: str) -> str:
        assert self.answers.wait(DEADLINE_S)
        self.notes.append((what, sorted(map(str, places)), *more))
        if self.errors:
            raise self.errors.pop(0)
        for place in places:
            del self.letters[place]
        return f"{len(places)} {what}"


class User:
    """Presses keys, and sees the screen."""

    def __init__(self, view: DeadLetterView, pilot: Pilot[None]) -> None:
        self.view = view
        self._pilot = pilot

    async def press(self, *keys: str) -> None:
        await self._pilot.press(*keys)

    @property
    def screen(self) -> str:
        """The lines of the screen."""
        lines: dict[float, str] = {}
        for y, text in re.findall(
            r'<text[^>]*? y="([\d.]+)"[^>]*>([^<]*)</text>', self.view.export_screenshot(title=" ")
        ):
            lines[float(y)] = lines.get(float(y), "") + html.unescape(text).replace("\xa0", " ")
        return "\n".join(line.rstrip() for _, line in sorted(lines.items()))

    async def sees(self, *texts: str, without: str = "\0") -> None:
        """Wait until all `texts` are on the screen, in lines that may be folded."""
        until = time.monotonic() + DEADLINE_S
        while True:
            folded = " ".join(self.screen.split())
            if all(text in folded for text in texts) and without not in folded:
                return
            assert time.monotonic() < until, f"{texts} not on the screen:\n{self.screen}"
            await self._pilot.pause(0.01)

    async def ended(self) -> None:
        """Wait until the view has ended."""
        until = time.monotonic() + DEADLINE_S
        while self.view.is_running:
            assert time.monotonic() < until, f"the view has not ended:\n{self.screen}"
            await asyncio.sleep(0.01)


def use(
    letters: Letters, scenario: Scenario, *, size: tuple[int, int] = (80, 24), state: str = "waiting"
) -> DeadLetterView:
    """Play the scenario; return the view after its end."""
    shutdown = Shutdown(1)
    view = DeadLetterView(letters, TOPIC, state, shutdown)

    async def play() -> None:
        async with view.run_test(size=size) as pilot:
            await scenario(User(view, pilot))

    asyncio.run(play())
    return view


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
def test_the_screen_has_the_counts_by_error_the_table_and_all_of_the_letter_at_the_cursor(
    size: tuple[int, int],
) -> None:
    async def scenario(user: User) -> None:
        await user.sees(f"{TOPIC}: 2 waiting dead letters (2 ValueError)", "LETTER", "0:0", "ValueError: first")
        await user.sees("source orders[2]@316", "trace: \\xff\\n", "q Quit")
        await user.press("down")
        await user.sees("error ValueError: second", "key k1")
        # At 80 columns all of it fits only without the table.
        await user.press("enter")
        await user.sees("traceback", "ValueError: second", '{"n": 1}')
        await user.press("escape")
        await user.sees("LETTER")
        assert max(map(len, user.screen.splitlines())) <= size[0]

    use(Letters("first", "second"), scenario, size=size)


def test_text_of_a_letter_is_never_markup() -> None:
    async def scenario(user: User) -> None:
        await user.sees("ValueError: [bold]a[/nonsense]")
        await user.press("d")
        await user.sees("Discard")

    use(Letters("[bold]a[/nonsense]"), scenario)


def test_of_a_letter_with_megabytes_of_headers_the_beginning_is_shown_and_the_command_that_has_all_is_named() -> None:
    message = Message(topic=TOPIC, headers=[(ERROR_MESSAGE, b"no " * 1000), ("trace", b"A" * 1_000_000)])
    row = row_of(TOPIC, StoredDeadLetter(message), State.WAITING, None)
    assert max(map(len, row.cells)) == MAX_CELL
    assert row.text.startswith("dead letter 0:0")
    assert re.search(r"A\n… 9\d\d,\d\d\d characters more; `dead-letters show` has them$", row.text)
    assert len(row.text) < MAX_TEXT + 100


def test_marked_letters_are_discarded_once_it_is_confirmed_with_the_reason() -> None:
    letters = Letters("a", "b", "c")

    async def scenario(user: User) -> None:
        await user.sees("3 waiting")
        await user.press("space", "down", "space")
        await user.sees("2 marked")
        await user.press("d")
        await user.sees(f"Discard 2 dead letters of {TOPIC} (0:0, 0:2)?")
        await user.press("escape", "d", *"no y", "enter")
        await user.sees("1 waiting dead letter ", "2 discarded", without="marked")

    view = use(letters, scenario)
    assert letters.notes == [("discarded", ["0:0", "0:2"], "no y")]
    assert view.outcomes == ["2 discarded"]


def test_without_a_mark_the_letter_at_the_cursor_is_replayed_and_another_key_leaves_it() -> None:
    letters = Letters("a", "b")

    async def scenario(user: User) -> None:
        await user.sees("2 waiting")
        await user.press("down", "r")
        await user.sees(f"Send 1 dead letter of {TOPIC} (0:1) back to orders?")
        await user.press("n", "r", "enter")
        await user.sees("1 waiting", "1 replayed", "key k0")

    use(letters, scenario)
    assert letters.notes == [("replayed", ["0:1"])]


@pytest.mark.parametrize("question", ["d", "r"])
def test_ctrl_c_leaves_a_question_and_the_view_and_nothing_is_done(question: str) -> None:
    letters = Letters("a")

    async def scenario(user: User) -> None:
        await user.sees("1 waiting")
        await user.press(question, "ctrl+c")
        await user.ended()

    view = use(letters, scenario)
    assert letters.notes == []
    assert view.outcomes == []


@pytest.mark.parametrize(
    "error",
    [
        WorkerError("1 of 1 dead letters were not acknowledged"),
        ConfigError("--letter 0:0: it was discarded already"),
        KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN)),
    ],
)
def test_a_failed_replay_is_said_and_the_letters_stay_marked_for_another_try(error: Exception) -> None:
    letters = Letters("a", "b")
    letters.errors = [error]
    text = error.args[0].str() if isinstance(error, KafkaException) else str(error)

    async def scenario(user: User) -> None:
        await user.sees("2 waiting")
        await user.press("a", "r", "enter")
        await user.sees(text, "2 waiting", "2 marked")
        await user.press("r", "enter")
        await user.sees("2 replayed", "0 waiting", "no dead letter", without=text)
        await user.press("r", "d", "space", "a", "enter")

    view = use(letters, scenario)
    assert [note[0] for note in letters.notes] == ["replayed", "replayed"]
    assert view.outcomes == [f"replaying 2 dead letters: {text}", "2 replayed"]


def test_a_letter_that_somebody_else_treated_loses_its_mark_with_its_line() -> None:
    letters = Letters("a", "b", "c")

    async def scenario(user: User) -> None:
        await user.sees("3 waiting")
        await user.press("a")
        await user.sees("3 marked")
        del letters.letters[Place(0, 1)]
        await user.press("g")
        await user.sees("2 waiting", "2 marked", without="0:1")

    use(letters, scenario)


def test_a_search_hides_the_others_and_nothing_is_done_with_what_it_hides() -> None:
    letters = Letters("apple", "pear", "apple pie")

    async def scenario(user: User) -> None:
        await user.sees("3 waiting")
        await user.press("a", "slash", *"APPLE", "enter")
        await user.sees("2 of 3 hold the text", "2 marked", without="pear")
        await user.press("d", "enter")
        await user.sees("1 waiting", "2 discarded", "0 of 1 hold the text")
        await user.press("escape")
        await user.sees("ValueError: pear", without="hold the text")

    use(letters, scenario)
    assert letters.notes == [("discarded", ["0:0", "0:2"], "")]


def test_brokers_that_do_not_answer_are_said_and_the_view_goes_on() -> None:
    letters = Letters("a")
    letters.read_errors = [WorkerError("no answer from broker:9092 within 5 s")]

    async def scenario(user: User) -> None:
        await user.sees("could not be read: no answer from broker:9092", "g reads them again")
        await user.press("g")
        await user.sees("1 waiting", without="no answer")

    use(letters, scenario)


def test_warnings_of_the_client_are_lines_of_the_view_until_brokers_answer() -> None:
    letters = Letters("a")
    shutdown = Shutdown(1)
    view = DeadLetterView(letters, TOPIC, "waiting", shutdown)

    async def play() -> None:
        async with view.run_test(size=(80, 24)) as pilot:
            user = User(view, pilot)
            await user.sees("1 waiting")
            with view.logs_in_the_view():
                logging.getLogger("workers.kafka.client").warning("waiting: no answer from %s yet", "broker:9092")
            await user.sees("waiting: no answer from broker:9092 yet")
            await user.press("g")
            await user.sees("1 waiting", without="no answer")

    before = logging.getLogger().handlers[:]
    asyncio.run(play())
    assert logging.getLogger().handlers == before


def test_a_topic_that_cannot_be_used_ends_the_view_at_the_first_reading_only() -> None:
    letters = Letters("a")

    async def scenario(user: User) -> None:
        await user.sees("1 waiting")
        letters.read_errors = [ConfigError("--topic: gone")]
        await user.press("g")
        await user.sees("could not be read: --topic: gone")

    assert use(letters, scenario).fatal is None

    mistake = ConfigError("--topic orders: it is no dead-letter topic")
    letters.read_errors = [mistake]
    view = DeadLetterView(letters, TOPIC, "waiting", Shutdown(1))
    asyncio.run(view.run_async(headless=True))
    assert view.fatal is mistake


def test_an_error_of_our_own_is_not_shown_as_one_of_brokers() -> None:
    letters = Letters("a")
    letters.read_errors = [ZeroDivisionError()]
    view = DeadLetterView(letters, TOPIC, "waiting", Shutdown(1))
    asyncio.run(view.run_async(headless=True))
    assert isinstance(view.fatal, ZeroDivisionError)


def test_an_error_in_the_view_fails_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    letters = Letters("a")
    view = DeadLetterView(letters, TOPIC, "waiting", Shutdown(1))
    letters._row = lambda found: Row(found.place, ("too few cells",), "")  # type: ignore[method-assign]
    view.run = partial(view.run, headless=True)  # type: ignore[method-assign]
    with pytest.raises(WorkerError, match="the view failed, as above"):
        view.show()
    assert "ValueError" in capfd.readouterr().err


@pytest.mark.parametrize("by", ["q", "ctrl+c", "ctrl+q", "signal"])
def test_a_replay_under_way_is_waited_for_at_the_end(by: str) -> None:
    letters = Letters("a")
    letters.answers.clear()
    shutdown = Shutdown(30)
    view = DeadLetterView(letters, TOPIC, "waiting", shutdown)

    async def play() -> None:
        async with view.run_test(size=(80, 24)) as pilot:
            user = User(view, pilot)
            await user.sees("1 waiting")
            await user.press("r", "enter")
            await user.sees("replaying 1 dead letter …")
            if by == "signal":
                shutdown.request()
            else:
                await user.press(by)
            await user.sees("the view ends with it")
            running.append(view.is_running)
            letters.answers.set()
            await user.ended()

    running: list[bool] = []
    asyncio.run(play())
    assert running == [True]
    assert shutdown.requested
    assert view.outcomes == ["1 replayed"]


def test_the_rest_is_counted_where_more_letters_wait_than_are_listed() -> None:
    letters = Letters("a")
    letters.hidden = Counter(KeyError=41)

    async def scenario(user: User) -> None:
        await user.sees("42 waiting dead letters (41 KeyError, 1 ValueError); 1 are listed, the oldest, --limit")

    use(letters, scenario)


def test_many_error_classes_leave_room_for_the_other_facts_of_the_first_lines() -> None:
    letters = Letters("a")
    letters.hidden = Counter({f"AnErrorClassOfALibrary{number}" * 20: 100 - number for number in range(90)})

    async def scenario(user: User) -> None:
        await user.sees("(100 AnErrorClass", "1 are listed")
        await user.press("a")
        await user.sees("1 marked")

    use(letters, scenario)


def test_a_key_that_is_held_reads_no_more_than_once_again() -> None:
    letters = Letters("a")
    letters.answers.clear()

    async def scenario(user: User) -> None:
        await user.sees("1 waiting")
        reads = letters.reads
        await user.press("r", "enter", *"ggggg")
        await user.sees("replaying")
        letters.answers.set()
        await user.sees("0 waiting", without="reading")
        assert letters.reads == reads + 1

    use(letters, scenario)


def test_a_search_from_the_full_screen_of_a_letter_shows_the_table() -> None:
    async def scenario(user: User) -> None:
        await user.sees("2 waiting")
        await user.press("enter")
        await user.sees("key k0", without="LETTER")
        await user.press("slash", *"pear", "enter")
        await user.sees("LETTER", "1 of 2 hold the text", "key k1")
        await user.press("escape")
        await user.sees("key k1", without="hold the text")

    use(Letters("apple", "pear"), scenario)


def test_with_every_state_the_table_says_which() -> None:
    letters = Letters("a")
    record = Record(State.DISCARDED, ((0, 1),), "g", "now", "me", "gone")

    def row(found: StoredDeadLetter) -> Row:
        return row_of(TOPIC, found, State.DISCARDED, record)

    async def scenario(user: User) -> None:
        await user.sees("1 dead letter (1 ValueError)", "STATE", "discarded", "state discarded now by me: gone")

    letters._row = row  # type: ignore[method-assign]
    use(letters, scenario, state="all")
