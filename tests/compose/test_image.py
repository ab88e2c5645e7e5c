"""The image: what is in it, and that it needs nothing but itself."""

import json

import pytest

from tests.compose.engine import BASE_IMAGE, IMAGE, docker, output

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("image")]

MEGABYTE = 1_000_000


def size_of(image: str) -> int:
    return int(output("image", "inspect", "--format", "{{.Size}}", image))


def test_our_layers_are_under_40_megabytes() -> None:
    assert size_of(IMAGE) - size_of(BASE_IMAGE) < 40 * MEGABYTE


def test_it_runs_without_privileges_on_a_read_only_root_and_without_a_network() -> None:
    locked_down = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none")
    assert output("run", "--rm", *locked_down, IMAGE, "--version").startswith("kafka-workers ")
    config = json.loads(output("image", "inspect", "--format", "{{json .Config}}", IMAGE))
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["kafka-workers"]
    assert config["Labels"]["org.opencontainers.image.title"] == "kafka-workers"


def test_every_module_has_its_bytecode() -> None:
    """As nobody can write it later."""
    program = (
        "import pathlib, sys; root = pathlib.Path(sys.prefix, 'lib');"
        "print(*(p for p in root.rglob('*.py') if not list(p.parent.glob(f'__pycache__/{p.stem}.cpython-*.pyc'))))"
    )
    assert output("run", "--rm", "--entrypoint", "python", IMAGE, "-c", program).strip() == ""


def test_the_classic_builder_builds_it_too() -> None:
    result = docker("build", "--tag", f"{IMAGE}-classic", ".", env={"DOCKER_BUILDKIT": "0"}, timeout_s=600)
    try:
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
        assert abs(size_of(f"{IMAGE}-classic") - size_of(IMAGE)) < MEGABYTE
    finally:
        docker("image", "rm", f"{IMAGE}-classic")
