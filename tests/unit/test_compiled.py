"""The functions in C answer as those in Python do, and keep nothing. All other tests run with those in C."""

import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.compiled import compiled_here, without_compiled
from workers.accounting import stamps
from workers.accounting.stamps import MAGIC, SEQUENCE, encode, head, stream_of
from workers.kafka import fields

ROOT = Path(__file__).parents[2]
SOURCES = sorted(ROOT.glob("workers/*/_*.c"))
STREAM = stream_of("run", 0, 1)
DATA = st.none() | st.binary(max_size=5)
HEADERS = st.none() | st.lists(st.tuples(st.text(max_size=3), DATA), max_size=3)
ROWS = st.lists(st.tuples(DATA, DATA, HEADERS), max_size=12)

pytestmark = compiled_here

PYTHON_FIELDS, PYTHON_STAMPS = without_compiled(fields), without_compiled(stamps)
C_FIELDS: Any = fields
C_STAMPS: Any = stamps


def message(row: tuple[Any, Any, Any] = (b"value", b"key", None), partition: int = 0) -> Message:
    value, key, headers = row
    return Message(topic="t", partition=partition, offset=0, value=value, key=key, headers=headers and [*headers])


def refused() -> Message:
    return Message(topic="t", partition=0, offset=0, error=KafkaError(KafkaError._PARTITION_EOF))


def test_both_are_there() -> None:
    for module, names in (
        (C_FIELDS, ("has_error", "of_one_partition", "take")),
        (C_STAMPS, ("none_is_stamp", "are_consecutive")),
    ):
        assert {type(getattr(module, name)).__name__ for name in names} == {"builtin_function_or_method"}
    assert not PYTHON_FIELDS.COMPILED
    assert isinstance(PYTHON_FIELDS.take, type(message))
    assert isinstance(PYTHON_STAMPS.are_consecutive, type(message))


@given(ROWS)
def test_fields_are_taken_alike(rows: list[tuple[Any, Any, Any]]) -> None:
    messages = [message(row) for row in rows]
    taken = C_FIELDS.take(messages)
    assert taken == PYTHON_FIELDS.take(messages)
    values, keys, headers, size = taken
    assert size == C_FIELDS.size(values, keys, headers)
    for place, own in enumerate(headers or []):
        assert own is None or own is not messages[place].headers()


@given(st.lists(st.integers(0, 300), min_size=1, max_size=5), st.integers(0, 5))
def test_partitions_and_errors_are_found_alike(partitions: list[int], errors: int) -> None:
    messages = [message(partition=partition) for partition in partitions]
    assert C_FIELDS.of_one_partition(messages) == PYTHON_FIELDS.of_one_partition(messages)
    mixed = messages[:errors] + [refused()] * (errors < 3) + messages[errors:]
    assert C_FIELDS.has_error(mixed) == PYTHON_FIELDS.has_error(mixed) == (errors < 3)


@given(st.lists(st.none() | st.binary(max_size=6) | st.binary(max_size=3).map(MAGIC.__add__), max_size=5))
def test_what_is_no_stamp_is_found_in_c_wherever_it_is_in_python(values: list[bytes | None]) -> None:
    begins = [value is not None and value.startswith(MAGIC) for value in values]
    assert C_STAMPS.none_is_stamp(values) == (not any(begins))
    assert not PYTHON_STAMPS.none_is_stamp(values) or C_STAMPS.none_is_stamp(values)


@given(
    st.sampled_from([0, 5, 98, 999_999_999_990]),
    st.integers(1, 30),
    st.none() | st.tuples(st.integers(0, 29), st.sampled_from(["drop", "twice", "none", "short", "other", "swap"])),
)
def test_stamps_that_follow_one_another_are_found_alike(begin: int, count: int, change: tuple[int, str] | None) -> None:
    values: list[bytes | None] = [encode(STREAM, begin + each, 7 * each) for each in range(count)]
    if change is not None:
        place, what = change[0] % count, change[1]
        value = values[place] or b""
        replaced: dict[str, list[bytes | None]] = {
            "drop": [], "twice": [value, value], "none": [None], "short": [value[: SEQUENCE.stop - 1]],
            "other": [value.replace(b"run", b"ran")], "swap": [*values[place + 1 : place + 2], value],
        }  # fmt: skip
        values[place : place + (2 if what == "swap" else 1)] = replaced[what]
    first = head(STREAM, begin)
    assert C_STAMPS.are_consecutive(values, first) == PYTHON_STAMPS.are_consecutive(values, first)
    if change is None and begin + count <= 10**12:
        assert C_STAMPS.are_consecutive(values, head(STREAM, begin))


