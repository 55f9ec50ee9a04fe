"""Headgate's own commands as real processes, as a user starts them: a simulated provider, and a fleet's runner.

One rule: what is known of them is what they print and answer and what stands in their store; nothing is called inside.
"""

import http.client
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HEADGATE = (sys.executable, "-m", "headgate")
KEY_VARIABLE = "HEADGATE_BENCH_KEY"

_END_WITHIN_S = 20
_ASK_WITHIN_S = 30


class ProcessError(Exception):
    """A process did not do what it was started for."""


@dataclass(frozen=True, slots=True)
class Provider:
    """A simulated provider that runs."""

    url: str
    _connection: http.client.HTTPConnection

    def usage(self) -> dict[str, Any]:
        """What it counted."""
        return self._get("/_provider/usage")

    def call(self, call_id: str) -> dict[str, Any] | None:
        """What became of a call; None if it never came."""
        found = self._get(f"/_provider/calls/{call_id}")
        return None if "error" in found else found

    def received(self) -> int:
        return int(self.usage()["total"]["requests_received"])

    def _get(self, path: str) -> dict[str, Any]:
        try:
            return self._answer(path)
        except (http.client.RemoteDisconnected, ConnectionError):  # it closes what was idle for long
            self._connection.close()
            return self._answer(path)

    def _answer(self, path: str) -> dict[str, Any]:
        self._connection.request("GET", path)
        found: dict[str, Any] = json.loads(self._connection.getresponse().read())
        return found


@contextmanager
def provider_process(*options: str) -> Iterator[Provider]:
    """Run `headgate provider` on a free port until the block is left."""
    command = [*HEADGATE, "provider", "--listen", "127.0.0.1:0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if " at http://" not in line:
                raise ProcessError(f"{' '.join(command)} said {line!r}")
            url = line.split(" at ")[1].strip()
            with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=_ASK_WITHIN_S)) as connection:
                yield Provider(url, connection)
        finally:
            process.terminate()
            try:
                process.wait(_END_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()


class Runner:
    """`headgate run` or `resume` in a process group of its own; its words go to files beside the store."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._said, self._complained = folder / "said", folder / "complained"
        with self._said.open("wb") as said, self._complained.open("ab") as complained:
            self._process = subprocess.Popen(
                [*HEADGATE, *arguments, "--json", "--config", str(folder / "headgate.toml")],
                stdout=said,
                stderr=complained,
                start_new_session=True,
                env={**os.environ, KEY_VARIABLE: "sk-simulated"},
            )

    def runs(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End it and all its children with -9, as a machine that goes down does."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_END_WITHIN_S)

    def report(self, within_s: float) -> dict[str, Any]:
        """Wait for its end and give its report."""
        try:
            code = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"the runner did not end within {within_s:.0f} s") from None
        if code != 0:
            raise ProcessError(f"the runner ended with {code}: {self.complaints()[-2000:]}")
        found: dict[str, Any] = json.loads(self._said.read_text())
        return found

    def complaints(self) -> str:
        return self._complained.read_text()

    def close(self) -> None:
        if self.runs():
            self.kill()


def ask_headgate(folder: Path, *arguments: str) -> dict[str, Any]:
    """Give the JSON answer of a short command."""
    done = subprocess.run(
        [*HEADGATE, *arguments, "--json", "--config", str(folder / "headgate.toml")],
        capture_output=True,
        text=True,
        timeout=_ASK_WITHIN_S,
        check=False,
        env={**os.environ, KEY_VARIABLE: "sk-simulated"},
    )
    if done.returncode != 0:
        raise ProcessError(f"headgate {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def select(folder: Path, query: str, values: Sequence[object] = ()) -> list[dict[str, Any]]:
    """Read rows of the store itself, past Headgate."""
    with closing(sqlite3.connect(folder / "headgate.sqlite", timeout=_ASK_WITHIN_S)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query, values)]


def wait_until_received(provider: Provider, runner: Runner, requests: int) -> bool:
    """Wait until the provider has received so many requests; False if the runner ended before."""
    while runner.runs():
        if provider.received() >= requests:
            return True
        time.sleep(0.02)
    return False
