"""The dead letters of a topic for a view of them, and the actions that the view offers, without a terminal."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from workers.deadletters.reading import DeadLetterTopic, Found, oldest
from workers.deadletters.stored import Place, Selection, StoredDeadLetter
from workers.deadletters.text import BY, as_text, cells_of
from workers.deadletters.treated import Record, State

# Characters of a row. Anybody may have written headers of megabytes, which take a terminal seconds to fold.
MAX_CELL = 200
MAX_TEXT = 32_768


@dataclass(frozen=True, slots=True)
class Row:
    """One dead letter: its cells are those of HEADS, `text` is the output of `dead-letters show`, both cut."""

    place: Place
    cells: tuple[str, ...]
    text: str
    # Empty where it does not say.
    source_topic: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """The oldest dead letters, and how many there are in all by error class."""

    rows: tuple[Row, ...] = ()
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        return self.errors.total()


class Desk(Protocol):
    """Reads and treats the dead letters of one topic. Each call blocks, and raises ConfigError, WorkerError or
    KafkaException.
    """

    def read(self) -> Listing: ...

    def replay(self, places: Collection[Place]) -> str:
        """Replay these; return the outcome in a sentence."""

    def discard(self, places: Collection[Place], reason: str) -> str:
        """Discard these; return the outcome in a sentence."""


def listing_of(dead_letters: DeadLetterTopic, selection: Selection, states: frozenset[State], limit: int) -> Listing:
    """List at most `limit` dead letters, and count all of them; raises as `DeadLetterTopic.find`."""
    errors: Counter[str] = Counter()

    def counted(found: Iterable[Found]) -> Iterator[Found]:
        for each in found:
            errors[BY["error"](each.letter)] += 1
            yield each

    found, _ = oldest(counted(dead_letters.find(selection, states)), limit)
    topic, record_about = dead_letters.topic, dead_letters.treated.record_about
    return Listing(tuple(row_of(topic, *each, record_about(each.letter.place)) for each in found), errors)


def row_of(topic: str, letter: StoredDeadLetter, state: State, record: Record | None) -> Row:
    text = as_text(topic, letter, state, record)
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}\n… {len(text) - MAX_TEXT:,} characters more; `dead-letters show` has them"
    cells = tuple(cell[:MAX_CELL] for cell in cells_of(letter, state, cut=True))
    return Row(letter.place, cells, text, letter.origin.topic if letter.origin is not None else "")
