"""Middleware that the command line names, against real brokers."""

from workers.testing.processes import Processes

CODE = """
import functools
import os

from workers import is_async, lifespan

NOTES = os.open("{directory}/notes.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(word):
    os.write(NOTES, word.encode() + b"\\n")

def named(name):
    def middleware(handler):
        note(f"{{name}} wraps {{handler.__name__}}")

        @functools.wraps(handler)
        async def call(message):
            note(f"{{name}} begins")
            await handler(message)
            note(f"{{name}} ends")

        return call

    return middleware

outer, inner = named("outer"), named("inner")

def plain(handler):
    return lambda message: None

@lifespan
async def opened():
    async def handle(message):
        note("handled")

    yield handle
"""


def test_a_message_passes_the_middlewares_in_the_order_in_which_they_are_named(
    processes: Processes, topic: str, group: str
) -> None:
    processes.write("wrapping.py", CODE.format(directory=processes.directory))
    processes.produce(topic, "--count", "1")
    options = ["--handler", "wrapping:opened", "--middleware", "wrapping:outer", "--middleware", "wrapping:inner"]
    consumer = processes.consume(topic, group, *options, "--max-messages", "1")

    assert consumer.wait() == 0, consumer.stderr
    lines = (processes.directory / "notes.txt").read_text().splitlines()
    assert lines == [
        "inner wraps handle", "outer wraps handle",
        "outer begins", "inner begins", "handled", "inner ends", "outer ends",
    ]  # fmt: skip


def test_a_middleware_that_makes_another_kind_of_handler_ends_the_worker_at_its_start(
    processes: Processes, topic: str, group: str
) -> None:
    processes.write("wrapping.py", CODE.format(directory=processes.directory))
    options = ["--handler", "wrapping:opened", "--middleware", "wrapping:plain"]
    consumer = processes.consume(topic, group, *options)

    assert consumer.wait() == 2
    [line] = [line for line in consumer.stderr.splitlines() if "middleware" in line]
    assert "middleware plain returned a plain function for handler handle, which is async" in line
