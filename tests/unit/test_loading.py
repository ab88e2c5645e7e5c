"""Errors of the user's code in one line, with the place in that code; and what is found under a reference."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from workers.errors import ConfigError
from workers.loading import load, located, remember_traceback
from workers.producer.prefetch import ThreadedSource
from workers.sources import SourceError

HERE = Path(__file__)


def line_of(text: str) -> int:
    """The number of the only line of this file that ends with `text`."""
    (number,) = [n for n, line in enumerate(HERE.read_text().splitlines(), 1) if line.endswith(f"# {text}")]
    return number


def place(text: str) -> str:
    return f"(tests/unit/{HERE.name}:{line_of(text)})"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory to work in, whose modules are forgotten in the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with mock.patch.dict(sys.modules):
        yield tmp_path


def decode() -> object:
    return json.loads("{")  # decoded here


def test_an_error_is_located_in_the_last_line_of_the_users_code_not_in_a_library() -> None:
    with pytest.raises(json.JSONDecodeError) as raised:
        decode()
    assert located(raised.value).endswith(f"JSONDecodeError: {raised.value} {place('decoded here')}")


def test_an_error_that_was_kept_without_its_frames_has_its_place() -> None:
    with pytest.raises(json.JSONDecodeError) as raised:
        decode()
    remember_traceback(raised.value)
    assert located(raised.value.with_traceback(None)).endswith(place("decoded here"))


@pytest.mark.parametrize("venv", [".venv", os.path.dirname(os.path.dirname(os.path.dirname(os.__file__)))])
def test_code_that_was_installed_is_located_where_the_worker_has_called_it(venv: str) -> None:
    installed = f"{venv}/lib/python3.11/site-packages"
    calls: dict[str, Any] = {}
    exec(compile("def call(url):\n    raise OSError(url)", f"{installed}/requests/api.py", "exec"), calls)
    exec(compile("\n\ndef ship(url):\n    call(url)", f"{installed}/shop/orders.py", "exec"), calls)
    with pytest.raises(OSError, match="x") as raised:
        calls["ship"]("x")
    traceback = raised.value.__traceback__
    assert traceback is not None
    # The frame of this test is the first one.
    assert located(raised.value.with_traceback(traceback.tb_next)) == f"OSError: x ({installed}/shop/orders.py:4)"


def test_the_place_is_relative_to_the_working_directory_and_absolute_elsewhere(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(json.JSONDecodeError) as raised:
        decode()
    assert located(raised.value).endswith(f"({HERE}:{line_of('decoded here')})")


def test_an_error_that_never_was_in_the_users_code_has_no_place() -> None:
    assert located(ValueError("no")) == "ValueError: no"
    with pytest.raises(ConfigError) as raised:
        load("--handler", "no colon")
    # The frame of this test is the first one, so without it there are only frames of this package.
    traceback = raised.value.__traceback__
    assert traceback is not None
    raised.value.__traceback__ = traceback.tb_next
    assert located(raised.value) == f"ConfigError: {raised.value}"


def test_an_error_without_a_working_directory_is_named_all_the_same(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> str:
        raise FileNotFoundError

    with pytest.raises(json.JSONDecodeError) as raised:
        decode()
    monkeypatch.setattr(os, "getcwd", gone)
    assert located(raised.value) == f"JSONDecodeError: {raised.value}"


def test_a_module_that_fails_is_named_with_the_line(project: Path) -> None:
    (project / "located_orders.py").write_text("import json\n\nRATES = json.loads('')\n")
    with pytest.raises(ConfigError, match=r"located_orders raised JSONDecodeError: .* \(located_orders.py:3\)$"):
        load("--handler", "located_orders:rates")


def test_a_source_that_fails_is_named_with_the_line() -> None:
    def rows() -> Iterator[dict[str, bytes | None]]:
        yield {"key": None, "value": b"1"}
        raise RuntimeError("the database is unavailable")  # the source

    source = ThreadedSource(rows())
    with pytest.raises(SourceError) as raised:
        list(iter(lambda: source.take(1, 1.0), None))
    assert str(raised.value) == f"the source raised RuntimeError: the database is unavailable {place('the source')}"


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        (
            "no_shop:rates",
            "importing no_shop raised ModuleNotFoundError: No module named 'no_shop'; correct the name, run the "
            "command in the directory that holds no_shop, or add that directory to PYTHONPATH",
        ),
        (
            "no_shop.orders:rates",
            "importing no_shop.orders raised ModuleNotFoundError: No module named 'no_shop'; correct the name, run the "
            "command in the directory that holds no_shop, or add that directory to PYTHONPATH",
        ),
        (
            "located_shop.orders:rates",
            "importing located_shop.orders raised ModuleNotFoundError: No module named 'located_shop.orders'; "
            "'located_shop' is not a package; correct the name, run the command in the directory that holds "
            "located_shop, or add that directory to PYTHONPATH",
        ),
        (
            "workers.orders:rates",
            "importing workers.orders raised ModuleNotFoundError: No module named 'workers.orders'; kafka-workers "
            "itself has the name workers; give your package another one",
        ),
        (
            "workers.handlers:rates",
            "workers.handlers has no 'rates'; kafka-workers itself has the name workers; give your package another one",
        ),
        (
            "located_needs:rates",
            "importing located_needs raised ModuleNotFoundError: No module named 'no_driver' (located_needs.py:1)",
        ),
        ("located_shop:rates", "located_shop has no 'rates'; correct the name, or define it in located_shop.py"),
        (
            "located_shop:PRICES.all",
            "located_shop has no 'PRICES.all'; correct the name, or define it in located_shop.py",
        ),
        ("located_shop:PRICES", "PRICES is a dict, which is not callable; name a function"),
        ("sys:rates", "sys has no 'rates'; correct the name, or define it in sys"),
    ],
)
def test_what_does_not_load_is_named_with_what_to_do(reference: str, says: str, project: Path) -> None:
    (project / "located_shop.py").write_text("PRICES = {}\n")
    (project / "located_needs.py").write_text("import no_driver\n")
    with pytest.raises(ConfigError) as raised:
        load("--handler", reference)
    assert str(raised.value) == f"--handler {reference}: {says}"
