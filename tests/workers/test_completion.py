"""Topics and groups complete by the names that the brokers have."""

from pathlib import Path

from tests.conftest import Topics
from tests.unit.test_completion import in_bash
from workers.testing.processes import Processes


def test_topics_and_groups_of_the_brokers_are_offered(
    processes: Processes, topics: Topics, topic: str, group: str, bootstrap_servers: str, tmp_path: Path
) -> None:
    topics.create_named(f"{topic}.dlq")
    processes.produce(topic, "--count", "1")
    assert processes.consume(topic, group, "--max-messages", "1").wait() == 0
    brokers = f"--bootstrap-servers {bootstrap_servers}"

    assert in_bash(f"kafka-workers consume {brokers} --topic {topic}", tmp_path) == [topic, f"{topic}.dlq"]
    # Only dead-letter topics where one is asked for.
    for command in ("dead-letters list", "dead-letters replay"):
        assert in_bash(f"kafka-workers {command} {brokers} --topic {topic}", tmp_path) == [f"{topic}.dlq"]
    offered = in_bash("kafka-workers lag --group-id ", tmp_path, KAFKA_BOOTSTRAP_SERVERS=bootstrap_servers)
    assert group in offered
    shown = in_bash(
        f"kafka-workers offsets show --group-id {group[:-1]}", tmp_path, KAFKA_BOOTSTRAP_SERVERS=bootstrap_servers
    )
    assert shown == [group]
    every = in_bash("kafka-workers lag --topic ", tmp_path, KAFKA_BOOTSTRAP_SERVERS=bootstrap_servers)
    assert topic in every
    assert not any(name.startswith("__") for name in every)
