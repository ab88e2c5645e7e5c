"""`python -m bench`: every comparison, or those that are named."""

from collections.abc import Callable

import click

from bench import behaviour, report, throughput
from bench.bed import Bed
from bench.measure import Sample
from workers.cluster import Cluster

NOTES = {
    "Producing": "One million messages; stamps, accounts, latency percentiles and metrics on.",
    "Consuming, batches": "Three million messages; stamps verified, offsets stored and committed, lag and metrics on.",
    "Consuming, one by one": "One million messages, a call of the handler for each.",
    "Printing": "One million messages to /dev/null.",
    "Start-up": "Whole processes. What --help and one message cost.",
    "Latency": f"End to end, {behaviour.RATE:,} messages a second, medians over the rounds.",
    "linger.ms": "Why 5 ms: medians of three runs each.",
    "Partitions": "One consumer that owns them all.",
    "Memory": "A handler of a millisecond, ten seconds.",
    "Scale-out": "A handler of a millisecond for each message, three partitions.",
    "Rebalances": "A second member joins. These brokers tell KIP-848 members each second, others every 5 s.",
}


@click.command()
@click.argument("names", nargs=-1)
@click.option("--rounds", default=7, show_default=True, help="How often each comparison is repeated.")
@click.option("--scale", default=1.0, show_default=True, help="Of the numbers of messages.")
def main(names: tuple[str, ...], rounds: int, scale: float) -> None:
    """Measures, and writes bench/RESULTS.md when nothing was left out."""
    million = int(1_000_000 * scale)
    throughputs: dict[str, tuple[Callable[[Bed, int], list[Sample]], int]] = {
        "Producing": (throughput.produce, million),
        "Consuming, batches": (throughput.consume, 3 * million),
        "Consuming, one by one": (throughput.consume_each, million),
        "Printing": (throughput.print_messages, million),
    }
    others: dict[str, Callable[[Bed], list[behaviour.Row]]] = {
        "Latency": behaviour.latency,
        "linger.ms": behaviour.linger_curve,
        "Memory": lambda bed: behaviour.backlog(bed, million),
        "Scale-out": behaviour.scale_out,
        "Rebalances": behaviour.rebalance,
        "Partitions": behaviour.growth,
    }
    unknown = set(names) - NOTES.keys()
    if unknown:
        raise click.UsageError(f"there is no {min(unknown)!r}; choose from {', '.join(NOTES)}")
    measured: dict[str, tuple[list[Sample], int]] = {}
    sections: dict[str, list[str]] = {}

    def section(title: str, lines: list[str]) -> None:
        sections[title] = [NOTES[title], "", *lines]
        click.echo("\n".join(lines))

    with Cluster(say=click.echo) as cluster:
        bed = Bed(cluster, rounds, click.echo)
        for title in [title for title in NOTES if not names or title in names]:
            click.echo(title)
            if title in throughputs:
                function, count = throughputs[title]
                samples = function(bed, count)
                if samples:
                    measured[title] = samples, count
                    section(title, report.comparison(samples, count))
            elif title == "Start-up":
                section(title, report.comparison(throughput.start_up(bed), 0))
            else:
                section(title, report.rows(others[title](bed)))
    if not names:
        report.plot(measured)
        report.write(sections)


if __name__ == "__main__":
    main()
