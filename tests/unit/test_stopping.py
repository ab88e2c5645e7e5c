"""Ctrl-C of commands that ask about a group and end: at once, with an error, and with nothing changed."""

import os
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from workers.cli import lag, reset_offsets, show_offsets
from workers.errors import WorkerError
from workers.kafka import group_offsets, groups
from workers.lifecycle import Shutdown


@pytest.fixture
def shutdown(signal_handlers: None) -> Shutdown:
    shutdown = Shutdown(0)
    shutdown.install()
    return shutdown


def interrupted(*_: Any) -> Any:
    """Brokers whose answer has not come when the user presses Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)
    return SimpleNamespace(partitions=())


OPTIONS: Any = SimpleNamespace(
    connection=SimpleNamespace(look_timeout=60), topics=(), partitions=(), group_id="g", to="end", yes=True,
    as_json=False, watch=False, interval=1.0, max_lag=None,
)  # fmt: skip
CONTEXT: Any = None


@pytest.mark.parametrize("module", [lag, show_offsets, reset_offsets], ids=lambda module: module.__name__)
@pytest.mark.parametrize("when", ["it connects", "it asks"])
def test_an_interrupt_before_the_answer_is_an_error_and_changes_nothing(
    shutdown: Shutdown, monkeypatch: pytest.MonkeyPatch, module: Any, when: str
) -> None:
    committed: list[object] = []
    connect: Callable[..., Any] = interrupted if when == "it connects" else lambda *_: SimpleNamespace(poll=lambda _: 0)
    monkeypatch.setattr(module, "connected_admin", connect)
    monkeypatch.setattr(groups, "describe", interrupted)
    monkeypatch.setattr(group_offsets, "plan", interrupted)
    monkeypatch.setattr(group_offsets, "commit", lambda *moves: committed.append(moves))

    run = getattr(module, module.__name__.rpartition(".")[2])
    with pytest.raises(WorkerError, match="stopped before"):
        run(OPTIONS, CONTEXT, shutdown)
    assert committed == []
