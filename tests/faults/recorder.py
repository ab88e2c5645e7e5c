"""The handler under test: writes down what it handles before it returns."""

import os
from collections.abc import Iterator

from workers import batch, lifespan
from workers.handlers import Handler, Message
from workers.messages import STAMP_BYTES

# Environment variable that names the file.
FILE = "RECORDER_FILE"


@lifespan
def record() -> Iterator[Handler]:
    descriptor = os.open(os.environ[FILE], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @batch
    def write(messages: list[Message]) -> None:
        lines = [
            b"%d %d %b\n" % (message.partition() or 0, message.offset() or 0, (message.value() or b"")[:STAMP_BYTES])
            for message in messages
        ]
        # Unbuffered: what a killed member handled is known up to the last call.
        os.write(descriptor, b"".join(lines))

    yield write
    os.close(descriptor)
