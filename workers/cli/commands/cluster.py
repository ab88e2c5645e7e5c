"""Declares `cluster`."""

import time

import click

from workers.cli.options import TOPIC, Command, Whole, each_once, option
from workers.lifecycle import installed_shutdown


@click.command(cls=Command)
@option("--brokers", type=Whole(1, 9), default=3, show_default=True, help="How many brokers.")
@option(
    "--create-topic",
    "topics",
    type=TOPIC,
    multiple=True,
    callback=each_once,
    default=["teste", "teste.dlq"],
    show_default=True,
    help="Topics to create.",
)
@option("--partitions", type=Whole(1, 1000), default=3, show_default=True, help="Partitions of each.")
@option(
    "--heap",
    "heap_mb",
    type=Whole(min=128),
    default=256,
    show_default=True,
    help="Java heap of a broker, MiB.",
)
@option(
    "--restart/--no-restart",
    default=True,
    show_default=True,
    help="Start a broker that has ended again after 5 s, or leave it down.",
)
def cluster(brokers: int, topics: tuple[str, ...], partitions: int, heap_mb: int, restart: bool) -> None:
    """Run a real Apache Kafka cluster on loopback until Ctrl-C; leaves nothing behind.

    It prints the PID of each broker: kill one to see what happens. The cluster ends by itself only when a broker
    fails to start three times.
    """
    from workers.local.cluster import Cluster
    from workers.local.supervisor import Supervisor

    shutdown = installed_shutdown(0)
    with Cluster(brokers, heap_mb=heap_mb, say=_say) as running:
        for topic in topics:
            running.create_topic(topic, partitions)
        # On standard output, alone on its line: scripts read it.
        click.echo(running.bootstrap_servers)
        _say(f"topics {', '.join(topics)}; to use it: export KAFKA_BOOTSTRAP_SERVERS={running.bootstrap_servers}")
        for broker in running.brokers:
            _say(f"broker {broker.node_id}: PID {broker.pid}, 127.0.0.1:{broker.port}, log {broker.log_path}")
        supervisor = Supervisor(running, _say, restart=restart)
        while not shutdown.requested:
            supervisor.look()
            time.sleep(0.1)


def _say(line: str) -> None:
    click.echo(line, err=True)
