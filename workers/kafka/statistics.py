"""librdkafka's statistics as typed values, with only what the workers use.

Source of every field: STATISTICS.md of librdkafka. Misleading entries are filtered here: a partition that was revoked
keeps its entry with its last values, and the entry "-1" of a topic is not a partition.
"""

import json
from dataclasses import dataclass, field

QUANTILES = {"0.5": "p50", "0.95": "p95", "0.99": "p99"}


@dataclass(frozen=True, slots=True)
class PartitionStatistics:
    """One partition that is being fetched; offsets are negative before the first answer."""

    end_offset: int
    fetch_offset: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """One report of a client. Times are Unix time in seconds, round trips are seconds by broker and quantile."""

    timestamp_s: float
    brokers_up: int
    broker_rtt_s: dict[str, dict[str, float]]
    queue_bytes: int
    coordinator_up: bool = False
    group_steady: bool = False
    broker_states: dict[str, str] = field(default_factory=dict)
    topic_partitions: dict[str, int] = field(default_factory=dict)
    partitions: dict[tuple[str, int], PartitionStatistics] = field(default_factory=dict)
    # The broker that leads a partition, -1 where the client knows none.
    leaders: dict[tuple[str, int], int] = field(default_factory=dict)


def parse(text: str) -> Statistics:
    """Reads what librdkafka hands to `stats_cb`; raises ValueError or KeyError when it is something else."""
    data = json.loads(text)
    brokers = [broker for broker in data["brokers"].values() if broker["nodeid"] >= 0]
    # Before the first metadata answer only the bootstrap entry is there, and it can be connected.
    up = sum(broker["state"] == "UP" for broker in data["brokers"].values())
    group = data.get("cgrp", {})
    return Statistics(
        timestamp_s=float(data["time"]),
        brokers_up=up,
        broker_rtt_s={
            broker["nodename"]: {quantile: broker["rtt"][name] / 1e6 for quantile, name in QUANTILES.items()}
            for broker in brokers
            if broker["rtt"]["cnt"]
        },
        queue_bytes=data["msg_size"],
        coordinator_up=group.get("state") == "up",
        group_steady=group.get("join_state") == "steady",
        broker_states={name: broker["state"] for name, broker in data["brokers"].items()},
        topic_partitions={
            topic: sum(int(number) >= 0 for number in entry["partitions"]) for topic, entry in data["topics"].items()
        },
        partitions={
            (topic, int(number)): PartitionStatistics(partition["ls_offset"], partition["next_offset"])
            for topic, entry in data["topics"].items()
            for number, partition in entry["partitions"].items()
            if int(number) >= 0 and partition["desired"] and partition["fetch_state"] == "active"
        },
        leaders={
            (topic, int(number)): partition["leader"]
            for topic, entry in data["topics"].items()
            for number, partition in entry["partitions"].items()
            if int(number) >= 0
        },
    )
