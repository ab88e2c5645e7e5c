"""The dead letters of a topic for a view of them, and the actions that the view offers, without a terminal."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from workers.deadletters.reading import DeadLetterTopic, Found, oldest
from workers.deadletters.stored import Place, Selection
from workers.deadletters.text import BY, as_text, cells_of
from workers.deadletters.treated import State


@dataclass(frozen=True, slots=True)
class Row:
    """One dead letter: its cells are those of HEADS, `text` is all of it, as `dead-letters show` prints it."""

    place: Place
    cells: tuple[str, ...]
    text: str
    # Empty where it does not say.
    source_topic: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """The oldest dead letters, and how many there are in all by error class."""

    rows: tuple[Row, ...] = ()
    errors: Counter[str] | None = None

    @property
    def count(self) -> int:
        return self.errors.total() if self.errors is not None else 0


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
    return Listing(tuple(_row(dead_letters, each) for each in found), errors)


def _row(dead_letters: DeadLetterTopic, found: Found) -> Row:
    letter, state = found
    record = dead_letters.treated.record_about(letter.place)
    return Row(
        letter.place,
        cells_of(letter, state, cut=True),
        as_text(dead_letters.topic, letter, state, record),
        letter.origin.topic if letter.origin is not None else "",
    )