@pytest.mark.parametrize(
    "row", [(0, b"key", None), (b"value", "", None), ("text", "key", {}), (b"value", None, [["a", b"x"], ("b", 0)])]
)
def test_fields_that_only_a_test_can_give_are_taken_alike(row: tuple[Any, Any, Any]) -> None:
    value, key, headers = row
    own = Message(topic="t", partition=0, offset=0)
    own.set_value(value)
    own.set_key(key)
    own.set_headers(headers)
    messages = [own, message((b"value", b"key", [("name", b"data")]))]
    assert C_FIELDS.take(messages) == PYTHON_FIELDS.take(messages)


def test_lists_with_nothing_are_answered_alike() -> None:
    assert C_FIELDS.take([]) == PYTHON_FIELDS.take([])
    assert C_FIELDS.of_one_partition([]) == PYTHON_FIELDS.of_one_partition([])
    assert not C_STAMPS.are_consecutive([], head(STREAM, 0))
    assert not PYTHON_STAMPS.are_consecutive([], head(STREAM, 0))


@pytest.mark.parametrize("module", [C_STAMPS, PYTHON_STAMPS], ids=["C", "Python"])
def test_a_sequence_with_too_many_digits_follows_nothing(module: Any) -> None:
    """Somebody else's commit may have any text."""
    for digits in (13, 25, 40):
        assert not module.are_consecutive([encode(STREAM, 0, 1)], head(STREAM, int("9" * digits)))


def test_a_value_that_is_no_bytes_may_be_a_stamp() -> None:
    """Only a test can give one. False says nothing."""
    assert not C_STAMPS.none_is_stamp(["text", b"value"])


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (function, argument)
        for function in (C_FIELDS.take, C_FIELDS.has_error, C_FIELDS.of_one_partition)
        for argument in (None, (message(),), [b"no message"], [message(), None])
    ]
    + [(C_STAMPS.none_is_stamp, argument) for argument in (None, (b"value",))],
)
def test_what_is_no_list_of_messages_is_refused(function: Callable[[Any], Any], argument: Any) -> None:
    with pytest.raises(TypeError):
        function(argument)


@pytest.mark.parametrize("arguments", [(), ([b""],), ([b""], b"short"), ((), b"x" * 40), ([], "x" * 40)])
def test_wrong_arguments_for_stamps_are_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        C_STAMPS.are_consecutive(*arguments)


def test_nothing_is_kept() -> None:
    headers = [("name", b"data" * 100)]
    messages = [message((b"value" * 100, b"key" * 100, headers)), message((b"value" * 50, None, None))]
    values, keys, taken, _ = C_FIELDS.take(messages)
    watched = [*messages, *values, keys[0], taken[0][0], messages, Message, None]
    begin = encode(STREAM, 0, 1)
    stamped = [begin]
    broken = [*messages, None]

    def use() -> None:
        for _ in range(1000):
            assert C_FIELDS.take(messages)[0]
            assert not C_FIELDS.has_error(messages)
            assert C_FIELDS.of_one_partition(messages)
            assert not C_STAMPS.none_is_stamp(stamped)
            assert C_STAMPS.are_consecutive(stamped, begin[:40])
            for function in (C_FIELDS.take, C_FIELDS.has_error, C_FIELDS.of_one_partition):
                with pytest.raises(TypeError):
                    function(broken)

    use()
    before = [sys.getrefcount(each) for each in watched]
    use()
    after = [sys.getrefcount(each) for each in watched]
    # None is everywhere: others change their count of it too. From 3.12 on nobody counts it.
    assert after[:-1] == before[:-1]
    assert abs(after[-1] - before[-1]) < 500


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_the_compiler_finds_nothing_to_warn_of(source: Path) -> None:
    compiler = shlex.split(sysconfig.get_config_var("CC"))
    options = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-c", "-o", os.devnull]
    command = [*compiler, *options, "-isystem", sysconfig.get_path("include"), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def build() -> Any:
    """The module hatch_build."""
    spec: Any = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_sources_are_compiled(build: Any) -> None:
    assert [str(source.relative_to(ROOT)) for source in SOURCES] == sorted(build.SOURCES)


def test_a_checkout_that_is_installed_again_has_nothing_compiled_from_an_earlier_source(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(build.VARIABLE, "no")
    earlier = [(tmp_path / source).with_suffix(sysconfig.get_config_var("EXT_SUFFIX")) for source in build.SOURCES]
    for path in earlier:
        path.parent.mkdir(parents=True)
        path.touch()
    build.CompilingHook(str(tmp_path), {}, None, None, "", "wheel").initialize("editable", {})
    assert not any(path.exists() for path in earlier)
