"""The references have every command with its options, and every path with its methods: what is missing fails here."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from headgate.cli.main import app
from headgate.gateway.control import PATHS, methods_of

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
COMMAND_LINE = (REFERENCE / "command-line.md").read_text(encoding="utf-8")
CONTROL_API = (REFERENCE / "control-api.md").read_text(encoding="utf-8")


def commands(group, before=()):
    for name, command in group.commands.items():
        words = (*before, name)
        if hasattr(command, "commands"):
            yield from commands(command, words)
        else:
            yield " ".join(words), [option for each in command.params for option in each.opts if option[:2] == "--"]


@pytest.mark.parametrize(("command", "options"), list(commands(get_command(app))), ids=str)
def test_every_command_and_option_is_in_the_reference(command, options):
    assert re.search(rf"`(headgate )?{command}[` ]", COMMAND_LINE), command
    assert [option for option in options if option not in COMMAND_LINE] == []


@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_in_the_reference_with_its_methods(path):
    row = next(line for line in CONTROL_API.splitlines() if line.startswith((f"| [`{path}`]", f"| `{path}`")))
    methods = methods_of(path.replace("ID", "0a"))
    assert methods
    assert set(row.split("|")[2].replace(" ", "").split(",")) == {each for each in methods if each != "HEAD"}
