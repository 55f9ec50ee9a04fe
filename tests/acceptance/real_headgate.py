"""Headgate as its users have it: real processes from the command line, and what they and the provider say.

One rule: nothing sleeps for a fixed time; a process is known by its lines, its answers and its end, within a bound.
"""

import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HEADGATE = (sys.executable, "-m", "headgate")
ENVIRON = {**os.environ, "PROVIDER_KEY": "sk-planted-provider-secret"}
WITHIN_S = 60.0
LOOK_EVERY_S = 0.01
"""The pause between two looks at another process, which would otherwise have to share its core."""

CATEGORIES = (
    "input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
)

CONFIG = """
[store]
url = "sqlite:///headgate.sqlite"
[[account]]
name = "main"
provider = "anthropic"
base_url = "{provider}"
api_key = "env:PROVIDER_KEY"
reconcile = true
[[price]]
model = "claude-*"
input = 3
output = 15
{more}
"""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Process:
    """A command that runs; its words are kept in files, so that no pipe can fill up."""

    popen: subprocess.Popen[bytes]
    said_path: Path
    complained_path: Path
    url: str = ""

    @property
    def said(self) -> str:
        return self.said_path.read_text()

    @property
    def complained(self) -> str:
        return self.complained_path.read_text()

    @property
    def runs(self) -> bool:
        return self.popen.poll() is None

    def kill(self) -> None:
        """End it and all its children as a machine that goes down does."""
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(WITHIN_S)

    def terminate(self) -> None:
        self.popen.terminate()

    def hang_up(self) -> None:
        self.popen.send_signal(signal.SIGHUP)

    def ended(self, within_s: float = WITHIN_S) -> int:
        return self.popen.wait(within_s)


@dataclass
class Bench:
    """A folder with a configuration, and the processes that a test started; all are gone when the test ends."""

    folder: Path
    started: list[Process] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.folder / "headgate.toml"

    def configure(self, provider: str, more: str = "") -> None:
        self.config.write_text(CONFIG.format(provider=provider, more=more))

    def start(self, *arguments: str, config: bool = True) -> Process:
        number = len(self.started)
        said, complained = self.folder / f"{number}.said", self.folder / f"{number}.complained"
        configured = ("--config", str(self.config)) if config else ()
        head, separator, command = _split(arguments)
        with said.open("wb") as out, complained.open("wb") as err:
            popen = subprocess.Popen(
                [*HEADGATE, *head, *configured, *separator, *command],
                stdout=out,
                stderr=err,
                env=ENVIRON,
                cwd=self.folder,
                start_new_session=True,
            )
        process = Process(popen, said, complained)
        self.started.append(process)
        return process

    def serve(self, *arguments: str) -> Process:
        """Start a gateway and wait until it says that it is ready."""
        return self._ready(self.start("serve", "--listen", "127.0.0.1:0", *arguments), " serving ")

    def provider(self, *arguments: str) -> Process:
        """Start a simulated provider and wait until it says that it is ready."""
        return self._ready(self.start("provider", "--listen", "127.0.0.1:0", *arguments, config=False), " at ")

    def ask(self, *arguments: str) -> Any:
        """Give the answer of a short command as JSON."""
        process = self.start(*arguments, "--json")
        assert process.ended() == 0, process.complained
        return json.loads(process.said)

    def select(self, query: str) -> list[dict[str, Any]]:
        """Read the store itself, past Headgate."""
        with closing(sqlite3.connect(self.folder / "headgate.sqlite", timeout=WITHIN_S)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query)]

    def clear(self) -> None:
        for process in self.started:
            if process.runs:
                process.kill()

    def _ready(self, process: Process, before_url: str) -> Process:
        wait_until(lambda: process.said.endswith("\n") or not process.runs)
        assert before_url in process.said, process.complained
        process.url = process.said.split(before_url)[1].split()[0]
        return process


@contextmanager
def bench_in(folder: Path) -> Iterator[Bench]:
    bench = Bench(folder)
    try:
        yield bench
    finally:
        bench.clear()


def wait_until(condition: Callable[[], object], within_s: float = WITHIN_S) -> None:
    """Look again and again; what is looked at belongs to another process and has no event here."""
    give_up_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_s, f"it did not happen within {within_s:g} s"
        time.sleep(LOOK_EVERY_S)


def send(url: str, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=WITHIN_S)) as connection:
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        return Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read())


def counted(provider: Process) -> dict[str, Any]:
    """Give the provider's own total."""
    total: dict[str, Any] = send(provider.url, "GET", "/_provider/usage").json()["total"]
    return total


def differences(bench: Bench, provider: Process) -> list[str]:
    """Compare the ledger with the provider's books, call by call and in all; empty when they are equal.

    A row that was refused, or whose process was killed before its call left, has no request at the provider and no
    usage; a request may have been sent twice under one id, on a connection that was found closed.
    """
    rows = bench.select(f"SELECT id, state, {', '.join(CATEGORIES)} FROM attempts")
    found: list[str] = []
    requests = 0
    for row in rows:
        answer = send(provider.url, "GET", f"/_provider/calls/{row['id']}")
        calls = [answer.json(), *answer.json().get("earlier", ())] if answer.status == 200 else []
        requests += len(calls)
        kept = {name: row[name] for name in CATEGORIES}
        told = {name: sum(call["usage"][name] for call in calls) for name in CATEGORIES}
        unsent = row["state"] in {"reconciled", "refused"}
        if kept != told or row["state"] in {"in_flight", "lost"} or (not calls and not unsent):
            found.append(f"{row}: the provider knows {told} in {len(calls)} requests")
    total = counted(provider)
    sums: dict[str, int] = {name: sum(row[name] for row in rows) for name in CATEGORIES}
    sums["requests_received"] = requests
    found += [f"{name}: {sums[name]} here, {total[name]} there" for name in sums if sums[name] != total[name]]
    return found


def _split(arguments: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    if "--" not in arguments:
        return arguments, (), ()
    at = arguments.index("--")
    return arguments[:at], ("--",), arguments[at + 1 :]
