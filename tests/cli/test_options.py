"""What is given to an option and cannot be used is said in one line: the option, the value, what is expected."""

import pytest

from headgate.cli.main import main


def say(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["headgate", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("provider --burst-s -1", "--burst-s -1: expected a number from 0.001 to 86,400"),
        ("provider --burst-s nan", "--burst-s nan: expected a number from 0.001 to 86,400"),
        ("provider --quantum-s 0", "--quantum-s 0: expected a number from 0.001 to 60"),
        ("provider --tokens-per-second 0", "--tokens-per-second 0: expected a number from 0.001 to 1,000,000,000"),
        ("provider --tokens-per-second fast", "--tokens-per-second fast: expected a number from 0.001 to "),
        ("provider --first-token-s -1", "--first-token-s -1: expected a number from 0 to 86,400"),
        ("provider --idle-exit-s -1", "--idle-exit-s -1: expected a number from 0.001 to 1,000,000,000"),
        ("provider --requests-per-minute 0", "--requests-per-minute 0: expected a whole number from 1 to "),
        ("provider --fault 529=2", "--fault 529=2: expected a probability from 0 to 1 behind the =, such as 529=0.05"),
        ("provider --fault 529", "--fault 529: expected a probability from 0 to 1 behind the =, such as 529=0.05"),
        ("provider --fault flood=1", "--fault flood=1: expected one of 402, 403, 429, "),
        ("provider --sessions /no/such", "--sessions /no/such: there is no such folder"),
        ("simulate agents:2 --seed abc", "--seed abc: expected a whole number from "),
        ("simulate agents:2 --speed fast", "--speed fast: expected a number"),
        ("simulate agents:2 --agents-scale 1 --agents-scale nan", "--agents-scale nan: expected a number"),
        ("simulate agents:2 --agents 0", "--agents 0: expected a whole number from 1 to 100,000"),
        ("budget --check --at 900", "--at 900: expected a whole number from 1 to 100"),
        ("reserve create run:x --until 1h --amount -5", "--amount -5: expected a whole number from 1 to "),
        ("run tasks.jsonl --agents 0", "--agents 0: expected a whole number from 1 to 100,000"),
        ("run tasks.jsonl --attempts 1.5", "--attempts 1.5: expected a whole number from 1 to 1,000"),
        ("run tasks.jsonl --speed -1", "--speed -1: expected a number from 0.001 to 1,000,000"),
        ("run tasks.jsonl --speed 0", "--speed 0: expected a number from 0.001 to 1,000,000"),
    ],
)
def test_a_number_that_cannot_be_is_one_line_with_option_and_value(monkeypatch, capsys, arguments, told):
    """`provider --burst-s -1` was a traceback, and `--at 900` a box without the 900."""
    code, said = say(monkeypatch, capsys, *arguments.split())
    assert code == 2
    assert said.startswith(f"headgate: {told}")
    assert said.count("\n") == 1
