"""`headgate provider` and `headgate serve` as processes of their own, for clients that are processes too."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = """
[store]
url = "sqlite:///headgate.sqlite"
[server]
listen = "127.0.0.1:0"
[[account]]
name = "claude"
provider = "anthropic"
base_url = "{provider}"
api_key = "env:PROVIDER_KEY"
models = ["claude-*"]
[[account]]
name = "gpt"
provider = "openai"
base_url = "{provider}/v1"
api_key = "env:PROVIDER_KEY"
models = ["gpt-*", "text-*"]
[[limit]]
scope = "account:*"
requests_per_minute = 6_000
usd_per_day = 1_000
slots = 20
"""
COMPARED = ("input_tokens", "output_tokens")


@dataclass
class Gateway:
    """A gateway that serves, the provider behind it, and a key for it."""

    url: str
    provider: str
    key: str

    def usage(self, by: str | None = None) -> Any:
        """Give what was used in all, or by something."""
        told = self._get(f"{self.url}/api/v1/usage" + (f"?group_by={by}" if by else ""))
        return told["groups"] if by else told["total"]

    def agrees_with_the_provider(self) -> None:
        """Compare the ledger's total with the provider's own books."""
        ours, theirs = self.usage(), self._get(f"{self.provider}/_provider/usage")["total"]
        assert {name: ours[name] for name in COMPARED} == {name: theirs[name] for name in COMPARED}

    def _get(self, url: str) -> Any:
        asked = urllib.request.Request(url, headers={"x-api-key": self.key})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return json.load(answer)


@contextmanager
def open_gateway(folder: Path) -> Iterator[Gateway]:
    """Serve until the block is left."""
    with _process(["provider", "--listen", "127.0.0.1:0", "--tool-calls"], folder) as provider:
        (folder / "headgate.toml").write_text(CONFIG.format(provider=provider))
        create = _headgate("keys", "create", "client")
        made = subprocess.run(create, cwd=folder, env=_ENVIRON, stdout=subprocess.PIPE, text=True, check=True)
        with _process(["serve"], folder) as url:
            yield Gateway(url, provider, made.stdout.strip())


_ENVIRON = {"PROVIDER_KEY": "sk-of-the-provider", "PATH": "/usr/bin:/bin"}


def _headgate(*words: str) -> list[str]:
    return [sys.executable, "-m", "headgate", *words]


@contextmanager
def _process(words: list[str], folder: Path) -> Iterator[str]:
    """Start a server; give the address that it prints when it is ready."""
    with (folder / f"{words[0]}.log").open("w+") as log:
        process = subprocess.Popen(
            _headgate(*words), cwd=folder, env=_ENVIRON, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            log.seek(0)
            assert "http://" in line, line + log.read()
            yield next(word for word in line.split() if word.startswith("http://"))
        finally:
            process.terminate()
            process.wait(30)
            process.stdout.close()
