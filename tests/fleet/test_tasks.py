"""TASKS: whatever is wrong is said by file and line before anything runs."""

import gzip
import json

import pytest

from headgate.adapters import tasks
from headgate.adapters.tasks import Task, folder_name, jobs_of, read_tasks
from headgate.core.errors import CallerError
from headgate.core.jobs import Job


def said(path) -> list[str]:
    with pytest.raises(CallerError) as caught:
        read_tasks(path)
    return str(caught.value).splitlines()


def write(path, text: str | bytes):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_lines_are_objects_or_texts(tmp_path):
    path = write(tmp_path / "t.jsonl", '\ufeff{"name": "a", "prompt": "x", "n": 1}\r\n\n"do it"\n{"id": 7}\n')
    found = read_tasks(path)
    assert found.kind == "tasks"
    assert found.tasks == [
        Task("a", {"name": "a", "prompt": "x", "n": 1}, f"{path}:1"),
        Task("2", {"task": "do it"}, f"{path}:3"),
        Task("7", {"id": 7}, f"{path}:4"),
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{'a': 1}", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        ('{"a": NaN}', "not JSON: NaN is no JSON number"),
        ("[1]", "expected an object of fields or a text, not a list"),
        ("null", "expected an object of fields or a text, not null"),
        ("true", "expected an object of fields or a text, not a truth value"),
        ("{}", "an empty task; expected at least one field"),
        ('{"a": "\\ud800"}', "holds half a surrogate pair, which is no character"),
        (b'"\xff"', "not UTF-8: byte 2 of the line is 0xff"),
        ("[" * 100_000, "nested too deeply"),
        ('{"name": ["x"]}', "its name is a list; expected a text or a whole number"),
        ('{"name": true}', "its name is a truth value; expected a text or a whole number"),
        ('{"name": ""}', "its name '' is not 1 to 200 visible characters"),
        ('{"name": "a\\nb"}', "its name 'a\\nb' is not 1 to 200 visible characters"),
        ('{"name": "first"}', "its name 'first' is that of"),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path, line, why):
    line = line.encode() if isinstance(line, str) else line
    path = write(tmp_path / "t.jsonl", b'{"name": "first"}\n' + line + b'\n"third"\n')
    (only,) = said(path)
    assert only.startswith(f"{path}:2: {why}")


def test_all_broken_lines_are_listed_to_a_bound(tmp_path):
    path = write(tmp_path / "t.jsonl", "{\n" * 30)
    lines = said(path)
    assert (len(lines), lines[0].split(": ")[0], lines[-1]) == (21, f"{path}:1", "and 10 more")


def test_what_is_wrong_is_told_in_the_order_of_the_lines_whatever_it_is(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"name": "a"}\n{"name": "a"}\n{broken\n{"name": "a"}\n' + "{broken\n" * 30)
    with pytest.raises(CallerError) as caught:
        read_tasks(path)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines[:20]] == [f"{path}:{number}" for number in range(2, 22)]
    assert lines[20] == "and 13 more"


def test_a_line_that_is_too_long_is_refused_without_being_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "MOST_LINE_BYTES", 100)
    path = write(tmp_path / "t.jsonl", '"a"\n"' + "x" * 1000 + '"\n"b"\n"' + "y" * 99 + '"\n')
    assert said(path) == [f"{path}:2: longer than 100 bytes", f"{path}:4: longer than 100 bytes"]


def test_more_tasks_than_allowed_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "MOST_TASKS", 3)
    assert read_tasks(write(tmp_path / "t.jsonl", '"a"\n' * 3)).tasks
    assert said(write(tmp_path / "t.jsonl", '"a"\n' * 4)) == [f"{tmp_path}/t.jsonl: more than 3 tasks"]


