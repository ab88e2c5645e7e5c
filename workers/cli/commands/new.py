"""Declares `new`."""

from pathlib import Path

import click


@click.command()
@click.argument("name")
@click.option(
    "--directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Directory to create; it may exist if it is empty.  [default: NAME]",
)
def new(name: str, directory: Path | None) -> None:
    """Make a project to start from: a source, a handler, their tests, an image, and values for Kubernetes.

    NAME becomes that of the directory, of the image and, with dashes as underscores, of the Python package.
    """
    from workers.cli.new import new as run

    run(name, directory or Path(name))
