"""The classic stack: `docker compose up --wait`, and what the README promises of it."""

import json
import subprocess
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.compose.engine import (
    IMAGE,
    PROJECT,
    REPOSITORY,
    Stack,
    docker,
    image_of,
    output,
    published_addresses,
    service_of,
)
from tests.documents import load
from tests.programs import program
from workers.testing.processes import Processes, eventually

pytestmark = pytest.mark.timeout(900)

WORKERS = ("producer", "consumer")
# For a container beside those of the stack.
INSIDE = ("--network", f"{PROJECT}_default", "--env", "KAFKA_BOOTSTRAP_SERVERS=kafka-1:9092,kafka-2:9092,kafka-3:9092")
GIGABYTE = 1024**3
# Members of the group when nothing was scaled.
BASE_REPLICAS = 1
RECOVERY_S = 120.0
# Less than the session timeout, 45 s, after which the brokers drop a member that has not left.
LEAVE_S = 30.0


def settled(stack: Stack, members: int) -> bool:
    """Whether the group has `members` members, and all partitions have an owner."""
    group = stack.group()
    owners = [each["member"] for each in group["partitions"]]
    return len(group["members"]) == members and len(owners) == 3 and None not in owners


def committed(stack: Stack) -> dict[int, int]:
    return {each["partition"]: each["committed"] for each in stack.group()["partitions"]}


def assert_goes_on(stack: Stack, before: dict[int, int]) -> None:
    """The group is whole again, has forgotten nothing, and every message of every producer so far is in the log."""
    eventually(lambda: settled(stack, BASE_REPLICAS), "the group has its partitions again", RECOVERY_S)
    after = committed(stack)
    assert all(after[partition] >= offset for partition, offset in before.items())
    stack.verify()


def test_everything_is_healthy_and_open_on_loopback_only(stack: Stack) -> None:
    containers = stack.containers()
    states = {service_of(each): each["State"] for each in containers}
    topics = states.pop("topics")
    assert (topics["Status"], topics["ExitCode"]) == ("exited", 0)
    assert {name: state["Health"]["Status"] for name, state in states.items()} == dict.fromkeys(
        ["zookeeper", "kafka-1", "kafka-2", "kafka-3", "control-center", "producer", "consumer"], "healthy"
    )
    assert published_addresses(containers) == {"127.0.0.1"}
    ports = [port for service in stack.config()["services"].values() for port in service.get("ports", [])]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}  # those of the profile too


def test_the_whole_stack_fits_in_4_gigabytes(stack: Stack) -> None:
    """With four consumers, Prometheus and Grafana."""
    services = stack.config()["services"]
    limits = {name: int(service["mem_limit"]) for name, service in services.items()}
    assert sum(limits.values()) + 3 * limits["consumer"] <= 4 * GIGABYTE
    assert not any(state["State"]["OOMKilled"] for state in stack.containers())


def test_the_consumer_prints_what_the_producer_sends(stack: Stack) -> None:
    eventually(lambda: "teste[" in stack.logs("consumer", "--tail", "20"), "messages in the consumer's log")
    assert " run=" in stack.logs("consumer", "--tail", "20")


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
    (tmp_path / "own.py").write_text("def handle(message):\n    print('handled', message.topic(), flush=True)\n")
    with image_of(f"FROM {IMAGE}\nCOPY own.py /app/\n", tmp_path) as child:
        options = ("--handler", "own:handle", "--from-beginning", "--max-messages", "3", "--group-id", "own")
        assert "handled teste" in output("run", "--rm", *INSIDE, child, "consume", *options)


def test_a_worker_and_its_health_check_need_no_shell(stack: Stack, tmp_path: Path) -> None:
    kind, *check = stack.config()["services"]["consumer"]["healthcheck"]["test"]
    assert kind == "CMD"
    remove = "USER 0\nRUN rm -f /bin/sh /bin/dash /bin/bash\nUSER 65532:65532\n"
    with image_of(f"FROM {IMAGE}\n{remove}", tmp_path) as child:
        assert docker("run", "--rm", "--entrypoint", "sh", child).returncode == 127
        worker = output("run", "--detach", *INSIDE, child, "consume", "--group-id", "without-a-shell").strip()
        try:
            eventually(lambda: docker("exec", worker, *check).returncode == 0, "it is ready", RECOVERY_S)
        finally:
            docker("rm", "--force", worker)


