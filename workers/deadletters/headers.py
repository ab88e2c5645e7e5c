"""A dead letter's headers: where its message came from, and why it is one."""

from collections.abc import Iterable

from confluent_kafka import Message

from workers.kafka.messages import headers_of
from workers.loading import text_of, traceback_of

# The dead-letter topic of a topic is its name with this behind it, unless the user names another.
SUFFIX = ".dlq"
PREFIX = "kafka-workers."
ORIGINAL_TOPIC = PREFIX + "original-topic"
ORIGINAL_PARTITION = PREFIX + "original-partition"
ORIGINAL_OFFSET = PREFIX + "original-offset"
ORIGINAL_TIMESTAMP = PREFIX + "original-timestamp"
GROUP = PREFIX + "group"
ERROR_CLASS = PREFIX + "error-class"
ERROR_MESSAGE = PREFIX + "error-message"
ERROR_TRACEBACK = PREFIX + "error-traceback"
ATTEMPTS = PREFIX + "attempts"
# Not of a dead letter: the header of a record that says which dead letters were replayed or discarded.
TREATED = PREFIX + "treated"
# The error class of a line that `produce` could not send: it has never been in a topic, so it has no origin.
INVALID_LINE = "InvalidLine"
MAX_MESSAGE_CHARACTERS = 1000
# The end of a traceback says where the error was raised.
MAX_TRACEBACK_CHARACTERS = 4000
Header = tuple[str, str | bytes | None]


def dead_letter_topic(topic: str, named: str | None = None) -> str:
    """The dead-letter topic of `topic`; `named` is the one that the user has named, if any."""
    return named or topic + SUFFIX


def dead_letter_headers(message: Message, group_id: str, error: BaseException, attempts: int) -> list[Header]:
    """The message's own headers and those that tell its story. Timestamps are Unix time in milliseconds."""
    story: dict[str, object] = {
        ORIGINAL_TOPIC: message.topic(),
        ORIGINAL_PARTITION: message.partition(),
        ORIGINAL_OFFSET: message.offset(),
        ORIGINAL_TIMESTAMP: message.timestamp()[1],
        GROUP: group_id,
        ERROR_CLASS: type(error).__name__,
        ERROR_MESSAGE: text_of(error)[:MAX_MESSAGE_CHARACTERS],
        ERROR_TRACEBACK: _traceback_of(error),
        ATTEMPTS: attempts,
    }
    # An error may quote half of a surrogate pair, which UTF-8 cannot hold.
    told = [(name, str(value).encode(errors="backslashreplace")) for name, value in story.items()]
    return [*own_headers(message), *told]


def invalid_line_headers(reason: str) -> list[Header]:
    """The story of a line of `produce --on-invalid dead-letter`, which names its file and number in `reason`."""
    return [
        (ERROR_CLASS, INVALID_LINE.encode()),
        (ERROR_MESSAGE, reason.encode(errors="backslashreplace")[:MAX_MESSAGE_CHARACTERS]),
    ]


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback_of(error).format())[-MAX_TRACEBACK_CHARACTERS:]
    except Exception:  # it calls the user's __str__, __cause__ and __notes__
        return ""


def own_headers(message: Message) -> Iterable[Header]:
    """The headers that the message had before it became a dead letter."""
    return [(name, value) for name, value in headers_of(message) if not name.startswith(PREFIX)]
