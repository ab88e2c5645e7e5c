"""Where the time goes: samples of the stack with py-spy, instructions for each message with callgrind."""

import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from shutil import which

from bench.bed import PYTHON, Bed
from bench.measure import Program, run
from bench.report import Row, Section

SAMPLES_PER_S = 200
TOP = 12
# Parts of the file names of what a worker is made of, and what they are called here.
OBJECTS = {"librdkafka": "librdkafka", "cimpl": "confluent-kafka", "python": "Python", "libc.so": "libc"}


def sampled(bed: Bed) -> Section:
    """The functions in which the workers spend their time."""
    count = bed.count(1_000_000)
    # Long enough that starting is a small part.
    topic = bed.filled(6 * count)
    batches = ("--max-messages", str(6 * count), "--handler", "bench.handlers:each_batch")
    singles = ("--max-messages", str(3 * count), "--handler", "bench.handlers:each")
    commands: dict[str, Callable[[], list[str]]] = {
        "produce": lambda: bed.producer(bed.topic(), "--count", str(3 * count)),
        "consume, batches": lambda: bed.consumer(topic, options=batches),
        "consume, one by one": lambda: bed.consumer(topic, options=singles),
    }
    tables = [_table(name, _stacks(name, command)) for name, command in commands.items()]
    note = (
        f"py-spy, {SAMPLES_PER_S} samples a second of the thread that holds the interpreter's lock, with the C "
        "functions that it calls; the whole process from its start. Waiting and librdkafka's own threads are not in "
        "it. `self`: the function itself; `with callees`: it and what it calls. `?` has no symbol."
    )
    return Section(note, tables=tables)


def _stacks(name: str, command: Callable[[], list[str]]) -> dict[tuple[str, ...], int]:
    """How often each stack was seen."""
    with tempfile.TemporaryDirectory() as directory:
        raw = Path(directory) / "raw"
        spy = [str(Path(PYTHON).with_name("py-spy")), "record", "--native", "--function", "--gil"]
        spy += ["--rate", str(SAMPLES_PER_S), "--format", "raw", "--output", str(raw), "--"]
        run(Program(name, lambda: [*spy, *command()]))
        found: Counter[tuple[str, ...]] = Counter()
        for line in raw.read_text(errors="replace").splitlines():
            stack, _, times = line.rpartition(" ")
            # A function without a symbol has an address that is another one in every run.
            found[tuple(re.sub(r"^0x[0-9a-f]+", "?", function) for function in stack.split(";"))] += int(times)
        return found


def _table(name: str, stacks: dict[tuple[str, ...], int]) -> list[Row]:
    own: Counter[str] = Counter()
    cumulative: Counter[str] = Counter()
    for stack, times in stacks.items():
        own[stack[-1]] += times
        for function in set(stack):
            cumulative[function] += times
    total = max(1, own.total())
    return [
        {name: f"`{function}`", "self %": 100 * times / total, "with callees %": 100 * cumulative[function] / total}
        for function, times in own.most_common(TOP)
    ]


def counted(bed: Bed) -> Section:
    """Instructions for one message: the difference of two runs, so that starting does not count."""
    if which("valgrind") is None:
        return Section("Not counted: valgrind is not installed.")
    few, many = bed.count(20_000), bed.count(100_000)
    topic = bed.filled(many)
    wanted = ("--max-messages",)
    commands: dict[str, Callable[[int], list[str]]] = {
        "kafka-workers produce": lambda count: bed.producer(bed.topic(), "--count", str(count)),
        "bare produce_batch()": lambda count: bed.bare("produce", bed.topic(), count, "100"),
        "kafka-workers consume, batches": lambda count: bed.consumer(
            topic, options=(*wanted, str(count), "--handler", "bench.handlers:each_batch")
        ),
        "bare consume(1000)": lambda count: bed.bare("consume", topic, count, bed.group()),
        "kafka-workers consume, one by one": lambda count: bed.consumer(
            topic, options=(*wanted, str(count), "--handler", "bench.handlers:each")
        ),
        "bare poll()": lambda count: bed.bare("consume_each", topic, count, bed.group()),
    }
    rows: list[Row] = []
    for name, command in commands.items():
        less, more = (_instructions(name, command(count)) for count in (few, many))
        parts = {part: (more[part] - less[part]) / (many - few) for part in (*OBJECTS.values(), "other")}
        rows.append({"instructions per message": name, "all": sum(parts.values()), **parts})
        bed.say(f"  {rows[-1]}")
    note = (
        f"valgrind --tool=callgrind, all threads: the difference of runs with {many:,} and {few:,} messages, by the "
        "library that they are in. Kernel and brokers are not in it. What happens by the clock (statistics, "
        "heart-beats, waiting) is, and a process under valgrind lives long; so a small difference means nothing."
    )
    return Section(note, tables=[rows])


def _instructions(name: str, command: list[str]) -> Counter[str]:
    """Instructions of a whole process by what they are in."""
    with tempfile.TemporaryDirectory() as directory:
        found = Path(directory) / "callgrind"
        valgrind = ["valgrind", "--tool=callgrind", "--compress-pos=no", f"--callgrind-out-file={found}"]
        run(Program(name, lambda: [*valgrind, *command]))
        return _by_object(found)


def _by_object(path: Path) -> Counter[str]:
    """Own costs in a file of callgrind: `ob=` says what the lines after it are in; the line after `calls=` is not own
    cost but that of the callee.
    """
    names: dict[str, str] = {}
    costs: Counter[str] = Counter()
    part, skip = "other", False
    with path.open(errors="replace") as lines:
        for line in lines:
            if line.startswith("ob="):
                number, _, name = line[3:].strip().partition(" ")
                names.setdefault(number, name)
                file = names[number].rpartition("/")[2]
                part = next((ours for pattern, ours in OBJECTS.items() if pattern in file), "other")
            elif line.startswith("cob="):
                number, _, name = line[4:].strip().partition(" ")
                names.setdefault(number, name)
            elif line.startswith("calls="):
                skip = True
            elif found := re.match(r"\d+ (\d+)$", line):
                costs[part] += 0 if skip else int(found[1])
                skip = False
    return costs