def test_the_rest_does_without_control_center(stack: Stack) -> None:
    try:
        stack.up("--scale", "control-center=0")
        assert stack.containers("control-center") == []
    finally:
        stack.up()


def test_a_killed_broker_loses_no_acknowledged_message(host: Processes, stack: Stack) -> None:
    producer = host.start("produce", "--count", "6000", "--rate", "300", "--summary", "json", "--run", "killed")

    def acknowledged() -> float:
        return producer.metric("kafka_producer_deliveries_total", outcome="success") or 0

    eventually(lambda: acknowledged() > 600, "the first messages are acknowledged")
    try:
        stack.compose("kill", "kafka-2")
        stack.compose("start", "kafka-2")  # at once: ZooKeeper still believes that the old one lives
        assert producer.wait(RECOVERY_S) == 0, producer.stderr[-3000:]
        eventually(lambda: stack.health("kafka-2") == "healthy", "the broker is back", RECOVERY_S)
    finally:
        stack.up()
    account = producer.lines[-1]
    assert json.loads(account)["acknowledged"] == 6000

    verified = stack.verify("--json", "--run", "killed", "--account", "-", account=account)
    report = json.loads(verified.splitlines()[-1])
    assert (report["present"], report["missing"], report["lost"]) == (6000, 0, 0)
    # The group has read them all: only what the producer of the stack sends right now may be left.
    eventually(lambda: settled(stack, BASE_REPLICAS), "the group is whole", RECOVERY_S)
    stack.run("producer", "kafka-workers", "lag", "--max-lag", "100")
    assert [each["RestartCount"] for each in stack.containers(*WORKERS)] == [0, 0]


def test_prometheus_finds_every_replica(stack: Stack, monitoring: list[str]) -> None:
    def up() -> Counter[str]:
        with urllib.request.urlopen("http://127.0.0.1:9090/api/v1/targets", timeout=5) as answer:
            targets = json.load(answer)["data"]["activeTargets"]
        return Counter(target["labels"]["service"] for target in targets if target["health"] == "up")

    try:
        stack.up("--scale", "consumer=4")
        stack.compose(*monitoring, "up", "--wait", "prometheus")
        eventually(lambda: up() == {"consumer": 4, "producer": 1}, "five targets are up")
    finally:
        stack.compose(*monitoring, "rm", "--stop", "--force", "--volumes", "prometheus")
        stack.up("--scale", f"consumer={BASE_REPLICAS}")


def test_stopping_ends_every_worker_with_0_and_up_goes_on_from_there(stack: Stack) -> None:
    stack.up("--scale", "consumer=4")
    eventually(lambda: settled(stack, 4), "four members", RECOVERY_S)
    before = committed(stack)

    stack.compose("stop", "consumer")
    assert stack.group()["members"] == []  # each has left: none holds up the next start for its session timeout
    stack.compose("stop")
    codes = [(service_of(each), each["State"]["ExitCode"]) for each in stack.containers(*WORKERS)]
    assert sorted(codes) == [("consumer", 0)] * 4 + [("producer", 0)]

    stack.up()
    assert_goes_on(stack, before)


def test_new_containers_go_on_with_the_old_volumes(stack: Stack) -> None:
    before = committed(stack)
    # The volumes that `rm` takes along are those without a name, which nobody would find later.
    stack.compose("rm", "--stop", "--force", "--volumes")
    stack.compose("down")
    assert stack.containers() == []
    stack.up()
    assert_goes_on(stack, before)


def test_prometheus_understands_its_configuration() -> None:
    result = subprocess.run(
        [program("promtool", "prometheus"), "check", "config", "compose/prometheus.yml"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_grafana_is_told_where_prometheus_and_the_dashboard_are() -> None:
    services = load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    grafana = services["grafana"]
    volumes = [volume.split(":") for volume in grafana["volumes"]]
    mounted = {target: REPOSITORY / source for source, target, *_ in volumes}

    def provisioned(kind: str) -> Any:
        [path] = mounted[f"/etc/grafana/provisioning/{kind}"].iterdir()
        [entry] = load(path.read_text())["providers" if kind == "dashboards" else kind]
        return entry

    url = urlsplit(provisioned("datasources")["url"])
    assert [port.split(":")[-1] for port in services[url.hostname]["ports"]] == [str(url.port)]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provisioned("dashboards")["options"]["path"]
    assert json.loads((mounted[str(home.parent)] / home.name).read_text())["uid"] == "kafka-workers"
