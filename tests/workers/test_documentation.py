"""What the documentation says of the code is made from the code."""

import re
from pathlib import Path

from click.testing import CliRunner

from workers.cli import cli
from workers.metrics import markdown

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
