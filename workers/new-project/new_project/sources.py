"""The source. Put what reads your queue, file or table in the place of `readings`."""

import json
from collections.abc import Iterator

from workers import Outgoing

from new_project.handlers import SENSORS

MINUTES = 60


def readings() -> Iterator[Outgoing]:
    """Yield a reading of each sensor for each minute of an hour.

    kafka-workers produce --topic readings --source new_project.sources:readings
    """
    for minute in range(MINUTES):
        for sensor in SENSORS:
            reading = {"sensor": sensor, "minute": minute, "celsius": 20 + minute}
            # Messages with the same key are in one partition, so the readings of a sensor stay in order.
            yield Outgoing(json.dumps(reading), key=sensor)
