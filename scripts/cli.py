"""The `accelgen` command."""

import click

import accelgen


@click.group()
@click.version_option(accelgen.__version__, prog_name="accelgen")
def main() -> None:
    """AccelGen: a language-model server that keeps each request's objective."""
