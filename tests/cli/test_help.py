"""Help can be read on a terminal of 80 columns: no option is cut."""

import subprocess
import sys
from typing import get_args

import pytest

from headgate.cli.main import app
from headgate.core.ledger import GroupBy

COMMANDS = [[str(each.name or each.callback.__name__)] for each in app.registered_commands]
COMMANDS += [
    [str(group.name), str(each.name)]
    for group in app.registered_groups
    for each in group.typer_instance.registered_commands
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_option_is_cut_at_80_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = subprocess.run(
        [sys.executable, "-m", "headgate", *command, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "\N{HORIZONTAL ELLIPSIS}" not in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "--help" in done.stdout


def test_usage_has_all_that_it_can_group_by():
    command = [sys.executable, "-m", "headgate", "usage", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert [word for word in get_args(GroupBy) if word not in done.stdout] == []


def test_the_extra_that_a_picture_needs_is_named():
    """`[plot]` was taken for markup: the help said that it needs headgate."""
    done = subprocess.run(
        [sys.executable, "-m", "headgate", "simulate", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "headgate[plot]" in done.stdout
