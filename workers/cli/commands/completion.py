"""Declares `completion`."""

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands, options, topics, groups and handlers in a shell."""
    from workers.cli.completion import script

    click.echo(script(shell), nl=False)
