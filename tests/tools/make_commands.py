"""Writes docs/reference/commands.md from the command line itself; `make reference` runs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer
from thinrow.cli.app import app

HEAD = """# Commands

Written by `make reference` from the commands themselves, so options and defaults are those of the
code. Durations are a number and `ms`, `s`, `m`, `h`, `d` or `w`. Times are milliseconds since the
epoch, or ISO 8601 in UTC.
"""


def page() -> str:
    """Returns the page: a table of options for each command."""
    return "\n".join([HEAD, *sections("thinrow", typer.main.get_command(app))])


def sections(name: str, command: Any) -> list[str]:  # noqa: ANN401 - Typer's own kind of command
    """Returns the sections of a command or of those in a group."""
    if hasattr(command, "commands"):
        return [
            line
            for each, inner in command.commands.items()
            for line in sections(f"{name} {each}", inner)
        ]
    rows = [row(parameter) for parameter in command.params]
    table = ["| option | default | meaning |", "| --- | --- | --- |", *rows] if rows else []
    return [f"## {name}", "", command.help, "", *table, *([""] if rows else [])]


def row(parameter: Any) -> str:  # noqa: ANN401
    """Returns the table row of an option or argument."""
    names = ", ".join(f"`{each}`" for each in [*parameter.opts, *parameter.secondary_opts])
    if parameter.param_type_name == "argument":
        names = f"`{parameter.metavar or parameter.name.upper()}`"
    shown = parameter.show_default
    if parameter.required:
        default = "required"
    elif isinstance(shown, str):
        default = shown
    elif parameter.default is None or parameter.default == "" or shown is False:
        default = ""
    elif isinstance(parameter.default, bool):
        default = "on" if parameter.default else "off"
    else:
        default = f"`{parameter.default}`"
    meaning = " ".join((parameter.help or "").split()).replace("|", "\\|")
    return f"| {names} | {default} | {meaning} |"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
