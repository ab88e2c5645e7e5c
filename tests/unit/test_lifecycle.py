"""Signals."""

import os
import signal
import threading
from types import SimpleNamespace

import pytest

from workers.lifecycle import Shutdown, Stopped, call_until_stopped, call_with_timeout

pytestmark = pytest.mark.usefixtures("signal_handlers")


def test_the_first_signal_does_not_end_a_worker_that_is_stopping_by_itself() -> None:
    shutdown = Shutdown(10)
    shutdown.install()
    shutdown.request()
    os.kill(os.getpid(), signal.SIGTERM)

    assert shutdown.requested  # the second one would have ended this process


def test_a_signal_raises_where_a_stop_is_at_once_and_only_there() -> None:
    shutdown = Shutdown(10)
    shutdown.install()
    with pytest.raises(Stopped), shutdown.at_once():
        os.kill(os.getpid(), signal.SIGTERM)

    assert shutdown.requested


def test_a_stop_that_code_in_c_has_not_passed_on_is_a_stop() -> None:
    """As `list_consumer_groups` of confluent-kafka, which does not look at what its Python code has raised."""
    shutdown = Shutdown(10)
    with pytest.raises(Stopped), shutdown.at_once():
        raise SystemError("returned a result with an exception set") from Stopped()
    with pytest.raises(SystemError, match="bad argument"), shutdown.at_once():
        raise SystemError("bad argument to internal function")


def test_signals_of_one_moment_are_one_and_a_later_one_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` signals a process, and then the group that the process is in."""
    now = [1000.0]
    ended: list[int] = []
    monkeypatch.setattr("workers.lifecycle.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(os, "_exit", ended.append)
    shutdown = Shutdown(10)
    shutdown.install()
    for now[0] in (1000.0, 1000.001, 1000.099):
        os.kill(os.getpid(), signal.SIGTERM)
    assert (shutdown.requested, ended) == (True, [])
    now[0] = 1000.101
    os.kill(os.getpid(), signal.SIGINT)

    assert ended == [128 + signal.SIGINT]


def test_a_signal_that_came_before_ends_what_may_be_ended_at_once_before_it_begins() -> None:
    shutdown = Shutdown(10)
    shutdown.install()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped), shutdown.at_once():
        pytest.fail("it has begun")


def test_a_module_that_puts_its_own_signal_handler_in_place_does_not_keep_signals_from_the_worker() -> None:
    shutdown = Shutdown(10)
    shutdown.install()
    with shutdown.at_once():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(os.getpid(), signal.SIGTERM)

    assert shutdown.requested


def test_a_call_that_raised_has_not_returned_and_its_error_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def close() -> None:
        raise RuntimeError("the broker is gone")

    assert not call_with_timeout(close, 5)
    assert "RuntimeError: the broker is gone" in caplog.text


def test_a_call_may_last_until_a_stop_and_the_time_for_that_is_up() -> None:
    shutdown, gate = Shutdown(0.05), threading.Event()
    assert call_until_stopped(lambda: None, shutdown)
    assert not shutdown.requested

    def stop_and_hang() -> None:
        shutdown.request()
        gate.wait(20)

    assert not call_until_stopped(lambda: gate.wait(20), shutdown, 0.05)
    assert not shutdown.requested
    assert not call_until_stopped(stop_and_hang, shutdown)
    gate.set()
