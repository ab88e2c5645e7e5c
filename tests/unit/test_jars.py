"""Where Kafka's jars are is found out once; what is gone is fetched again."""

import subprocess
from pathlib import Path

import pytest

from workers.errors import ClusterError
from workers.local import jars
from workers.local.jars import kafka_classpath


class Maven:
    """Takes the place of the resolver and makes the jars that are asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[str] = []

    def resolve(self, artifacts: str) -> list[str]:
        self.asked.append(artifacts)
        found = [self.directory / f"{artifacts}-{number}.jar" for number in range(2)]
        for jar in found:
            jar.touch()
        return [str(jar) for jar in found]


@pytest.fixture
def maven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maven:
    maven = Maven(tmp_path)
    monkeypatch.setattr(jars, "_resolve", maven.resolve)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return maven


def test_jars_are_fetched_once_and_only_then_is_that_said(maven: Maven) -> None:
    said: list[str] = []

    first = kafka_classpath(said.append, "kafka")
    again = kafka_classpath(said.append, "kafka")

    assert first == again
    assert maven.asked == ["kafka"]
    assert len(said) == 1
    assert "Maven Central" in said[0]
    assert kafka_classpath(said.append, "tools") != first


def test_jars_that_were_deleted_are_fetched_again(maven: Maven) -> None:
    first = kafka_classpath(print, "kafka")
    Path(first[1]).unlink()

    assert kafka_classpath(print, "kafka") == first
    assert len(maven.asked) == 2


def test_a_user_without_a_cache_directory_has_them_resolved_each_time(
    maven: Maven, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    assert kafka_classpath(print, "kafka") == kafka_classpath(print, "kafka")
    assert len(maven.asked) == 2


def test_a_failed_download_is_said_and_nothing_is_kept(maven: Maven, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(artifacts: str) -> list[str]:
        raise ClusterError(f"{artifacts} could not be downloaded: no route to host")

    monkeypatch.setattr(jars, "_resolve", fail)
    with pytest.raises(ClusterError, match="no route to host"):
        kafka_classpath(print, "kafka")

    monkeypatch.setattr(jars, "_resolve", maven.resolve)
    assert kafka_classpath(print, "kafka")


def test_a_download_that_fails_has_its_reason_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "M2_REPO", "JGO_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    failed = subprocess.CompletedProcess("jgo", 1, stdout="", stderr="Traceback\nno route to host\n")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: failed)

    with pytest.raises(ClusterError, match=r"Maven Central: no route to host; check the network and the proxy$"):
        kafka_classpath(lambda _: None, "org.example:nothing:1")


@pytest.mark.parametrize("variable", ["HOME", "M2_REPO", "JGO_CACHE_DIR"])
def test_a_directory_that_cannot_be_written_is_named_with_the_variable_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    (tmp_path / "file").touch()
    for name in ("M2_REPO", "JGO_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(variable, str(tmp_path / "file" / "below"))

    with pytest.raises(ClusterError) as raised:
        kafka_classpath(lambda _: None, "org.example:nothing:1")

    assert str(raised.value).startswith(f"Kafka's jars cannot be stored in {tmp_path}/file/below")
    assert str(raised.value).endswith(f": Not a directory; set {variable} to a directory that can be written")
