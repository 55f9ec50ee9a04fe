"""The tables of the questions fit the terminal, and no number in them is ever broken."""

import pytest

from headgate.cli.tables import print_table

COLUMNS = ["account", "model", "requests", "cost", "cache read"]
LONG = ("search-team-production-account", "claude-sonnet-4-5-20250929")
ROWS = [[*LONG, "12,345,678", "$0.000042", "9,876,543,210"], ["main", "gpt-5", "1", "$12.35", "0"]]
FIGURES = ["12,345,678", "$0.000042", "9,876,543,210"]


def printed(capsys, monkeypatch, width: int | None, rows=ROWS) -> list[str]:
    monkeypatch.delenv("COLUMNS", raising=False)
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
    print_table(COLUMNS, rows, names=2)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("width", "figures"), [(120, 3), (80, 3), (70, 2), (60, 2), (50, 1), (30, 1)])
def test_figures_are_whole_or_left_out_and_names_are_folded(capsys, monkeypatch, width, figures):
    lines = printed(capsys, monkeypatch, width)
    assert all(len(line) <= width for line in lines) or width < 50
    text = "\n".join(lines)
    assert [figure in text for figure in FIGURES] == [at < figures for at in range(3)]
    assert ("too narrow for" in text) == (figures < 3)
    if figures < 3:
        assert COLUMNS[-1] in text[text.index("too narrow for") :]
    cells = [lines[0].index("model"), lines[0].index("requests")]
    rows = lines[1 : next(number for number, line in enumerate(lines) if line.startswith("main"))]
    account = "".join(line[: cells[0]].strip() for line in rows)
    model = "".join(line[cells[0] : cells[1]].split("  ")[0].strip() for line in rows)
    assert (account, model) == LONG


def test_into_a_pipe_nothing_is_folded_or_left_out(capsys, monkeypatch):
    lines = printed(capsys, monkeypatch, None)
    assert len(lines) == 3
    assert all(cell in lines[1] for cell in ROWS[0])


def test_names_are_shown_as_they_are(capsys, monkeypatch):
    assert "[bold]x[/]" in printed(capsys, monkeypatch, 80, [["[bold]x[/]", "", "1", "2", "3"]])[1]
