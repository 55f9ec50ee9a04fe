"""Configurations that nobody meant. The rule: each is read, or told about in lines that name a place; nothing else."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.adapters.config import load_config
from headgate.core.errors import ConfigError

EXAMPLE = (Path(__file__).parents[2] / "examples/headgate.toml").read_text(encoding="utf-8")
KEY = "sk-ant-the-key-itself"
ENVIRON = {"ANTHROPIC_API_KEY": KEY, "OPENAI_API_KEY": KEY, "HOME": "/home/me"}

GARBAGE = [
    "",
    "[",
    "]",
    "[[",
    "]]",
    "=",
    '"',
    "'",
    "#",
    "\n",
    ",",
    "{}",
    "{",
    ".",
    "\\",
    "1",
    "-",
    "0x",
    "1e9",
    "nan",
    "true",
]
GARBAGE += [
    "[[limit]]\n",
    "[server]\n",
    "scope",
    "usd_per_day = 1\n",
    '"env:X"',
    "\0",
    "é",
    "\ud7ff",
    "9" * 5000,
    "a = 1\n",
]
EDITS = st.tuples(st.floats(0, 1), st.integers(0, 30), st.sampled_from(GARBAGE))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "headgate.toml"


def check_fuzzed(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    try:
        load_config(path, ENVIRON)
    except ConfigError as error:
        told = str(error)
    else:
        return
    assert KEY not in told
    for line in told.split("\n"):
        place = re.match(rf"{re.escape(str(path))}:(\d+): .", line)
        assert place is not None, line
        assert 1 <= int(place[1]) <= text.count(b"\n") + 1
        assert line.isprintable()
        assert len(line) < 400 + len(str(path))


@given(st.lists(EDITS, min_size=1, max_size=4))
def test_a_valid_file_that_was_edited_at_random_is_read_or_told_about_by_line(
    scratch: Path, edits: list[tuple[float, int, str]]
) -> None:
    text = EXAMPLE
    for where, removed, inserted in edits:
        at = int(where * len(text))
        text = text[:at] + inserted + text[at + removed :]
    check_fuzzed(scratch, text.encode())


VALUES = [
    "-1",
    "0",
    "true",
    "1e400",
    "nan",
    '""',
    '"x"',
    '"*"',
    "[]",
    "[[1]]",
    "{}",
    "{ a = 1 }",
    "1979-05-27",
    "10",
    "0.5",
]


@given(st.data())
def test_a_valid_file_whose_values_were_exchanged_is_read_or_told_about_by_line(
    scratch: Path, data: st.DataObject
) -> None:
    rows = EXAMPLE.split("\n")
    assigned = [number for number, row in enumerate(rows) if re.match(r"[a-z_0-9]+ = ", row)]
    for number in data.draw(st.lists(st.sampled_from(assigned), min_size=1, max_size=5)):
        word = rows[number].partition(" = ")[0]
        rows[number] = f"{word} = {data.draw(st.sampled_from(VALUES))}"
    check_fuzzed(scratch, "\n".join(rows).encode())


@given(st.binary(max_size=200))
def test_bytes_that_are_no_configuration_are_told_about_by_line(scratch: Path, raw: bytes) -> None:
    check_fuzzed(scratch, raw)
