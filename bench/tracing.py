"""The cost of `--tracing`: every message with a span, one in a hundred, and off."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from bench.bed import PYTHON, SIZE, Bed
from bench.measure import Program, in_turns, run
from bench.report import Section
from bench.throughput import OURS, acknowledged, against, handled

SHARE = "0.01"


def tracing(bed: Bed) -> Section:
    """Producing, and handling of messages one by one and in batches."""
    count = bed.count(200_000)
    with _sink() as endpoint:
        every = ["env", f"OTEL_EXPORTER_OTLP_ENDPOINT={endpoint}", "NO_PROXY=127.0.0.1", "KAFKA_TRACING=true"]
        some = [*every, "OTEL_TRACES_SAMPLER=parentbased_traceidratio", f"OTEL_TRACES_SAMPLER_ARG={SHARE}"]
        ways = {"off": [], "every message": every, "one in a hundred": some}
        samples, judgements = [], []
        programs = [
            Program(
                f"{OURS} produce, {way}",
                lambda words=words: [*words, *bed.producer(bed.topic(), "--count", str(count))],  # type: ignore[misc]
                acknowledged(count),
            )
            for way, words in ways.items()
        ]
        off, *on = in_turns(programs, bed.rounds, bed.say)
        samples += [off, *on]
        judgements += [judgement for each in on for judgement in against(each, off)]
        # Messages with a context; those that are not sampled say so.
        all_sampled, few_sampled = (_filled(bed, count, words) for words in (every, some))
        topics = {way: few_sampled if words is some else all_sampled for way, words in ways.items()}
        for name, handler in (("one by one", "each"), ("in batches", "each_batch")):
            programs = [
                Program(f"{OURS} consume, {name}, {way}",
                        lambda words=words, topic=topics[way], handler=handler:  # type: ignore[misc]
                        [*words, *bed.consumer(topic, options=_options(count, handler))], handled(count))
                for way, words in ways.items()
            ]  # fmt: skip
            off, *on = in_turns(programs, bed.rounds, bed.say)
            samples += [off, *on]
            judgements += [judgement for each in on for judgement in against(each, off)]
    note = (
        f"{count:,} messages of {SIZE} bytes, handlers that do nothing, medians of {bed.rounds} rounds. The collector "
        "answers at once. Spans that come faster than the SDK exports them are dropped."
    )
    return Section(note, judgements=judgements, samples=samples, count=count)


def _options(count: int, handler: str) -> tuple[str, ...]:
    return "--max-messages", str(count), "--handler", f"bench.handlers:{handler}"


def _filled(bed: Bed, count: int, words: list[str]) -> str:
    topic = bed.topic()
    run(Program("filling a topic", lambda: [*words, *bed.producer(topic, "--count", str(count))]))
    return topic


@contextmanager
def _sink() -> Iterator[str]:
    with subprocess.Popen([PYTHON, "-m", "bench.sink"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()
