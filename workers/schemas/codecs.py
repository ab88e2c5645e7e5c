"""Keys and values as objects instead of bytes: what a format does, and plain JSON, which needs no schema registry."""

import json
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from workers.errors import UndecodableError, UnencodableError
from workers.json_text import parse_json
from workers.kafka.messages import Headers
from workers.sources import Outgoing

Field = Literal["key", "value"]
# A validator quotes the whole document.
MAX_REASON = 500


class Codec(Protocol):
    """Reads and writes one field of messages. Every method may be called by several threads at once."""

    def knows(self, data: bytes, topic: str, headers: Headers) -> bool:
        """Whether `decode` needs no answer from the schema registry."""

    def decode(self, data: bytes, topic: str, headers: Headers) -> Any:
        """The object; raises UndecodableError, RegistryAwayError, and ConfigError where no message could be decoded."""

    def prepare(self, topic: str) -> None:
        """Have what `encode` needs from the schema registry; raises as `encode`."""

    def prepared(self, topic: str) -> bool:
        """Whether `encode` needs no answer from the schema registry."""

    def encode(self, value: Any, topic: str) -> bytes | None:
        """The bytes, None for None; raises UnencodableError, RegistryAwayError, and ConfigError as `decode`."""

    def encode_json(self, text: bytes, topic: str) -> bytes | None:
        """The bytes of an object that is given as JSON; raises as `encode`."""


class JsonCodec:
    """Plain JSON, without a schema."""

    def knows(self, _data: bytes, _topic: str, _headers: Headers) -> bool:
        return True

    def decode(self, data: bytes, _topic: str, _headers: Headers) -> Any:
        return parse_json(data, UndecodableError)

    def prepare(self, topic: str) -> None: ...

    def prepared(self, _topic: str) -> bool:
        return True

    def encode(self, value: Any, _topic: str) -> bytes | None:
        try:
            return None if value is None else json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise UnencodableError(f"it cannot be written as JSON: {reason_of(error)}") from None

    def encode_json(self, text: bytes, _topic: str) -> bytes | None:
        """The text as it is."""
        parse_json(text, UnencodableError)
        return text


@dataclass(frozen=True, slots=True)
class Codecs:
    """How keys and values are read or written; None for bytes."""

    key: Codec | None = None
    value: Codec | None = None

    def __bool__(self) -> bool:
        return self.key is not None or self.value is not None

    def prepare(self, topic: str) -> None:
        """Raises as `Codec.prepare`."""
        for each in filter(None, (self.key, self.value)):
            each.prepare(topic)

    def encode(self, outgoing: Outgoing, topic: str) -> Outgoing:
        """The message with its key and value as bytes. Bytes and None stay as they are.

        Raises UnencodableError that names the field, and as `Codec.encode`.
        """
        return replace(
            outgoing,
            key=_encoded("key", self.key, outgoing.key, topic),
            value=_encoded("value", self.value, outgoing.value, topic),
        )


NO_CODECS = Codecs()


def _encoded(field: str, codec: Codec | None, value: Any, topic: str) -> Any:
    if codec is None or value is None or isinstance(value, bytes):
        return value
    try:
        return codec.encode(value, topic)
    except UnencodableError as error:
        raise UnencodableError(f"its {field} cannot be written: {error}") from None


def reason_of(error: BaseException) -> str:
    """The text of an error in one line, cut after MAX_REASON characters."""
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}..."
