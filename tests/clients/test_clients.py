"""Real agents and client libraries, each with a tool call and its result, through the gateway and back.

`make clients` installs them, pinned, into `.clients`; what is not there is skipped. No credential or configuration of
this machine is read: every one of them has a home of its own.
"""

import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from real_gateway import open_gateway

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".clients"
PYTHON = CLIENTS / "py" / "bin" / "python"
SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*_client.py"))
TIMEOUT_S = 120


def environment(home: Path, **more: str) -> dict[str, str]:
    keep = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return {**keep, "HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "NO_PROXY": "*", **more}


def run_client(command: list[str], environ: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        command,
        env=environ,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    return done.stdout


@contextmanager
def at_work(tmp_path: Path):
    (home := tmp_path / "home").mkdir()
    (folder := tmp_path / "work").mkdir()
    with open_gateway(tmp_path) as gateway:
        yield gateway, home, folder


def agent(name: str) -> str:
    path = CLIENTS / "node_modules" / ".bin" / name
    if not path.exists() or shutil.which("node") is None:
        pytest.skip(f"{name} is not installed: run `make clients`")
    return str(path)


def lines_of(printed: str) -> list[dict]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def test_claude_code(tmp_path):
    command = [agent("claude"), "--bare", "-p", "read a file", "--tools", "Read", "--output-format", "stream-json"]
    with at_work(tmp_path) as (gateway, home, folder):
        environ = environment(
            home,
            CLAUDE_CONFIG_DIR=str(home / "claude"),
            ANTHROPIC_BASE_URL=gateway.url,
            ANTHROPIC_API_KEY=gateway.key,
            CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        )
        said = lines_of(run_client([*command, "--verbose"], environ, folder))
        parts = [part for line in said if "message" in line for part in line["message"]["content"]]
        assert [part["type"] for part in parts if part["type"].startswith("tool")] == ["tool_use", "tool_result"]
        assert said[-1]["subtype"] == "success"
        total, sessions = gateway.usage(), gateway.usage("session")
        assert total["requests"] == said[-1]["num_turns"] == 2
        assert [row["session"] for row in sessions] == [said[-1]["session_id"]]
        assert total == gateway.usage()
        gateway.agrees_with_the_provider()


def test_codex(tmp_path):
    command = [agent("codex"), "exec", "--json", "--skip-git-repo-check", "--sandbox", "read-only", "say hi"]
    with at_work(tmp_path) as (gateway, home, folder):
        (codex := home / "codex").mkdir()
        (codex / "config.toml").write_text(
            'model = "gpt-5"\nmodel_provider = "headgate"\n[model_providers.headgate]\nname = "Headgate"\n'
            f'base_url = "{gateway.url}/v1"\nenv_key = "HEADGATE_KEY"\nwire_api = "responses"\n'
        )
        environ = environment(home, CODEX_HOME=str(codex), HEADGATE_KEY=gateway.key)
        said = lines_of(run_client(command, environ, folder))
        kinds = [line["item"]["type"] for line in said if line["type"] == "item.completed"]
        assert "command_execution" in kinds
        assert kinds[-1] == "agent_message"
        told = next(line["usage"] for line in said if line["type"] == "turn.completed")
        total = gateway.usage()
        assert total["requests"] == 2
        assert total["output_tokens"] == told["output_tokens"]
        gateway.agrees_with_the_provider()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem.removesuffix("_client"))
def test_library(tmp_path, script):
    if not PYTHON.exists():
        pytest.skip(f"{script.stem} is not installed: run `make clients`")
    with at_work(tmp_path) as (gateway, home, folder):
        environ = environment(home, GATEWAY=gateway.url, HEADGATE_KEY=gateway.key, LITELLM_LOCAL_MODEL_COST_MAP="True")
        run_client([str(PYTHON), str(script)], environ, folder)
        assert gateway.usage()["failed"] == 0
        gateway.agrees_with_the_provider()
