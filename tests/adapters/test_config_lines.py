"""Where things stand in a TOML document. The rule: every path that `tomllib` reads has the line on which it begins."""

import tomllib
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from headgate.adapters.config.lines import TomlPath, find_lines

DOCUMENT = '''\
top.dotted."quoted key".'and this' = 1
"escaped \\u0041" = 2

[server] # a comment with [brackets] and = signs
text = """
listen = "a decoy"
[decoy]
quotes: \\""" and ""\\"\\
"""""
literal = \'\'\'
other = 'decoy' \'\'\'\'\'
empty = ""
when = 1979-05-27 07:32:00 # now

  [ server . sub ]
  list = [ # comment, ]
    1, "]", # two
    [2, 3],
    { inner = 'x', "deep".er = [4] },
  ]
[[limit]]
a = -1.5e3
[limit.nested]
b = {}
[[limit.many]]
[[limit.many]]
c = true
[[limit]]
a = [ ]
[[limit.many]]
c = 0xFF'''


def paths(value: object, path: TomlPath = ()) -> Iterator[TomlPath]:
    yield path
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from paths(entry, (*path, key))
    if isinstance(value, list):
        for index, entry in enumerate(value):
            yield from paths(entry, (*path, index))


def test_every_path_of_a_document_has_its_line() -> None:
    lines = find_lines(DOCUMENT)
    assert set(lines) == set(paths(tomllib.loads(DOCUMENT)))
    assert {path: line for path, line in lines.items() if path[:1] == ("limit",)} == {
        ("limit",): 21,
        ("limit", 0): 21,
        ("limit", 0, "a"): 22,
        ("limit", 0, "nested"): 23,
        ("limit", 0, "nested", "b"): 24,
        ("limit", 0, "many"): 25,
        ("limit", 0, "many", 0): 25,
        ("limit", 0, "many", 1): 26,
        ("limit", 0, "many", 1, "c"): 27,
        ("limit", 1): 28,
        ("limit", 1, "a"): 29,
        ("limit", 1, "many"): 30,
        ("limit", 1, "many", 0): 30,
        ("limit", 1, "many", 0, "c"): 31,
    }
    assert lines["top", "dotted", "quoted key", "and this"] == 1
    assert lines["escaped A",] == 2
    assert lines["server", "text"] == 5
    assert lines["server", "literal"] == 10
    assert lines["server", "when"] == 13
    assert lines["server", "sub", "list", 1] == 17
    assert lines["server", "sub", "list", 2, 1] == 18
    assert lines["server", "sub", "list", 3, "deep", "er", 0] == 19


def test_the_line_ends_of_any_system_count_alike() -> None:
    assert find_lines(DOCUMENT.replace("\n", "\r\n")) == find_lines(DOCUMENT)


def test_a_table_stands_where_its_own_header_is() -> None:
    assert find_lines("[a.b]\n[a]\nc = 1")["a",] == 2


VALUES = [
    "1",
    "'x'",
    '""',
    '"""\nk0 = 1\n[k1]\n"""',
    "'''\n[[k2]]'''",
    "[]",
    "[1,\n 2, # k3 =\n [\n]]",
    "1979-05-27 07:32:00",
    "{}",
    "{{ {key} = [1, {{ {key}.b = 2 }}] }}",
    '"\\" k4 = [ # "',
]
LINES = [
    "{key} = {value}",
    "  {key} . {key} = {value} # k5",
    '"{key}" = {value}',
    "[{key}]",
    "[{key}.{key}]",
    "[[{key}]]",
    "[[array]]",
    "[array.{key}]",
    "[[array.{key}]]",
    "# k6 = 1",
    "",
]


@given(st.lists(st.tuples(st.sampled_from(LINES), st.sampled_from(VALUES)), max_size=12))
def test_a_key_is_found_on_its_own_line_whatever_stands_around_it(rows: list[tuple[str, str]]) -> None:
    numbers = iter(range(1000))

    def fill(pattern: str, value: str = "") -> str:
        while "{key}" in pattern:
            pattern = pattern.replace("{key}", f"key{next(numbers)}", 1)
        return pattern.replace("{{", "{").replace("}}", "}").replace("{value}", value)

    text = "[[array]]\n" + "\n".join(fill(line, fill(value)) for line, value in rows)
    lines = find_lines(text)
    assert set(lines) == set(paths(tomllib.loads(text)))
    written = text.split("\n")
    for path, line in lines.items():
        keys = [part for part in path if isinstance(part, str)]
        if keys and isinstance(path[-1], str) and keys[-1] not in {"array", "b"}:
            assert keys[-1] in written[line - 1]


EDITS = st.tuples(
    st.floats(0, 1), st.integers(0, 3), st.sampled_from([*"[]{}=\".#,\n'", "\\", "a", "1", '"""', "k=1\n"])
)


@given(st.lists(EDITS, max_size=4))
def test_a_document_that_was_edited_at_random_keeps_its_lines_while_it_is_valid(
    edits: list[tuple[float, int, str]],
) -> None:
    text = DOCUMENT
    for where, removed, inserted in edits:
        at = int(where * len(text))
        text = text[:at] + inserted + text[at + removed :]
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(find_lines(text)) == set(paths(data))