def test_toml_tasks(tmp_path):
    path = write(tmp_path / "t.toml", '[[task]]\nname = "a"\nprompt = """\nx\n"""\n\n[[task]]\ndue = 2026-01-02\n')
    assert read_tasks(path).tasks == [
        Task("a", {"name": "a", "prompt": "x\n"}, f"{path}:1"),
        Task("2", {"due": "2026-01-02"}, f"{path}:7"),
    ]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("[[task]]\nx = \n", [":2: not TOML: Invalid value (at line 2, column 5)"]),
        ("", [": expected at least one [[task]]"]),
        ("task = 3", [": expected at least one [[task]]"]),
        ("[[task]]\nx = 1\n[[task]]\n[[task]]\nx = inf\n", [
            ":3: an empty task; expected at least one field", ":4: inf is no number that JSON has",
        ]),
        ("[[tasks]]\nx = 1\n[[task]]\nx = 2\n", [": unknown 'tasks'; expected only [[task]]"]),
        ('[[task]]\nx = """\n[[task]]\n"""\n[[task]]\n', [": task 2: an empty task; expected at least one field"]),
    ],
)  # fmt: skip
def test_broken_toml_is_named_by_its_line(tmp_path, text, problems):
    path = write(tmp_path / "t.toml", text)
    assert said(path) == [f"{path}{problem}" for problem in problems]


def recording(*events: dict) -> bytes:
    return gzip.compress("\n".join(json.dumps(event) for event in events).encode())


def test_a_folder_of_recordings_is_one_replay_each_and_says_what_it_left_out(tmp_path):
    write(tmp_path / "b.jsonl.gz", recording({"t": "2026", "type": "user", "content": "x"}))
    write(tmp_path / "a.jsonl.gz", recording({"t": "2026", "type": "user", "content": "x"}))
    write(tmp_path / "compactions.jsonl.gz", recording({"sid": "a", "summary": "s"}))
    write(tmp_path / "INDEX.json", "[]")
    found = read_tasks(tmp_path)
    assert found.kind == "recordings"
    assert [(task.name, task.fields["recording"]) for task in found.tasks] == [
        ("a", str(tmp_path / "a.jsonl.gz")),
        ("b", str(tmp_path / "b.jsonl.gz")),
    ]
    assert found.notes == (f"{tmp_path}/compactions.jsonl.gz: left out, it is no recorded session",)
    assert [task.name for task in read_tasks(tmp_path / "b.jsonl.gz").tasks] == ["b"]


def test_a_recording_that_cannot_be_unpacked_is_named(tmp_path):
    good = recording({"t": "2026", "type": "user", "content": "x" * 9999})
    write(tmp_path / "torn.jsonl.gz", good[: len(good) // 2])
    write(tmp_path / "text.jsonl.gz", "not packed")
    lines = said(tmp_path)
    assert [line.split(": ")[:2] for line in lines] == [
        [f"{tmp_path}/text.jsonl.gz", "cannot be unpacked"],
        [f"{tmp_path}/torn.jsonl.gz", "cannot be unpacked"],
    ]


def test_what_is_no_tasks_at_all_is_refused(tmp_path):
    assert "there is no such file or folder" in said(tmp_path / "missing.jsonl")[0]
    assert "expected a .jsonl or .toml file" in said(write(tmp_path / "t.yaml", "a: 1"))[0]
    assert said(write(tmp_path / "t.jsonl", "\n \n")) == [f"{tmp_path}/t.jsonl: no tasks"]
    (tmp_path / "empty").mkdir()
    assert "no recorded sessions" in said(tmp_path / "empty")[0]


def test_jobs_carry_their_task_as_json():
    jobs = jobs_of([Task("a", {"prompt": "ä"}, "t:1"), Task("b", {"n": 1}, "t:2")], "run-1", most_attempts=5)
    assert jobs == [
        Job("run-1", 0, "a", '{"prompt": "ä"}', most_attempts=5),
        Job("run-1", 1, "b", '{"n": 1}', most_attempts=5),
    ]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("review", "000003-review"),
        ("../../etc/passwd", "000003-etc-passwd"),
        ("a b/ä:c", "000003-a-b-c"),
        ("...", "000003-task"),
        ("x" * 200, "000003-" + "x" * 60),
    ],
)
def test_a_jobs_folder_is_readable_and_never_outside(name, folder):
    assert folder_name(Job("run-1", 3, name, "{}")) == folder
