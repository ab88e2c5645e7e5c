"""Verification and the outside view of a group, against real brokers."""

import json
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.conftest import Topics
from tests.programs import run_in_bash
from workers.accounting.stamps import encode, stream_of
from workers.testing.processes import Processes, eventually


def write_stamped(bootstrap_servers: str, topic: str, run: str, sequences: list[int]) -> None:
    client = Producer({"bootstrap.servers": bootstrap_servers, "enable.idempotence": True})
    for sequence in sequences:
        client.produce(topic, encode(stream_of(run, 0, 1), sequence, 1_700_000_000_000_000), partition=1)
    assert client.flush(30) == 0


def made_up_account(topic: str, stream: str, **fields: object) -> dict[str, object]:
    entry = {"stream": stream, "sent": 30, "failed": [], "unknown": [], **fields}
    return {"run": stream.split()[0], "topic": topic, "streams": [entry]}


def test_missing_duplicated_and_reordered_messages_are_told_apart(
    processes: Processes, topic: str, bootstrap_servers: str
) -> None:
    write_stamped(bootstrap_servers, topic, "made-up", [0, 1, 3, 2, 2, 6])
    processes.produce(topic, "--count", "10", "--run", "whole")
    result = processes.run("verify", "--topic", topic, "--json")

    assert result.returncode == 3
    assert "2 messages are lost" in result.stderr
    reports = {report["run"]: report for report in map(json.loads, result.stdout.splitlines())}
    broken, whole = reports["made-up"], reports["whole"]
    assert (broken["present"], broken["missing"], broken["lost"]) == (5, 2, 2)
    assert (broken["duplicated"], broken["reordered"]) == (1, 1)
    assert (whole["present"], whole["missing"], whole["duplicated"], whole["reordered"]) == (10, 0, 0, 0)


def test_a_closed_pipe_hides_no_loss(processes: Processes, topic: str, bootstrap_servers: str) -> None:
    write_stamped(bootstrap_servers, topic, "made-up", [0, 2])
    result = run_in_bash(processes, 'set -o pipefail; "$@" | true', "verify", "--topic", topic, "--json")

    assert result.returncode == 3, result.stderr
    assert "1 messages are lost" in result.stderr


def test_only_the_run_that_is_asked_for_counts(processes: Processes, topic: str, bootstrap_servers: str) -> None:
    write_stamped(bootstrap_servers, topic, "made-up", [0, 2])
    processes.produce(topic, "--count", "10", "--run", "whole")

    assert processes.run("verify", "--topic", topic, "--run", "whole").returncode == 0
    assert processes.run("verify", "--topic", topic, "--run", "made-up").returncode == 3


def test_a_run_that_is_asked_for_and_not_there_is_an_error(processes: Processes, topic: str) -> None:
    """Its producer may have sent nothing."""
    processes.produce(topic, "--count", "10", "--run", "whole")
    result = processes.run("verify", "--topic", topic, "--run", "whole", "--run", "never")

    assert (result.returncode, result.stdout) == (2, "")
    assert (
        f"no stamped message of run never in {topic}, so nothing is verified; check --topic and --run" in result.stderr
    )


def test_an_account_shows_a_loss_at_the_end_that_the_log_alone_cannot(
    processes: Processes, topic: str, bootstrap_servers: str, tmp_path: Path
) -> None:
    write_stamped(bootstrap_servers, topic, "made-up", [0, 1, 2])
    stream = stream_of("made-up", 0, 1).decode()
    account = made_up_account(topic, stream, sent=7, failed=[[3, 4]], unknown=[[2, 3], [4, 5]])
    path = tmp_path / "account.json"
    path.write_text(json.dumps(account))

    assert processes.run("verify", "--topic", topic).returncode == 0
    result = processes.run("verify", "--topic", topic, "--account", str(path), "--json")
    report = json.loads(result.stdout)
    assert result.returncode == 3
    # 5 and 6 were acknowledged and are not there; 3 failed; of the unknown 2 and 4 the first arrived.
    assert (report["missing"], report["lost"], report["failed"]) == (4, 2, 1)
    assert (report["unknown"], report["unknown_present"]) == (2, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("sent", -5), ("sent", 1.5), ("sent", "12"), ("sent", 10**13), ("unknown", [[5, 3]]), ("failed", [[0, 31]])],
)
def test_an_account_of_impossible_numbers_is_none(processes: Processes, topic: str, field: str, value: object) -> None:
    account = made_up_account(topic, "8541bba874a8 0000 00000", **{field: value})
    path = processes.write("account.json", json.dumps(account))
    result = processes.run("verify", "--topic", topic, "--account", str(path))

    assert result.returncode == 2
    assert "line 1: not an account" in result.stderr


