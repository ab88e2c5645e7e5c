"""`lag-exporter`: exports the lag of consumer groups, round after round, until it is stopped."""

import logging
import time
from collections.abc import Callable

from confluent_kafka.admin import AdminClient

from workers.cli.commands.lag_exporter import LagExporterOptions
from workers.cli.context import Context
from workers.config import COMMON_DEFAULTS
from workers.kafka.client import ClientState, create_client, wait_for_topics
from workers.kafka.credentials import CredentialsWatch
from workers.lifecycle import Shutdown, Stopped
from workers.monitoring.group_lag import GroupLag, Selection
from workers.monitoring.metrics import LagCollector

log = logging.getLogger("workers")


def lag_exporter(options: LagExporterOptions, context: Context, shutdown: Shutdown) -> None:
    """Run the exporter until a signal.

    Raises WorkerError when the brokers refuse it, or when none answers within --timeout at the start.
    """
    config = context.client_config(COMMON_DEFAULTS)
    context.show_config(config)
    context.set_up_logging()
    client_state = ClientState(config, options.auth_timeout)
    credentials = CredentialsWatch(config, client_state)

    def connect() -> AdminClient:
        return create_client(AdminClient, config, client_state.callbacks(), credentials.credentials)

    selection = Selection(options.group_ids, options.group_filter, options.topics, options.topic_filter)
    group_lag = GroupLag(connect(), selection, options.interval, options.keep)
    collector = LagCollector(group_lag, client_state, config.get("client.id"))

    def ready() -> str | None:
        return client_state.refused() or group_lag.ready()

    with context.serve(options.metrics, collector, ready, group_lag.live):
        try:
            # A round may wait long for unreachable brokers, and leaves nothing half done.
            with shutdown.at_once():
                if options.connection.timeout is not None:
                    wait_for_topics(group_lag.admin, [], config, client_state, timeout_s=options.connection.timeout)
                _look_until_stopped(group_lag, connect, credentials, client_state, options.interval)
        except Stopped:
            log.info("stopped after %d rounds", group_lag.picture.rounds)


def _look_until_stopped(
    group_lag: GroupLag,
    connect: Callable[[], AdminClient],
    credentials: CredentialsWatch,
    client_state: ClientState,
    interval_s: float,
) -> None:
    following = time.monotonic()
    while True:
        group_lag.look()
        # Rounds that took too long are left out, not made up for.
        following = max(following + interval_s, time.monotonic())
        while True:
            group_lag.admin.poll(max(0.0, min(0.5, following - time.monotonic())))
            client_state.check()
            fresh = credentials.renew(group_lag.admin, connect)
            # An idle client has the length 0, and counts as false.
            if fresh is not None:
                group_lag.admin = fresh
            if time.monotonic() >= following:
                break
