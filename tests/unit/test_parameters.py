"""The typed options of each command are those that click declares."""

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from datetime import datetime
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
import pytest

from workers.cli.commands.canary import CanaryOptions
from workers.cli.commands.consume import ConsumeOptions
from workers.cli.commands.dead_letters import (
    BrowseDeadLettersOptions,
    DiscardOptions,
    ListDeadLettersOptions,
    ReplayOptions,
    ShowDeadLettersOptions,
)
from workers.cli.commands.lag import LagOptions
from workers.cli.commands.lag_exporter import LagExporterOptions
from workers.cli.commands.offsets import ResetOffsetsOptions, ShowOffsetsOptions
from workers.cli.commands.produce import ProduceOptions
from workers.cli.commands.top import TopOptions
from workers.cli.commands.verify import VerifyOptions
from workers.cli.context import Context
from workers.cli.main import cli
from workers.cli.options import CONNECTION, SECRETS, OffsetTarget, Regex, Time
from workers.cli.parameters import ConnectionOptions, build

KINDS: dict[str, type[Any]] = {
    "produce": ProduceOptions,
    "consume": ConsumeOptions,
    "lag": LagOptions,
    "lag-exporter": LagExporterOptions,
    "canary": CanaryOptions,
    "top": TopOptions,
    "verify": VerifyOptions,
    "offsets show": ShowOffsetsOptions,
    "offsets reset": ResetOffsetsOptions,
    "dead-letters list": ListDeadLettersOptions,
    "dead-letters browse": BrowseDeadLettersOptions,
    "dead-letters show": ShowDeadLettersOptions,
    "dead-letters replay": ReplayOptions,
    "dead-letters discard": DiscardOptions,
}
REQUIRED = {
    "dead-letters": ["--topic", "orders.dlq"],
    "offsets reset": ["--group-id", "g", "--to", "end"],
}
COMMANDS = pytest.mark.parametrize("command", KINDS)


def _fields(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Names and types, those of the parts among them."""
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from get_type_hints(hint).items()
        else:
            yield name, hint


def _parse(command: str, *arguments: str) -> click.Context:
    return _command(command).make_context(
        command, [*REQUIRED.get(command, REQUIRED.get(command.split()[0], ())), *arguments]
    )


def _command(words: str) -> click.Command:
    command: click.Command = cli
    for word in words.split():
        assert isinstance(command, click.Group)
        command = command.commands[word]
    return command


def _declared(parameter: click.Parameter, default: object) -> set[Any]:
    """The values that click gives for an option: its type, or the words of a choice; None where that is the default."""
    assert isinstance(parameter, click.Option)
    given: set[Any]
    match parameter.type:
        case _ if parameter.multiple:
            return {tuple}
        case click.Choice(choices=choices):
            given = set(choices)
        case click.IntRange():
            given = {int}
        case click.FloatRange():
            given = {float}
        case Regex():
            given = {re.Pattern}
        case OffsetTarget():
            given = {str, int, datetime}
        case Time():
            given = {datetime}
        case click.types.FuncParamType():
            given = {Path}
        case _:
            given = {bool} if parameter.is_flag else {str}
    return given | ({NoneType} if default is None else set())


def _typed(hint: Any) -> set[Any]:
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    if get_origin(hint) in (tuple, re.Pattern):
        return {get_origin(hint)}
    return set().union(*map(_typed, get_args(hint))) if get_args(hint) else {hint}


@COMMANDS
def test_each_option_of_a_command_is_a_field_of_its_name_and_type(command: str) -> None:
    parameters = _command(command).params
    parsed = _parse(command).params
    names = [name for name, _ in _fields(KINDS[command])]
    assert len(names) == len(set(names))
    assert {name: _typed(hint) for name, hint in _fields(KINDS[command])} == {
        each.name: _declared(each, parsed[each.name]) for each in parameters
    }


@COMMANDS
def test_the_options_hold_what_click_has_parsed(command: str) -> None:
    parsed = _parse(command, "--log-level", "debug", "--property", "a=1", "--property", "b=2").params
    options = build(KINDS[command], parsed)
    assert options.connection.log_level == "debug"
    assert options.connection.properties == ("a=1", "b=2")
    names = ("connection", "metrics", "worker", "registry", "dead_letters")
    parts = [options, *(getattr(options, name, None) for name in names)]
    found = {name: getattr(part, name) for name in parsed for part in parts if hasattr(part, name)}
    assert found == parsed


def test_the_options_that_are_librdkafka_properties_are_fields() -> None:
    assert {*CONNECTION, *(name for name, _, _ in SECRETS)} <= set(get_type_hints(ConnectionOptions))


def test_asking_where_a_misspelt_option_came_from_is_an_error() -> None:
    with _parse("consume", "--group-id", "g") as click_context:
        context = Context(build(ConsumeOptions, click_context.params).connection)
        assert context.origin("group_id") == "--group-id"
        for ask in (context.given, context.origin, context.precedence):
            with pytest.raises(KeyError):
                ask("group-id")
