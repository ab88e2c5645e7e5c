"""Plain English: a sentence names its subject and uses Kafka's words, so that one reading is enough.

The patterns are few. One that has many right uses is left out, as a false alarm costs more than it finds.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from markdown_it import MarkdownIt

from workers.cli.main import cli

ROOT = Path(__file__).parents[2]
CODE = ("workers/**/*.py", "tests/**/*.py", "bench/**/*.py", "examples/**/*.py")
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "docs/*.md",
    "charts/*/README.md",
    "examples/*/README.md",
    "workers/new-project/README.md",
)
SETTINGS = ("charts/*/values.yaml", "examples/*/values.yaml", "workers/new-project/values.yaml")
ALERTS = ("charts/*/templates/prometheus-rule.yaml",)
NOTES = ("charts/*/templates/NOTES.txt",)

LONGEST_SENTENCE_WORDS = 45
LOGGING = {"debug", "info", "warning", "error", "exception", "critical"}


class Pattern(NamedTuple):
    """A regular expression that finds a sentence to rewrite, and how to rewrite it."""

    regex: re.Pattern[str]
    remedy: str


PATTERNS = [
    Pattern(
        re.compile(r"^\W*What\b(?!.*\?\W*$)", re.DOTALL),
        "begin with the subject (message, offset, partition, broker, member, producer) instead of 'What'",
    ),
    Pattern(re.compile(r"\b(is|are|was|were) what\b"), "name the thing instead of 'is what'"),
    Pattern(re.compile(r"\b(is|are|was|were) away\b"), "say 'unreachable' or 'unavailable' instead of 'away'"),
    Pattern(re.compile(r"\b[Ss]o (many|much)\b"), "say 'this many', or name what is counted"),
    Pattern(re.compile(r"\b(is|are|was|were) there (once|twice)\b"), "say where it occurs, and how often"),
    Pattern(re.compile(r"\b[Hh]ears?\b"), "say 'receives', or name the callback"),
    Pattern(re.compile(r"\brefuse[sd]? us\b"), "say 'authentication failed', or which error the broker returned"),
    Pattern(
        re.compile(r"\b(told|tells?|telling) apart\b|\btime was up\b|\brests on\b"),
        "say 'distinguish', 'timed out', 'requires'",
    ),
    Pattern(re.compile(r"\bas it were\b|\bkept to itself\b|^\W*Books\b"), "say it literally, in Kafka's words"),
]


class Text(NamedTuple):
    """A paragraph, a cell, a comment or a message, and where it begins."""

    place: str
    line: int
    text: str


def sentences(text: Text) -> Iterator[Text]:
    """The sentences of a text, each with its own line."""
    for found in re.finditer(
        r"\S.*?(?:(?<!\.\.)[.!?][\"'”)*`]*(?=\s)|\n\s*\n|\n\s*(?=[-*] )|\Z)", text.text, re.DOTALL
    ):
        yield Text(text.place, text.line + text.text.count("\n", 0, found.start()), " ".join(found[0].split()))


def findings(text: Text) -> Iterator[str]:
    for place, line, sentence in sentences(text):
        where = f"{place}:{line}" if line else place
        for regex, remedy in PATTERNS:
            if regex.search(sentence):
                yield f"{where}: {remedy}: {sentence}"
        # The clauses of a list are as easy to read as sentences.
        if max(len(clause.split()) for clause in sentence.split("; ")) > LONGEST_SENTENCE_WORDS:
            yield f"{where}: more than {LONGEST_SENTENCE_WORDS} words; make two sentences of it: {sentence}"


def files(*patterns: str) -> Iterator[tuple[str, str]]:
    """Path from the root, and content, of the files."""
    for path in sorted(each for pattern in patterns for each in ROOT.glob(pattern)):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def comments(name: str, source: str) -> Iterator[Text]:
    """Comments; one that goes on in the lines below it is one text."""
    first = last = column = 0
    lines: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        row, at = token.start
        if lines and (row, at) != (last + 1, column):
            yield Text(name, first, "\n".join(lines))
            lines = []
        if not lines:
            first, column = row, at
        lines.append(token.string.lstrip("#!: "))
        last = row
    if lines:
        yield Text(name, first, "\n".join(lines))


def strings(name: str, source: str) -> Iterator[Text]:
    """Docstrings, also those below an attribute, and the texts of the package's errors, log lines and `help`."""
    told = name.startswith("workers/")
    tree = ast.parse(source)
    for node in ast.walk(tree) if told else statements(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield Text(name, node.lineno, text)
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called)) if told:
                texts = [each.value for each in node.keywords if each.arg == "help"]
                if called in LOGGING or called.endswith("Error"):
                    texts += node.args
                yield from (Text(name, each.lineno, text) for each in texts if (text := literal(each)))


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """The statements in a node, without the expressions in them, which are most of a tree."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield child
            yield from statements(child)


def literal(node: ast.expr) -> str:
    """The text of a string; `{}` stands for what an f-string puts in."""
    match node:
        case ast.Constant(value=str(text)):
            return text.replace("\n", " ")
        case ast.JoinedStr(values=parts):
            return "".join(literal(part) or "{}" for part in parts)
    return ""


def page(name: str, source: str) -> Iterator[Text]:
    """Paragraphs, headings, items of lists and cells of tables, without the code between them."""
    lines: list[int] = [0]
    for token in MarkdownIt("commonmark").enable("table").parse(source):
        if token.map:
            lines[:] = [token.map[0] + 1]
        if token.type == "inline":
            yield Text(name, lines[0], token.content)


def notes(name: str, source: str) -> Iterator[Text]:
    """The notes of the chart, without the indented commands; `{}` stands for each action of the template."""
    text = re.sub(r"\{\{.*?\}\}", lambda action: "{}" + "\n" * action[0].count("\n"), source, flags=re.DOTALL)
    yield Text(name, 1, re.sub(r"^(?: {2}.*|(?:\{\})+)$", "", text, flags=re.MULTILINE))


def helps(command: click.Command, words: str) -> Iterator[Text]:
    """The help of a command, of its options, and of the commands below it."""
    yield Text(f"{words} --help", 0, command.help or "")
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.help:
            yield Text(f"{words} --help, {parameter.opts[0]}", 0, parameter.help)
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from helps(below, f"{words} {name}")


def check(texts: Iterable[Text]) -> None:
    found = [finding for text in texts for finding in findings(text)]
    if found:
        pytest.fail(f"{len(found)} sentences to rewrite:\n" + "\n".join(found), pytrace=False)


def test_comments_docstrings_and_messages_are_plain_english() -> None:
    check(text for name, source in files(*CODE) for text in (*comments(name, source), *strings(name, source)))


def test_pages_are_plain_english() -> None:
    check(text for name, source in files(*PAGES) for text in page(name, source))


def test_help_is_plain_english() -> None:
    check(helps(cli, "kafka-workers"))


def test_settings_and_alerts_are_plain_english() -> None:
    check(
        Text(name, number, found[1])
        for patterns, regex in ((SETTINGS, r"^\s*# ?(.+)"), (ALERTS, r"^\s*(?:summary|description): (.+)"))
        for name, source in files(*patterns)
        for number, line in enumerate(source.splitlines(), 1)
        if (found := re.search(regex, line))
    )


def test_the_notes_of_the_chart_are_plain_english() -> None:
    check(text for name, source in files(*NOTES) for text in notes(name, source))


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ("What retention has deleted is counted.", "What does retention delete?"),
        ("The second page. What is beyond that is forgotten.", "The consumer forgets what is beyond that."),
        ("A ledger is what version 0.1 wrote.", "Version 0.1 wrote a ledger."),
        ("Brokers that are away do not fail the probe.", "Unreachable brokers do not fail the probe: far away or not."),
        ("Stop after so many messages.", "Stop after this many messages."),
        ("With `--exactly-once` it is there once.", "With `--exactly-once` it is committed once."),
        ("The client hears of the delivery.", "The client receives the delivery report."),
        ("the brokers refuse us, {}", "the brokers refused the request, {}"),
        ("Lost ones can be told apart.", "`verify` distinguishes lost ones."),
        ("Books the values at once.", "Record the values, for the books of the run."),
        ("word " * 46, "word " * 44 + "word; " + "word " * 45),
    ],
)
def test_each_pattern_finds_a_bad_sentence_and_passes_a_good_one(bad: str, good: str) -> None:
    assert len([*findings(Text("page", 1, bad))]) == 1
    assert [*findings(Text("page", 1, good))] == []


def places(*texts: Text) -> list[str]:
    return [finding.partition(": ")[0] for text in texts for finding in findings(text)]


def test_a_finding_names_the_file_and_the_line_of_its_sentence() -> None:
    source = '"""Title.\n\nA sentence in\ntwo lines. What follows\nis bad.\n"""\n\n# Good.\n# What is bad.\nprint()\n'
    assert places(*strings("a.py", source), *comments("a.py", source)) == ["a.py:4", "a.py:9"]
    source = "Good.\n\n| a | b |\n| - | - |\n| c | What d |\n\n    What code\n"
    assert places(*page("a.md", source)) == ["a.md:5"]


def test_the_notes_are_checked_without_their_commands_and_actions() -> None:
    source = (
        "{{- $a := 1 -}}\nGood.\n{{/* What\n a */}}\n  What command\n{{ if $a }}\nWhat {{ $a }} prints:\n{{ end }}\n"
    )
    assert places(*notes("NOTES.txt", source)) == ["NOTES.txt:7"]


def test_the_texts_of_errors_log_lines_and_help_are_checked() -> None:
    source = (
        'raise ConfigError(\n    f"x {y}. What z")\nlog.info("a. What b")\noption(help="What c")\nother("What d")\n'
    )
    assert places(*strings("workers/a.py", source)) == ["workers/a.py:2", "workers/a.py:3", "workers/a.py:4"]
