"""`headgate accounts`: what it prints, and what it says where no gateway answers."""

import json

import pytest

from headgate.cli.account_table import show_accounts
from headgate.core.errors import CallerError

CONFIG = """
[store]
url = "sqlite:///headgate.sqlite"
[server]
listen = "127.0.0.1:1"
[[account]]
name = "one"
provider = "anthropic"
api_key = "env:NOBODY_SETS_THIS"
models = ["claude-*"]
[[limit]]
scope = "account:one"
requests_per_minute = 600
tokens_per_5h = 1_000_000
"""
TOLD = {
    "at": "2026-12-01T00:00:00.000Z",
    "accounts": [
        {
            "account": "one", "provider": "anthropic", "models": ["claude-*"], "overage": False, "soft_ceiling": 1.0,
            "health": "out", "why": "its provider refuses its key (401 authentication_error); tried again in 9 s",
            "circuits": [], "in_flight": 3, "lately": {"requests": 1_200, "failed": 2, "refused": 0},
            "headroom": [
                {
                    "limit": "account:one claude-sonnet-4* output_tokens rate-60s", "models": "claude-sonnet-4*",
                    "dimension": "output_tokens", "per": "60s", "free_share": 0.42, "free": 42, "amount": 100,
                }
            ],
            "plans": [
                {"period_s": 18_000, "models": None, "used": 0.31, "line": 0.4, "behind": 0.09},
                {"period_s": 604_800, "models": None, "used": 0.61, "line": 0.4, "behind": -0.21},
            ],
        }
    ],
    "choices": [
        {
            "at": "2026-12-01T10:41:07.000Z", "call_id": "x.1", "model": "claude-opus-4-6", "account": "two",
            "why": "it is the only one that can serve the call now", "left": "one",
            "others": [{"account": "one", "why": "it is closed for another 9 s"}],
        }
    ],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    (tmp_path / "headgate.toml").write_text(CONFIG)
    return tmp_path


def test_without_a_gateway_the_store_is_read_and_that_is_said(folder, capsys):
    show_accounts(None, None, as_json=True)
    said = capsys.readouterr()
    told = json.loads(said.out)
    (one,) = told["accounts"]
    assert (one["account"], one["health"], one["in_flight"]) == ("one", None, 0)
    assert {row["dimension"] for row in one["headroom"]} == {"requests", "tokens"}
    assert (told["choices"], one["circuits"]) == (None, None)
    assert "health and choices are not known: no gateway answers: 127.0.0.1:1" in said.err
    show_accounts(None, None, as_json=False)
    assert "one (anthropic)" in capsys.readouterr().out


def test_a_port_that_the_system_chose_is_not_known(folder, capsys):
    """It said that no gateway answers at port 80, which nobody had named."""
    (folder / "headgate.toml").write_text(CONFIG.replace("127.0.0.1:1", "127.0.0.1:0"))
    show_accounts(None, None, as_json=True)
    said = capsys.readouterr()
    assert json.loads(said.out)["accounts"][0]["account"] == "one"
    assert "leaves the gateway's port to the system; name it with --gateway URL" in said.err
    assert ":80" not in said.err


def test_a_gateway_that_was_named_and_does_not_answer_is_an_error(folder):
    with pytest.raises(CallerError, match=r"--gateway http://127\.0\.0\.1:1: no gateway answers"):
        show_accounts(None, "http://127.0.0.1:1", as_json=False)
    with pytest.raises(CallerError, match="--gateway"):
        show_accounts(None, "what", as_json=False)


@pytest.mark.parametrize("has_other_accounts", [False, True])
def test_what_a_gateway_tells_is_printed_if_it_is_ours(folder, capsys, monkeypatch, has_other_accounts):
    async def ask(*_asked):
        accounts = [{**TOLD["accounts"][0], "account": "two"}] if has_other_accounts else TOLD["accounts"]
        return {**TOLD, "accounts": accounts}, ""

    monkeypatch.setattr("headgate.cli.account_table.ask_gateway", ask)
    show_accounts(None, None, as_json=False)
    said = capsys.readouterr()
    if has_other_accounts:
        assert "the gateway at http://127.0.0.1:1 has other accounts" in said.err
        return
    lines = said.out.splitlines()
    assert "claude-sonnet-4* output tokens/min" in lines[1]
    assert "7 d: 61 % used, 21 % ahead of its line" in lines[1]
    assert lines[2].startswith("one: its provider refuses its key (401 authentication_error)")
    assert lines[3] == (
        "10:41:07 claude-opus-4-6 -> two (it waited for one): it is the only one that can serve the call now; "
        "not one: it is closed for another 9 s"
    )
