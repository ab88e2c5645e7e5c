"""The classic stack: `docker compose up --wait`, and what the README promises of it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.compose.engine import IMAGE, PROJECT, REPOSITORY, Stack, docker, output, published_addresses, service_of
from tests.processes import Processes, eventually

pytestmark = pytest.mark.timeout(900)

WORKERS = ("producer", "consumer")
GIGABYTE = 1024**3
# What is in the group when nothing was scaled.
BASE_REPLICAS = 1
RECOVERY_S = 120.0
# Less than the session timeout, 45 s, after which the brokers drop a member that has not left.
LEAVE_S = 30.0


def settled(stack: Stack, members: int) -> bool:
    """Whether the group has so many members, and all partitions have an owner."""
    group = stack.group()
    owners = [each["member"] for each in group["partitions"]]
    return len(group["members"]) == members and len(owners) == 3 and None not in owners


def test_everything_is_healthy_and_open_on_loopback_only(stack: Stack) -> None:
    containers = stack.containers()
    states = {service_of(each): each["State"] for each in containers}
    topics = states.pop("topics")
    assert (topics["Status"], topics["ExitCode"]) == ("exited", 0)
    assert {name: state["Health"]["Status"] for name, state in states.items()} == dict.fromkeys(
        ["zookeeper", "kafka-1", "kafka-2", "kafka-3", "control-center", "producer", "consumer"], "healthy"
    )
    assert published_addresses(containers) == {"127.0.0.1"}


def test_the_whole_stack_fits_in_4_gigabytes(stack: Stack) -> None:
    """With four consumers, Prometheus and Grafana; `topics` has ended before the workers begin."""
    services = stack.config()["services"]
    limits = {name: int(service["mem_limit"]) for name, service in services.items()}
    del limits["topics"]
    assert sum(limits.values()) + 3 * limits["consumer"] <= 4 * GIGABYTE
    assert not any(state["State"]["OOMKilled"] for state in stack.containers())


def test_the_consumer_prints_what_the_producer_sends(stack: Stack) -> None:
    eventually(lambda: "teste[" in stack.logs("consumer", "--tail", "20"), "messages in the consumer's log")
    assert "kw1 " in stack.logs("consumer", "--tail", "20")


@pytest.mark.parametrize("port", [19092, 29092, 39092])
def test_a_program_on_the_host_reaches_the_brokers_through_each_of_them(
    host: Processes, stack: Stack, port: int
) -> None:
    account = host.produce("teste", "--count", "30", "--bootstrap-servers", f"localhost:{port}")
    assert account["acknowledged"] == 30


def test_of_four_consumers_on_three_partitions_one_idles(stack: Stack) -> None:
    try:
        stack.up("--scale", "consumer=4")

        def shares() -> list[float | None]:
            return [stack.assigned_partitions(replica) for replica in (1, 2, 3, 4)]

        eventually(
            lambda: sorted(shares(), key=str) == [0, 1, 1, 1], "three replicas own one partition each", RECOVERY_S
        )
        eventually(lambda: sum(member["idle"] for member in stack.group()["members"]) == 1, "the brokers say so too")
    finally:
        stack.up("--scale", f"consumer={BASE_REPLICAS}")
    eventually(lambda: settled(stack, BASE_REPLICAS), "the replicas that are gone have left the group", LEAVE_S)


def test_an_image_from_ours_brings_its_own_handler(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\nCOPY own.py /app/\n")
    (tmp_path / "own.py").write_text("def handle(message):\n    print('handled', message.topic(), flush=True)\n")
    child = f"{IMAGE}-with-own-handler"
    output("build", "--tag", child, str(tmp_path))
    try:
        options = ("--handler", "own:handle", "--from-beginning", "--max-messages", "3", "--group-id", "own")
        servers = "kafka-1:9092,kafka-2:9092,kafka-3:9092"
        network = f"{PROJECT}_default"
        handled = output(
            "run", "--rm", "--network", network, child, "consume", *options, "--bootstrap-servers", servers
        )
        assert "handled teste" in handled
    finally:
        docker("image", "rm", child)


def test_a_killed_broker_loses_no_acknowledged_message(host: Processes, stack: Stack) -> None:
    producer = host.start("produce", "--count", "6000", "--rate", "300", "--summary", "json", "--run", "killed")

    def acknowledged() -> float:
        return producer.metric("kafka_producer_deliveries_total", outcome="success") or 0

    eventually(lambda: acknowledged() > 600, "the first messages are acknowledged")
    try:
        stack.compose("kill", "kafka-2")
        assert producer.wait(RECOVERY_S) == 0, producer.stderr[-3000:]
    finally:
        stack.up()
    account = producer.lines[-1]
    assert json.loads(account)["acknowledged"] == 6000

    verified = stack.run(
        "producer", "kafka-workers", "verify", "--json", "--run", "killed", "--account", "-", stdin=account
    )
    report = json.loads(verified.splitlines()[-1])
    assert (report["present"], report["missing"], report["lost"]) == (6000, 0, 0)
    # The group has read them all: only what the producer of the stack sends right now may be left.
    eventually(lambda: settled(stack, BASE_REPLICAS), "the group is whole", RECOVERY_S)
    stack.run("producer", "kafka-workers", "lag", "--max-lag", "100")


def test_stopping_ends_every_worker_with_0_and_the_next_start_goes_on_with_the_old_data(stack: Stack) -> None:
    stack.up("--scale", "consumer=4")
    eventually(lambda: settled(stack, 4), "four members", RECOVERY_S)
    before = {each["partition"]: each["committed"] for each in stack.group()["partitions"]}

    stack.compose("stop", "consumer")
    assert stack.group()["members"] == []  # each has left: none holds up the next start for its session timeout
    stack.compose("stop")
    codes = [(service_of(each), each["State"]["ExitCode"]) for each in stack.containers(*WORKERS)]
    assert sorted(codes) == [("consumer", 0)] * 4 + [("producer", 0)]

    stack.up()
    eventually(lambda: settled(stack, BASE_REPLICAS), "the group has its partitions again", RECOVERY_S)
    after = {each["partition"]: each["committed"] for each in stack.group()["partitions"]}
    assert all(after[partition] >= committed for partition, committed in before.items())
    # Every run of every producer so far, over the restart of all brokers.
    stack.run("producer", "kafka-workers", "verify")


def test_prometheus_understands_its_configuration() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool")
    result = subprocess.run(
        [promtool, "check", "config", "compose/prometheus.yml"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
