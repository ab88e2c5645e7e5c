"""The admin client of the commands that look at a group and end."""

import time
from collections.abc import Sequence

from confluent_kafka.admin import AdminClient

from workers.cli.context import Context
from workers.config import COMMON_DEFAULTS
from workers.kafka.client import TOPIC_GRACE_S, ClientState, create_client, wait_for_topics
from workers.lifecycle import Shutdown


def connected_admin(
    context: Context, topics: Sequence[str], shutdown: Shutdown, timeout_s: float | None
) -> AdminClient:
    """Return a client whose brokers have answered about `topics`; raises as `wait_for_topics`.

    With --show-config it prints the configuration and ends the command.
    """
    config = context.client_config(COMMON_DEFAULTS)
    context.show_config(config)
    context.set_up_logging()
    client_state = ClientState()
    admin = create_client(AdminClient, config, client_state.callbacks())
    wait_for_topics(
        admin,
        list(topics),
        config,
        client_state,
        timeout_s=timeout_s,
        shutdown=shutdown,
        grace_s=TOPIC_GRACE_S,
    )
    return admin


def serve_until(admin: AdminClient, until: float) -> None:
    """Serve the client's statistics and log lines, which would pile up, until a time.monotonic."""
    while (left_s := until - time.monotonic()) > 0:
        admin.poll(min(0.1, left_s))
