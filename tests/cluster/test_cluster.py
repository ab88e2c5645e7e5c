"""The chart on a real cluster: what the README promises of it, with Helm 3 and with Helm 4."""

import json
import time
from functools import partial

import pytest

from tests.chart.rendering import second_release
from tests.cluster.kind import CHART, CONTEXT, REPOSITORY, Release, found, kubectl, output, run, strimzi_runs
from workers.testing.processes import eventually

pytestmark = pytest.mark.timeout(600)

# An idle fourth member must show itself this soon.
SETTLE_S = 20.0
RECOVERY_S = 120.0
MESSAGES = 4000
LOAD = ("--set", f"producer.options.count={MESSAGES},producer.options.rate=150,producer.options.summary=json")


def settled(release: Release, shares: list[int]) -> bool:
    """Whether the consumers that are Ready own exactly these numbers of partitions."""
    return sorted(release.shares(), key=str) == shares


def all_answer(release: Release, replicas: int) -> bool:
    shares = release.shares()
    return len(shares) == replicas and None not in shares


def account_of(release: Release, job: str) -> str:
    """The producer's account, from the log of its finished Job."""
    kubectl("wait", f"job/{job}", "--for=condition=Complete", "--timeout=180s")
    lines = kubectl("logs", f"job/{job}", "--container", "producer").splitlines()
    (account,) = [line for line in lines if '"acknowledged"' in line]
    assert json.loads(account)["acknowledged"] == MESSAGES
    return account


MAKE_USERS = """
import sys
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
admin = AdminClient({"bootstrap.servers": "events-kafka-bootstrap:9092"})
info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
users = [UserScramCredentialUpsertion(name, info, b"secret") for name in sys.argv[1:]]
for done in admin.alter_user_scram_credentials(users).values():
    done.result()
"""


def make_users(release: Release, *names: str) -> None:
    """Does what Strimzi's user operator does, from a pod of the release, where that does not run."""
    if strimzi_runs():
        return
    for name in names:
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
            "stringData": {"password": "secret"},
        }
        kubectl("apply", "--filename", "-", stdin=json.dumps(secret))
    python = "/opt/kafka-workers/bin/python"
    kubectl("exec", "-i", f"deploy/{release.consumer}", "--", python, "-", *names, stdin=MAKE_USERS)


def test_installing_makes_every_consumer_ready(release: Release) -> None:
    """The fixture waits for it with that timeout."""
    assert [pod.ready for pod in release.pods("consumer")] == [True] * 3
    eventually(lambda: settled(release, [1, 1, 1]), "each owns a partition", SETTLE_S)


def test_helm_test_reads_and_when_told_to_write_proves_that_messages_go_through(release: Release) -> None:
    assert "Phase:" in output(*release.helm, "test", release.name, timeout_s=200)
    release.upgrade("--set", "test.write=true")
    assert "Phase:" in output(*release.helm, "test", release.name, timeout_s=200)


def test_the_last_numbers_of_the_job_can_be_scraped_before_it_ends(release: Release) -> None:
    release.upgrade("--set", "producer.options.count=500,producer.options.rate=250")
    (job,) = release.jobs()

    def acknowledged() -> bool:
        return any(
            pod.metric("kafka_producer_deliveries_total", outcome="success") == 500 for pod in release.pods("producer")
        )

    eventually(acknowledged, "a scrape sees all 500 deliveries", RECOVERY_S)
    kubectl("wait", f"job/{job}", "--for=condition=Complete", "--timeout=60s")


def test_the_fourth_of_four_consumers_idles_and_is_ready(release: Release) -> None:
    kubectl("scale", "deploy", release.consumer, "--replicas=4")
    begin = time.monotonic()
    eventually(lambda: len([pod for pod in release.pods("consumer") if pod.ready]) == 4, "four are Ready")
    left_s = SETTLE_S - (time.monotonic() - begin)
    eventually(lambda: settled(release, [0, 1, 1, 1]), "three own a partition each, one owns none", left_s)
    assert sum(member["idle"] for member in release.group()["members"]) == 1


def test_an_upgrade_keeps_what_was_scaled_and_a_changed_value_wins(release: Release) -> None:
    kubectl("scale", "deploy", release.consumer, "--replicas=4")
    release.upgrade("--set", "consumer.podAnnotations.changed=yes", "--wait")
    assert len(release.pods("consumer")) == 4

    release.upgrade("--set", "consumer.replicas=2", "--wait", *release.force_conflicts)
    eventually(lambda: len(release.pods("consumer")) == 2, "the changed value is in force")


def test_a_rollback_after_a_scale_goes_back_to_the_number_of_its_revision(release: Release) -> None:
    release.upgrade("--wait")
    revision = release.revision()
    kubectl("scale", "deploy", release.consumer, "--replicas=4")
    release.upgrade("--set", "test.count=301", "--wait")
    assert len(release.pods("consumer")) == 4

    rollback = (*release.helm, "rollback", release.name, revision, "--wait")
    if release.force_conflicts:
        refused = run(*rollback)
        assert refused.returncode != 0
        assert "conflict" in refused.stderr
    output(*rollback, *release.force_conflicts)
    eventually(lambda: len(release.pods("consumer")) == 3, "the number of that revision is in force")


def test_an_upgrade_makes_a_new_job_while_the_old_one_runs_and_a_rollback_goes_back(release: Release) -> None:
    release.upgrade(*LOAD)
    before = release.jobs()
    release.upgrade(*LOAD, "--set", "producer.options.size=200")
    assert len(release.jobs()) == 1
    assert release.jobs() != before

    output(*release.helm, "rollback", release.name)
    assert release.jobs() == before


