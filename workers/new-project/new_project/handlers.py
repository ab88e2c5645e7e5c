"""The handler. Put your own in the place of `enrich`."""

import json
from typing import NamedTuple

from workers import Message, Outgoing, Reject


class Sensor(NamedTuple):
    """Where a sensor is, and above how many degrees that place is too hot."""

    place: str
    limit_celsius: float


# A handler that needs a database opens it in a function marked with @lifespan.
SENSORS = {
    "s1": Sensor("boiler room", 60.0),
    "s2": Sensor("cellar", 25.0),
    "s3": Sensor("attic", 45.0),
}


def enrich(message: Message) -> Outgoing:
    """Give back a reading with the place of its sensor and whether it is too hot there, for the topic TOPIC-enriched.

    kafka-workers consume --topic readings --handler new_project.handlers:enrich

    A message may be delivered again, so the output holds nothing that differs then. Raise Reject, which makes a dead
    letter, for anything but a reading of a known sensor.
    """
    try:
        reading = json.loads(message.value() or b"")
        sensor = SENSORS[reading["sensor"]]
        too_hot = float(reading["celsius"]) > sensor.limit_celsius
    except (ValueError, KeyError, TypeError) as error:
        raise Reject(f"not a reading of a known sensor: {error!r}") from None
    enriched = {**reading, "place": sensor.place, "too_hot": too_hot}
    return Outgoing(json.dumps(enriched), key=message.key(), topic=f"{message.topic()}-enriched")
