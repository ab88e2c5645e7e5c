"""The cache of Java's classes is made once, by one process, and a cluster starts without it when it cannot be made."""

from pathlib import Path
from threading import Barrier, Thread

import pytest

from workers.errors import WorkerError
from workers.local.startup_cache import cache_path, find_or_make


def test_the_cache_is_made_once_when_several_ask_at_once(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "classes.aot"
    begin = Barrier(8)
    trained: list[Path] = []
    said: list[str] = []
    found: list[Path | None] = []

    def train(unfinished: Path) -> None:
        assert not path.exists()
        trained.append(unfinished)
        unfinished.write_text("classes")

    def ask() -> None:
        begin.wait()
        found.append(find_or_make(path, train, said.append))

    threads = [Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [path] * 8
    assert len(trained) == len(said) == 1
    assert path.read_text() == "classes"
    assert not trained[0].exists()


@pytest.mark.parametrize("error", [OSError("disk full"), WorkerError("broker 0 ended while starting")])
def test_without_a_cache_the_reason_is_said_and_the_next_start_tries_again(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "classes.aot"
    said: list[str] = []

    def fail(unfinished: Path) -> None:
        raise error

    assert find_or_make(path, fail, said.append) is None
    assert str(error) in said[-1]
    assert find_or_make(path, lambda unfinished: unfinished.touch(), said.append) == path


def test_a_training_that_wrote_nothing_leaves_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "classes.aot"
    said: list[str] = []

    assert find_or_make(path, lambda _: None, said.append) is None
    assert "no cache" in said[-1]
    assert not path.exists()


def test_the_cache_of_another_java_or_other_options_is_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    paths = {
        cache_path(parts, ".aot") for parts in (["25.0.2", "a.jar"], ["25.0.3", "a.jar"], ["25.0.2", "-X", "a.jar"])
    }

    assert len(paths) == 3
    assert {path.parent for path in paths} == {tmp_path / "kafka-workers"}