def test_scaling_1_4_2_and_killing_pods_under_load_loses_nothing(release: Release) -> None:
    release.upgrade(*LOAD, "--set", "producer.options.size=300")
    (job,) = release.jobs()
    for replicas in (1, 4, 2):
        kubectl("scale", "deploy", release.consumer, f"--replicas={replicas}")
        kubectl("rollout", "status", f"deploy/{release.consumer}", "--timeout=120s")
        eventually(partial(all_answer, release, replicas), f"{replicas} consumers are Ready")
    kubectl("delete", "pod", release.pods("consumer")[0].name, "--wait=false")
    kubectl("delete", "pod", "events-brokers-1", "--wait=false")

    account = account_of(release, job)
    verify = ("verify", "--json", "--account", "-", "--run", json.loads(account)["run"])
    report = json.loads(release.workers(*verify, stdin=account))
    assert (report["present"], report["missing"], report["duplicated"]) == (MESSAGES, 0, 0)
    eventually(lambda: release.group()["lag"] == 0, "all of it was handled", RECOVERY_S)
    eventually(partial(all_answer, release, 2), "both consumers answer")
    assert [pod.metric("kafka_consumer_missing_total") for pod in release.pods("consumer")] == [0, 0]


def test_two_releases_live_side_by_side_in_one_namespace(release: Release, second: Release) -> None:
    kubectl("scale", "deploy", release.consumer, "--replicas=3")
    make_users(release, second.consumer, second.producer)
    second.install(*second_release(), "--wait", "--timeout", "120s")
    for each in (release, second):
        eventually(partial(settled, each, [1, 1, 1]), f"{each.name} owns all partitions in its own group", SETTLE_S)
    groups = [each.group() for each in (release, second)]
    assert [group["group"] for group in groups] == ["kafka-workers", "workers-b"]
    assert [len(group["members"]) for group in groups] == [3, 3]

    second.uninstall()
    assert [pod.ready for pod in release.pods("consumer")] == [True] * 3
    assert found("kafkatopics", "--selector", release.selector)


def test_a_wrong_password_is_said_in_one_line_beside_a_release_that_works(release: Release, second: Release) -> None:
    kubectl("create", "secret", "generic", "wrong-password", "--from-literal=password=wrong")
    second.install(
        "--set", "strimzi.enabled=false,kafka.bootstrapServers=events-kafka-bootstrap:9093,kafka.tls.enabled=true",
        "--set", "kafka.tls.caSecret=events-cluster-ca-cert,kafka.sasl.mechanism=SCRAM-SHA-512",
        "--set", "kafka.sasl.username=consumer,kafka.sasl.passwordSecret=wrong-password,consumer.replicas=1",
        "--set", "producer.options.auth-timeout=5",
    )  # fmt: skip

    def said() -> bool:
        return (
            "authentication failed; check the password"
            in run("kubectl", "--context", CONTEXT, "logs", f"deploy/{second.consumer}", "--tail=5").stdout
        )

    eventually(said, "the log names the password")
    assert not any(pod.ready for pod in second.pods("consumer"))
    (job,) = second.jobs()
    kubectl("wait", f"job/{job}", "--for=condition=Failed", "--timeout=120s")


def test_uninstalling_leaves_nothing_but_the_topics(release: Release) -> None:
    release.uninstall()
    assert len(found("kafkatopic", "--selector", release.selector)) == 2
    kubectl("delete", "kafkatopic", "--selector", release.selector)
    eventually(lambda: release.objects() == [], "everything is gone")
    assert found("secrets", "--selector", f"owner=helm,name={release.name}") == []


def test_without_strimzi_a_missing_topic_is_said_in_one_line(second: Release) -> None:
    second.install(
        "--set", "strimzi.enabled=false,kafka.bootstrapServers=events-kafka-bootstrap:9092,kafka.topic=nowhere",
        "--set", "producer.enabled=false,consumer.replicas=1",
    )  # fmt: skip

    def said() -> bool:
        log = run("kubectl", "--context", CONTEXT, "logs", f"deploy/{second.consumer}", "--tail=5").stdout
        return "nowhere does not exist" in log

    eventually(said, "the log names the topic")


EVERYTHING = ("--set", "producer.enabled=true,test.write=true,lagExporter.enabled=true,consumers.pay.topics={pay}")


def test_pods_are_accepted_where_only_restricted_ones_are(kafka: None) -> None:
    name = "restricted-test"
    labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    kubectl("apply", "--filename", "-", stdin=json.dumps(namespace))
    try:
        rendered = output(
            "helm", "template", "workers", CHART, "--kube-version", "1.34.0", "--namespace", name, *EVERYTHING
        )
        for account in ("consumer", "consumer-pay", "producer", "lag-exporter"):  # a pod is refused without
            kubectl("create", "serviceaccount", account, "--namespace", name)
        apply = ("kubectl", "--context", CONTEXT, "apply", "--namespace", name, "--dry-run=server", "--filename", "-")
        applied = run(*apply, stdin=rendered)
        assert applied.returncode == 0, applied.stderr
        assert "would violate PodSecurity" not in applied.stderr
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


def test_the_api_server_accepts_every_object_of_the_cluster_that_strimzi_makes(kafka: None) -> None:
    kubectl("apply", "--dry-run=server", "--filename", str(REPOSITORY / "k8s" / "kafka"))
