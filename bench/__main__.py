"""`python -m bench`: every comparison, or those that are named."""

import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from bench import behaviour, concurrency, exactly_once, latency, profiles, throughput, tracing
from bench.bed import Bed
from bench.report import Results, Section, conditions, table
from workers.local.cluster import Cluster

# In the order in which they are measured and shown: brokers that ever had a thousand partitions are slower, so last.
SECTIONS: dict[str, Callable[[Bed], Section]] = {
    "Producing": throughput.produce,
    "Consuming, batches": throughput.consume,
    "Consuming, one by one": throughput.consume_each,
    "Many at once": concurrency.many_at_once,
    "Exactly once": exactly_once.exactly_once,
    "Tracing": tracing.tracing,
    "Printing": throughput.print_messages,
    "Start-up": throughput.start_up,
    "Latency": latency.latency,
    "linger.ms": latency.linger_curve,
    "max.in.flight": latency.in_flight_curve,
    "fetch.queue.backoff.ms": latency.fetch_curve,
    "Memory": behaviour.memory,
    "Scale-out": behaviour.scale_out,
    "Rebalances": behaviour.rebalance,
    "Partitions and topics": behaviour.growth,
    "Profiles": profiles.sampled,
    "Instructions": profiles.counted,
}
# These take minutes and say why, not how much: `make profile`.
ONLY_NAMED = ("Profiles", "Instructions")


@click.command()
@click.argument("names", nargs=-1, metavar="[SECTION]...")
@click.option("--rounds", default=5, show_default=True, help="How often each comparison is repeated.")
@click.option("--scale", default=1.0, show_default=True, help="Of the numbers of messages, for a trial.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path(__file__).parent, help="Directory.  [default: bench]"
)
def main(names: tuple[str, ...], rounds: int, scale: float, output: Path) -> None:
    """Measures, keeps each section in results.json as soon as it ends, and renders RESULTS.md from all that is kept."""
    unknown = set(names) - SECTIONS.keys()
    if unknown:
        raise click.UsageError(f"there is no {min(unknown)!r}; choose from {', '.join(SECTIONS)}")
    wanted = [title for title in SECTIONS if title in names or (not names and title not in ONLY_NAMED)]
    # Every option of a worker is a variable too: none may come in from outside.
    for name in [name for name in os.environ if name.startswith("KAFKA_")]:
        del os.environ[name]
    output.mkdir(parents=True, exist_ok=True)
    results = Results(output, list(SECTIONS))
    failed = []
    load = os.getloadavg()[0]
    try:
        with Cluster(java_options=(), say=click.echo) as cluster:
            bed = Bed(cluster, rounds, scale, click.echo)
            for title in wanted:
                click.echo(title)
                try:
                    bed.clear()
                    section = SECTIONS[title](bed)
                except Exception:  # what was measured before is kept, and what comes after is measured
                    failed.append(title)
                    click.echo(f"FAILED: {title}\n{traceback.format_exc()}")
                    cluster.check()
                else:
                    results.keep(title, replace(section, conditions=conditions(scale), load=load))
                    click.echo("\n".join(table([judgement.row() for judgement in section.judgements])))
    finally:
        results.write()
    if failed:
        raise SystemExit(f"FAILED: {', '.join(failed)}")


if __name__ == "__main__":
    main()
