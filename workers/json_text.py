"""JSON as text: read with an error that says what is wrong, and written in one line."""

import json
import sys
from collections.abc import Callable
from datetime import date, time
from typing import Any


def parse_json(text: bytes, failure: Callable[[str], Exception]) -> Any:
    """The object; raises `failure` with what is wrong."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise failure(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except UnicodeDecodeError:
        raise failure("not JSON: it is not UTF-8") from None
    except RecursionError:
        raise failure("not JSON: nested too deeply") from None
    except ValueError:
        raise failure(f"an integer of more than {sys.get_int_max_str_digits()} digits cannot be read") from None


def json_line(value: Any) -> bytes:
    """A decoded object as JSON in one line, in UTF-8."""
    # UTF-8 has no half of a surrogate pair. Its escape is the same in Python and in JSON.
    return json.dumps(value, ensure_ascii=False, default=as_json).encode(errors="backslashreplace")


def as_json(value: Any) -> Any:
    """The JSON value for an object of a type that JSON does not have: for `default` of json.dumps."""
    if hasattr(value, "DESCRIPTOR"):
        from google.protobuf.json_format import MessageToDict

        return MessageToDict(value, preserving_proto_field_name=True)
    if isinstance(value, bytes):
        # As in Avro's JSON encoding: a character for each byte.
        return value.decode("latin-1")
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value)
