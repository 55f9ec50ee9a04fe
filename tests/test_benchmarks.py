"""The face of the benchmarks: rows are found by their files, and what is asked wrongly is told before anything runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Give a folder with the face and two rows that take no time."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name in ("__init__.py", "__main__.py"):
        (folder / name).write_text((ROOT / "benchmarks" / name).read_text())
    (folder / "b10_plain.py").write_text(
        "from benchmarks.__main__ import Result\n"
        "TITLE = 'the plain one'\n"
        "def run(options):\n"
        "    options.say(f'quick: {options.quick}')\n"
        "    return Result(headgate=3, rival=1.5, target=2, met=True)\n"
    )
    (folder / "b9_broken.py").write_text("TITLE = ''\ndef run(options):\n    raise LookupError('no rival')\n")
    (folder / "not_a_row.py").write_text("raise SystemExit('imported without being asked for')")
    return tmp_path


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_a_row_shows_its_table_and_ends_with_its_result(rows: Path) -> None:
    done = bench(rows, "b10", "--quick")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[:2] == ["B10  the plain one", "quick: True"]
    assert json.loads(lines[-1]) == {
        "row": "B10", "headgate": 3, "rival": 1.5, "target": 2, "met": True, "note": ""
    }  # fmt: skip


def test_one_row_that_breaks_off_does_not_stop_the_others(rows: Path) -> None:
    done = bench(rows, "all", "--json")
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert results[0] == {"row": "B9", "error": "LookupError: no rival"}
    assert results[1]["row"] == "B10"


@pytest.mark.parametrize("arguments", [("B1", "Z9"), (), ("B10", "--data", "no such folder")])
def test_what_is_asked_wrongly_is_told_before_anything_runs(rows: Path, arguments: tuple[str, ...]) -> None:
    done = bench(rows, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_every_row_of_the_project_has_what_the_face_needs() -> None:
    code = (
        "import importlib, benchmarks.__main__ as face\n"
        "for name in face.rows().values():\n"
        "    module = importlib.import_module(f'benchmarks.{name}')\n"
        "    assert callable(module.run) and module.TITLE, name\n"
        "print(*face.rows())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "B1" in done.stdout.split()