def test_an_account_of_another_topic_or_a_second_one_of_a_run_proves_nothing(processes: Processes, topic: str) -> None:
    account = json.dumps(made_up_account(topic, "8541bba874a8 0000 00000"))
    once, twice = processes.write("once.json", account), processes.write("twice.json", f"{account}\n{account}\n")
    other = processes.run("verify", "--topic", "another", "--account", str(once))
    second = processes.run("verify", "--topic", topic, "--account", str(twice))

    assert (other.returncode, second.returncode) == (2, 2)
    assert f"line 1: the account of topic {topic}, and --topic is another" in other.stderr
    assert "line 2: a second account of run 8541bba874a8" in second.stderr


def test_what_retention_has_deleted_is_not_lost(
    processes: Processes, topic: str, admin: AdminClient, bootstrap_servers: str
) -> None:
    account = processes.write("account.json", json.dumps(processes.produce(topic, "--count", "300")))
    for answer in admin.delete_records([TopicPartition(topic, number, 50) for number in range(2)]).values():
        answer.result()
    # This is lost: what comes before it is there.
    write_stamped(bootstrap_servers, topic, "made-up", [0, 1, 4])

    for options in ([], ["--account", str(account)]):
        result = processes.run("verify", "--topic", topic, *options)
        assert result.returncode == 3
        assert "2 messages are lost" in result.stderr
        assert "100 of the missing may have been deleted with the beginning of partitions 0, 1" in result.stdout


def test_a_lag_that_is_not_known_is_not_small(processes: Processes, topics: Topics, topic: str, group: str) -> None:
    processes.produce(topic, "--count", "90")
    assert processes.consume(topic, group, "--max-messages", "1").wait() == 0
    unknown = processes.run("lag", "--group-id", group, "--max-lag", "1000")
    other = processes.run("lag", "--group-id", group, "--topic", topics.create(), "--max-lag", "1000")

    assert (unknown.returncode, other.returncode) == (1, 1)
    assert "has committed nothing for 2 partitions with messages" in unknown.stderr
    assert "; run its consumers until each partition has a committed offset" in unknown.stderr
    assert "owns no partition of" in other.stderr


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_the_lag_of_a_topic_that_a_group_has_not_to_do_with_is_an_error(
    processes: Processes, topics: Topics, topic: str, group: str, form: tuple[str, ...]
) -> None:
    """A mistaken --topic looked like a group that has handled all."""
    processes.produce(topic, "--count", "9")
    assert processes.consume(topic, group, "--max-messages", "9").wait() == 0
    other = topics.create()
    result = processes.run("lag", "--group-id", group, "--topic", other, *form)

    assert (result.returncode, result.stdout) == (1, "")
    assert f"group {group} owns no partition of {other} and has committed no offset of it" in result.stderr


def test_a_topic_without_stamped_messages_verifies_nothing(processes: Processes, topic: str) -> None:
    processes.produce(topic, "--input", "-", stdin=b"one\ntwo\n")
    result = processes.run("verify", "--topic", topic)

    assert result.returncode == 2
    assert "nothing is verified; check --topic; `produce --stamp` makes your own messages countable" in result.stderr


def test_lag_counts_what_the_group_has_not_committed(processes: Processes, topic: str, group: str) -> None:
    processes.produce(topic, "--count", "90")
    assert processes.consume(topic, group, "--max-messages", "90").wait() == 0
    processes.produce(topic, "--count", "30")

    document = json.loads(processes.run("lag", "--group-id", group, "--json").stdout)
    assert document["lag"] == 30
    assert document["members"] == []
    assert [partition["lag"] for partition in document["partitions"]] == [10, 10, 10]
    assert processes.run("lag", "--group-id", group, "--max-lag", "30").returncode == 0
    above = processes.run("lag", "--group-id", group, "--max-lag", "29")
    assert above.returncode == 1
    assert "30 messages behind" in above.stderr


def test_watch_shows_the_group_again_until_it_is_stopped(processes: Processes, topic: str, group: str) -> None:
    processes.produce(topic, "--count", "3")
    assert processes.consume(topic, group, "--max-messages", "3").wait() == 0
    watch = processes.start("lag", "--group-id", group, "--watch", "--interval", "0.2", "--json")
    eventually(lambda: len(watch.lines) >= 3, "three looks")

    assert watch.stop() == 0
    assert {json.loads(line)["lag"] for line in watch.lines} == {0}


def test_a_verification_that_is_stopped_before_it_has_begun_accuses_nobody(processes: Processes, topic: str) -> None:
    path = processes.write("account.json", json.dumps(processes.produce(topic, "--count", "30")))
    away = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    verify = processes.start("verify", "--topic", topic, "--account", str(path), env=away)
    verify.says("no answer from")

    assert verify.stop() == 1
    assert f"stopped before the end of {topic}" in verify.stderr.splitlines()[-1]
    assert verify.stdout == ""


def test_the_lag_of_a_topic_that_is_not_there_is_no_answer(processes: Processes) -> None:
    result = processes.run("lag", "--topic", "nowhere", "--max-lag", "5", "--timeout", "5")

    assert result.returncode == 2
    assert "nowhere does not exist" in result.stderr.splitlines()[-1]
