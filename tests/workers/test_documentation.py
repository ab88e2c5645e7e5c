"""What the documentation says of the code is made from the code."""

import re
from pathlib import Path

from click.testing import CliRunner

from tests.faults.faults import FAULTS
from tests.faults.report import BEGIN, END
from workers.cli.main import cli
from workers.monitoring.metrics import markdown

ROOT = Path(__file__).parents[2]
# Commands of others, whose options are theirs, up to the end of the line or of the quotation.
OTHERS = "docker|helm|helm4|kind|kubectl|make|pip|skaffold"


def test_the_metrics_page_has_the_tables_of_the_code() -> None:
    assert markdown() in (ROOT / "docs" / "metrics.md").read_text()


def test_every_option_in_the_readme_exists() -> None:
    helps = "".join(CliRunner().invoke(cli, [name, "--help"]).output for name in cli.commands)
    readme = re.sub(rf"\b({OTHERS})\b[^`\n]*", "", (ROOT / "README.md").read_text())
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", readme)) - {"--version"}
    assert {"--input", "--handler"} <= options
    assert {option for option in options if option not in helps} == set()


def test_every_promise_in_the_readme_names_tests_that_exist() -> None:
    table = (ROOT / "README.md").read_text().partition("## What is promised")[2].partition("### Faults")[0]
    promises = [line for line in table.splitlines() if line.startswith("| ")][2:]
    tests = set(re.findall(r"def (test_\w+)", "".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))))
    named = [re.findall(r"`(test_\w+)`", line.split("|")[3]) for line in promises]
    assert len(promises) > 5
    assert all(named)
    assert {name for names in named for name in names} - tests == set()


def test_the_readme_has_every_fault_of_the_suite() -> None:
    table = (ROOT / "README.md").read_text().partition(BEGIN)[2].partition(END)[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")][2:]
    assert rows == [fault.name for fault in FAULTS]
