"""The examples run as they stand in the repository, and the README's library example is one of them."""

import asyncio
import re
import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"
CONFIG = """
[store]
url = "sqlite:///headgate.sqlite"
[[account]]
name = "main"
provider = "anthropic"
api_key = "env:EXAMPLE_KEY"
[[limit]]
scope = "account:main"
requests_per_minute = 50
[[limit]]
scope = "run:*"
usd_per_lifetime = 1
"""


def test_the_library_example(tmp_path, monkeypatch, capsys):
    (tmp_path / "headgate.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXAMPLE_KEY", "sk-example")
    asyncio.run(runpy.run_path(str(EXAMPLES / "library.py"))["main"]())
    said = capsys.readouterr().out
    assert "on account main: an answer to" in said
    assert "run:example micro_usd: 605 used" in said


def test_the_library_in_the_readme_is_python_that_the_example_has_too():
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]
    example = (EXAMPLES / "library.py").read_text(encoding="utf-8")
    compile(shown, "README.md", "exec")
    for name in re.findall(r"open_manager|manager\.admit|grant\.settle|max_output_tokens|Scopes\(run=", shown):
        assert name in example
