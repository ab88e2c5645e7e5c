"""`canary`: probes the brokers with messages of its own, until it is stopped."""

import json
import logging

import confluent_kafka
from confluent_kafka.admin import AdminClient

from workers.canary.loop import CLOSE_TIMEOUT_S, Canary, Options
from workers.canary.ownership import check_ownership
from workers.canary.placement import PROPERTIES, Placement, Rules, ensure_topic
from workers.canary.summary import as_text, summarize
from workers.cli.commands.canary import CanaryOptions
from workers.cli.context import Context, show
from workers.config import (
    CANARY_CONSUMER_DEFAULTS,
    CANARY_PRODUCER_DEFAULTS,
    COMMON_DEFAULTS,
    ClientConfig,
    Precedence,
    Setting,
)
from workers.errors import ConfigError, ExitCode, WorkerError
from workers.kafka.client import BESIDE_A_CONSUMER, UNPOLLED, ClientState, create_client, wait_for_topics
from workers.kafka.credentials import CredentialsWatch
from workers.kafka.renewed import RenewedProducer
from workers.lifecycle import Shutdown, Stopped, call_with_timeout, settle_memory
from workers.monitoring.metrics import CanaryCollector

log = logging.getLogger("workers")


def canary(options: CanaryOptions, context: Context, shutdown: Shutdown) -> None:
    """Run the canary until a signal; raises WorkerError when a message was lost, or as the clients do."""
    config = context.client_config(CANARY_PRODUCER_DEFAULTS)
    context.show_config(config)
    context.set_up_logging()
    if options.lost_after < options.max_latency:
        raise ConfigError(
            f"{context.origin('lost_after')}: a message cannot be lost after {options.lost_after:g} s and in time "
            f"after {options.max_latency:g} s; give at least --max-latency"
        )
    group = Setting("group.id", options.topic, Precedence.DEFAULT, "the topic; no group is joined")
    consumer_config = context.client_config(CANARY_CONSUMER_DEFAULTS, [group])
    admin_config = context.client_config(COMMON_DEFAULTS)
    rules = Rules(options.topic, options.create, options.replication_factor, options.min_insync_replicas)
    admin_credentials = CredentialsWatch(admin_config, ClientState())
    placement = Placement(
        lambda: create_client(AdminClient, admin_config, {**UNPOLLED, **PROPERTIES}, admin_credentials.credentials),
        rules,
        admin_credentials,
    )
    # The loop would measure how long it waits for brokers: the thread of `placement` finds out what they accept.
    accepted = admin_credentials.uses
    running = Canary(
        RenewedProducer(
            config, options.auth_timeout, properties=BESIDE_A_CONSUMER, topic=options.topic, accepted=accepted
        ),
        consumer_config,
        lambda: placement.layout,
        Options(options.topic, options.interval, options.max_latency, options.lost_after),
        shutdown,
        auth_timeout_s=options.auth_timeout,
        accepted=accepted,
    )
    collector = CanaryCollector(running, placement, config.get("client.id"))
    metrics = None if options.no_metrics else options.metrics
    with context.serve(metrics, collector, running.ready, running.live):
        try:
            with shutdown.at_once():
                partitions = _prepare_topic(admin_config, rules, options)
                if partitions:
                    _check_ownership(consumer_config, options.topic, partitions)
        except Stopped:
            log.info("stopped before the brokers had answered; nothing was sent")
            return
        running.start()
        placement.start()
        settle_memory()
        try:
            running.run()
        finally:
            placement.close(CLOSE_TIMEOUT_S)
            summary = summarize(running, options.topic)
            show(json.dumps(summary) if options.summary == "json" else as_text(summary))
            running.close()
    missing = summary["lost"] - summary["recovered"]
    if missing:
        raise WorkerError(f"{missing} of {summary['acknowledged']} acknowledged messages were lost", ExitCode.LOSS)


def _check_ownership(config: ClientConfig, topic: str, partitions: int) -> None:
    """Raises as `check_ownership`."""
    client = create_client(confluent_kafka.Consumer, config, {**UNPOLLED, "enable.partition.eof": True})
    try:
        check_ownership(client, topic, partitions)
    finally:
        call_with_timeout(client.close, CLOSE_TIMEOUT_S)


def _prepare_topic(config: ClientConfig, rules: Rules, options: CanaryOptions) -> int:
    """Wait for the brokers, and for the topic, which is created where that is allowed; raises as `wait_for_topics`.

    Returns the number of partitions of a topic that was there before, and 0 for a new one.
    """
    client_state = ClientState(config, options.auth_timeout)
    timeout_s = options.connection.timeout
    with create_client(AdminClient, config, client_state.callbacks()) as admin:
        wait_for_topics(admin, [], config, client_state, timeout_s=timeout_s)
        created = rules.create and ensure_topic(admin, rules)
        if created:
            log.info("created topic %s", rules.topic)
        found = wait_for_topics(admin, [rules.topic], config, client_state, timeout_s=timeout_s)
        return 0 if created else found[rules.topic]
